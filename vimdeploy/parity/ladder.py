"""The ladder from PyTorch to the engine: each rung against the first and against the one before.

A rung that this machine cannot run is listed as not run, with the reason, and never counts as passed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vimdeploy.artifacts.recipe import Parity
from vimdeploy.backends.base import Array, Backend, joined, run_batched
from vimdeploy.errors import MissingDependencyError, VerificationError
from vimdeploy.parity.metrics import Metrics, compare
from vimdeploy.progress import SILENT, Reporter

Status = Literal["reference", "passed", "failed", "not run"]


@dataclass(frozen=True)
class Rung:
    """One way to compute the model."""

    name: str
    precision: str
    """``fp32``, ``fp16`` or ``bf16``: which contract it owes."""
    open: Callable[[], Backend]
    """Opens it; MissingDependencyError where this machine cannot run it, VerificationError where nothing should."""
    departs: Callable[[Array], str] | None = None
    """Names, for a failed rung, where it departs from the original."""
    note: str = ""
    """What a reader of its result should know."""


@dataclass(frozen=True)
class RungResult:
    """What became of a rung."""

    name: str
    precision: str
    status: Status
    against_first: Metrics | None = None
    against_previous: Metrics | None = None
    reason: str = ""
    """Why it was not run, what it breaks and where, or what is special about it."""


@dataclass(frozen=True)
class LadderReport:
    """All rungs in order."""

    rungs: tuple[RungResult, ...]
    samples: int

    @property
    def passed(self) -> bool:
        """Whether no rung that was run broke its contract."""
        return not any(rung.status == "failed" for rung in self.rungs)

    def verdict(self) -> str:
        """Return one line that a person can act on."""
        missing = [rung.name for rung in self.rungs if rung.status == "not run"]
        if failed := next((rung for rung in self.rungs if rung.status == "failed"), None):
            return f"FAILED at '{failed.name}': {failed.reason}"
        ran = [rung.name for rung in self.rungs if rung.status in ("passed", "reference")]
        proven = f"Every rung up to '{ran[-1]}' keeps its contract" if len(ran) > 1 else "Nothing could be compared"
        return f"{proven}; not run here: {', '.join(missing)}." if missing else f"{proven}."

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        rows = [
            {
                "name": r.name,
                "precision": r.precision,
                "status": r.status,
                "reason": r.reason,
                "against_first": r.against_first.to_dict() if r.against_first else None,
                "against_previous": r.against_previous.to_dict() if r.against_previous else None,
            }
            for r in self.rungs
        ]
        return {"passed": self.passed, "verdict": self.verdict(), "samples": self.samples, "rungs": rows}


def climb(
    rungs: Sequence[Rung], images: Array, parity: Parity, *, classes: bool, reporter: Reporter = SILENT
) -> LadderReport:
    """Run every rung on ``images`` and hold it to the contract of its precision.

    Args:
        rungs: the first one is the reference.
        images: (N, C, H, W) float32.
        parity: contracts by precision.
        classes: the output is logits.
        reporter: told about finished rungs.

    """
    results: list[RungResult] = []
    first: Array | None = None
    previous: Array | None = None
    for index, rung in enumerate(rungs):
        try:
            output = joined(run_batched(rung.open(), images))
        except MissingDependencyError as error:
            results.append(RungResult(rung.name, rung.precision, "not run", reason=error.message))
            continue
        except VerificationError as error:
            results.append(RungResult(rung.name, rung.precision, "failed", reason=error.message))
            continue
        finally:
            reporter.progress(index + 1, len(rungs))
        if first is None or previous is None:
            results.append(RungResult(rung.name, rung.precision, "reference"))
            first = previous = output
            continue
        contract = parity[rung.precision]
        against_first = compare(output, first, contract, classes=classes)
        against_previous = compare(output, previous, contract, classes=classes)
        results.append(_judge(rung, against_first, against_previous, images))
        previous = output
    return LadderReport(tuple(results), len(images))


def _judge(rung: Rung, against_first: Metrics, against_previous: Metrics, images: Array) -> RungResult:
    broken = "; ".join(against_first.violations)
    if broken and rung.departs:
        broken += f"; {rung.departs(images)}"
    return RungResult(
        rung.name,
        rung.precision,
        "failed" if broken else "passed",
        against_first,
        against_previous,
        reason=broken or rung.note,
    )
