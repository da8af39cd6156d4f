"""A model as a callable over batches of columns: what Ray Data, Daft and others map over a data set.

import ray
from vimdeploy.predicting.batches import PredictBatch

photos = ray.data.read_binary_files("photos", include_paths=True)
photos.map_batches(PredictBatch, fn_constructor_args=("digits.onnx",), concurrency=2).write_parquet("rows")
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vimdeploy.errors import ImageError, UsageError
from vimdeploy.predicting.predictor import Predictor
from vimdeploy.predicting.rows import Array

Column = npt.NDArray[Any]


class PredictBatch:
    """Predicts a batch of columns; opened once in each process that runs it.

    Args:
        model: ONNX file or plan with its manifest, at a path that every worker sees.
        column: holds the bytes of image files, or tensors as the model takes them, (N, C, H, W) float32 of any layout.
        top: how many classes a row lists.
        keep_input: leave ``column`` in the result.
        options: of :class:`~vimdeploy.predicting.predictor.Predictor`.

    """

    def __init__(
        self, model: str, *, column: str = "bytes", top: int = 5, keep_input: bool = False, **options: Any
    ) -> None:
        self._predictor = Predictor(model, top=top, **options)
        self._column, self._keep_input = column, keep_input

    def __call__(self, batch: Mapping[str, Column]) -> dict[str, Column]:
        """Return the columns of a batch with those of the prediction.

        A classifier adds ``index``, ``label`` and ``probability`` of the best class, and ``indices`` and
        ``probabilities`` (N, top); other models add one column an output. ``error`` says why an image could not be
        predicted: its other columns are then -1, empty and NaN.

        Raises:
            UsageError: the batch has no such column, or no tensors that the model takes.

        """
        if self._column not in batch:
            raise UsageError(f"The batch has no column '{self._column}'; it has {', '.join(batch)}.")
        images, errors = self._images(batch[self._column])
        good = [place for place, error in enumerate(errors) if not error]
        shapes = self._predictor.output_shapes
        outputs = {name: np.full((len(errors), *shape), np.nan, np.float32) for name, shape in shapes.items()}
        if good:
            for name, values in self._predictor.run(np.ascontiguousarray(images[good])).items():
                outputs[name][good] = values
        kept = {name: values for name, values in batch.items() if self._keep_input or name != self._column}
        return {**kept, "error": np.array(errors, dtype=object), **self._columns(outputs, good)}

    def _images(self, values: Column) -> tuple[Array, list[str]]:
        shape = self._predictor.input_shape
        if values.dtype == np.float32 and values.shape[1:] == shape:
            return values, [""] * len(values)
        if values.dtype.kind not in "OS":
            raise UsageError(
                f"Column '{self._column}' holds {values.dtype} {values.shape[1:]}, the model takes float32 {shape} or "
                "the bytes of image files."
            )
        images, errors = np.zeros((len(values), *shape), np.float32), [""] * len(values)
        for place, content in enumerate(values):
            try:
                images[place] = self._predictor.decode(f"row {place}", bytes(content))
            except ImageError as error:
                errors[place] = error.message
        return images, errors

    def _columns(self, outputs: dict[str, Array], good: list[int]) -> dict[str, Column]:
        if not self._predictor.classifies:
            return dict(outputs)
        logits = next(iter(outputs.values()))
        top = min(self._predictor.top, logits.shape[1])
        count = len(logits)
        indices, probabilities = np.full((count, top), -1, np.int32), np.full((count, top), np.nan, np.float32)
        labels = np.full(count, "", dtype=object)
        for place in good:
            scores = self._predictor.row("", {"logits": logits[place]}).classes
            indices[place] = [score.index for score in scores]
            probabilities[place] = [score.probability for score in scores]
            labels[place] = scores[0].label
        return {
            "index": indices[:, 0],
            "label": labels,
            "probability": probabilities[:, 0],
            "indices": indices,
            "probabilities": probabilities,
        }
