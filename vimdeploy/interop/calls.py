"""Which kernels are called: an export must hold as many custom nodes as the model calls kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

CONVOLUTIONS = ("causal_conv1d_fn",)
"""Names of calls that become ``CausalConv1d``; every other one is a scan."""

_listeners: list[Callable[[str], None]] = []


def count(name: str) -> None:
    """Note one call of the kernel that the user's code knows as ``name``."""
    for listener in list(_listeners):
        listener(name)


@contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Call ``listener`` with the name of every kernel that is called inside the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the calls inside the block."""
    counter: Counter[str] = Counter()
    with listening(lambda name: counter.update((name,))):
        yield counter
