"""Opens sessions of ONNX Runtime: options, and its errors in words, in one place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vimdeploy.errors import ArtifactError, MissingDependencyError, VimdeployError

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
        raise MissingDependencyError(
            f"{purpose} needs onnxruntime: {error}", hint="pip install 'vimdeploy[ort]'"
        ) from error
    return onnxruntime


def open_session(model: Path | bytes, source: str, *, threads: int | None = None) -> Any:
    """Open an ``onnxruntime.InferenceSession`` on the CPU.

    Args:
        model: a file, or a serialised model.
        source: how errors name it.
        threads: of ONNX Runtime; None lets it choose.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        ArtifactError: ONNX Runtime cannot load the model; says whether the runtime is too old for it.

    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
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
