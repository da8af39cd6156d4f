"""What the double of TensorRT's API does not say by its types: lifetimes, order, memory, and who hears what.

:func:`strict` takes a module made by :func:`trt_double.double` and gives its runtime classes the behaviour of the real
ones: the first logger of a process is written through for ever, a context without shapes, addresses or memory does not
launch, and every refusal is an error in the log and a False.
"""

from __future__ import annotations

import json
import types
import weakref
from collections.abc import Callable
from typing import Any

TENSORS = {"images": True, "logits": False}
WORKING_BYTES = 1 << 20
PROFILE = ((1, 3, 4, 4), (2, 3, 4, 4), (4, 3, 4, 4))

LAYERS_10 = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to {ForeignNode[a...b]}",
            "LayerType": "Reformat",
            "Inputs": [{"Name": "images", "Dimensions": [2, 3, 4, 4], "Format/Datatype": "Row major linear FP32"}],
            "Outputs": [{"Name": "r", "Dimensions": [2, 3, 4, 4], "Format/Datatype": "Row major linear FP16 format"}],
            "TacticName": "",
        },
        {"Name": "scan_3", "LayerType": "PluginV3", "Outputs": [], "TacticValue": "0x1"},
    ],
    "Bindings": ["images", "logits"],
}
"""What the engine inspector of TensorRT 10 writes of a plan with details."""

LAYERS_11 = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to {ForeignNode[a...b]}",
            "LayerType": "Reformat",
            "Inputs": [{"Name": "images", "Dimensions": [2, 3, 4, 4], "Format": "Linear", "DataType": "Float"}],
            "Outputs": [{"Name": "r", "Dimensions": [2, 3, 4, 4], "Format": "Linear", "DataType": "Half"}],
            "TacticName": "",
        },
        {"Name": "scan_3", "LayerType": "PluginV3", "Outputs": [], "TacticValue": "0x1"},
    ],
    "I/O Tensors": [{"Name": "images"}, {"Name": "logits"}],
}
"""The same in the dialect of TensorRT 11: types apart from formats, and the tensors of the engine described."""


class DeadLoggerError(Exception):
    """Where the real TensorRT would write through a dangling pointer: a segmentation fault."""


class Process:
    """One process with TensorRT in it: the loggers it was given, and the first, which it keeps without owning it."""

    def __init__(self, api: types.ModuleType) -> None:
        self.api = api
        self.first: weakref.ref[Any] | None = None

    def meet(self, logger: Any) -> None:
        if self.first is None:
            self.first = weakref.ref(logger)

    def log(self, text: str, logger: Any = None) -> None:
        if self.first is None:
            return
        first = self.first()
        if first is None:
            raise DeadLoggerError(text)
        target = logger if logger is not None else first
        target.log(self.api.ILogger.Severity.ERROR, text)


def strict(api: Any) -> Process:
    """Give the double of TensorRT the behaviour of the real one."""
    process = Process(api)
    _lifetimes(api, process)
    _contexts(api, process)
    return process


def _around(cls: Any, name: str, body: Callable[..., Any]) -> None:
    """Let ``body(documented, self, ...)`` stand for a member: ``documented`` checks arguments as the double does."""
    documented = getattr(cls, name)
    setattr(cls, name, lambda *args, **kwargs: body(documented, *args, **kwargs))


def _lifetimes(api: Any, process: Process) -> None:
    def made_with_logger(documented: Any, this: Any, logger: Any) -> None:
        documented(this, logger)
        this.given_logger = logger  # the bindings keep it as long as the object, and no longer
        process.meet(logger)

    for cls in (api.Builder, api.Runtime):
        _around(cls, "__init__", made_with_logger)

    def load_library(documented: Any, this: Any, path: str) -> Any:
        documented(this, path)
        process.log(f"cannot open {path}")

    _around(api.IPluginRegistry, "load_library", load_library)

    def deserialize(documented: Any, this: Any, plan: bytes) -> Any:
        if plan != b"plan":
            process.log("IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magicTag)", this.given_logger)
            return None
        engine = documented(this, plan)
        engine.given_logger = this.given_logger
        return engine

    _around(api.Runtime, "deserialize_cuda_engine", deserialize)


def _contexts(api: Any, process: Process) -> None:
    engine, context = api.ICudaEngine, api.IExecutionContext
    strategies = api.ExecutionContextAllocationStrategy
    engine.device_memory_size_v2 = property(lambda _: WORKING_BYTES)
    engine.num_io_tensors = property(lambda _: len(TENSORS))
    engine.num_optimization_profiles = property(lambda _: 2)
    _around(engine, "get_tensor_name", lambda _, __, index: list(TENSORS)[index])
    mode = api.TensorIOMode
    _around(engine, "get_tensor_mode", lambda _, __, name: mode.INPUT if TENSORS[name] else mode.OUTPUT)
    _around(engine, "get_tensor_dtype", lambda *_: api.DataType.FLOAT)
    _around(engine, "get_tensor_shape", lambda _, __, name: (-1, 3, 4, 4) if TENSORS[name] else (-1, 10))
    _around(engine, "get_tensor_profile_shape", lambda _, __, name, index: list(PROFILE))
    dialect = LAYERS_11 if int(api.__version__.split(".")[0]) >= 11 else LAYERS_10
    _around(api.EngineInspector, "get_engine_information", lambda *_: json.dumps(dialect))

    def create(documented: Any, this: Any, strategy: Any = strategies.STATIC) -> Any:
        made = documented(this, strategy)
        made.engine_, made.strategy, made.memory, made.shapes, made.addresses = this, strategy, 0, {}, {}
        return made

    def refuse(this: Any, text: str) -> bool:
        process.log(text, this.engine_.given_logger)
        return False

    def set_memory(documented: Any, this: Any, memory: int, size: int) -> None:
        documented(this, memory, size)
        if this.strategy is not strategies.USER_MANAGED or size < WORKING_BYTES or memory == 0 or memory % 256:
            refuse(this, f"setDeviceMemoryV2: {size} bytes at {memory} do not do")
            return
        this.memory = memory

    def set_shape(documented: Any, this: Any, name: str, shape: tuple[int, ...]) -> bool:
        documented(this, name, shape)
        if not all(least <= d <= most for least, d, most in zip(PROFILE[0], shape, PROFILE[2], strict=True)):
            return refuse(this, f"setInputShape: Static dimension mismatch while setting input shape for {name}")
        this.shapes[name] = shape
        return True

    def bind(documented: Any, this: Any, name: str, address: int) -> bool:
        documented(this, name, address)
        if address % 256:
            return refuse(this, f"setTensorAddress: {name} is not aligned")
        this.addresses[name] = address
        return True

    def execute(documented: Any, this: Any, stream: int) -> bool:
        documented(this, stream)
        if missing := [name for name, is_input in TENSORS.items() if is_input and name not in this.shapes]:
            return refuse(this, f"enqueueV3: Not all shapes are specified: {missing[0]}")
        if missing := [name for name in TENSORS if name not in this.addresses]:
            return refuse(this, f"enqueueV3: Address is not set for tensor {missing[0]}")
        if this.strategy is strategies.USER_MANAGED and not this.memory:
            return refuse(this, "enqueueV3: the context has no device memory")
        return True

    _around(engine, "create_execution_context", create)
    _around(context, "set_device_memory", set_memory)
    _around(context, "set_input_shape", set_shape)
    _around(context, "set_tensor_address", bind)
    _around(context, "execute_async_v3", execute)
