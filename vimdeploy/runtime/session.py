"""The runtime: a plan or an ONNX file in, numbers out. No torch; any number of threads.

:class:`Session` runs TensorRT plans and copies nothing that is on the device already; :class:`OnnxSession` runs ONNX
files through ONNX Runtime with the same face, so that code written against one runs on the other. :func:`load` picks.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from vimdeploy.artifacts.engine_manifest import EngineManifest, Machine, read_engine_manifest, refuse_unloadable
from vimdeploy.artifacts.files import sha256_file
from vimdeploy.artifacts.manifest import PLAN_SUFFIXES
from vimdeploy.errors import ArtifactError, MissingDependencyError, UsageError
from vimdeploy.runtime.arrays import View, host_array
from vimdeploy.runtime.batching import split
from vimdeploy.runtime.cuda import CudaDevice
from vimdeploy.runtime.device_session import Arrays, DeviceSession, Face
from vimdeploy.runtime.ort import open_session
from vimdeploy.tensorrt import api as trt
from vimdeploy.tensorrt import plugin as plugins
from vimdeploy.tensorrt.boundary import Messages, Profile, Tensor
from vimdeploy.tensorrt.translate import runtime_error

_UNBOUNDED = 1 << 16
_GRAPHS = 8


class Session(DeviceSession):
    """Runs a plan. Thread-safe; use it as a context manager or call :meth:`close`.

    Args:
        path: the plan; its manifest lies beside it and is checked first.
        contexts: how many calls may run at the same time; each has memory of its own.
        graphs: how many CUDA graphs each context keeps; 0 turns them off.
        plugin: plugin library, where it is not found by itself.

    Raises:
        ArtifactError: this machine cannot load the plan; says why.
        MissingDependencyError: TensorRT, CUDA's bindings or a GPU is missing.

    """

    def __init__(
        self, path: str | Path, *, contexts: int = 1, graphs: int = _GRAPHS, plugin: str | Path | None = None
    ) -> None:
        self.manifest, engine = load_plan(Path(path), Path(plugin) if plugin else None)
        profile = engine.profiles()[0] if engine.profiles() else _fixed(engine.tensors())
        super().__init__(engine.context, CudaDevice(), engine.tensors(), profile, contexts=contexts, graphs=graphs)


def load_plan(path: Path, plugin: Path | None = None) -> tuple[EngineManifest, trt.Engine]:
    """Load a plan and what it needs; see :class:`Session` for the errors.

    Args:
        path: the plan; its manifest lies beside it and is checked first.
        plugin: plugin library, where it is not found by itself.

    """
    manifest = read_engine_manifest(path)
    refuse_unloadable(path, manifest, this_machine(manifest, plugin))
    owner = trt.load(manifest.tensorrt.flavour)
    if manifest.plugin and not manifest.plugin.embedded:
        plugins.load_library(owner.api, plugin)
    return manifest, open_engine(owner, path.read_bytes(), manifest, str(path))


def open_engine(owner: trt.TensorRt, plan: bytes, manifest: EngineManifest, source: str) -> trt.Engine:
    """Deserialise a plan; ArtifactError, in words, where TensorRT refuses."""
    messages = Messages()
    engine = owner.runtime(messages, host_code=manifest.tensorrt.version_compatible).engine(plan)
    if engine is None:
        raise runtime_error(f"{source}: loading", messages.errors())
    return engine


def this_machine(manifest: EngineManifest, plugin: Path | None = None) -> Machine:
    """Collect what decides whether a plan can be loaded here: TensorRT, GPU, driver and plugin library."""
    flavour = manifest.tensorrt.flavour
    version = trt.installed_version(flavour)
    capability: str | None = None
    driver: int | None = None
    with suppress(MissingDependencyError):
        _, capability, driver = CudaDevice().facts()
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


class OnnxSession(Face):
    """Runs an ONNX file through ONNX Runtime with the face of :class:`Session`; arrays stay on the host.

    Args:
        path: ONNX file.
        contexts: how many submitted calls may run at the same time.
        threads: of ONNX Runtime; None lets it choose.
        batch: largest batch that is run in one piece; larger ones are split, which bounds memory.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        ArtifactError: ONNX Runtime cannot load the file.

    """

    def __init__(self, path: str | Path, *, contexts: int = 1, threads: int | None = None, batch: int = 64) -> None:
        if contexts < 1:
            raise UsageError(f"contexts = {contexts} must be at least 1")
        if not Path(path).is_file():
            raise ArtifactError(f"{path}: there is no such file.")
        self._session = open_session(Path(path), str(path), threads=threads)
        tensors = [_onnx_tensor(v, is_input=True) for v in self._session.get_inputs()]
        tensors += [_onnx_tensor(v, is_input=False) for v in self._session.get_outputs()]
        super().__init__(tensors, {t.name: _free(t.shape, batch) for t in tensors if t.is_input})
        self._pool = ThreadPoolExecutor(max_workers=contexts, thread_name_prefix="onnx-session")

        self._closed = False

    @override
    def submit(self, inputs: Arrays, out: Arrays | None = None) -> Future[dict[str, Any]]:
        views, outs, batch = self._look(inputs, out)
        try:
            return self._pool.submit(self._compute, views, batch, outs, dict(out or {}))
        except RuntimeError as error:  # another thread closed it in between
            raise UsageError(_CLOSED, hint=_OPEN_AGAIN) from error

    @override
    def run(self, inputs: Arrays, out: Arrays | None = None) -> dict[str, Any]:
        views, outs, batch = self._look(inputs, out)
        return self._compute(views, batch, outs, dict(out or {}))

    @override
    def close(self) -> None:
        self._closed = True
        self._pool.shutdown(wait=True)

    def _look(self, inputs: Arrays, out: Arrays | None) -> tuple[dict[str, View], dict[str, View], int]:
        if self._closed:
            raise UsageError(_CLOSED, hint=_OPEN_AGAIN)
        views, batch = self.look(inputs)
        outs = self.look_out(out, batch)
        if name := next((n for n, v in (*views.items(), *outs.items()) if v.on_device), None):
            raise UsageError(f"'{name}' is on a GPU, ONNX Runtime runs on the CPU here", hint="Copy it first.")
        return views, outs, batch

    def _compute(
        self, views: dict[str, View], batch: int, outs: dict[str, View], out: dict[str, Any]
    ) -> dict[str, Any]:
        feeds = {name: host_array(array) for name, array in views.items()}
        rows, names = _fixed_rows(self.inputs), [t.name for t in self.outputs]
        parts = []
        for chunk in split(batch, self.largest_batch, self.smallest_batch):
            count = chunk.stop - chunk.start
            piece = {n: _filled(a[chunk], rows or count) for n, a in feeds.items()}
            parts.append([y[:count] for y in self._session.run(names, piece)])
        whole = parts[0] if len(parts) == 1 else [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
        results: dict[str, Any] = dict(zip(names, whole, strict=True))
        for name, target in outs.items():
            np.copyto(host_array(target), results[name])
            results[name] = out[name]
        return results


_CLOSED, _OPEN_AGAIN = "this session is closed", "Open another with vimdeploy.load."


def _onnx_tensor(value: Any, *, is_input: bool) -> Tensor:
    dtype = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bfloat16)": "bfloat16"}.get(value.type)
    shape = tuple(d if isinstance(d, int) else -1 for d in value.shape)
    return Tensor(value.name, dtype or value.type.removeprefix("tensor(").rstrip(")"), shape, is_input)


def _free(shape: tuple[int, ...], batch: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    least = tuple(1 if d < 0 else d for d in shape)
    most = tuple((batch if axis == 0 else _UNBOUNDED) if d < 0 else d for axis, d in enumerate(shape))
    return least, most, most


def _fixed_rows(inputs: Sequence[Tensor]) -> int | None:
    """Return the only batch that a model takes; None where it takes any."""
    return next((t.shape[0] for t in inputs if t.shape[0] >= 0), None)


def _filled(array: np.ndarray[Any, Any], rows: int) -> np.ndarray[Any, Any]:
    """Return an array with zeros behind it up to ``rows``; without a copy where none are missing."""
    short = rows - len(array)
    return np.pad(array, [(0, short)] + [(0, 0)] * (array.ndim - 1)) if short else array


def load(
    path: str | Path,
    *,
    contexts: int = 1,
    graphs: int = _GRAPHS,
    plugin: str | Path | None = None,
    threads: int | None = None,
) -> Face:
    """Open a plan or an ONNX file for running: a :class:`Session` or an :class:`OnnxSession`, by their content.

    Args:
        path: TensorRT plan with its manifest beside it, or ONNX file.
        contexts: how many calls may run at the same time; each context of a plan has memory of its own.
        graphs: how many CUDA graphs each context of a plan keeps; 0 turns them off. An ONNX file has none.
        plugin: plugin library of a plan, where it is not found by itself.
        threads: of ONNX Runtime; None lets it choose.

    Raises:
        ArtifactError: the file is missing, or neither; or this machine cannot load it, and why.
        UsageError: an option that this kind of file does not have.
        MissingDependencyError: what runs this kind of file is not installed, or there is no GPU.

    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}", hint="Check the path.") from error
    if start[:4] in _PLAN_MAGIC or path.suffix in PLAN_SUFFIXES:
        _refuse(path, "a TensorRT plan", threads=threads is not None)
        return Session(path, contexts=contexts, graphs=graphs, plugin=plugin)
    if start[:1] == b"\x08" or path.suffix == ".onnx":
        _refuse(path, "an ONNX file", plugin=plugin is not None, graphs=graphs not in (0, _GRAPHS))
        return OnnxSession(path, contexts=contexts, threads=threads)
    raise ArtifactError(f"{path}: is neither a TensorRT plan nor an ONNX model", hint="See 'vimdeploy inspect'.")


def _refuse(path: Path, kind: str, **given: bool) -> None:
    """Raise UsageError for an option that was given and that this kind of file does not have."""
    if name := next((name for name, is_given in given.items() if is_given), None):
        raise UsageError(f"{path}: is {kind}, which has no option '{name}'.", hint="Leave it out.")


_PLAN_MAGIC = (b"vtrt", b"ftrt", b"ptrt")
"""First bytes of plans of TensorRT-RTX and TensorRT. An ONNX file starts with its IR version (field 1, varint)."""
