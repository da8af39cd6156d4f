"""From a Vision Mamba checkpoint to a fast, verified TensorRT engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from vimdeploy.runtime.device_session import Face

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: str | Path, **options: Any) -> Face:
    """Open a plan or an ONNX file for running; see :func:`vimdeploy.runtime.session.load`."""
    from vimdeploy.runtime.session import load as open_file

    return open_file(path, **options)
