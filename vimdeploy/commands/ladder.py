"""The ladder of `vimdeploy verify`: from the checkpoint to the engines of one exported model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from vimdeploy.artifacts.images import sample_images
from vimdeploy.artifacts.manifest import PLAN_SUFFIXES, read_manifest
from vimdeploy.artifacts.onnx_file import read_onnx
from vimdeploy.commands.origin import find_checkpoint, request_of
from vimdeploy.errors import UsageError
from vimdeploy.graph.check import check_model
from vimdeploy.parity.ladder import LadderReport, climb
from vimdeploy.parity.rungs import Subject, engine_source, make_rungs
from vimdeploy.progress import Reporter

if TYPE_CHECKING:
    from vimdeploy.artifacts.manifest import Manifest
    from vimdeploy.models.family import FamilyModel


def climb_ladder(
    path: Path,
    engines: tuple[Path, ...],
    checkpoint: Path | None,
    folder: Path | None,
    samples: int,
    precision: str,
    reporter: Reporter,
) -> LadderReport:
    """Compare every form of a model that this machine can run.

    Args:
        path: the exported float32 ONNX file, or a plan built from one that lies beside it.
        engines: plans of that file.
        checkpoint: where the manifest's path no longer leads to it.
        folder: of images; None takes ``samples`` synthetic ones.
        samples: how many synthetic images.
        precision: ``fp16`` or ``bf16``, of the half rungs.
        reporter: told what begins.

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
    torch_model, missing = _torch_model(path, manifest, checkpoint, reporter)
    images = sample_images(manifest.preprocessing, folder, samples)
    reporter.stage(f"Converting to {precision}")
    subject = Subject(model, manifest, torch_model, missing, precision, engines=engines)
    rungs = make_rungs(subject, images, reporter)
    reporter.stage("Climbing the ladder")
    return climb(rungs, images, manifest.contract, classes=manifest.model.task == "classify", reporter=reporter)


def _torch_model(
    path: Path, manifest: Manifest, named: Path | None, reporter: Reporter
) -> tuple[FamilyModel | None, str]:
    """Return the PyTorch model, or why there is none: a deployment host has neither torch nor the checkpoint."""
    if importlib.util.find_spec("torch") is None:
        return None, "torch is not installed"
    if manifest.checkpoint.weights != "random" and named is None:
        expected = path.parent / manifest.checkpoint.file
        if not expected.exists():
            return None, f"the checkpoint {expected.name} is not at hand (name it with --checkpoint)"
    checkpoint = find_checkpoint(path, manifest, named)
    from vimdeploy.models.load import load_model

    reporter.stage(f"Reading {checkpoint.name}" if checkpoint else "Making random weights")
    return load_model(checkpoint, request_of(manifest)).model, ""
