"""From a Vision Mamba checkpoint to a fast, verified TensorRT engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vimdeploy.version import __version__

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from vimdeploy.interop import Substitution
    from vimdeploy.runtime.session import Session

__all__ = ["__version__", "load", "ops_library", "substitute_mamba_ssm"]


def load(path: str | Path, **options: Any) -> Session:
    """Open a plan or an ONNX file for running; see :func:`vimdeploy.runtime.session.load`."""
    from vimdeploy.runtime.session import load as open_file

    return open_file(path, **options)


def ops_library() -> str:
    """Return the path of the native ops, for ``SessionOptions.register_custom_ops_library`` of ONNX Runtime.

    Raises:
        MissingDependencyError: it is not here and cannot be built; says why.

    """
    from vimdeploy.runtime.ort import native_ops

    return str(native_ops("native"))


def substitute_mamba_ssm(**options: Any) -> AbstractContextManager[Substitution]:
    """Import, build and run models of mamba_ssm without it; see :func:`vimdeploy.interop.substitute_mamba_ssm`."""
    from vimdeploy.interop import substitute_mamba_ssm as substitute

    return substitute(**options)
