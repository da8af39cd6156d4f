"""Checkpoint -> verified ONNX file with its manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimdeploy import contract, needs
from vimdeploy.artifacts.files import check_writable, sha256_bytes, write_all
from vimdeploy.artifacts.golden import Case, Samples, golden_path, pack
from vimdeploy.artifacts.images import synthetic_images
from vimdeploy.artifacts.manifest import (
    PLAN_SUFFIXES,
    CheckpointInfo,
    Manifest,
    ModelInfo,
    OnnxInfo,
    checkpoint_reference,
    manifest_path,
    sealed,
)
from vimdeploy.artifacts.onnx_file import tensor_info
from vimdeploy.artifacts.recipe import BatchProfile, Classes, Parity, Precision
from vimdeploy.commands.arguments import default_output
from vimdeploy.errors import UsageError
from vimdeploy.progress import SILENT, Reporter
from vimdeploy.version import __version__

if TYPE_CHECKING:
    import onnx

    from vimdeploy.models.load import LoadedModel, ModelRequest
    from vimdeploy.parity.compare import Report

_SAMPLES = 4
_GOLDEN_SAMPLES = 2


@dataclass(frozen=True)
class Exported:
    """An ONNX file on disk, and what it was made from."""

    path: Path
    manifest_path: Path
    manifest: Manifest
    report: Report | None
    """Parity with the PyTorch model; None where that was left out."""
    model: LoadedModel
    """The PyTorch model in eval mode, with what was recognised."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        paths = {"path": str(self.path), "manifest_path": str(self.manifest_path)}
        return {**paths, **self.manifest.model_dump(mode="json")}


def export(
    checkpoint: str | Path | None = None,
    output: str | Path | None = None,
    *,
    arch: str | None = None,
    recipe: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    weights: str = "model",
    prefix: str | None = None,
    img_size: int | tuple[int, int] | None = None,
    official_pos_resize: bool = False,
    classes: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop: float | None = None,
    interpolation: str | None = None,
    batch: int | None = None,
    opset: int = contract.DEFAULT_OPSET,
    task: str | None = None,
    verify: bool = True,
    reporter: Reporter = SILENT,
) -> Exported:
    """Export a checkpoint to a verified ONNX file.

    Nothing is written before everything is proven; the file and its manifest appear together, or neither.

    Args:
        checkpoint: Trained weights: .pth, .pt or .safetensors; none with --arch.
        output: ONNX file to write; default: beside the checkpoint.
        arch: A recipe's model; without a checkpoint it gets random weights, to measure it.
        recipe: Name of a recipe (see `vimdeploy recipes`) or a TOML file.
        model_args: What shapes cannot tell, in the official constructor's names.
        weights: Which weights of a training checkpoint: model, ema, or the name of an entry.
        prefix: What stands before the model's keys in the checkpoint; default: found by itself.
        img_size: Export at another image size, (height, width) in pixels; position embeddings are resized.
        official_pos_resize: Resize position embeddings as the official code does.
        classes: Names of the classes, one a line.
        mean: Mean of the preprocessing, a number for each channel, of values from 0 to 1.
        std: Standard deviation of the preprocessing, a number for each channel.
        crop: Share of the image's shorter side that is cut out, 0.05 to 1.
        interpolation: How images are resized: nearest, bilinear, bicubic or lanczos.
        batch: A fixed batch size; default: any.
        opset: ONNX opset.
        task: classify (logits), features (before the head), tokens, or dense (feature maps); default: dense for a
            backbone, else classify.
        verify: Prove it equal in ONNX Runtime.
        reporter: Told what the export is at.

    Raises:
        MissingDependencyError: torch, onnx, onnxscript or (to verify) onnxruntime is not installed.
        CheckpointError: the checkpoint cannot be read, is not safe to read, or is no model that is known.
        ModelError: a variant that the official code cannot run.
        UsageError: arguments that do not exist, or that the checkpoint contradicts.
        VerificationError: the exported model does not compute what the PyTorch model computes.

    """
    needs.require("export", unless=() if verify else ("onnxruntime",))
    from vimdeploy.commands.preprocessing import with_preprocessing
    from vimdeploy.graph.check import check_model
    from vimdeploy.graph.export import export_onnx, serialize
    from vimdeploy.models.load import ModelRequest, load_model

    checkpoint = None if checkpoint is None else Path(checkpoint)
    _check(checkpoint, arch, recipe, weights, batch)
    if official_pos_resize and img_size is None:
        raise UsageError("--official-pos-resize says how to resize.", hint="Add --img-size, or leave it out.")
    path = _output(checkpoint, arch, output)
    request = ModelRequest(
        recipe=recipe or (arch if checkpoint else None),
        model_args=model_args,
        weights=weights,
        prefix=prefix,
        img_size=(img_size, img_size) if isinstance(img_size, int) else img_size,
        official_pos_resize=official_pos_resize,
        arch=None if checkpoint else arch,
        task=task,
    )
    reporter.stage(f"Reading {checkpoint.name}" if checkpoint else f"Making {arch}")
    loaded = load_model(checkpoint, request)
    loaded = with_preprocessing(loaded, classes, mean=mean, std=std, crop_ratio=crop, interpolation=interpolation)
    task = task or next(iter(loaded.model.tasks()))
    reporter.stage("Exporting to ONNX")
    onnx_model = export_onnx(loaded.model, task=task, batch=batch, opset=opset)
    reporter.stage("Checking the graph")
    check_model(onnx_model, str(path), allow_reversal=loaded.config.flips_sequence)
    report = _prove(onnx_model, loaded, task, batch, str(checkpoint or arch), reporter) if verify else None
    reporter.stage("Writing")
    content = serialize(onnx_model)
    request = replace(request, task=task)
    manifest = _manifest(loaded, request, _onnx_info(onnx_model, content, opset), onnx_model, path, batch, report)
    golden = _golden(loaded, task, batch)
    content, manifest = sealed(content, manifest.model_copy(update={"golden_sha256": sha256_bytes(golden)}))
    write_all({golden_path(path): golden, manifest_path(path): manifest.to_bytes(), path: content})
    return Exported(path, manifest_path(path), manifest, report, loaded)


