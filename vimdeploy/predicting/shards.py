"""Parquet shards that survive a kill: each appears whole, and a second run goes on after the last one.

``part-00007.parquet`` holds the rows of images 7 * N to 8 * N - 1 of the sources, in order. Its metadata carries a
digest of their keys and of what the rows depend on, so that a later run can tell that a shard is finished and still
belongs to it. Nothing else is remembered: a shard that is lost or damaged is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from vimdeploy.errors import ArtifactError, MissingDependencyError, UsageError
from vimdeploy.needs import REQUIREMENTS, pip_install
from vimdeploy.predicting.items import Item
from vimdeploy.predicting.labels import Accuracy
from vimdeploy.predicting.rows import Prediction
from vimdeploy.predicting.storage import Storage, join, storage_of
from vimdeploy.predicting.tables import parquet_bytes, read_facts, read_rows, record_batch, schema_of

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "_manifest.json"
_SHARD_BYTES = 64 << 20
_MOST_ROWS = 10_000
_ROWS_PER_GROUP = 1_000


@dataclass(frozen=True)
class Job:
    """What the rows of a folder depend on. Another job never adds to the folder."""

    model: str
    """SHA-256 of the model file."""
    task: str
    top: int
    labels: str | None
    rows_per_shard: int
    outputs: dict[str, list[int]] = field(default_factory=dict)
    """Shape of each output for one image; empty for a classifier."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass
class Summary:
    """What a run left in the folder."""

    folder: str
    shards: int = 0
    rows: int = 0
    errors: int = 0
    """Rows of images that could not be predicted."""
    resumed: int = 0
    """Rows that an earlier run had finished."""
    repeated: int = 0
    """Keys that the sources gave more than once; each has one row."""
    accuracy: dict[str, Any] | None = None


