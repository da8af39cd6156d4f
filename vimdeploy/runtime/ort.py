"""Opens sessions of ONNX Runtime: options, and its errors in words, in one place."""

from __future__ import annotations

import mmap
import re
from pathlib import Path
from typing import Any, Literal, get_args

from vimdeploy.contract import DOMAIN
from vimdeploy.errors import ArtifactError, MissingDependencyError, UsageError, VimdeployError, nearest
from vimdeploy.native.ops_library import ops_library, why_missing

Ops = Literal["auto", "native", "body"]
"""What computes the custom ops: the native library, the function bodies in the file, or the library where it is."""

_TOO_NEW = re.compile(r"Unsupported model IR version: (?P<ir>\d+)|Opset (?P<opset>\d+) is under development")
"""What a runtime says of a file that is newer than itself."""


def import_onnxruntime(purpose: str = "running an ONNX file") -> Any:
    """Return the module ``onnxruntime``.

    Raises:
        MissingDependencyError: it is not installed, or does not load.

    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(f"{purpose} needs onnxruntime: {error}", hint="pip install onnxruntime") from error
    return onnxruntime


def native_ops(ops: str) -> Path | None:
    """Return the library to register for ``ops``; None where the bodies compute.

    Raises:
        UsageError: ``ops`` is no choice.
        MissingDependencyError: ``native`` is asked for and cannot be had.

    """
    if ops not in get_args(Ops):
        raise UsageError(f"there are no ops '{ops}'", hint=nearest(ops, get_args(Ops)))
    if ops == "body":
        return None
    library = ops_library()
    if library is None and ops == "native":
        problem, hint = why_missing()
        raise MissingDependencyError(f"the native ops are not here: {problem or 'they could not be built'}", hint=hint)
    return library


def has_custom_ops(model: Path | bytes) -> bool:
    """Whether a model may have custom ops: its bytes name their domain."""
    name = DOMAIN.encode()
    if isinstance(model, bytes):
        return name in model
    try:
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(name) >= 0
    except (OSError, ValueError):  # an empty file cannot be mapped; ONNX Runtime says what is wrong with it
        return False


def open_session(model: Path | bytes, source: str, *, threads: int | None = None, ops: str = "auto") -> Any:
    """Open an ``onnxruntime.InferenceSession`` on the CPU.

    Args:
        model: a file, or a serialised model.
        source: how errors name it.
        threads: of ONNX Runtime; None lets it choose.
        ops: what computes the custom ops, one of :data:`Ops`.

    Raises:
        MissingDependencyError: onnxruntime is not installed, or the native ops that are asked for are not here.
        ArtifactError: ONNX Runtime cannot load the model; says whether the runtime is too old for it.
        UsageError: ``ops`` is no choice.

    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    # For sessions on the CPU only: beside a GPU provider these ops would copy every tensor to the host and back.
    library = native_ops(ops) if ops == "native" or has_custom_ops(model) else None
    try:
        if library is not None:
            options.register_custom_ops_library(str(library))
        return onnxruntime.InferenceSession(
            str(model) if isinstance(model, Path) else model, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime raises one private exception type per status code
        raise load_error(str(error), source, onnxruntime.__version__) from error


def load_error(text: str, source: str, version: str) -> VimdeployError:
    """Return the error for what ONNX Runtime ``version`` said of the file ``source``."""
    if found := _TOO_NEW.search(text):
        what = f"IR version {found['ir']}" if found["ir"] else f"opset {found['opset']}"
        older = "" if found["ir"] else f", or export it with --opset {int(found['opset']) - 1} or less"
        return ArtifactError(
            f"{source}: has {what}, which is newer than ONNX Runtime {version} reads.",
            hint=f"pip install --upgrade onnxruntime (on Python 3.10 the newest is 1.23){older}.",
        )
    return ArtifactError(
        f"{source}: ONNX Runtime {version} cannot load it: {text.splitlines()[0]}",
        hint="Export the model again with 'vimdeploy export'; BF16 models run in TensorRT only.",
    )
