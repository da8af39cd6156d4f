"""The job: sources in, rows out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from vimdeploy.errors import UsageError
from vimdeploy.predicting.containers import ParquetColumns
from vimdeploy.predicting.items import Item, once_each
from vimdeploy.predicting.labels import SOURCE, Accuracy, Truths
from vimdeploy.predicting.predictor import Predictor
from vimdeploy.predicting.rows import Prediction
from vimdeploy.predicting.shards import Job, ShardWriter, Summary, rows_per_shard
from vimdeploy.predicting.sources import check, expand


@dataclass(frozen=True)
class Request:
    """How to predict; the defaults are the recommended way."""

    top: int = 5
    """Classes that a row lists."""
    batch: int | None = None
    """Images that run together; None takes what the manifest names as usual."""
    workers: int | None = None
    """Threads that read and decode; None takes one a core."""
    labels: str | None = None
    """Where true classes are found; see :class:`~vimdeploy.predicting.labels.Truths`."""
    columns: ParquetColumns = field(default_factory=ParquetColumns)
    ops: str = "auto"
    """What computes the custom ops of an ONNX file; see :func:`vimdeploy.runtime.ort.open_session`."""
    allow_modified: bool = False
    """Take a file that its manifest does not describe."""
    shard_rows: int | None = None
    """Rows of a parquet shard; None takes what makes some 64 MB, at most 10,000."""


class Run:
    """A model opened for a request, with the counts that a person wants to see in the end."""

    def __init__(self, model: str | Path, sources: Sequence[str], request: Request) -> None:
        """Open the model and look at the sources.

        Raises:
            ArtifactError: the model is missing, corrupt or foreign.
            ImageError: a source is missing.
            UsageError: labels that do not fit the model.

        """
        self.sources, self.request = list(sources), request
        check(self.sources)
        self.predictor = Predictor(
            model, top=request.top, batch=request.batch, ops=request.ops, allow_modified=request.allow_modified
        )
        self.repeated = 0
        """Keys that the sources gave again; each was predicted once."""
        self.truths: Truths | None = None
        self.accuracy: Accuracy | None = None
        if request.labels is not None:
            if not self.predictor.classifies:
                raise UsageError(f"{model}: gives no classes, so that labels mean nothing.", hint="Leave --labels out.")
            self.truths = Truths(request.labels, self.predictor.labels, self.sources)
            self.accuracy = Accuracy(self.predictor.labels)

    def items(self) -> Iterator[Item]:
        """Yield what is predicted, every key once."""
        columns = self.request.columns
        if self.request.labels == SOURCE and columns.label is None:
            columns = ParquetColumns(columns.image, columns.key, "label")
        return once_each(expand(self.sources, columns), self._note_repeated)

    def predict(self, items: Iterable[Item]) -> Iterator[Prediction]:
        """Yield the rows of items, in order."""
        workers = self.request.workers or os.cpu_count() or 1
        return self.predictor.predict(items, workers=workers, truth=self.truths)

    def rows(self) -> Iterator[Prediction]:
        """Yield every row, counting what is right, and close the model in the end."""
        with closing(self.predictor):
            for row in self.predict(self.items()):
                if self.accuracy is not None:
                    self.accuracy.add(row)
                yield row

    def write(self, folder: str, progress: Callable[[int], None] = lambda _: None) -> Summary:
        """Write parquet shards into a folder, going on where an earlier run stopped.

        Raises:
            UsageError: the folder holds another job, or the sources have changed.
            ArtifactError: the folder cannot be written; finished shards stay.

        """
        predictor, request = self.predictor, self.request
        outputs = {} if predictor.classifies else predictor.output_shapes
        if any(size < 0 for shape in outputs.values() for size in shape):
            raise UsageError(f"{predictor.path}: has outputs of free size, which parquet columns cannot hold.")
        job = Job(
            model=predictor.fingerprint,
            task=predictor.manifest.model.task,
            top=request.top,
            labels=self.truths.identity if self.truths else None,
            rows_per_shard=request.shard_rows or rows_per_shard(outputs),
            outputs={name: list(shape) for name, shape in outputs.items()},
        )
        with closing(predictor):
            writer = ShardWriter(folder, job, self.sources)
            summary = writer.write(self.items(), self.predict, accuracy=self.accuracy, progress=progress)
            summary.repeated = self.repeated
            writer.finish(summary)
        return summary

    def _note_repeated(self, _key: str) -> None:
        self.repeated += 1
