"""Does an exported file, or everything down to its engines, compute what the PyTorch model computes?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimdeploy import needs
from vimdeploy.artifacts.images import sample_images
from vimdeploy.artifacts.manifest import PLAN_SUFFIXES, is_stale, read_manifest, refuse_modified
from vimdeploy.artifacts.onnx_file import fixed_batch, read_onnx
from vimdeploy.artifacts.recipe import ParityContract
from vimdeploy.commands.arguments import at_least, several
from vimdeploy.commands.origin import find_checkpoint, request_of
from vimdeploy.errors import ArtifactError, UsageError, VerificationError, VimdeployError
from vimdeploy.parity.compare import Report, raise_unless_equal, verify_onnx
from vimdeploy.parity.ladder import LadderReport
from vimdeploy.progress import SILENT, Reporter

if TYPE_CHECKING:
    import onnx

    from vimdeploy.artifacts.manifest import Manifest


_SAMPLES = 8
"""Synthetic images, where the user does not say."""


@dataclass(frozen=True)
class Verified:
    """What a comparison found: :attr:`passed`, or not."""

    path: Path
    report: Report | LadderReport
    notes: tuple[str, ...] = ()
    """What a person should know beside it."""
    violation: VimdeployError | None = None
    """What is wrong although the numbers are right: an op whose body and attributes say different things, an engine
    that was named and could not be run."""

    @property
    def passed(self) -> bool:
        """Whether everything that was compared is equal within its contract."""
        return self.report.passed and self.violation is None

    def raise_unless_passed(self) -> None:
        """Raise VerificationError with what breaks the contract and where, or with why it was not proven."""
        if isinstance(self.report, Report):
            raise_unless_equal(self.report, str(self.path), "Export the model again with `vimdeploy export`.")
        elif not self.report.passed:
            raise VerificationError(
                f"{self.path}: {self.report.verdict()}.",
                hint="Keep the node named above in float32 (--keep), use --bf16, or widen the recipe's contract "
                "knowingly.",
            )
        if self.violation is not None:
            raise self.violation

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        violation = self.violation.message if self.violation else None
        notes = {"notes": list(self.notes), "violation": violation}
        return {"path": str(self.path), **self.report.to_dict(), **notes, "passed": self.passed}


def verify(
    model: str | Path,
    *,
    checkpoint: str | Path | None = None,
    images: str | Path | None = None,
    samples: int | None = None,
    batch: int | Sequence[int] = (),
    atol: float | None = None,
    rtol: float | None = None,
    ladder: bool = False,
    engine: str | Path | Sequence[str | Path] = (),
    bf16: bool = False,
    trust: bool = False,
    ops: str = "auto",
    reporter: Reporter = SILENT,
) -> Verified:
    """Prove that an ONNX file or a plan computes what the PyTorch model computes.

    A model that computes something else is a result, not an error: see :attr:`Verified.passed` and
    :meth:`Verified.raise_unless_passed`.

    Args:
        model: ONNX file with its manifest beside it, or a plan, which the ladder verifies.
        checkpoint: The checkpoint, where the manifest's path no longer leads to it.
        images: Folder of image files; default: synthetic images.
        samples: How many synthetic images; default: 8.
        batch: Batch size; may be repeated.
        atol: With --rtol: replaces the recipe's contract.
        rtol: |a - b| <= atol + rtol * |b|.
        ladder: Every form this machine can run: torch, ONNX, engines, both precisions.
        engine: Plan for the ladder; may be repeated.
        bf16: The ladder's half precision is BF16, not FP16.
        trust: For a module of your own: also run the code that built it, and compare.
        ops: What computes the custom ops: native, body, or auto (both of them, where the native ones are here).
        reporter: Told what the verification is at.

    Raises:
        MissingDependencyError: torch, onnx or onnxruntime is not installed; the ladder does without torch.
        ArtifactError: the file or its manifest is missing, corrupt or foreign.
        CheckpointError: the checkpoint cannot be read.
        UsageError: the checkpoint is not where the manifest says, or options do not go together.

    """
    path, named, folder = Path(model), *(None if p is None else Path(p) for p in (checkpoint, images))
    if samples is not None and folder is not None:
        raise UsageError("--samples is for synthetic images; of --images every one is used.", hint="Leave it out.")
    count = samples or _SAMPLES
    batches, engines = several(batch), tuple(map(Path, several(engine)))
    at_least(1, samples=samples, **{"batch": min(batches)} if batches else {})
    at_least(0, atol=atol, rtol=rtol)
    tolerances = {"--atol": atol is not None, "--rtol": rtol is not None}
    if ladder or engines or path.suffix in PLAN_SUFFIXES:
        _refuse("the ladder holds every rung to the manifest's contract", tolerances)
        _refuse("the ladder chooses it", {"--batch": bool(batches), "--ops": ops != "auto", "--trust": trust})
        needs.require("verify", unless=("torch", "safetensors"))
        from vimdeploy.commands.ladder import climb_ladder

        half = "bf16" if bf16 else "fp16"
        report, not_run = climb_ladder(path, engines, named, folder, count, half, reporter)
        return Verified(path, report, violation=not_run)
    _refuse("there is no ladder (--ladder)", {"--bf16": bf16})
    if not path.is_file():
        raise ArtifactError(f"{path}: there is no such file.")
    contract = ParityContract(atol=atol or 0.0, rtol=rtol or 0.0) if any(tolerances.values()) else None
    manifest = read_manifest(path)
    if manifest.module is not None:
        images_given = {"--batch": bool(batches), "--images": folder is not None, "--samples": samples is not None}
        _refuse(f"{path} is a module's, and compared with its golden outputs", images_given)
        needs.require("verify", unless=() if trust else ("torch", "safetensors"))
        return _verify_module(path, manifest, named, contract, ops, trust, reporter)
    _refuse(f"{path} is no module's", {"--trust": trust})
    if manifest.golden_sha256 is not None and named is None and not needs.is_installed("torch"):
        stored = {"--batch": bool(batches), "--images": folder is not None, "--samples": samples is not None}
        _refuse("torch is not installed, so the stored inputs are compared", stored)
        return _verify_stored(path, manifest, contract, ops, reporter)
    needs.require("verify")
    return _verify_onnx(path, named, folder, count, tuple(dict.fromkeys(batches)), contract, ops, reporter)


def _refuse(why: str, given: dict[str, bool]) -> None:
    """Raise UsageError for an option that was given and would not be used."""
    if name := next((name for name, is_given in given.items() if is_given), None):
        raise UsageError(f"{name} would not be used: {why}.", hint="Leave it out.")


def _verify_onnx(
    path: Path,
    named: Path | None,
    folder: Path | None,
    samples: int,
    batches: tuple[int, ...],
    contract: ParityContract | None,
    ops: str,
    reporter: Reporter,
) -> Verified:
    from vimdeploy.graph.check import check_model
    from vimdeploy.graph.emulate import emulate
    from vimdeploy.models.load import load_model

    onnx_model = read_onnx(path)
    manifest = read_manifest(path)
    notes = []
    if is_stale(manifest, path):
        notes.append(f"{path.name} is not the file its manifest describes: it was changed after the export")
    checkpoint = find_checkpoint(path, manifest, named)
    reporter.stage(f"Reading {checkpoint.name}" if checkpoint else "Making random weights")
    loaded = load_model(checkpoint, request_of(manifest))
    if loaded.checkpoint.sha256 != manifest.checkpoint.sha256:
        notes.append(f"{loaded.checkpoint.path.name} is not the checkpoint that {path.name} was exported from")
    precision = _precision(manifest)
    # ONNX Runtime's CPU drops roundings between half-precision nodes that a GPU makes.
    runnable = path if precision == "fp32" else emulate(onnx_model)
    sampled = sample_images(manifest.image_input(), folder, samples)
    reporter.stage("Verifying in ONNX Runtime")
    report = verify_onnx(
        runnable,
        loaded.model,
        manifest.model.task,
        sampled,
        batches or _default_batches(onnx_model),
        contract or manifest.contract[precision],
        ops=ops,
        reporter=reporter,
    )
    try:
        check_model(onnx_model, str(path), allow_reversal=loaded.config.flips_sequence)
    except ArtifactError as error:
        # It may still compute the same here and not in TensorRT, which reads the attributes and not the bodies.
        return Verified(path, report, (*notes, error.message), VerificationError(error.message, hint=error.hint))
    return Verified(path, report, tuple(notes))


def _verify_stored(
    path: Path, manifest: Manifest, contract: ParityContract | None, ops: str, reporter: Reporter
) -> Verified:
    """Compare a file with the outputs that PyTorch gave at export: for hosts that have ONNX Runtime alone."""
    from vimdeploy.parity.stored import compare_stored

    needs.require("predict")
    assert manifest.golden_sha256 is not None
    refuse_modified(path, manifest)
    notes = ("torch is not installed: compared with the inputs and outputs that were stored at export",)
    reporter.stage("Comparing with the stored outputs in ONNX Runtime")
    parity = contract or manifest.contract[_precision(manifest)]
    report = compare_stored(path, manifest.golden_sha256, parity, classes=manifest.model.task == "classify", ops=ops)
    return Verified(path, report, notes)


def _verify_module(
    path: Path,
    manifest: Manifest,
    checkpoint: Path | None,
    contract: ParityContract | None,
    ops: str,
    trust: bool,
    reporter: Reporter,
) -> Verified:
    """Compare a module's file with its golden outputs, and on request with the module itself."""
    from vimdeploy.commands.verify_module import reproduce, verify_golden
    from vimdeploy.graph.check import check_model
    from vimdeploy.graph.emulate import emulate

    model, notes = read_onnx(path), []
    if is_stale(manifest, path):
        notes.append(f"{path.name} is not the file its manifest describes: it was changed after the export")
    precision = _precision(manifest)
    reporter.stage("Comparing with the golden outputs in ONNX Runtime")
    runnable = path if precision == "fp32" else emulate(model)
    report = verify_golden(runnable, path, manifest, contract or manifest.contract[precision], ops)
    if trust:
        reporter.stage("Building the module again")
        notes.append(reproduce(path, manifest, checkpoint))
    violation = None
    try:
        check_model(model, str(path), allow_reversal=True)
    except ArtifactError as error:
        violation = VerificationError(error.message, hint=error.hint)
    return Verified(path, report, tuple(notes), violation)


def _precision(manifest: Manifest) -> str:
    return str((manifest.conversion or {}).get("precision", "fp32"))


def _default_batches(onnx_model: onnx.ModelProto) -> tuple[int, ...]:
    fixed = fixed_batch(onnx_model)
    return (fixed,) if fixed else (1, 3)
