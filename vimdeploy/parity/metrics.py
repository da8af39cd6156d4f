"""How far two outputs of one model are apart, and whether that is within a contract."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vimdeploy.artifacts.recipe import ParityContract

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Metrics:
    """Differences between a candidate and its reference over N samples."""

    samples: int
    max_abs: float
    relative_rms: float
    """rms(candidate - reference) / rms(reference)"""
    cosine: float
    """The smallest of any sample."""
    outside: int
    """Elements outside atol + rtol * |reference|; 0 where the contract has no such bound."""
    top1: float | None
    """Share of the decided samples whose best class is the same; None where the output is not (N, classes)."""
    top5: float | None
    """Share of samples with the same five best classes, in any order."""
    decided: int
    """Samples whose two best classes are further apart than the noise that the contract allows."""
    violations: tuple[str, ...]
    """What the contract does not allow, in words."""

    @property
    def passed(self) -> bool:
        """Whether the contract is kept."""
        return not self.violations

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, which has no NaN and no infinity: such a value becomes None."""
        values = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(self).items()}
        return {**values, "passed": self.passed}


def as_rows(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return an output of any type and rank as (samples, ...) of floats, as :func:`compare` wants it."""
    return np.asarray(array.reshape(1, -1) if array.ndim < 2 else array).astype(np.float32)


def relative_rms(candidate: Array, reference: Array) -> float:
    """Return rms(candidate - reference) / rms(reference); infinite where the reference is zero and the other is not."""
    difference = float(np.sqrt(np.mean(np.square(candidate.astype(np.float64) - reference))))
    size = float(np.sqrt(np.mean(np.square(reference.astype(np.float64)))))
    if difference == 0:
        return 0.0
    return difference / size if size > 0 else float("inf")


def compare(candidate: Array, reference: Array, contract: ParityContract, *, classes: bool) -> Metrics:
    """Compare outputs (N, ...) of the same samples.

    Args:
        candidate: output of the converted model.
        reference: output of the model it should equal.
        contract: the bounds to keep.
        classes: the output is logits (N, classes), for which top-1 and top-5 mean something.

    """
    # Infinite and NaN values are what a comparison may meet; they fail it below, not as warnings of numpy.
    with np.errstate(all="ignore"):
        return _compare(candidate, reference, contract, classes=classes)


def _compare(candidate: Array, reference: Array, contract: ParityContract, *, classes: bool) -> Metrics:
    if candidate.shape != reference.shape:
        return Metrics(
            samples=len(reference),
            max_abs=float("nan"),
            relative_rms=float("nan"),
            cosine=float("nan"),
            outside=0,
            top1=None,
            top5=None,
            decided=0,
            violations=(f"output has shape {candidate.shape}, the reference {reference.shape}",),
        )
    a, b = candidate.astype(np.float64), reference.astype(np.float64)
    difference = np.abs(a - b)
    allowed = None if contract.atol is None else contract.atol + (contract.rtol or 0.0) * np.abs(b)
    outside = 0 if allowed is None else int(np.sum(~(difference <= allowed)))
    top1 = top5 = None
    decided = 0
    if classes and a.ndim == 2 and a.shape[1] > 1:
        top1, top5, decided = _agreement(a, b, contract)
    metrics = Metrics(
        samples=len(b),
        max_abs=float(difference.max()) if difference.size else 0.0,
        relative_rms=relative_rms(a, b),
        cosine=_cosine(a, b),
        outside=outside,
        top1=top1,
        top5=top5,
        decided=decided,
        violations=(),
    )
    return replace(metrics, violations=tuple(_violations(metrics, a, contract)))


def _cosine(a: Array, b: Array) -> float:
    a2, b2 = a.reshape(len(a), -1), b.reshape(len(b), -1)
    norms = np.linalg.norm(a2, axis=1) * np.linalg.norm(b2, axis=1)
    dots = np.sum(a2 * b2, axis=1)
    same = np.all(a2 == b2, axis=1)  # also covers a sample that is zero in both
    return float(np.min(np.where(same, 1.0, dots / np.where(norms == 0, np.inf, norms))))


def _agreement(a: Array, b: Array, contract: ParityContract) -> tuple[float, float, int]:
    """Return top-1 over the decided samples, top-5 over all, and how many are decided."""
    best = np.sort(b, axis=1)
    margin = best[:, -1] - best[:, -2]
    if contract.atol is not None:
        noise = 2 * (contract.atol + (contract.rtol or 0.0) * np.abs(b).max(axis=1))
    else:
        noise = 2 * (contract.relative_rms or 0.0) * np.sqrt(np.mean(np.square(b), axis=1))
    decided = margin > noise
    same = a.argmax(axis=1) == b.argmax(axis=1)
    top1 = float(same[decided].mean()) if decided.any() else 1.0
    k = min(5, a.shape[1])
    first_a, first_b = (np.sort(np.argsort(-x, axis=1, kind="stable")[:, :k], axis=1) for x in (a, b))
    return top1, float(np.mean(np.all(first_a == first_b, axis=1))), int(decided.sum())


def _violations(m: Metrics, candidate: Array, contract: ParityContract) -> list[str]:
    found = []
    if not np.isfinite(candidate).all():
        found.append(f"{int(np.sum(~np.isfinite(candidate)))} values are NaN or infinite")
    if m.outside:
        found.append(
            f"{m.outside} elements differ by more than {contract.atol:g} + {contract.rtol or 0:g} * |reference|"
        )
    # Written so that NaN fails.
    if contract.relative_rms is not None and not m.relative_rms <= contract.relative_rms:
        found.append(f"relative RMS {m.relative_rms:.2e} is above {contract.relative_rms:g}")
    if contract.cosine is not None and not m.cosine >= contract.cosine:
        found.append(f"cosine {m.cosine:.6f} is below {contract.cosine:g}")
    if contract.top1 is not None and m.top1 is not None and not m.top1 >= contract.top1:
        found.append(f"top-1 agreement {m.top1:.2%} is below {contract.top1:.2%}")
    return found
