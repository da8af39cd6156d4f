"""Timing on a GPU: CUDA events around replays of a CUDA graph, medians, inputs that the cache cannot hold."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

MIN_REPLAYS = 7
MIN_SLOW_REPLAYS = 3
"""Of a graph that takes longer than :data:`SLOW_US`: whole networks at batch 64 take seconds."""
SLOW_US = 300_000
MAX_REPLAYS = 200
MAX_SETS = 512


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call."""

    median_us: float
    p10_us: float
    p90_us: float
    again_us: float
    """The median of a second series: what differs less than this and the first is noise."""
    replays: int
    calls: int
    """Calls per replay, each on inputs of its own."""


def input_sets(bytes_per_call: int, l2_bytes: int) -> int:
    """Return how many sets of inputs to walk through so that each is gone from the cache when its turn comes again."""
    return min(MAX_SETS, max(2, -(-3 * l2_bytes // max(bytes_per_call, 1))))


def measure(call: Callable[[int], Any], sets: int, *, seconds: float = 0.3) -> dict[str, Any]:
    """Time ``call(i)``, i < sets, in one graph of all of them; returns a :class:`Timing` as a dict, per call.

    What the calls allocate comes from the graph's own pool and is freed with it.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(min(sets, 3)):
            call(i)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(sets):
            call(i)
    once = min(_replay(graph, 2))
    replays = replays_of(once, seconds)
    if once < SLOW_US:
        _replay(graph, min(replays, int(50_000 / max(once, 1.0)) + 1))  # 50 ms for the clocks to settle
    first, second = _replay(graph, replays), _replay(graph, replays)
    del graph
    return asdict(summarise(first, second, sets))


def replays_of(once_us: float, seconds: float) -> int:
    """Return how often to replay a graph, twice, so that both series together take about ``seconds``."""
    least = MIN_REPLAYS if once_us < SLOW_US else MIN_SLOW_REPLAYS
    return int(min(MAX_REPLAYS, max(least, seconds * 1e6 / max(once_us, 1.0) / 2)))


def summarise(first: Sequence[float], second: Sequence[float], calls: int) -> Timing:
    """Turn the microseconds of two series of replays into those of one call."""
    ordered = sorted(first)
    return Timing(
        median_us=statistics.median(ordered) / calls,
        p10_us=ordered[len(ordered) // 10] / calls,
        p90_us=ordered[(9 * len(ordered)) // 10] / calls,
        again_us=statistics.median(second) / calls,
        replays=len(ordered),
        calls=calls,
    )


def _replay(graph: Any, count: int) -> list[float]:
    """Return the microseconds of each of ``count`` replays."""
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
    for start, end in events:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return [1000.0 * start.elapsed_time(end) for start, end in events]
