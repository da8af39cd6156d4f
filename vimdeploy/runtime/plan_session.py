"""Run a TensorRT plan: refuse in words what this machine cannot load, load what it needs, open it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from vimdeploy.artifacts.engine_manifest import EngineManifest, Machine, read_engine_manifest, refuse_unloadable
from vimdeploy.artifacts.files import sha256_file
from vimdeploy.artifacts.tensors import Profile, Tensor
from vimdeploy.errors import MissingDependencyError
from vimdeploy.runtime.cuda import CudaDevice
from vimdeploy.runtime.device_session import DeviceSession
from vimdeploy.runtime.session import GRAPHS
from vimdeploy.runtime.slot import Contexts
from vimdeploy.tensorrt import api as trt
from vimdeploy.tensorrt import plugin as plugins
from vimdeploy.tensorrt.boundary import Messages
from vimdeploy.tensorrt.translate import runtime_error


class PlanSession(DeviceSession):
    """Runs a plan. Thread-safe; use it as a context manager or call :meth:`close`.

    Args:
        path: the plan; its manifest lies beside it and is checked first.
        contexts: how many calls may run at the same time; each has memory of its own.
        graphs: how many CUDA graphs each context keeps; 0 turns them off.
        plugin: plugin library, where it is not found by itself.
        device: number of the GPU, as CUDA counts; None takes the calling thread's current one.
        allow_modified: take a plan that its manifest does not describe.
        allow_host_code: let a version-compatible plan, or one with a plugin library in it, run the code it brings.

    Raises:
        ArtifactError: this machine cannot load the plan, or it brings code; says why.
        MissingDependencyError: TensorRT, CUDA's bindings or a GPU is missing.

    """

    def __init__(
        self,
        path: str | Path,
        *,
        contexts: int = 1,
        graphs: int = GRAPHS,
        plugin: str | Path | None = None,
        device: int | None = None,
        allow_modified: bool = False,
        allow_host_code: bool = False,
    ) -> None:
        self.manifest, engine, gpu = load_plan(
            Path(path),
            Path(plugin) if plugin else None,
            device,
            allow_modified=allow_modified,
            allow_host_code=allow_host_code,
        )
        profile = engine.profiles()[0] if engine.profiles() else _fixed(engine.tensors())
        make = Contexts(engine.context, engine.context_bytes())
        super().__init__(make, gpu, engine.tensors(), profile, contexts=contexts, graphs=graphs)


def load_plan(
    path: Path,
    plugin: Path | None = None,
    device: int | None = None,
    *,
    allow_modified: bool = False,
    allow_host_code: bool = False,
) -> tuple[EngineManifest, trt.Engine, CudaDevice]:
    """Load a plan and what it needs onto a GPU; see :class:`PlanSession` for arguments and errors."""
    manifest = read_engine_manifest(path)
    machine = this_machine(manifest, plugin, device)
    refuse_unloadable(path, manifest, machine, allow_modified=allow_modified, allow_host_code=allow_host_code)
    owner = trt.load(manifest.tensorrt.flavour)
    if manifest.plugin and not manifest.plugin.embedded:
        plugins.load_library(owner.api, plugin, compute_capability=machine.capability_numbers, driver=machine.driver)
    gpu = CudaDevice(device)
    with gpu.active():  # TensorRT loads an engine onto the thread's current device
        return manifest, open_engine(owner, path.read_bytes(), str(path), host_code=allow_host_code), gpu


def open_engine(owner: trt.TensorRt, plan: bytes, source: str, *, host_code: bool = False) -> trt.Engine:
    """Deserialise a plan; ArtifactError, in words, where TensorRT refuses. ``host_code`` is the user's to allow."""
    messages = Messages()
    engine = owner.runtime(messages, host_code=host_code).engine(plan)
    if engine is None:
        raise runtime_error(f"{source}: loading", messages.errors())
    return engine


def this_machine(manifest: EngineManifest, plugin: Path | None = None, device: int | None = None) -> Machine:
    """Collect what decides whether a plan can be loaded here: TensorRT, GPU, driver and plugin library."""
    flavour = manifest.tensorrt.flavour
    version = trt.installed_version(flavour)
    capability: str | None = None
    driver: int | None = None
    with suppress(MissingDependencyError):
        _, capability, driver = CudaDevice(device).facts()
    library = None
    # TensorRT-RTX takes no plugins: a manifest that says otherwise lies, and no library here could be the right one.
    if manifest.plugin and not manifest.plugin.embedded and version and flavour != "rtx":
        with suppress(MissingDependencyError):
            library = plugins.find_library(plugin, tensorrt_version=version)
    return Machine(
        versions={flavour: version} if version else {},
        compute_capability=capability,
        driver=driver,
        plugin_version=library.info.version if library else None,
        plugin_sha256=sha256_file(library.path) if library else None,
    )


def _fixed(tensors: Sequence[Tensor]) -> Profile:
    return {t.name: (t.shape, t.shape, t.shape) for t in tensors if t.is_input}
