"""An open session as a backend: a TensorRT plan, or an ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vimdeploy.artifacts.engine_manifest import read_engine_manifest
from vimdeploy.artifacts.golden import Samples
from vimdeploy.artifacts.tensors import Tensor
from vimdeploy.backends.base import Array, Inputs
from vimdeploy.errors import MissingDependencyError
from vimdeploy.runtime.cuda import CudaDevice
from vimdeploy.runtime.session import Session, load


class SessionBackend:
    """A session (``vimdeploy.load``) that takes and gives float32, whatever the types of its model.

    Args:
        session: with one input, the images; whoever opened it closes it, here or there.
        name: what computes it, for tables.

    """

    def __init__(self, session: Session, name: str = "TensorRT") -> None:
        self.name = name
        self._session = session

    @property
    def fixed_batch(self) -> int | None:
        """The only batch that the model takes."""
        return self._session.fixed_batch

    @property
    def largest_batch(self) -> int:
        """Images that the model takes in one piece."""
        return self._session.largest_batch

    @property
    def inputs(self) -> list[Tensor]:
        """What the model takes."""
        return self._session.inputs

    @property
    def outputs(self) -> list[Tensor]:
        """What the model gives."""
        return self._session.outputs

    def close(self) -> None:
        """Give the session back."""
        self._session.close()

    def run(self, images: Inputs) -> dict[str, Array]:
        """Compute the outputs in the session's own types; see :class:`vimdeploy.backends.base.Backend`."""
        types = {tensor.name: tensor.dtype for tensor in self._session.inputs}
        arrays = images.arrays if isinstance(images, Samples) else {next(iter(types)): images}
        outputs = self._session.run({name: _in_type(array, types[name]) for name, array in arrays.items()})
        return {t.name: _as_float(outputs[t.name], t.dtype) for t in self._session.outputs}


def opened(path: Path, **options: Any) -> SessionBackend:
    """Open a plan or an ONNX file as a backend, to be closed; arguments and errors are :func:`vimdeploy.load`'s."""
    return SessionBackend(load(path, **options))


def open_engine(plans: Sequence[Path], precision: str) -> SessionBackend:
    """Open the first plan of a precision.

    Raises:
        MissingDependencyError: there is no GPU, or no such plan.
        ArtifactError: the plan cannot be loaded here.

    """
    CudaDevice()  # says first that there is no GPU
    for path in plans:
        if read_engine_manifest(path).precision == precision:
            return opened(path)
    raise MissingDependencyError(f"no {precision} engine was given")


def _in_type(array: Any, dtype: str) -> Any:
    """Return an array as a session takes it; bfloat16 as its bits, which numpy has no type for."""
    if dtype == "bfloat16":
        import ml_dtypes

        return array.astype(ml_dtypes.bfloat16).view(np.uint16)
    return np.ascontiguousarray(array.astype(dtype, copy=False))


def _as_float(array: Any, dtype: str) -> Array:
    if dtype == "bfloat16":
        import ml_dtypes

        array = array.view(ml_dtypes.bfloat16)
    result: Array = array.astype(np.float32, copy=False)
    return result
