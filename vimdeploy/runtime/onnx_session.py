"""Run an ONNX file in ONNX Runtime, as a session; arrays stay on the host."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from vimdeploy.artifacts.tensors import Tensor
from vimdeploy.errors import ArtifactError, UsageError
from vimdeploy.runtime.arrays import View, host_array
from vimdeploy.runtime.batching import split
from vimdeploy.runtime.ort import open_session
from vimdeploy.runtime.session import Arrays, Session

_UNBOUNDED = 1 << 16


class OnnxSession(Session):
    """Runs an ONNX file through ONNX Runtime.

    Args:
        model: ONNX file, or a serialised model.
        contexts: how many submitted calls may run at the same time.
        threads: of ONNX Runtime; None lets it choose.
        batch: largest batch that is run in one piece; larger ones are split, which bounds memory. None never splits.
        source: what messages call a model that is no file.
        ops: what computes the custom ops: ``native``, ``body``, or ``auto`` for native where it is here.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        ArtifactError: ONNX Runtime cannot load the file.

    """

    def __init__(
        self,
        model: str | Path | bytes,
        *,
        contexts: int = 1,
        threads: int | None = None,
        batch: int | None = 64,
        source: str = "the model in memory",
        ops: str = "auto",
    ) -> None:
        if contexts < 1:
            raise UsageError(f"contexts = {contexts} must be at least 1")
        self._source = source if isinstance(model, bytes) else str(model)
        if not isinstance(model, bytes):
            model = Path(model)
            if not model.is_file():
                raise ArtifactError(f"{model}: there is no such file.")
        self._session = open_session(model, self._source, threads=threads, ops=ops)
        tensors = [_tensor(v, is_input=True) for v in self._session.get_inputs()]
        tensors += [_tensor(v, is_input=False) for v in self._session.get_outputs()]
        super().__init__(tensors, {t.name: _free(t.shape, batch or _UNBOUNDED) for t in tensors if t.is_input})
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
        parts = [
            self._chunk({n: a[chunk] for n, a in feeds.items()}, chunk.stop - chunk.start)
            for chunk in split(batch, self.largest_batch, self.smallest_batch)
        ]
        whole = parts[0] if len(parts) == 1 else [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
        results: dict[str, Any] = dict(zip([t.name for t in self.outputs], whole, strict=True))
        for name, target in outs.items():
            np.copyto(host_array(target), results[name])
            results[name] = out[name]
        return results

    def _chunk(self, feeds: dict[str, np.ndarray[Any, Any]], count: int) -> list[np.ndarray[Any, Any]]:
        rows = self.fixed_batch or count
        try:
            found = self._session.run([t.name for t in self.outputs], {n: _filled(a, rows) for n, a in feeds.items()})
        except Exception as error:  # onnxruntime raises one private exception type per status code
            shapes = ", ".join(f"{n} {a.shape}" for n, a in feeds.items())
            raise ArtifactError(
                f"{self._source}: ONNX Runtime cannot run it on {shapes}: {str(error).splitlines()[0]}",
                hint="Check the file with `vimdeploy inspect`, or export the model again.",
            ) from error
        # A tap need not have the batch first: only what was filled up is cut.
        return [y[:count] for y in found] if rows > count else list(found)


_CLOSED, _OPEN_AGAIN = "this session is closed", "Open another with vimdeploy.load."


def _tensor(value: Any, *, is_input: bool) -> Tensor:
    dtype = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bfloat16)": "bfloat16"}.get(value.type)
    shape = tuple(d if isinstance(d, int) else -1 for d in value.shape)
    return Tensor(value.name, dtype or value.type.removeprefix("tensor(").rstrip(")"), shape, is_input)


def _free(shape: Sequence[int], batch: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    least = tuple(1 if d < 0 else d for d in shape)
    most = tuple((batch if axis == 0 else _UNBOUNDED) if d < 0 else d for axis, d in enumerate(shape))
    return least, most, most


def _filled(array: np.ndarray[Any, Any], rows: int) -> np.ndarray[Any, Any]:
    """Return an array with zeros behind it up to ``rows``; without a copy where none are missing."""
    short = rows - len(array)
    return np.pad(array, [(0, short)] + [(0, 0)] * (array.ndim - 1)) if short else array
