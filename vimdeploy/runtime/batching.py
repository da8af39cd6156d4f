"""How a batch is served: split where it is too large, padded to a captured graph where that is cheap."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

G = TypeVar("G")
PADDING = 1.5
"""A captured graph serves a smaller batch up to this ratio. Beyond it, running the batch itself costs less."""


def split(batch: int, most: int, least: int = 1) -> list[slice]:
    """Cut ``batch`` images into chunks of at most ``most`` and at least ``least`` rows, as even as possible.

    Even chunks need one graph or two. A chunk below ``least``, where that cannot be helped, is for the caller to pad.
    """
    chunks = -(-batch // most)
    size, extra = divmod(batch, chunks)
    if size < least <= batch:  # cannot happen for least <= most / 2; profiles with least == most pad their last chunk
        return [slice(start, min(start + most, batch)) for start in range(0, batch, most)]
    bounds = [0]
    for index in range(chunks):
        bounds.append(bounds[-1] + size + (index < extra))
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


def nearest(batch: int, captured: Iterable[int], padding: float = PADDING) -> int | None:
    """Return the smallest captured batch size that can serve ``batch``; None where none is close enough."""
    fitting = [size for size in captured if batch <= size <= batch * padding]
    return min(fitting, default=None)


class GraphCache(Generic[G]):
    """Captured CUDA graphs, least recently used first out. Not thread-safe: each context has its own.

    Capturing costs a launch and memory, so a key is captured when it is seen for the second time.
    """

    def __init__(self, capacity: int, release: Callable[[G], None]) -> None:
        self._capacity = capacity
        self._release = release
        self._graphs: OrderedDict[Hashable, G] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()

    def get(self, key: Hashable) -> G | None:
        """Return the graph of ``key`` and mark it as used."""
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
        return graph

    def due(self, key: Hashable) -> bool:
        """Note that ``key`` ran without a graph; return whether it has been seen before and is worth capturing."""
        if self._capacity == 0:
            return False
        seen = key in self._seen
        self._seen[key] = None
        self._seen.move_to_end(key)
        while len(self._seen) > 4 * self._capacity:
            self._seen.popitem(last=False)
        return seen

    def put(self, key: Hashable, graph: G) -> None:
        """Keep a graph, releasing the least recently used one where there is no room."""
        self._graphs[key] = graph
        self._graphs.move_to_end(key)
        while len(self._graphs) > self._capacity:
            self._release(self._graphs.popitem(last=False)[1])

    def keys(self) -> list[Hashable]:
        """Return the keys, least recently used first."""
        return list(self._graphs)

    def clear(self) -> None:
        """Release every graph."""
        while self._graphs:
            self._release(self._graphs.popitem()[1])
        self._seen.clear()
