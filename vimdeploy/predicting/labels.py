"""True classes of images, and how often a model is right."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vimdeploy.artifacts.files import sha256_bytes
from vimdeploy.errors import UsageError, nearest
from vimdeploy.predicting.items import Item
from vimdeploy.predicting.rows import Prediction
from vimdeploy.predicting.storage import storage_of

FOLDERS, SOURCE = "folders", "source"


class Truths:
    """Knows the true class of an item, by its folder, by what its source says, or from a file of labels."""

    def __init__(self, option: str, labels: Sequence[str], sources: Sequence[str]) -> None:
        """Read what is needed to look labels up.

        Args:
            option: ``folders`` (an image's class is the name of its folder), ``source`` (``.cls`` members of tar
                shards, the label column of parquet), or a file: CSV with the columns ``image`` and ``label``, or JSON
                that maps images to labels.
            labels: class names of the model, by index.
            sources: what is predicted; the folders in it are looked at where ``folders`` is asked for.

        Raises:
            UsageError: the file cannot be read, or names classes that the model does not have.

        """
        self.note = ""
        """What a reader should know about how labels were understood; empty where they were plain."""
        self._by = option
        self._index = {name: index for index, name in enumerate(labels)}
        self._count = len(labels)
        self._table: dict[str, int] = {}
        if option == FOLDERS:
            self._learn_folders(sources)
        elif option != SOURCE:
            self._table = {image: self._required(label, option) for image, label in _read(option).items()}

    @property
    def identity(self) -> str:
        """What rows depend on: the option, and the content of a file of labels."""
        table = json.dumps(self._table, sort_keys=True).encode()
        return f"{self._by} {sha256_bytes(table)}" if self._table else self._by

    def __call__(self, item: Item) -> int | None:
        """Return the index of the true class; None where it is not known."""
        if self._by == FOLDERS:
            return self.index(item.key.rpartition("/")[0].rpartition("/")[2])
        if self._by == SOURCE:
            return None if item.label is None else self.index(item.label)
        found = self._table.get(item.key)
        return self._table.get(item.key.rpartition("/")[2]) if found is None else found

    def index(self, label: str) -> int | None:
        """Return the index of a class by its name, or by the number itself; None where the model has no such class."""
        found = self._index.get(label)
        if found is None and label.isascii() and label.isdecimal() and int(label) < self._count:
            return int(label)
        return found

    def _required(self, label: str, where: str) -> int:
        found = self.index(label)
        if found is None:
            raise UsageError(
                f"{where}: the model has no class '{label}'.", hint=f"{nearest(label, self._index)} Numbers serve too."
            )
        return found

    def _learn_folders(self, sources: Sequence[str]) -> None:
        folders = [s for s in sources if s != "-" and storage_of(s).kind(s) == "folder"]
        names = sorted({name for folder in folders for name in storage_of(folder).folders(folder)})
        unknown = [name for name in names if self.index(name) is None]
        if not unknown:
            return
        if len(names) != self._count:
            raise UsageError(
                f"--labels folders: {len(unknown)} of {len(names)} folders carry no class name ('{unknown[0]}', ...), "
                f"and the model has {self._count} classes.",
                hint="Name folders after classes or their numbers, or pass a CSV file of labels.",
            )
        self._index = {name: index for index, name in enumerate(names)}
        self.note = f"the folders' names are no class names: taken in their sorted order, '{names[0]}' is class 0"


def _read(path: str) -> dict[str, str]:
    storage = storage_of(path)
    if storage.kind(path) != "file":
        raise UsageError(
            f"--labels {path}: there is no such file.", hint="Pass folders, source, or a CSV or JSON file of labels."
        )
    try:
        text = storage.read(path).decode("utf-8-sig")
        if Path(path).suffix == ".json":
            return {str(image): str(label) for image, label in json.loads(text).items()}
        rows = csv.DictReader(io.StringIO(text), delimiter="\t" if Path(path).suffix == ".tsv" else ",")
        return {row["image"]: row["label"] for row in rows}
    except (UnicodeDecodeError, ValueError, AttributeError, KeyError, csv.Error) as error:
        raise UsageError(
            f"--labels {path}: is no list of labels ({type(error).__name__}: {error}).",
            hint='CSV starts with the line "image,label"; JSON is {"a.png": "cat", ...}.',
        ) from error


@dataclass
class Accuracy:
    """Counts how often a classifier is right."""

    labels: Sequence[str]
    right: int = 0
    """Images whose true class is the most likely one."""
    among_five: int = 0
    unlabelled: int = 0
    """Images whose class is not known: they count nowhere."""
    failed: int = 0
    """Labelled images that could not be predicted: they count nowhere, and are told."""
    confusion: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Images by (true class, most likely class)."""

    def add(self, row: Prediction) -> None:
        """Count one row."""
        if row.truth is None:
            self.unlabelled += 1
        elif row.error is not None or row.truth_rank is None:
            self.failed += 1
        else:
            self.count(row.truth, row.classes[0].index, row.truth_rank)

    def count(self, truth: int, predicted: int, rank: int) -> None:
        """Count one image; ``rank`` is how many classes stand before the true one."""
        self.confusion[truth, predicted] += 1
        self.right += rank == 0
        self.among_five += rank < 5

    @property
    def images(self) -> int:
        """Images that count."""
        return sum(self.confusion.values())

    def per_class(self) -> list[dict[str, Any]]:
        """Return images, recall and precision of every class that occurs, by index."""
        truths, guesses = Counter[int](), Counter[int]()
        for (truth, predicted), number in self.confusion.items():
            truths[truth] += number
            guesses[predicted] += number
        return [
            {
                "index": index,
                "label": self.labels[index],
                "images": truths[index],
                "recall": self.confusion[index, index] / truths[index] if truths[index] else None,
                "precision": self.confusion[index, index] / guesses[index] if guesses[index] else None,
            }
            for index in sorted(truths | guesses)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        images = self.images
        return {
            "images": images,
            "top1": self.right / images if images else None,
            "top5": self.among_five / images if images else None,
            "unlabelled": self.unlabelled,
            "failed": self.failed,
            "per_class": self.per_class(),
            "confusion": [
                {"truth": truth, "predicted": predicted, "images": number}
                for (truth, predicted), number in sorted(self.confusion.items())
            ],
        }