def rows_per_shard(outputs: dict[str, tuple[int, ...]]) -> int:
    """Return how many images fill a shard of some 64 MB, at most 10,000."""
    values = sum(int(np.prod(shape)) for shape in outputs.values())
    return max(16, min(_MOST_ROWS, _SHARD_BYTES // (4 * max(values, 1))))


class ShardWriter:
    """Writes a job's rows into a folder, here or in object storage."""

    def __init__(self, folder: str, job: Job, sources: list[str]) -> None:
        """Claim the folder, by writing its manifest.

        Raises:
            UsageError: the folder holds another job.
            ArtifactError: it cannot be written.
            MissingDependencyError: pyarrow is not installed.

        """
        if find_spec("pyarrow") is None:
            raise MissingDependencyError(
                "Writing parquet needs pyarrow, which is not installed.", hint=pip_install(REQUIREMENTS["pyarrow"])
            )
        self._folder, self._job, self._sources = folder.rstrip("/"), job, sources
        self._storage: Storage = storage_of(folder)
        self._schema = schema_of(job.outputs, labelled=job.labels is not None)
        self._claim()

    def _claim(self) -> None:
        if self._storage.kind(self._folder) == "file":
            raise UsageError(f"{self._folder}: is a file.", hint="Name a folder with -o.")
        names = self._storage.names(self._folder)
        if MANIFEST not in names:
            if any(name.endswith(".parquet") for name in names):
                raise UsageError(
                    f"{self._folder}: holds parquet files of another origin.", hint="Name another folder with -o."
                )
        else:
            self._refuse_another_job()
        self._write_manifest(Summary(self._folder), complete=False)

    def _refuse_another_job(self) -> None:
        path = join(self._folder, MANIFEST)
        try:
            there = json.loads(self._storage.read(path))["job"]
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path}: is not the manifest of a prediction ({error}).", hint=_ELSEWHERE) from error
        here = json.loads(json.dumps(asdict(self._job)))
        if differing := [name for name in here if there.get(name) != here[name]]:
            raise UsageError(
                f"{self._folder}: holds rows of another job; it differs in: {', '.join(differing)}.", hint=_ELSEWHERE
            )

    def write(
        self,
        items: Iterable[Item],
        predict: Callable[[Iterator[Item]], Iterator[Prediction]],
        *,
        accuracy: Accuracy | None = None,
        progress: Callable[[int], None] = lambda _: None,
    ) -> Summary:
        """Predict all items that no finished shard holds, and return what the folder holds then.

        Args:
            items: every image of the sources, in their order.
            predict: returns the rows of items, in order.
            accuracy: counts the rows, those of finished shards too.
            progress: told how many images are done.

        Raises:
            UsageError: the sources are not those that finished shards were made from.
            ArtifactError: a shard cannot be written; those before it stay.

        """
        summary = Summary(self._folder)
        remaining = iter(items)
        number = 0
        finished = set(self._storage.names(self._folder))
        while True:
            name = _part_name(number)
            window = _Window(remaining, self._job.rows_per_shard)
            done = self._finished(name) if name in finished else None
            if done is None:
                rows, errors = self._make(name, predict(iter(window)), window, accuracy, progress, summary)
            else:
                rows, errors = self._skip(name, window, done)
                summary.resumed += rows
                progress(summary.rows + rows)
                if accuracy is not None:
                    self._recount(name, accuracy)
            if rows == 0:
                break
            summary.rows += rows
            summary.errors += errors
            summary.shards += 1
            number += 1
            if rows < self._job.rows_per_shard:
                break
        if later := sorted(n for n in finished if n.endswith(".parquet") and n >= _part_name(number)):
            raise UsageError(f"{self._folder}: {later[0]} holds images that the sources no longer name.", hint=_CHANGED)
        summary.accuracy = accuracy.to_dict() if accuracy is not None else None
        return summary

    def finish(self, summary: Summary) -> None:
        """Write the final manifest: the sign for a reader that every row is there."""
        self._write_manifest(summary, complete=True)

    def _make(
        self,
        name: str,
        rows: Iterator[Prediction],
        window: _Window,
        accuracy: Accuracy | None,
        progress: Callable[[int], None],
        summary: Summary,
    ) -> tuple[int, int]:
        batches: list[pa.RecordBatch] = []
        count = errors = 0
        while group := list(islice(rows, _ROWS_PER_GROUP if not self._job.outputs else 16)):
            batches.append(record_batch(group, self._schema))
            count += len(group)
            errors += sum(row.error is not None for row in group)
            if accuracy is not None:
                for row in group:
                    accuracy.add(row)
            progress(summary.rows + count)
        if count:
            facts = {"job": self._job.fingerprint, "keys": window.digest(), "rows": count, "errors": errors}
            self._storage.write(join(self._folder, name), parquet_bytes(batches, self._schema, facts))
        return count, errors

    def _finished(self, name: str) -> dict[str, Any] | None:
        """Return the facts of a shard, None where it is damaged or of no use and has to be made again."""
        try:
            facts = read_facts(self._storage, join(self._folder, name))
        except (ArtifactError, OSError, ValueError, KeyError, TypeError):
            return None
        return facts if isinstance(facts, dict) and facts.get("job") == self._job.fingerprint else None

    def _skip(self, name: str, window: _Window, facts: dict[str, Any]) -> tuple[int, int]:
        for _ in window:
            pass
        if window.count != facts["rows"] or window.digest() != facts["keys"]:
            raise UsageError(
                f"{join(self._folder, name)}: holds other images than the sources name now at this place.",
                hint=_CHANGED,
            )
        return int(facts["rows"]), int(facts["errors"])

    def _recount(self, name: str, accuracy: Accuracy) -> None:
        for row in read_rows(self._storage, join(self._folder, name)):
            accuracy.add(row)

    def _write_manifest(self, summary: Summary, *, complete: bool) -> None:
        content = {
            "kind": "predictions",
            "complete": complete,
            "job": asdict(self._job),
            "sources": self._sources,
            **{name: value for name, value in asdict(summary).items() if complete and name != "folder"},
        }
        self._storage.write(join(self._folder, MANIFEST), (json.dumps(content, indent=2) + "\n").encode())


_ELSEWHERE = "Name another folder with -o, or remove this one."
_CHANGED = "Images were added, removed or renamed since: predict into another folder with -o."


class _Window:
    """The next items of a stream, up to a number; notes their keys as they pass."""

    def __init__(self, items: Iterator[Item], most: int) -> None:
        self._items, self._most = items, most
        self._digest = hashlib.sha256()
        self.count = 0

    def __iter__(self) -> Iterator[Item]:
        for item in islice(self._items, self._most):
            self._digest.update(item.key.encode("utf-8", "surrogateescape") + b"\0")
            self.count += 1
            yield item

    def digest(self) -> str:
        return self._digest.hexdigest()


def _part_name(number: int) -> str:
    return f"part-{number:05d}.parquet"
