"""The only module that imports TensorRT, and the home of every difference between its flavours and versions.

Three flavours share one Python API: TensorRT 10 and 11 (``tensorrt``), TensorRT-RTX (``tensorrt_rtx``) and the lean
runtime (``tensorrt_lean``: no builder, no parser). :data:`BRANCHES` lists everything that only some of them take; all
else is one path. Nothing above this module sees a TensorRT class: it gets bytes, numbers and the small classes below.
"""

from __future__ import annotations

import importlib
import json
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any

from vimdeploy.artifacts.tensors import Profile, Tensor
from vimdeploy.errors import MissingDependencyError
from vimdeploy.tensorrt.boundary import Built, Config, Layer, Messages, ParseProblem, Progress
from vimdeploy.tensorrt.translate import runtime_error

if TYPE_CHECKING:
    import tensorrt as trt


class Flavour(str, Enum):
    """Which TensorRT: the values are what ``--runtime`` takes."""

    TENSORRT = "tensorrt"
    RTX = "rtx"
    LEAN = "lean"


@dataclass(frozen=True)
class Branch:
    """One difference: ``where`` is the function below that holds it, the rest says what each flavour does."""

    where: str
    tensorrt10: str
    tensorrt11: str
    rtx: str


_SAME = "as TensorRT 10"
BRANCHES: tuple[Branch, ...] = (
    Branch("TensorRt", "api goes to plugin.load_library before a parse", _SAME, "takes no plugins: functions inlined"),
    Branch("_set_target", "the GPU of this machine", _SAME, "a list of compute capabilities, no GPU needed"),
    Branch("_set_portability", "version- and hardware-compatible plans, plugins inside", _SAME, "never called"),
    Branch("TimingCache", "kept between builds", _SAME, "nothing is timed ahead of time"),
    Branch("_host_code", "a version-compatible plan may bring code", _SAME, "never called"),
)
"""The branches that only some flavours take. tests/tensorrt/test_trt_api.py holds them to the real bindings of each."""

_PACKAGES = {Flavour.TENSORRT: "tensorrt", Flavour.RTX: "tensorrt_rtx", Flavour.LEAN: "tensorrt_lean"}
_REMEDIES = {
    Flavour.TENSORRT: "Install it with: pip install tensorrt cuda-bindings (needs an NVIDIA driver). Without it, "
    "'vimdeploy build-engine --runtime rtx --compute-capability sm_89' builds ahead of time on any machine, and "
    "ONNX Runtime runs the ONNX file as it is.",
    Flavour.RTX: "Install it with: pip install tensorrt-rtx cuda-bindings. ONNX Runtime runs the ONNX file as it is.",
    Flavour.LEAN: "Install it with: pip install tensorrt-lean-cu13",
}


def installed_version(flavour: Flavour | str) -> str | None:
    """Return the version of one flavour, or None where it cannot be imported here."""
    module, _ = _import(Flavour(flavour))
    return None if module is None else str(module.__version__)


@cache
def load(flavour: Flavour | str) -> TensorRt:
    """Import one flavour; MissingDependencyError, with the remedy, where it is missing or does not load."""
    flavour = Flavour(flavour)
    module, reason = _import(flavour)
    if module is None:
        name = {"rtx": "TensorRT-RTX", "lean": "TensorRT's lean runtime"}.get(flavour.value, "TensorRT")
        raise MissingDependencyError(f"{name} cannot be used on this machine: {reason}.", hint=_REMEDIES[flavour])
    return TensorRt(flavour, module)


def _import(flavour: Flavour) -> tuple[Any, str]:
    package = _PACKAGES[flavour]
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError:
        return None, f"the Python package '{package}' is not installed"
    except (ImportError, OSError) as error:
        return None, f"the package '{package}' is installed but does not load ({error})"
    if not hasattr(module, "Runtime"):  # a folder of type stubs imports as an empty namespace package
        return None, f"the Python package '{package}' is not installed (only type stubs are)"
    return module, ""


