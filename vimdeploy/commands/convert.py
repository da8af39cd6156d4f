"""FP32 ONNX -> FP16 or BF16 ONNX: measure, convert, check, compare, write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimdeploy import needs
from vimdeploy.artifacts.files import check_writable, sha256_bytes, write_all
from vimdeploy.artifacts.golden import golden_path
from vimdeploy.artifacts.manifest import Manifest, manifest_path, moved, read_manifest, refuse_modified, sealed
from vimdeploy.artifacts.onnx_file import read_onnx, tensor_info
from vimdeploy.commands.arguments import at_least, default_output, several
from vimdeploy.commands.samples import sample_inputs
from vimdeploy.errors import UsageError, VerificationError, nearest
from vimdeploy.graph.check import check_model
from vimdeploy.graph.policy import PRECISIONS, Policy, Precision
from vimdeploy.graph.policy import policy_table as policy_table  # noqa: PLC0414  `convert --policy` shows it
from vimdeploy.graph.precision import Report, convert_model, refuse_quantised
from vimdeploy.parity.metrics import Metrics
from vimdeploy.parity.ranges import measure
from vimdeploy.parity.sensitivity import Task, fit
from vimdeploy.progress import SILENT, Reporter

if TYPE_CHECKING:
    import onnx

_SAMPLES = 4
"""Synthetic images to measure on."""


@dataclass(frozen=True)
class HalfOptions:
    """How a model goes down to half precision, for ``convert`` and ``build-engine`` alike."""

    precision: str = "fp16"
    io_dtype: str = "fp32"
    keep: tuple[str, ...] = ()
    """Patterns of node names to keep in float32, beyond the recipe's."""
    max_error: float | None = None
    images: Path | None = None
    verify: bool = True

    def __post_init__(self) -> None:
        at_least(0, max_error=self.max_error)
        if self.max_error is not None and not self.verify:
            raise UsageError(
                "--max-error is what the verification holds the model to, and --no-verify leaves that out.",
                hint="Leave one of them out.",
            )
        if self.precision not in PRECISIONS:
            raise UsageError(f"There is no precision '{self.precision}'.", hint=nearest(self.precision, PRECISIONS))
        if self.io_dtype not in ("fp32", self.precision):
            raise UsageError(
                f"--io-dtype {self.io_dtype}: must be fp32 or the model's own half precision, {self.precision}.",
                hint=f"Add --{self.io_dtype}." if self.io_dtype in PRECISIONS else "",
            )


@dataclass(frozen=True)
class Half:
    """A model in half precision, in memory."""

    model: onnx.ModelProto
    report: Report
    metrics: Metrics | None
    """Against the float32 model in ONNX Runtime, every half-precision value rounded; None where it was left out."""
    blocks: tuple[str, ...] = ()
    """Blocks kept in float32 because the contract could not be kept otherwise."""


@dataclass(frozen=True)
class Converted:
    """A half-precision ONNX file on disk."""

    path: Path
    manifest_path: Path
    manifest: Manifest
    half: Half

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        report, metrics = self.half.report, self.half.metrics
        return {
            "path": str(self.path),
            "manifest_path": str(self.manifest_path),
            "precision": report.precision,
            "nodes": report.nodes,
            "casts": report.casts,
            "kept_float32": {k.node: k.reason for k in report.kept},
            "kept_blocks": list(self.half.blocks),
            "metrics": metrics.to_dict() if metrics else None,
        }


def convert(
    model: str | Path,
    output: str | Path | None = None,
    *,
    precision: str = "fp16",
    io_dtype: str = "fp32",
    keep: str | Sequence[str] = (),
    max_error: float | None = None,
    images: str | Path | None = None,
    verify: bool = True,
    allow_modified: bool = False,
    reporter: Reporter = SILENT,
) -> Converted:
    """Convert a float32 ONNX file to half precision.

    Args:
        model: Float32 ONNX file with its manifest beside it.
        output: ONNX file to write; default: MODEL.fp16.onnx or MODEL.bf16.onnx.
        precision: fp16, or bf16 at opset 22.
        io_dtype: Type of inputs and outputs: fp32 or the model's own half (fp16, bf16).
        keep: Keep nodes of this name in float32; a pattern as *scan*; may be repeated.
        max_error: Relative RMS error that half precision may cost; blocks that cost more stay float32. Default: the
            recipe's contract.
        images: Folder of images to measure on, as the model will see; default: synthetic images.
        verify: Compare with float32.
        allow_modified: Take a file that its manifest does not describe.
        reporter: Told what the conversion is at.

    Raises:
        MissingDependencyError: onnx, onnx-ir or onnxruntime is not installed.
        ArtifactError: the file or its manifest is missing, corrupt or foreign.
        UsageError: the model is in half precision already, or a pattern matches no node.
        VerificationError: the converted model does not keep the recipe's contract; nothing is written.

    """
    needs.require("convert")
    path = Path(model)
    options = HalfOptions(
        precision, io_dtype, several(keep), max_error, None if images is None else Path(images), verify
    )
    target = default_output(path, f".{precision}.onnx") if output is None else Path(output)
    check_writable(target)
    if target.resolve() == path.resolve():
        raise UsageError(f"{target}: is the file to convert.", hint="Choose another name with -o.")
    onnx_model = read_onnx(path)
    manifest = read_manifest(path)
    refuse_modified(path, manifest, allow_modified=allow_modified)
    manifest = manifest.bounded(precision=precision, max_error=max_error)
    half = to_half(onnx_model, manifest, options, str(path), reporter)
    content = half.model.SerializeToString(deterministic=True)
    content, manifest = sealed(content, moved(_converted_manifest(manifest, half, content), path, target))
    beside = {manifest_path(target): manifest.to_bytes()}
    if manifest.module is not None or (manifest.golden_sha256 and golden_path(path).is_file()):
        beside[golden_path(target)] = golden_path(path).read_bytes()
    write_all({**beside, target: content})
    return Converted(target, manifest_path(target), manifest, half)


