"""What the commands do, without their options and their screen: export and verify as functions."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from vimdeploy import contract
from vimdeploy.artifacts.files import check_writable, sha256_bytes, write_all
from vimdeploy.artifacts.images import sample_images, synthetic_images
from vimdeploy.artifacts.manifest import (
    CheckpointInfo,
    Manifest,
    ModelInfo,
    OnnxInfo,
    is_stale,
    manifest_path,
    read_manifest,
)
from vimdeploy.artifacts.onnx_file import fixed_batch, read_onnx, tensor_info
from vimdeploy.artifacts.recipe import BatchProfile, Classes, Parity, ParityContract, Precision
from vimdeploy.errors import ArtifactError, UsageError, VerificationError
from vimdeploy.parity.compare import Report, verify_onnx
from vimdeploy.version import __version__

if TYPE_CHECKING:
    import onnx

    from vimdeploy.models.load import LoadedModel, ModelRequest

Stage = Callable[[str], Callable[[int, int], None]]
"""Called with the name of a stage that begins; returns where to report (done, total)."""


@dataclass(frozen=True)
class ExportRequest:
    """How to export; the defaults are the recommended way."""

    task: str | None = None
    """None: ``dense`` for a backbone, ``classify`` for everything else."""
    batch: int | None = None
    """None exports any batch size."""
    opset: int = contract.DEFAULT_OPSET
    verify: bool = True
    samples: int = 4


@dataclass(frozen=True)
class Exported:
    """What an export made."""

    path: Path
    manifest_path: Path
    manifest: Manifest
    model: LoadedModel
    report: Report | None


def export(
    checkpoint: Path | None, output: Path, model: ModelRequest, request: ExportRequest, stage: Stage
) -> Exported:
    """Export a checkpoint to an ONNX file with its manifest, verified unless told otherwise.

    Without a checkpoint, ``model.arch`` is exported with random weights.

    Nothing is written before everything is proven; ``output`` and its manifest appear together, or neither.

    Raises:
        VerificationError: the exported model does not compute what the PyTorch model computes.
        VimdeployError: bad input; see the kinds in ``errors.py``.

    """
    from vimdeploy.graph.check import check_model
    from vimdeploy.graph.export import export_onnx, serialize
    from vimdeploy.models.load import load_model

    if checkpoint and output.exists() and checkpoint.exists() and output.samefile(checkpoint):
        raise UsageError(f"{output}: is the checkpoint itself.", hint="Choose another file with -o.")
    check_writable(output)
    stage(f"Reading {checkpoint.name}" if checkpoint else f"Making {model.arch}")
    loaded = load_model(checkpoint, replace(model, task=request.task))
    task = request.task or next(iter(loaded.model.tasks()))
    stage("Exporting to ONNX")
    onnx_model = export_onnx(loaded.model, task=task, batch=request.batch, opset=request.opset)
    stage("Checking the graph")
    check_model(onnx_model, str(output), allow_reversal=loaded.config.flips_sequence)
    recipe = loaded.recipe
    parity = recipe.parity if recipe else Parity()
    report = None
    if request.verify:
        images = synthetic_images(request.samples, loaded.input)
        batches = [request.batch] if request.batch else [1, 3]
        progress = stage("Verifying in ONNX Runtime")
        report = verify_onnx(onnx_model, loaded.model, task, images, batches, parity.fp32, progress)
        raise_unless_equal(
            report, str(checkpoint or model.arch), "Nothing was written. Please report this with the checkpoint."
        )
    stage("Writing")
    content = serialize(onnx_model)
    manifest = _manifest(loaded, model, replace(request, task=task), onnx_model, content, output, parity, report)
    write_all({manifest_path(output): manifest.to_bytes(), output: content})
    return Exported(output, manifest_path(output), manifest, loaded, report)


@dataclass(frozen=True)
class VerifyRequest:
    """How to verify; the defaults are the recipe's contract on synthetic images."""

    checkpoint: Path | None = None
    """Needed where the manifest's path no longer leads to it."""
    images: Path | None = None
    """Folder of image files; None takes synthetic ones."""
    samples: int = 8
    batches: tuple[int, ...] = ()
    atol: float | None = None
    rtol: float | None = None
    ops: str = "auto"
    """``auto`` compares both forms of the custom ops where both are here; ``body`` or ``native`` only that one."""


@dataclass(frozen=True)
class Verified:
    """A report, and what a person should know beside it."""

    report: Report
    notes: tuple[str, ...]


