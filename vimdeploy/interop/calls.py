"""How often which kernel was called: an export must hold as many custom nodes as the model calls kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

_counters: list[Counter[str]] = []


def count(name: str) -> None:
    """Note one call of the kernel that the user's code knows as ``name``."""
    for counter in _counters:
        counter[name] += 1


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the calls inside the block."""
    counter: Counter[str] = Counter()
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters.remove(counter)