class TensorRt:
    """One imported flavour. Methods return plain data or the small wrappers below."""

    def __init__(self, flavour: Flavour, api: Any) -> None:
        self.flavour = flavour
        self.api = api
        self._log = log_of(api)
        self.version: str = str(api.__version__)
        self.major = int(self.version.split(".")[0])

    @property
    def takes_plugins(self) -> bool:
        """Whether custom ops can be plugins here; otherwise their functions are inlined."""
        return self.flavour is not Flavour.RTX

    @property
    def known_compute_capabilities(self) -> tuple[str, ...]:
        """What ``--compute-capability`` may name, as ``sm_89``; empty where a plan is always for the GPU at hand."""
        members = getattr(self.api, "ComputeCapability", None)
        return tuple(f"sm_{n[2:]}" for n in members.__members__ if n.startswith("SM")) if members else ()

    @property
    def knows_same_compute_capability(self) -> bool:
        """Whether plans can be made for every GPU of this one's compute capability."""
        return hasattr(self.api.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY")

    def parse(self, model: bytes, messages: Messages) -> tuple[Network | None, list[ParseProblem]]:
        """Parse a serialised ONNX model into a strongly typed network; None and the problems where that fails."""
        logger = self._log.heard_by(messages)
        builder: trt.Builder = self.api.Builder(logger)
        typed = 1 << int(self.api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        definition: trt.INetworkDefinition = builder.create_network(typed)
        parser: trt.OnnxParser = self.api.OnnxParser(definition, logger)
        if not parser.parse(model):
            errors = [parser.get_error(i) for i in range(parser.num_errors)]
            return None, [ParseProblem(e.code().name, e.desc(), e.node_name(), e.node_operator()) for e in errors]
        return Network(self, builder, definition, (parser, messages)), []

    def runtime(self, messages: Messages, *, host_code: bool = False) -> Runtime:
        """Return a runtime; ``host_code`` admits version-compatible plans, which bring code of their own."""
        runtime: trt.Runtime = self.api.Runtime(self._log.heard_by(messages))
        _host_code(runtime, host_code)
        return Runtime(self, runtime, messages)


class Network:
    """A parsed network, with the builder and parser that own its memory."""

    def __init__(self, owner: TensorRt, builder: Any, definition: Any, alive: tuple[Any, ...]) -> None:
        self._owner = owner
        self._builder: trt.Builder = builder
        self._definition: trt.INetworkDefinition = definition
        self._alive = alive

    def tensors(self) -> list[Tensor]:
        """Return the inputs, then the outputs."""
        n = self._definition
        inputs = [_tensor(n.get_input(i), is_input=True) for i in range(n.num_inputs)]
        return inputs + [_tensor(n.get_output(i), is_input=False) for i in range(n.num_outputs)]

    def layers(self) -> list[Layer]:
        """Return every layer. Strong typing makes these dtypes the engine's."""
        return [_layer(self._owner.api, self._definition.get_layer(i)) for i in range(self._definition.num_layers)]

    def build(self, config: Config, progress: Progress | None = None) -> Built:
        """Build a plan. Blocks; the interpreter lock is free meanwhile, so that other threads can cancel it."""
        api = self._owner.api
        options: trt.IBuilderConfig = self._builder.create_builder_config()
        monitor = None if progress is None else _monitor(api, progress)
        if monitor is not None:
            options.progress_monitor = monitor
        options.profiling_verbosity = api.ProfilingVerbosity.DETAILED
        if config.optimization_level is not None:
            options.builder_optimization_level = config.optimization_level
        if config.workspace is not None:
            options.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, config.workspace)
        if not config.tf32:  # TensorRT's default, which rounds the inputs of float32 products to 10 bits
            options.clear_flag(api.BuilderFlag.TF32)
        _set_target(api, options, config.compute_capabilities)
        _set_portability(api, options, config)
        cache = None if config.timing_cache is None else TimingCache(options, config.timing_cache)
        for shapes in config.profiles:
            profile: trt.IOptimizationProfile = self._builder.create_optimization_profile()
            for name, (least, best, most) in shapes.items():
                profile.set_shape(name, least, best, most)
            if options.add_optimization_profile(profile) < 0:
                return Built(None, bad_profile=True)
        plan: trt.IHostMemory | None = self._builder.build_serialized_network(self._definition, options)
        return Built(None if plan is None else bytes(memoryview(plan)), cache)


class TimingCache:
    """Measured kernel times, kept between builds. TensorRT refuses one of another GPU or version, and a broken one."""

    def __init__(self, options: trt.IBuilderConfig, data: bytes) -> None:
        self._options = options
        stored: trt.ITimingCache | None = options.create_timing_cache(data)
        self.refused = stored is None or not options.set_timing_cache(stored, False)
        if stored is None or self.refused:
            stored = options.create_timing_cache(b"")
            options.set_timing_cache(stored, False)
        self._cache = stored

    def merged(self, stored: bytes) -> bytes:
        """Return the cache as it is after the build, with what ``stored`` has besides, where TensorRT takes that."""
        if stored:
            other: trt.ITimingCache | None = self._options.create_timing_cache(stored)
            if other is not None:
                self._cache.combine(other, False)
        return bytes(memoryview(self._cache.serialize()))


class Runtime:
    """Deserialises plans."""

    def __init__(self, owner: TensorRt, runtime: trt.Runtime, messages: Messages) -> None:
        self.owner = owner
        self.messages = messages
        self._runtime = runtime

    def engine(self, plan: bytes) -> Engine | None:
        """Deserialise a plan; None where TensorRT refuses (its messages say why)."""
        engine: trt.ICudaEngine | None = self._runtime.deserialize_cuda_engine(plan)
        return None if engine is None else Engine(self, engine)


class Engine:
    """A deserialised plan."""

    def __init__(self, runtime: Runtime, engine: trt.ICudaEngine) -> None:
        self._owner = runtime.owner
        self._runtime = runtime
        self._engine = engine

    def tensors(self) -> list[Tensor]:
        """Return inputs and outputs in the plan's order."""
        e, mode = self._engine, self._owner.api.TensorIOMode
        names = [e.get_tensor_name(i) for i in range(e.num_io_tensors)]
        return [
            Tensor(n, _dtype(e.get_tensor_dtype(n)), tuple(e.get_tensor_shape(n)), e.get_tensor_mode(n) == mode.INPUT)
            for n in names
        ]

    def profiles(self) -> list[Profile]:
        """Return the shapes that each optimisation profile admits."""
        inputs = [t.name for t in self.tensors() if t.is_input]
        return [{name: self._shapes(name, i) for name in inputs} for i in range(self._engine.num_optimization_profiles)]

    def _shapes(self, name: str, index: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        least, best, most = (tuple(int(d) for d in s) for s in self._engine.get_tensor_profile_shape(name, index))
        return least, best, most

    def inspect(self) -> dict[str, Any]:
        """Return the engine inspector's JSON: the layers after fusion, with formats and tactics."""
        inspector: trt.EngineInspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(self._owner.api.LayerInformationFormat.JSON)
        report: dict[str, Any] = json.loads(text)
        return report

    def context_bytes(self) -> int:
        """Return how much device memory an execution context works in, at most."""
        return int(self._engine.device_memory_size_v2)

    def context(self, memory: int) -> Context:
        """Create an execution context. Contexts are not thread-safe: one per thread.

        Args:
            memory: device address of :meth:`context_bytes` bytes, aligned to 256; 0 where none are needed. Contexts
                that never run at the same time may share it. The caller keeps it as long as the context.

        Raises:
            VimdeployError: TensorRT could not make one; its own words are in the message.

        """
        mark = self._runtime.messages.mark()
        strategy = self._owner.api.ExecutionContextAllocationStrategy.USER_MANAGED
        context: trt.IExecutionContext | None = self._engine.create_execution_context(strategy)
        if context is None:
            raise runtime_error("creating an execution context", self._runtime.messages.own_since(mark))
        context.set_device_memory(memory, self.context_bytes())
        # Plans keep the details of their layers for the inspector; naming each one to a profiler at every launch costs.
        context.nvtx_verbosity = self._owner.api.ProfilingVerbosity.NONE
        return Context(context, self._runtime.messages)


class Context:
    """An execution context: shapes, addresses, enqueue."""

    def __init__(self, context: trt.IExecutionContext, messages: Messages) -> None:
        self._context = context
        self._messages = messages
        self._mark = 0

    def complaints(self) -> list[str]:
        """Return what TensorRT and the plugins said about the last call, where that failed."""
        return self._messages.own_since(self._mark)

    def set_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Set the shape of an input; False where the profile does not admit it."""
        self._mark = self._messages.mark()
        return bool(self._context.set_input_shape(name, shape))

    def bind(self, name: str, address: int) -> bool:
        """Set the device address of an input or output."""
        self._mark = self._messages.mark()
        return bool(self._context.set_tensor_address(name, address))

    def enqueue(self, stream: int) -> bool:
        """Launch on a CUDA stream, asynchronously."""
        self._mark = self._messages.mark()
        return bool(self._context.execute_async_v3(stream))


class Log:
    """The one logger of a flavour, which tells whoever listens.

    TensorRT keeps the first logger that it is ever given as its global one and writes through it from wherever no other
    is at hand, so a logger must live as long as the process. Listeners may come and go.
    """

    def __init__(self, api: Any) -> None:
        self._lock = threading.Lock()
        self._listeners: weakref.WeakSet[Messages] = weakref.WeakSet()

        class Logger(api.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                api.ILogger.__init__(self)

            def log(this, severity: Any, msg: str) -> None:  # noqa: N805  # self is the hub
                self.tell(severity.name.lower(), msg)

        self._logger = Logger()

    def heard_by(self, messages: Messages) -> Any:
        """Return the logger, to be given to TensorRT; ``messages`` hears it as long as somebody holds them."""
        with self._lock:
            self._listeners.add(messages)
        return self._logger

    def tell(self, severity: str, text: str) -> None:
        """Pass a line on to every listener."""
        with self._lock:
            listeners = list(self._listeners)
        for messages in listeners:
            messages.add(severity, text)


_LOGS: dict[str, Log] = {}
_LOGS_LOCK = threading.Lock()


def log_of(api: Any) -> Log:
    """Return the log of a TensorRT module, the same for the life of the process."""
    with _LOGS_LOCK:
        if api.__name__ not in _LOGS:
            _LOGS[api.__name__] = Log(api)
        return _LOGS[api.__name__]


def _monitor(api: Any, progress: Progress) -> Any:
    class Monitor(api.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()


def _set_target(api: Any, options: Any, compute_capabilities: tuple[str, ...]) -> None:
    if not compute_capabilities:
        return
    options.num_compute_capabilities = len(compute_capabilities)
    for index, name in enumerate(compute_capabilities):
        options.set_compute_capability(getattr(api.ComputeCapability, name.upper().replace("_", "")), index)


def _set_portability(api: Any, options: trt.IBuilderConfig, config: Config) -> None:
    if config.version_compatible:
        options.set_flag(api.BuilderFlag.VERSION_COMPATIBLE)
    if config.hardware_compatible:
        options.hardware_compatibility_level = api.HardwareCompatibilityLevel.AMPERE_PLUS
    elif config.same_compute_capability:
        options.hardware_compatibility_level = api.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    if config.embed_plugins:
        options.plugins_to_serialize = list(config.embed_plugins)


def _host_code(runtime: trt.Runtime, allowed: bool) -> None:
    if allowed:
        runtime.engine_host_code_allowed = True


def _tensor(tensor: trt.ITensor, *, is_input: bool) -> Tensor:
    return Tensor(tensor.name, _dtype(tensor.dtype), tuple(int(d) for d in tensor.shape), is_input)


_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
_COMPUTE = ("MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION", "EINSUM", "PLUGIN_V3")


def _dtype(dtype: trt.DataType) -> str:
    name: str = dtype.name
    return _DTYPES.get(name, name.lower())


def _layer(api: Any, layer: trt.ILayer) -> Layer:
    kind = layer.type.name
    output: trt.ITensor | None = layer.get_output(0) if layer.num_outputs else None  # a loop's trip limit has none
    return Layer(
        name=layer.name,
        kind=kind.lower(),
        dtype="" if output is None else _dtype(output.dtype),
        compute=kind in _COMPUTE,
        plugin=kind == "PLUGIN_V3",
        weight_bytes=sum(w.nbytes for w in _weights(api, layer, kind)),
    )


def _weights(api: Any, layer: Any, kind: str) -> Iterator[Any]:
    """Yield the weight arrays a layer owns. The bindings hand out the base class: the subclass has to be claimed."""
    if kind == "CONSTANT":
        layer.__class__ = api.IConstantLayer
        yield layer.weights
    elif kind in ("CONVOLUTION", "DECONVOLUTION"):
        layer.__class__ = api.IConvolutionLayer if kind == "CONVOLUTION" else api.IDeconvolutionLayer
        yield layer.kernel
