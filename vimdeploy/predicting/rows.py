"""One row an image: what the model says of it, or why there is nothing to say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ClassScore:
    """One class and its softmax probability."""

    index: int
    label: str
    """The class name, or its index where names are not known."""
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image."""

    image: str
    """The key of the image: its path, or its place in a shard."""
    classes: tuple[ClassScore, ...] = ()
    """The best classes, best first; empty where the model gives no logits."""
    outputs: Mapping[str, Array] = field(default_factory=dict)
    """Features (C,), tokens (L, C) or maps (C, H, W) by name; empty for a classifier."""
    error: str | None = None
    """Why this image could not be predicted; everything else is then empty."""
    truth: int | None = None
    """The true class, where labels are known."""
    truth_rank: int | None = None
    """How many classes the model finds more likely than the true one; 0 is right."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; what does not apply is left out."""
        row: dict[str, Any] = {"image": self.image}
        if self.error is not None:
            row["error"] = self.error
        elif self.classes:
            row["classes"] = [{"index": c.index, "label": c.label, "probability": c.probability} for c in self.classes]
        else:
            row.update((name, values.tolist()) for name, values in self.outputs.items())
        if self.truth is not None:
            row["truth"] = self.truth
        return row


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity: they become null."""
    return value if np.isfinite(value) else None


def _plain(values: Array) -> Any:
    if np.isfinite(values).all():
        return values.tolist()
    plain = values.astype(object)
    plain[~np.isfinite(values)] = None
    return plain.tolist()


def best_classes(logits: Array, labels: tuple[str, ...], top: int) -> tuple[ClassScore, ...]:
    """Return the ``top`` classes of logits (classes,), best first; equal ones in the order of their index."""
    with np.errstate(invalid="ignore"):  # NaN and infinite logits show as NaN probabilities
        exponentials = np.exp(logits - logits.max())
        probabilities = exponentials / exponentials.sum()
    best = np.argsort(-probabilities, kind="stable")[:top]
    return tuple(ClassScore(int(i), labels[i], float(probabilities[i])) for i in best)


def rank_of(logits: Array, truth: int) -> int:
    """Return how many classes stand before the true one in :func:`best_classes`."""
    return int(np.sum(logits > logits[truth]) + np.sum(logits[:truth] == logits[truth]))
