"""`vimdeploy verify --ladder` as one function: from the checkpoint to the engines of one exported model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from vimdeploy.artifacts.manifest import PLAN_SUFFIXES, read_manifest
from vimdeploy.artifacts.onnx_file import read_onnx
from vimdeploy.commands.pipeline import VerifyRequest, find_checkpoint, request_of
from vimdeploy.commands.samples import sample_inputs
from vimdeploy.errors import UsageError, VerificationError
from vimdeploy.graph.check import check_model
from vimdeploy.parity.ladder import LadderReport, climb
from vimdeploy.parity.rungs import Subject, engine_source, make_rungs

if TYPE_CHECKING:
    from vimdeploy.artifacts.manifest import Manifest
    from vimdeploy.commands.pipeline import Stage
    from vimdeploy.models.family import FamilyModel


def verify_ladder(
    path: Path, engines: tuple[Path, ...], request: VerifyRequest, precision: str, stage: Stage
) -> LadderReport:
    """Compare every form of a model that this machine can run.

    Args:
        path: the exported float32 ONNX file, or a plan built from one that lies beside it.
        engines: plans of that file.
        request: checkpoint and images.
        precision: ``fp16`` or ``bf16``, of the half rungs.
        stage: told what begins.

    Raises:
        ArtifactError: a file or manifest is missing, corrupt or foreign.
        UsageError: the file is in half precision already.

    """
    if path.suffix in PLAN_SUFFIXES:
        engines = (path, *engines)
        path = engine_source(path)
    model, manifest = read_onnx(path), read_manifest(path)
    if manifest.conversion is not None:
        raise UsageError(
            f"{path}: is in {manifest.conversion.get('precision')} already; the ladder starts from float32.",
            hint="Name the file that `vimdeploy export` wrote.",
        )
    check_model(model, str(path), allow_reversal=True)
    torch_model, missing = _torch_model(path, manifest, request, stage)
    images = sample_inputs(manifest, path, request.images, request.samples)
    stage(f"Converting to {precision}")
    subject = Subject(model, manifest, torch_model, missing, precision, engines=engines)
    rungs = make_rungs(subject, images, stage)
    progress = stage("Climbing the ladder")
    return climb(rungs, images, manifest.contract, classes=manifest.model.task == "classify", progress=progress)


def raise_unless_climbed(report: LadderReport, subject: str) -> None:
    """Raise VerificationError with the first broken rung."""
    if not report.passed:
        raise VerificationError(
            f"{subject}: {report.verdict()}.",
            hint="Keep the node named above in float32 (--keep), use --bf16, or widen the recipe's contract knowingly.",
        )


def _torch_model(
    path: Path, manifest: Manifest, request: VerifyRequest, stage: Stage
) -> tuple[FamilyModel | None, str]:
    """Return the PyTorch model, or why there is none: a deployment host has neither torch nor the checkpoint."""
    if importlib.util.find_spec("torch") is None:
        return None, "torch is not installed"
    if manifest.checkpoint.weights != "random" and not request.checkpoint:
        expected = path.parent / manifest.checkpoint.file
        if not expected.exists():
            return None, f"the checkpoint {expected.name} is not at hand (name it with --checkpoint)"
    checkpoint = find_checkpoint(path, manifest, request)
    from vimdeploy.models.load import load_model

    stage(f"Reading {checkpoint.name}" if checkpoint else "Making random weights")
    return load_model(checkpoint, request_of(manifest)).model, ""
