"""Does an ONNX file compute what the PyTorch model computes?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vimdeploy.backends import Backend, OnnxBackend, TorchBackend
from vimdeploy.models.recipe import ParityContract
from vimdeploy.verify.metrics import Metrics, compare, relative_rms

if TYPE_CHECKING:
    import onnx

    from vimdeploy.models.vim import VisionMamba

Array = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""


@dataclass(frozen=True)
class BatchResult:
    """One comparison at one batch size."""

    batch: int
    metrics: Metrics


@dataclass(frozen=True)
class Report:
    """Parity of a candidate with its reference."""

    reference: str
    candidate: str
    contract: ParityContract
    results: tuple[BatchResult, ...]
    departs: str | None
    """Where the two part first, when the contract is broken."""

    @property
    def passed(self) -> bool:
        """Whether every batch size kept the contract."""
        return all(result.metrics.passed for result in self.results)

    @property
    def violations(self) -> list[str]:
        """Everything that broke the contract, with its batch size."""
        return [f"batch {r.batch}: {text}" for r in self.results for text in r.metrics.violations]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "passed": self.passed,
            "reference": self.reference,
            "candidate": self.candidate,
            "contract": self.contract.model_dump(),
            "results": [{"batch": r.batch, **r.metrics.to_dict()} for r in self.results],
            "departs": self.departs,
        }


def verify_onnx(
    onnx_model: Path | onnx.ModelProto,
    model: VisionMamba,
    task: str,
    images: Array,
    batches: Sequence[int],
    contract: ParityContract,
    progress: Progress | None = None,
) -> Report:
    """Compare an ONNX model in ONNX Runtime with the PyTorch model.

    Args:
        onnx_model: a file or a model in memory.
        model: the PyTorch model in eval mode.
        task: what both compute: ``classify``, ``features`` or ``tokens``.
        images: (N, C, H, W) float32.
        batches: sizes at which the ONNX model runs; every size sees all images.
        contract: the bounds to keep.
        progress: told about finished images.

    """
    total, done = len(images) * (len(batches) + 1), 0

    def run(backend: Backend, batch: int) -> Array:
        nonlocal done
        parts = []
        for part in _split(images, batch):
            parts.append(next(iter(backend.run(part).values())))
            done = min(done + len(part), total)
            if progress:
                progress(done, total)
        return np.concatenate(parts)[: len(images)]

    candidate = OnnxBackend(onnx_model)
    expected = run(TorchBackend(model, task), max(batches))
    results = tuple(
        BatchResult(batch, compare(run(candidate, batch), expected, contract, classes=task == "classify"))
        for batch in batches
    )
    departs = None
    if not all(result.metrics.passed for result in results):
        departs = first_departure(onnx_model, model, task, images[: min(batches)], contract)
    return Report("torch float32", "ONNX Runtime", contract, results, departs)


def first_departure(
    onnx_model: Path | onnx.ModelProto, model: VisionMamba, task: str, images: Array, contract: ParityContract
) -> str:
    """Return, in words, the first inner value in which the two models differ by more than rounding."""
    reference = TorchBackend(model, task, taps=True).run(images)
    result, *taps = reference
    candidate = OnnxBackend(onnx_model, taps=taps).run(images)
    bound = max(contract.relative_rms or 0.0, 1e-4)
    missing = [tap for tap in taps if tap not in candidate]
    if missing:
        return f"not known: the file does not name its inner values ({missing[0]}, ...)"
    for tap in taps:
        a, b = candidate[tap], reference[tap]
        if a.shape != b.shape or not relative_rms(a, b) <= bound:
            _, block, what = tap.split(".")
            if what == "residual" and block == "0":
                return "before block 0: patch embedding, class token or position embeddings"
            where = "its residual input" if what == "residual" else "the output of its mixer"
            return f"block {block}, {where}"
    return f"after the last block: final norm, choice of tokens or head ({result})"


def _split(images: Array, batch: int) -> list[Array]:
    """Cut images into batches of exactly ``batch``, the last one filled up with its last image."""
    parts = [images[i : i + batch] for i in range(0, len(images), batch)]
    short = batch - len(parts[-1])
    if short:
        parts[-1] = np.concatenate([parts[-1], np.repeat(parts[-1][-1:], short, axis=0)])
    return parts
