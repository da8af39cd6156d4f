"""One face for everything that can compute a model: numpy images in, named numpy arrays out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vimdeploy.artifacts.golden import Samples
from vimdeploy.errors import UsageError
from vimdeploy.progress import SILENT, Reporter

Array = npt.NDArray[np.float32]
Inputs = Array | Samples
"""Images (B, C, H, W), or the named inputs of a module with the batch first."""

_BATCH = 8
"""Images at a time, where neither the backend nor the caller says."""


class Backend(Protocol):
    """Computes a model."""

    @property
    def name(self) -> str:
        """What computes it, for tables."""
        ...

    @property
    def fixed_batch(self) -> int | None:
        """The only batch it takes; None where it takes any."""
        ...

    def run(self, images: Inputs) -> dict[str, Array]:
        """Map (B, C, H, W) float32 images to the outputs by name, the task's first."""
        ...


def run_batched(
    backend: Backend, images: Inputs, batch: int | None = None, *, reporter: Reporter = SILENT
) -> dict[str, Array]:
    """Run any number of images in batches of one size, the last one filled up with its last image.

    Args:
        backend: what computes.
        images: (N, C, H, W) float32.
        batch: images at a time; None takes the only one that the backend takes, else a moderate one.
        reporter: told about finished images.

    Returns:
        The outputs by name, each (N, ...).

    Raises:
        UsageError: ``batch`` is not the only one that the backend takes.

    """
    parts = list(each_batch(backend, images, batch, reporter=reporter))
    return {name: np.concatenate([part[name] for part in parts])[: len(images)] for name in parts[0]}


def each_batch(
    backend: Backend, images: Inputs, batch: int | None = None, *, reporter: Reporter = SILENT
) -> Iterator[dict[str, Array]]:
    """Yield the outputs of every full batch; see :func:`run_batched`. For values that need not have N first."""
    fixed = backend.fixed_batch
    if batch and fixed and batch != fixed:
        raise UsageError(
            f"{backend.name} has a model of batch {fixed} and cannot run batches of {batch}.",
            hint=f"Leave the batch out, or give {fixed}.",
        )
    size = fixed or batch or _even(len(images))
    for start in range(0, len(images), size):
        yield backend.run(filled(images[start : start + size], size))
        reporter.progress(min(start + size, len(images)), len(images))


def filled(images: Any, batch: int) -> Any:
    """Return a batch of exactly ``batch`` images: the first of them, or all with the last one repeated."""
    return images[np.minimum(np.arange(batch), len(images) - 1)]


def _even(count: int) -> int:
    """Return the size of the smallest number of batches, as even as possible: 9 images are 5 and 4, not 8 and 1."""
    batches = -(-count // _BATCH)
    return -(-count // batches)


def joined(outputs: Mapping[str, Array]) -> Array:
    """Return one array per batch: the only output, or all of them flattened behind each other, (B, values)."""
    arrays = list(outputs.values())
    return arrays[0] if len(arrays) == 1 else np.concatenate([a.reshape(len(a), -1) for a in arrays], axis=1)
