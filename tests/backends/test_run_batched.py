"""Any number of images through a backend, whatever batch it takes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vimdeploy.backends.base import Array, each_batch, filled, run_batched
from vimdeploy.errors import UsageError
from vimdeploy.progress import Reporter


@dataclass
class Doubling:
    """Doubles images; as strict about its batch as ONNX Runtime."""

    fixed_batch: int | None = None
    batches: list[int] = field(default_factory=list)
    name: str = "doubling"

    def run(self, images: Array) -> dict[str, Array]:
        if self.fixed_batch and len(images) != self.fixed_batch:
            raise ValueError(f"got {len(images)}, takes {self.fixed_batch}")
        self.batches.append(len(images))
        return {"twice": 2 * images, "sum": images.sum(axis=(1, 2, 3))}


def images(count: int) -> Array:
    return np.arange(count * 12, dtype=np.float32).reshape(count, 3, 2, 2)


class Told(Reporter):
    def __init__(self, steps: list[tuple[int, int]]) -> None:
        self.steps = steps

    def progress(self, done: int, total: int) -> None:
        self.steps.append((done, total))


@given(st.integers(1, 40), st.none() | st.integers(1, 9), st.booleans())
def test_every_image_comes_out_once_and_in_order(count: int, batch: int | None, fixed: bool) -> None:
    backend = Doubling(batch if fixed else None)
    told: list[tuple[int, int]] = []
    outputs = run_batched(backend, images(count), None if fixed else batch, reporter=Told(told))
    np.testing.assert_array_equal(outputs["twice"], 2 * images(count))
    np.testing.assert_array_equal(outputs["sum"], images(count).sum(axis=(1, 2, 3)))
    assert len(set(backend.batches)) == 1, "batches of one size"
    assert batch is None or backend.batches[0] == batch
    assert told[-1] == (count, count)
    assert told == sorted(told)


def test_batches_are_even_where_nobody_says_how_large() -> None:
    backend = Doubling()
    run_batched(backend, images(9))
    assert backend.batches == [5, 5]


def test_a_batch_that_the_backend_does_not_take_is_refused() -> None:
    with pytest.raises(UsageError, match="batch 4 and cannot run batches of 3"):
        run_batched(Doubling(4), images(6), 3)


def test_a_batch_is_filled_up_or_cut() -> None:
    np.testing.assert_array_equal(filled(images(2), 4), images(2)[[0, 1, 1, 1]])
    np.testing.assert_array_equal(filled(images(5), 4), images(5)[:4])


def test_values_without_the_batch_first_arrive_whole() -> None:
    assert [part["twice"].shape for part in each_batch(Doubling(4), images(6))] == [(4, 3, 2, 2)] * 2