def _check(checkpoint: Path | None, arch: str | None, recipe: str | None, weights: str, batch: int | None) -> None:
    if checkpoint is None and arch is None:
        raise UsageError("Name a checkpoint, or a recipe with --arch for random weights.")
    if arch is not None and recipe is not None:
        raise UsageError("--arch and --recipe say the same thing: name one of them.")
    if checkpoint is None and weights != "model":
        raise UsageError(f"--weights {weights}: without a checkpoint weights are random.", hint="Leave it out.")
    if batch is not None and batch < 1:
        raise UsageError(f"--batch {batch}: must be a positive number, or left out for any.")


def _output(checkpoint: Path | None, arch: str | None, output: str | Path | None) -> Path:
    """Return where to write, beside the checkpoint unless said otherwise; refuse what cannot be written."""
    beside = default_output(checkpoint, ".onnx") if checkpoint else Path(f"{arch}.onnx")
    path = beside if output is None else Path(output)
    if checkpoint and path.exists() and checkpoint.exists() and path.samefile(checkpoint):
        raise UsageError(f"{path}: is the checkpoint itself.", hint="Choose another file with -o.")
    if path.suffix != ".onnx" and not path.is_dir():
        plan = path.suffix in PLAN_SUFFIXES
        onnx_name = path.with_suffix(".onnx").name
        raise UsageError(
            f"{path}: export writes ONNX files, which end in .onnx.",
            hint=f"Export with -o {onnx_name}" + (f", then: vimdeploy build-engine {onnx_name} --fp16" if plan else ""),
        )
    check_writable(path)
    return path


def _prove(
    onnx_model: onnx.ModelProto, loaded: LoadedModel, task: str, batch: int | None, subject: str, reporter: Reporter
) -> Report:
    from vimdeploy.parity.compare import raise_unless_equal, verify_onnx

    images = synthetic_images(_SAMPLES, loaded.input)
    contract = _parity(loaded)["fp32"]
    reporter.stage("Verifying in ONNX Runtime")
    batches = [batch] if batch else [1, 3]
    report = verify_onnx(onnx_model, loaded.model, task, images, batches, contract, reporter=reporter)
    raise_unless_equal(report, subject, "Nothing was written. Please report this with the checkpoint.")
    return report


def _golden(loaded: LoadedModel, task: str, batch: int | None) -> bytes:
    """Return a few inputs with the PyTorch model's outputs, which prove the file where there is no torch."""
    from vimdeploy.backends.torch import TorchBackend

    images = synthetic_images(batch or _GOLDEN_SAMPLES, loaded.input, seed=1)
    outputs = TorchBackend(loaded.model, task).run(images)
    return pack([Case(Samples({"images": images}), outputs)])


def _parity(loaded: LoadedModel) -> Parity:
    return loaded.recipe.parity if loaded.recipe else Parity()


def _onnx_info(onnx_model: onnx.ModelProto, content: bytes, opset: int) -> OnnxInfo:
    names = [node.op_type for node in onnx_model.graph.node if node.domain == contract.DOMAIN]
    return OnnxInfo(
        sha256=sha256_bytes(content),
        opset=opset,
        op_contract=contract.OP_VERSION,
        custom_ops=dict(sorted(Counter(names).items())),
        nodes=len(onnx_model.graph.node),
    )


def _manifest(
    loaded: LoadedModel,
    request: ModelRequest,
    onnx_info: OnnxInfo,
    onnx_model: onnx.ModelProto,
    output: Path,
    batch: int | None,
    report: Report | None,
) -> Manifest:
    recipe = loaded.recipe
    count = 0 if loaded.config.is_backbone else loaded.config.num_classes
    return Manifest(
        tools={"vimdeploy": __version__, **{name: version(name) for name in ("torch", "onnx", "onnxscript")}},
        model=ModelInfo(
            family=loaded.config.family,
            task=request.task or "classify",
            recipe=recipe.name if recipe else None,
            parameters=sum(p.numel() for p in loaded.model.parameters()),
            arguments=loaded.recognised.config.official(),
            img_size=loaded.config.img_size,
            official_pos_resize=request.official_pos_resize,
            sources=loaded.recognised.sources,
        ),
        checkpoint=_checkpoint_info(loaded, request, output),
        onnx=onnx_info,
        preprocessing=loaded.input,
        classes=Classes(count=count, names=loaded.labels),
        input=tensor_info(onnx_model.graph.input[0]),
        outputs=tuple(tensor_info(output) for output in onnx_model.graph.output),
        precision=recipe.precision if recipe else Precision(),
        batch=_batch_profile(loaded, batch),
        contract=_parity(loaded),
        parity=report.to_dict() if report else None,
        notes=loaded.notes,
    )


def _checkpoint_info(loaded: LoadedModel, request: ModelRequest, output: Path) -> CheckpointInfo:
    if request.arch is not None:
        return CheckpointInfo(file="", sha256="", weights="random")
    file = checkpoint_reference(loaded.checkpoint.path, output)
    return CheckpointInfo(file=file, sha256=loaded.checkpoint.sha256, weights=request.weights)


def _batch_profile(loaded: LoadedModel, fixed: int | None) -> BatchProfile:
    if fixed is not None:
        return BatchProfile(min=fixed, opt=fixed, max=fixed)
    return loaded.recipe.batch if loaded.recipe else BatchProfile()
