"""Does an ONNX file compute what the PyTorch model computes?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimdeploy.artifacts.recipe import ParityContract
from vimdeploy.backends.base import Array, filled, run_batched
from vimdeploy.backends.onnxruntime import OnnxBackend, forms
from vimdeploy.errors import ArtifactError, UsageError, VerificationError
from vimdeploy.parity.departure import first_departing_block
from vimdeploy.parity.metrics import Metrics, compare
from vimdeploy.progress import SILENT, Reporter

if TYPE_CHECKING:
    import onnx

    from vimdeploy.models.family import FamilyModel


@dataclass(frozen=True)
class BatchResult:
    """One comparison of one output at one batch size."""

    batch: int
    output: str
    metrics: Metrics
    ops: str = "body"
    """What computed the custom ops: ``body`` or ``native``."""


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
        several = len({r.output for r in self.results}) > 1
        return [
            f"batch {r.batch}{f', output {r.output}' if several else ''}"
            f"{', native ops' if r.ops == 'native' else ''}: {text}"
            for r in self.results
            for text in r.metrics.violations
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "passed": self.passed,
            "reference": self.reference,
            "candidate": self.candidate,
            "contract": self.contract.model_dump(),
            "results": [
                {"batch": r.batch, "output": r.output, "ops": r.ops, **r.metrics.to_dict()} for r in self.results
            ],
            "departs": self.departs,
        }


def verify_onnx(
    onnx_model: Path | onnx.ModelProto,
    model: FamilyModel,
    task: str,
    images: Array,
    batches: Sequence[int],
    contract: ParityContract,
    *,
    ops: str = "auto",
    reporter: Reporter = SILENT,
) -> Report:
    """Compare an ONNX model in ONNX Runtime with the PyTorch model.

    Args:
        onnx_model: a file or a model in memory.
        model: the PyTorch model in eval mode.
        task: what both compute, one of :data:`vimdeploy.models.family.TASKS`.
        images: (N, C, H, W) float32.
        batches: sizes at which the ONNX model runs; every size sees all images.
        contract: the bounds to keep.
        ops: ``body`` or ``native`` computes the custom ops; ``auto`` compares both, where the native ones are here.
        reporter: told about finished images.

    Raises:
        ArtifactError: the ONNX model does not run, or lacks an output.
        UsageError: a batch that the ONNX model does not take.
        MissingDependencyError: native ops are asked for and not here.

    """
    from vimdeploy.backends.torch import TorchBackend

    source = onnx_model if isinstance(onnx_model, Path) else "the exported model"
    candidates = {name: OnnxBackend(onnx_model, ops=name) for name in forms(ops)}
    fixed = next(iter(candidates.values())).fixed_batch
    if fixed and (other := next((batch for batch in batches if batch != fixed), None)):
        raise UsageError(
            f"{source}: takes batches of {fixed} only, not of {other}.",
            hint=f"Leave --batch out, or give {fixed}; an export without --batch takes any.",
        )
    runs = [(batch, name) for batch in batches for name in candidates]
    parts = [reporter.part(index, len(runs) + 1) for index in range(len(runs) + 1)]
    expected = run_batched(TorchBackend(model, task), images, max(batches), reporter=parts[0])
    results = []
    for (batch, name), told in zip(runs, parts[1:], strict=True):
        outputs = run_batched(candidates[name], images, batch, reporter=told)
        if missing := [output for output in expected if output not in outputs]:
            raise ArtifactError(
                f"{source}: has no output {', '.join(missing)}; it gives {', '.join(outputs)}.",
                hint="Export the model again with `vimdeploy export`.",
            )
        for output, reference in expected.items():
            metrics = compare(outputs[output], reference, contract, classes=task == "classify")
            results.append(BatchResult(batch, output, metrics, name))
    departs = None
    if broken := next((result for result in results if not result.metrics.passed), None):
        departs = first_departing_block(onnx_model, model, task, filled(images, min(batches)), contract, broken.ops)
    return Report("torch float32", "ONNX Runtime", contract, tuple(results), departs)


def raise_unless_equal(report: Report, subject: str, hint: str) -> None:
    """Raise VerificationError with what broke the contract and where the models part."""
    if not report.passed:
        raise VerificationError(
            f"{subject}: {report.candidate} does not compute what {report.reference} computes: "
            f"{'; '.join(report.violations[:3])}. They part {report.departs}.",
            hint=hint,
        )