def to_half(
    model: onnx.ModelProto, manifest: Manifest | None, options: HalfOptions, source: str, reporter: Reporter = SILENT
) -> Half:
    """Convert a model in memory, as ``convert`` and ``build-engine`` do; see :func:`convert` for the errors.

    Args:
        model: float32.
        manifest: its manifest, whose contract the result is held to; without one nothing is measured.
        options: how.
        source: the model's file name, for messages.
        reporter: told what begins, and how far the measuring of blocks is.

    """
    precision = PRECISIONS[options.precision]
    refuse_quantised(model, source)
    half_io = options.io_dtype != "fp32"
    policy = Policy(keep=(*(manifest.precision.keep_fp32 if manifest else ()), *options.keep))
    if manifest is not None and needs.is_installed("onnxruntime"):
        return _measured(model, manifest, options, precision, policy, source, reporter)
    if options.max_error is not None or options.images is not None:
        raise UsageError(
            f"{source}: without {'its manifest' if manifest is None else 'onnxruntime'} nothing can be measured.",
            hint="Leave --max-error and --images out." if manifest is None else needs.install("onnxruntime"),
        )
    reporter.stage(f"Converting to {precision.name}")
    result, report = convert_model(model, precision, policy, half_io=half_io)
    check_model(result, source, allow_reversal=True)
    return Half(result, report, None)


def _measured(
    model: onnx.ModelProto,
    manifest: Manifest,
    options: HalfOptions,
    precision: Precision,
    policy: Policy,
    source: str,
    reporter: Reporter,
) -> Half:
    """Convert with what sample images show: values that do not fit, and blocks that cost too much."""
    half_io = options.io_dtype != "fp32"
    images = sample_inputs(manifest, Path(source), options.images, _SAMPLES)
    reporter.stage("Measuring activations on sample images")
    ranges = measure(model, images)
    reporter.stage(f"Converting to {precision.name}")
    if not options.verify:
        result, report = convert_model(model, precision, policy, ranges=ranges, half_io=half_io)
        check_model(result, source, allow_reversal=True)
        return Half(result, report, None)
    task = Task(model, images, manifest.contract[precision.name], manifest.model.task == "classify", ranges, half_io)
    fitted = fit(task, precision, policy, reporter)
    check_model(fitted.model, source, allow_reversal=True)
    if not fitted.metrics.passed:
        spared = f", even with {', '.join(fitted.kept)} in float32" if fitted.kept else ""
        raise VerificationError(
            f"{source}: the {precision.name} model does not compute what the float32 model computes: "
            f"{'; '.join(fitted.metrics.violations)}{spared}.",
            hint="Keep nodes in float32 with --keep PATTERN, allow more with --max-error, or take what was measured "
            "with --no-verify.",
        )
    return Half(fitted.model, fitted.report, fitted.metrics, fitted.kept)


def _converted_manifest(manifest: Manifest, half: Half, content: bytes) -> Manifest:
    """Return the manifest of a converted file: the original's, with what the conversion changed."""
    report = half.report
    conversion: dict[str, Any] = {
        "precision": report.precision,
        "source_sha256": manifest.onnx.sha256,
        "nodes": report.nodes,
        "casts": report.casts,
        "kept_float32": {k.node: k.reason for k in report.kept},
        "kept_blocks": list(half.blocks),
        "metrics": half.metrics.to_dict() if half.metrics else None,
    }
    graph = half.model.graph
    opset = next(entry.version for entry in half.model.opset_import if entry.domain in ("", "ai.onnx"))
    changed = {"sha256": sha256_bytes(content), "nodes": len(graph.node), "opset": opset}
    return manifest.model_copy(
        update={
            "onnx": manifest.onnx.model_copy(update=changed),
            "input": tensor_info(graph.input[0]),
            "outputs": tuple(tensor_info(output) for output in graph.output),
            "parity": None,
            "conversion": conversion,
        }
    )
