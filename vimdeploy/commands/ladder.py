"""The ladder of `vimdeploy verify`: from the checkpoint to the engines of one exported model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vimdeploy.artifacts.engine_manifest import read_engine_manifest
from vimdeploy.artifacts.manifest import PLAN_SUFFIXES, read_manifest, referenced_checkpoint
from vimdeploy.artifacts.onnx_file import read_onnx
from vimdeploy.commands.origin import find_checkpoint, request_of
from vimdeploy.commands.samples import sample_inputs
from vimdeploy.errors import ArtifactError, MissingDependencyError, UsageError, VimdeployError
from vimdeploy.graph.check import check_model
from vimdeploy.needs import is_installed
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
) -> tuple[LadderReport, VimdeployError | None]:
    """Compare every form of a model that this machine can run.

    Returns:
        What was found, and an error where an engine that was named could not be run.

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
    named = _by_precision(engines, ("fp32", precision))
    model, manifest = read_onnx(path), read_manifest(path)
    if manifest.conversion is not None:
        raise UsageError(
            f"{path}: is in {manifest.conversion.get('precision')} already; the ladder starts from float32.",
            hint="Name the file that `vimdeploy export` wrote.",
        )
    check_model(model, str(path), allow_reversal=True)
    torch_model, missing = torch_reference(path, manifest, checkpoint, reporter)
    images = sample_inputs(manifest, path, folder, samples)
    reporter.stage(f"Converting to {precision}")
    subject = Subject(model, manifest, torch_model, missing, precision, engines=engines)
    rungs = make_rungs(subject, images, reporter)
    reporter.stage("Climbing the ladder")
    classes = manifest.model.task == "classify"
    report = climb(rungs, images, manifest.contract, classes=classes, reporter=reporter)
    return report, _not_run(report, named)


def _by_precision(engines: tuple[Path, ...], taken: tuple[str, ...]) -> dict[str, Path]:
    """Return the engines by their precision; UsageError for one that no rung takes, ArtifactError for a missing one."""
    found: dict[str, Path] = {}
    for engine in engines:
        if not engine.is_file():
            raise ArtifactError(f"{engine}: there is no such file.")
        precision = read_engine_manifest(engine).precision
        if precision not in taken:
            raise UsageError(
                f"{engine}: is in {precision}, and the ladder has {' and '.join(taken)}.",
                hint="Add --bf16." if precision == "bf16" else "Leave --bf16 out.",
            )
        if precision in found:
            raise UsageError(
                f"{engine}: is in {precision}, as {found[precision]} is; the ladder has one rung for each precision.",
                hint="Verify them one after the other.",
            )
        found[precision] = engine
    return found


def _not_run(report: LadderReport, engines: dict[str, Path]) -> VimdeployError | None:
    """Return an error for the first engine whose rung was not run: what was not run is not proven."""
    for rung in report.rungs:
        engine = engines.get(rung.precision) if rung.name.startswith("engine ") else None
        if engine is not None and rung.status == "not run":
            return MissingDependencyError(
                f"{engine}: was not run: {rung.reason}.",
                hint="Verify it on the machine that it was built for; without it, leave the engine out.",
            )
    return None


def torch_reference(
    path: Path, manifest: Manifest, named: Path | None, reporter: Reporter
) -> tuple[FamilyModel | None, str]:
    """Return the PyTorch model, or why there is none: a deployment host has neither torch nor the checkpoint."""
    if not is_installed("torch"):
        return None, "torch is not installed"
    if manifest.checkpoint.weights != "random" and named is None:
        expected = referenced_checkpoint(manifest, path)
        if not expected.is_file():
            return None, f"the checkpoint {expected.name} is not at hand (name it with --checkpoint)"
    checkpoint = find_checkpoint(path, manifest, named)
    from vimdeploy.models.load import load_model

    reporter.stage(f"Reading {checkpoint.name}" if checkpoint else "Making random weights")
    return load_model(checkpoint, request_of(manifest)).model, ""
