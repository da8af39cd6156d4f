"""What the project set out to reach on a GPU, judged by the results of part ``kernels``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_suite.cases import VIM_SHAPES
from benchmarks.gpu_suite.kernels import key
from benchmarks.gpu_suite.store import NOT_MEASURED

Cases = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """A goal and what came of it; ``value`` is None where something it needs was not measured."""

    goal: str
    needed: float
    value: float | None
    where: str
    """The case that decides: the worst one."""
    unit: str

    @property
    def text(self) -> str:
        """Return ``met: ...``, ``missed by ...`` or ``not measured``."""
        if self.value is None:
            return NOT_MEASURED
        shown = f"{self.value:.2f}x" if self.unit == "x" else f"{100 * self.value:.0f} %"
        place = f" at {self.where}" if self.where else ""
        if self.value >= self.needed:
            return f"met: {shown}{place}"
        return f"MISSED by {100 * (1 - self.value / self.needed):.0f} %: {shown}{place}"


def our_time(case: dict[str, Any]) -> float | None:
    """Return the microseconds of the variant that the library chooses by itself."""
    timing = case["ours"]["variants"].get(case["ours"]["chosen"])
    return timing["median_us"] if timing else None


def best_variant(case: dict[str, Any]) -> tuple[str, float] | None:
    """Return the fastest variant, which the choice should have been."""
    timed = {name: timing["median_us"] for name, timing in case["ours"]["variants"].items() if timing}
    return min(timed.items(), key=lambda item: item[1]) if timed else None


def ratio(case: dict[str, Any], what: str) -> float | None:
    """Return how many times longer the peer takes: ``kernels``, ``flips`` (with flips and adds) or ``whole``."""
    ours, theirs = our_time(case), case["peer"][what]
    return theirs["median_us"] / ours if ours and theirs else None


def floor_share(case: dict[str, Any]) -> float | None:
    """Return the share of the binding floor that is reached: 1 is as fast as the device allows."""
    ours = our_time(case)
    return case["floor"]["us"] / ours if ours and case["floor"] else None


def verdicts(cases: Cases) -> list[Verdict]:
    """Judge the goals."""

    def whole(case: dict[str, Any]) -> float | None:
        return ratio(case, "whole")

    every = list(VIM_SHAPES)
    operation = "whole bidirectional operation, peer over ours"
    return [
        _judge(cases, f"{operation}, E=384 L=197 B=64: at least 5x", 5.0, "x", whole, [(384, 197)], 64),
        _judge(cases, f"{operation}, E=384 L=6085 B=64: at least 4x", 4.0, "x", whole, [(384, 6085)], 64),
        _judge(cases, f"{operation}, batch 1, every shape: at least 2x", 2.0, "x", whole, every, 1),
        _judge(
            cases, "share of the binding floor, batch 64, every shape: at least 65 %", 0.65, "", floor_share, every, 64
        ),
    ]


def _judge(
    cases: Cases, goal: str, needed: float, unit: str, value: Callable[[dict[str, Any]], float | None],
    shapes: Sequence[tuple[int, int]], batch: int,
) -> Verdict:  # fmt: skip
    values: dict[str, float] = {}
    for channels, length in shapes:
        name = key(channels, length, batch)
        found = value(cases[name]) if name in cases else None
        if found is None:
            return Verdict(goal, needed, None, "", unit)
        values[name] = found
    worst = min(values, key=lambda name: values[name])
    return Verdict(goal, needed, values[worst], worst if len(values) > 1 else "", unit)
