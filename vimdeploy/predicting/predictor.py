"""A model with everything that turns the bytes of image files into rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import Self

from vimdeploy.artifacts.engine_manifest import read_engine_manifest
from vimdeploy.artifacts.files import sha256_file
from vimdeploy.artifacts.images import load_image
from vimdeploy.artifacts.manifest import PLAN_SUFFIXES, Manifest, read_manifest
from vimdeploy.backends.session import opened
from vimdeploy.errors import ArtifactError, ImageError, UsageError, VimdeployError
from vimdeploy.predicting.items import Item
from vimdeploy.predicting.rows import Array, Prediction, best_classes, rank_of

Decoded = Array | ImageError
Truth = Callable[[Item], int | None]


class Predictor:
    """Opens a model once and predicts images in batches; use it as a context manager or call :meth:`close`.

    Args:
        model: ONNX file or plan with its manifest.
        top: how many classes a row lists.
        batch: images that run together; None takes the batch that the manifest names as usual.
        ops: what computes the custom ops of an ONNX file; see :func:`vimdeploy.runtime.ort.open_session`.
        options: of :func:`vimdeploy.load`.

    Raises:
        ArtifactError: model or manifest is missing, corrupt or foreign.

    """

    def __init__(
        self, model: str | Path, *, top: int = 5, batch: int | None = None, ops: str = "auto", **options: Any
    ) -> None:
        self.path = Path(model)
        if not self.path.exists():
            raise ArtifactError(f"{model}: there is no such file.")
        self.manifest = source_manifest(self.path)
        self.labels = self.manifest.classes.labels() or tuple(map(str, range(self.manifest.classes.count)))
        self.top = top
        if self.path.suffix not in PLAN_SUFFIXES:
            options["ops"] = ops
        self._backend = opened(self.path, **options)
        self.batch = min(batch or self.manifest.batch.opt, self._backend.largest_batch)
        self._check_shapes()

    @property
    def classifies(self) -> bool:
        """Whether the model gives logits."""
        return self.manifest.model.task == "classify"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image, (C, H, W)."""
        return tuple(self._backend.inputs[0].shape[1:])

    @property
    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each output for one image, by name."""
        return {t.name: tuple(t.shape[1:]) for t in self._backend.outputs}

    @property
    def largest_batch(self) -> int:
        """Images that the model takes in one piece."""
        return self._backend.largest_batch

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model file: what rows depend on."""
        return sha256_file(self.path)

    def close(self) -> None:
        """Give the session back."""
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def decode(self, name: str, content: bytes) -> Array:
        """Return an image file as the model wants it, (C, H, W) float32; ImageError where it is no image."""
        return load_image(BytesIO(content), self.manifest.image_input(), name=name)

    def run(self, images: Array) -> dict[str, Array]:
        """Return the outputs of images (N, C, H, W) by name, each (N, ...) float32."""
        return self._backend.run(images)

    def predict(self, items: Iterable[Item], *, workers: int = 2, truth: Truth | None = None) -> Iterator[Prediction]:
        """Yield one row an item, in order.

        Images are read and decoded by threads while the model runs; twice a batch is in memory, whatever the count.

        Args:
            items: what to predict.
            workers: threads that read and decode.
            truth: returns the true class of an item, where it is known.

        """
        waiting: list[tuple[Item, Decoded]] = []
        images = 0
        with closing(_decoded(items, self._decode_item, workers, 2 * self.batch)) as decoded:
            for item, found in decoded:
                waiting.append((item, found))
                images += not isinstance(found, ImageError)
                if images == self.batch:
                    yield from self._rows(waiting, truth)
                    waiting, images = [], 0
            yield from self._rows(waiting, truth)

    def _decode_item(self, item: Item) -> Decoded:
        try:
            return self.decode(item.key, item.read())
        except ImageError as error:
            return error
        except VimdeployError:
            raise
        except Exception as error:  # a decoder's surprise about one file is that file's row, not the end of the run
            return ImageError(f"{item.key}: cannot be read as an image ({type(error).__name__}: {error}).")

    def _rows(self, batch: Sequence[tuple[Item, Decoded]], truth: Truth | None) -> Iterator[Prediction]:
        images = [found for _, found in batch if not isinstance(found, ImageError)]
        outputs = self.run(np.stack(images)) if images else {}
        place = 0
        for item, found in batch:
            if isinstance(found, ImageError):
                yield Prediction(item.key, error=found.message, truth=truth(item) if truth else None)
            else:
                yield self.row(item.key, {n: y[place] for n, y in outputs.items()}, truth(item) if truth else None)
                place += 1

    def row(self, key: str, outputs: dict[str, Array], truth: int | None = None) -> Prediction:
        """Return the row of one image from its outputs."""
        if not self.classifies:
            return Prediction(key, outputs=outputs, truth=truth)
        logits = next(iter(outputs.values()))
        classes = best_classes(logits, self.labels, self.top)
        return Prediction(key, classes, truth=truth, truth_rank=None if truth is None else rank_of(logits, truth))

    def _check_shapes(self) -> None:
        if not self.classifies:
            return
        shape = self._backend.outputs[0].shape
        if len(shape) != 2:
            raise UsageError(f"{self.path}: gives logits of shape {shape[1:]} per image, one per token.")
        count = self.manifest.classes.count
        if count == 0 or shape[1] not in (count, -1):
            raise ArtifactError(
                f"{self.path}: gives {shape[1]} logits, its manifest says {count} classes.",
                hint="Export the model again.",
            )


def source_manifest(model: Path) -> Manifest:
    """Return the manifest of an ONNX file, or of the one that a plan was built from."""
    if model.suffix not in PLAN_SUFFIXES:
        return read_manifest(model)
    source = read_engine_manifest(model).source
    if source is None:
        raise ArtifactError(
            f"{model}: was built from a file without a manifest: its preprocessing and classes are not known.",
            hint="Build it again from a file that `vimdeploy export` wrote, with its manifest beside it.",
        )
    return source


def _decoded(
    items: Iterable[Item], decode: Callable[[Item], Decoded], workers: int, ahead: int
) -> Generator[tuple[Item, Decoded], None, None]:
    """Yield items with their images, in order, at most ``ahead`` of them decoded before they are asked for."""
    under_way: deque[tuple[Item, Future[Decoded]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for item in items:
            under_way.append((item, pool.submit(decode, item)))
            if len(under_way) >= ahead:
                first, future = under_way.popleft()
                yield first, future.result()
        while under_way:
            first, future = under_way.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
