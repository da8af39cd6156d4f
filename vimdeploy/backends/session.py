"""An open session as a backend: a TensorRT plan, or an ONNX file."""

from __future__ import annotations

from typing import Any

import numpy as np

from vimdeploy.backends.base import Array
from vimdeploy.runtime.session import Session


class SessionBackend:
    """A session (``vimdeploy.load``) that takes and gives float32, whatever the types of its model.

    Args:
        session: with one input, the images; it stays the caller's to close.
        name: what computes it, for tables.

    """

    def __init__(self, session: Session, name: str = "TensorRT") -> None:
        self.name = name
        self._session = session

    @property
    def fixed_batch(self) -> int | None:
        """The only batch that the model takes."""
        return self._session.fixed_batch

    def run(self, images: Array) -> dict[str, Array]:
        """Compute the outputs in the session's own types; see :class:`vimdeploy.backends.base.Backend`."""
        tensor = self._session.inputs[0]
        if tensor.dtype == "bfloat16":
            import ml_dtypes

            outputs = self._session.run({tensor.name: images.astype(ml_dtypes.bfloat16).view(np.uint16)})
        else:
            outputs = self._session.run({tensor.name: np.ascontiguousarray(images.astype(tensor.dtype, copy=False))})
        return {t.name: _as_float(outputs[t.name], t.dtype) for t in self._session.outputs}


def _as_float(array: Any, dtype: str) -> Array:
    if dtype == "bfloat16":
        import ml_dtypes

        array = array.view(ml_dtypes.bfloat16)
    result: Array = array.astype(np.float32, copy=False)
    return result