def verify(path: Path, request: VerifyRequest, stage: Stage) -> Verified:
    """Compare an exported file with the PyTorch model of its checkpoint.

    Raises:
        ArtifactError: the file or its manifest is missing, corrupt or foreign.
        CheckpointError: the checkpoint is not where the manifest says, or cannot be read.

    """
    from vimdeploy.graph.check import check_model
    from vimdeploy.graph.emulate import emulate
    from vimdeploy.models.load import load_model

    onnx_model = read_onnx(path)
    manifest = read_manifest(path)
    notes = []
    if is_stale(manifest, path):
        notes.append(f"{path.name} is not the file its manifest describes: it was changed after the export")
    checkpoint = find_checkpoint(path, manifest, request)
    stage(f"Reading {checkpoint.name}" if checkpoint else "Making random weights")
    loaded = load_model(checkpoint, request_of(manifest))
    if loaded.checkpoint.sha256 != manifest.checkpoint.sha256:
        notes.append(f"{loaded.checkpoint.path.name} is not the checkpoint that {path.name} was exported from")
    precision = (manifest.conversion or {}).get("precision", "fp32")
    parity: ParityContract = getattr(manifest.contract, precision)
    if request.atol is not None or request.rtol is not None:
        parity = ParityContract(atol=request.atol or 0.0, rtol=request.rtol or 0.0)
    batches = request.batches or _default_batches(onnx_model)
    images = sample_images(manifest.preprocessing, request.images, request.samples)
    # ONNX Runtime's CPU drops roundings between half-precision nodes that a GPU makes.
    runnable = path if precision == "fp32" else emulate(onnx_model)
    report = verify_onnx(
        runnable,
        loaded.model,
        manifest.model.task,
        images,
        batches,
        parity,
        stage("Verifying in ONNX Runtime"),
        ops=request.ops,
    )
    try:
        check_model(onnx_model, str(path), allow_reversal=loaded.config.flips_sequence)
    except ArtifactError as error:
        # It may still compute the same here and not in TensorRT, which reads the attributes and not the bodies.
        if report.passed:
            raise VerificationError(error.message, hint=error.hint) from error
        notes.append(error.message)
    return Verified(report, tuple(notes))


def raise_unless_equal(report: Report, subject: str, hint: str) -> None:
    """Raise VerificationError with what broke the contract and where the models part."""
    if not report.passed:
        raise VerificationError(
            f"{subject}: {report.candidate} does not compute what {report.reference} computes: "
            f"{'; '.join(report.violations[:3])}. They part {report.departs}.",
            hint=hint,
        )


def _default_batches(onnx_model: onnx.ModelProto) -> tuple[int, ...]:
    fixed = fixed_batch(onnx_model)
    return (fixed,) if fixed else (1, 3)


def find_checkpoint(path: Path, manifest: Manifest, request: VerifyRequest) -> Path | None:
    """Return the checkpoint of an exported file, None where its weights were random."""
    if manifest.checkpoint.weights == "random":
        return None
    checkpoint = request.checkpoint or (path.parent / manifest.checkpoint.file)
    if not checkpoint.exists():
        raise UsageError(
            f"{checkpoint}: the checkpoint that {path.name} was exported from is not there.",
            hint=f"Pass it with --checkpoint; its SHA-256 is {manifest.checkpoint.sha256}.",
        )
    return checkpoint


def request_of(manifest: Manifest) -> ModelRequest:
    """Return what loads the same model again."""
    from vimdeploy.models.load import ModelRequest

    if manifest.checkpoint.weights == "random":
        return ModelRequest(arch=manifest.model.recipe, img_size=manifest.model.img_size)
    return ModelRequest(
        recipe=None,
        model_args=json.dumps(manifest.model.arguments),
        weights=manifest.checkpoint.weights,
        img_size=manifest.model.img_size,
        official_pos_resize=manifest.model.official_pos_resize,
        task=manifest.model.task,
    )


def _manifest(
    loaded: LoadedModel,
    model: ModelRequest,
    request: ExportRequest,
    onnx_model: onnx.ModelProto,
    content: bytes,
    output: Path,
    parity: Parity,
    report: Report | None,
) -> Manifest:
    recipe = loaded.recipe
    names = [node.op_type for node in onnx_model.graph.node if node.domain == contract.DOMAIN]
    count = 0 if loaded.config.is_backbone else loaded.config.num_classes
    classes = Classes(count=count, names=loaded.labels)
    return Manifest(
        tools={"vimdeploy": __version__, **{name: version(name) for name in ("torch", "onnx", "onnxscript")}},
        model=ModelInfo(
            family=loaded.config.family,
            task=request.task or "classify",
            recipe=recipe.name if recipe else None,
            parameters=sum(p.numel() for p in loaded.model.parameters()),
            arguments=loaded.recognised.config.official(),
            img_size=loaded.config.img_size,
            official_pos_resize=model.official_pos_resize,
            sources=loaded.recognised.sources,
        ),
        checkpoint=_checkpoint_info(loaded, model, output),
        onnx=OnnxInfo(
            sha256=sha256_bytes(content),
            opset=request.opset,
            op_contract=contract.OP_VERSION,
            custom_ops=dict(sorted(Counter(names).items())),
            nodes=len(onnx_model.graph.node),
        ),
        preprocessing=loaded.input,
        classes=classes,
        input=tensor_info(onnx_model.graph.input[0]),
        outputs=tuple(tensor_info(output) for output in onnx_model.graph.output),
        precision=recipe.precision if recipe else Precision(),
        batch=_batch_profile(loaded, request.batch),
        contract=parity,
        parity=report.to_dict() if report else None,
        notes=loaded.notes,
    )


def _checkpoint_info(loaded: LoadedModel, model: ModelRequest, output: Path) -> CheckpointInfo:
    if model.arch is not None:
        return CheckpointInfo(file="", sha256="", weights="random")
    file = os.path.relpath(loaded.checkpoint.path, output.parent)
    return CheckpointInfo(file=file, sha256=loaded.checkpoint.sha256, weights=model.weights)


def _batch_profile(loaded: LoadedModel, fixed: int | None) -> BatchProfile:
    if fixed is not None:
        return BatchProfile(min=fixed, opt=fixed, max=fixed)
    return loaded.recipe.batch if loaded.recipe else BatchProfile()
