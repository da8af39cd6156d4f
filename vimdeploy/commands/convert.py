"""FP32 ONNX -> FP16 or BF16 ONNX as one function: measure, convert, check, compare, write."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimdeploy.artifacts.files import check_writable, sha256_bytes, write_all
from vimdeploy.artifacts.images import sample_images
from vimdeploy.artifacts.manifest import Manifest, manifest_path, read_manifest
from vimdeploy.artifacts.onnx_file import read_onnx
from vimdeploy.artifacts.recipe import ParityContract
from vimdeploy.backends.base import Progress
from vimdeploy.errors import UsageError, VerificationError, nearest
from vimdeploy.graph.check import check_model
from vimdeploy.graph.policy import PRECISIONS, Policy, Precision
from vimdeploy.graph.precision import Report, convert_model, refuse_quantised
from vimdeploy.parity.metrics import Metrics
from vimdeploy.parity.ranges import measure
from vimdeploy.parity.sensitivity import Stage, Task, fit

if TYPE_CHECKING:
    import onnx

Say = Callable[[str], None]


@dataclass(frozen=True)
class ConvertRequest:
    """How to convert; the defaults are the recommended way."""

    precision: str = "fp16"
    keep: tuple[str, ...] = ()
    """Patterns of node names to keep in float32, beyond the recipe's."""
    half_io: bool = False
    verify: bool = True
    max_error: float | None = None
    """Relative RMS error that half precision may cost at the output; None takes the recipe's contract."""
    images: Path | None = None
    """Folder of images to measure on; None takes synthetic ones."""
    samples: int = 4
    """How many synthetic images."""


@dataclass(frozen=True)
class Converted:
    """A converted model."""

    model: onnx.ModelProto
    report: Report
    metrics: Metrics | None
    """Against the float32 model in ONNX Runtime, every half-precision value rounded; None where it was left out."""
    blocks: tuple[str, ...] = ()
    """Blocks kept in float32 because the contract could not be kept otherwise."""


def convert(path: Path, output: Path, request: ConvertRequest, say: Say, progress: Progress | None = None) -> Converted:
    """Convert a file and write the result with its manifest.

    Args:
        path: float32 ONNX file with its manifest beside it.
        output: file to write.
        request: how to convert.
        say: told what begins.
        progress: told how far the measuring of blocks is, where that is needed.

    Raises:
        ArtifactError: the file or its manifest is missing, corrupt or foreign.
        UsageError: the model is in half precision already, or a pattern matches no node.
        VerificationError: the converted model does not keep the recipe's contract; nothing is written.

    """
    check_writable(output)
    if output.resolve() == path.resolve():
        raise UsageError(f"{output}: is the file to convert.", hint="Choose another name with -o.")
    model, manifest = read_onnx(path), owing(read_manifest(path), request.precision, request.max_error)
    converted = convert_in_memory(model, manifest, request, str(path), say, progress)
    content = converted.model.SerializeToString(deterministic=True)
    sidecar = converted_manifest(manifest, converted, content)
    write_all({manifest_path(output): sidecar.to_bytes(), output: content})
    return converted


def convert_in_memory(
    model: onnx.ModelProto,
    manifest: Manifest | None,
    request: ConvertRequest,
    source: str,
    say: Say,
    progress: Progress | None = None,
) -> Converted:
    """Convert a model as ``build-engine`` and ``convert`` do; see :func:`convert`."""
    if request.precision not in PRECISIONS:
        raise UsageError(f"There is no precision '{request.precision}'.", hint=nearest(request.precision, PRECISIONS))
    precision = PRECISIONS[request.precision]
    refuse_quantised(model, source)
    policy = Policy(keep=(*(manifest.precision.keep_fp32 if manifest else ()), *request.keep))
    if manifest is None or not importlib.util.find_spec("onnxruntime"):
        if request.max_error is not None or request.images is not None:
            raise UsageError(
                f"{source}: without {'its manifest' if manifest is None else 'onnxruntime'} nothing can be measured.",
                hint="Leave --max-error and --images out." if manifest is None else "pip install 'vimdeploy[ort]'",
            )
        say(f"Converting to {precision.name}")
        result, report = convert_model(model, precision, policy, half_io=request.half_io)
        check_model(result, source, allow_reversal=True)
        return Converted(result, report, None)

    def stage(text: str) -> Progress | None:
        say(text)
        return progress

    return _measured(model, manifest, request, precision, policy, source, stage)


def _measured(
    model: onnx.ModelProto,
    manifest: Manifest,
    request: ConvertRequest,
    precision: Precision,
    policy: Policy,
    source: str,
    stage: Stage,
) -> Converted:
    """Convert with what sample images show: values that do not fit, and blocks that cost too much."""
    images = sample_images(manifest.preprocessing, request.images, request.samples)
    stage("Measuring activations on sample images")
    ranges = measure(model, images)
    stage(f"Converting to {precision.name}")
    if not request.verify:
        result, report = convert_model(model, precision, policy, ranges=ranges, half_io=request.half_io)
        check_model(result, source, allow_reversal=True)
        return Converted(result, report, None)
    contract: ParityContract = getattr(owing(manifest, precision.name, request.max_error).contract, precision.name)
    task = Task(model, images, contract, manifest.model.task == "classify", ranges, request.half_io)
    fitted = fit(task, precision, policy, stage)
    check_model(fitted.model, source, allow_reversal=True)
    if not fitted.metrics.passed:
        raise VerificationError(
            f"{source}: the {precision.name} model does not compute what the float32 model computes: "
            f"{'; '.join(fitted.metrics.violations)}{_in_spite_of(fitted.kept)}.",
            hint="Keep nodes in float32 with --keep PATTERN, allow more with --max-error, or take what was measured "
            "with --no-verify.",
        )
    return Converted(fitted.model, fitted.report, fitted.metrics, fitted.kept)


def _in_spite_of(blocks: tuple[str, ...]) -> str:
    return f", even with {', '.join(blocks)} in float32" if blocks else ""


def owing(manifest: Manifest, precision: str, max_error: float | None) -> Manifest:
    """Return a manifest whose contract has ``max_error`` in place of the recipe's bound on the relative RMS error."""
    if max_error is None or precision not in PRECISIONS:
        return manifest
    contract: ParityContract = getattr(manifest.contract, precision)
    bounded = contract.model_copy(update={"relative_rms": max_error})
    return manifest.model_copy(update={"contract": manifest.contract.model_copy(update={precision: bounded})})


def converted_manifest(manifest: Manifest, converted: Converted, content: bytes) -> Manifest:
    """Return the manifest of a converted file: the original's, with what the conversion changed."""
    from vimdeploy.artifacts.onnx_file import tensor_info

    report = converted.report
    conversion: dict[str, Any] = {
        "precision": report.precision,
        "source_sha256": manifest.onnx.sha256,
        "nodes": report.nodes,
        "casts": report.casts,
        "kept_float32": {k.node: k.reason for k in report.kept},
        "kept_blocks": list(converted.blocks),
        "metrics": converted.metrics.to_dict() if converted.metrics else None,
    }
    graph = converted.model.graph
    opset = next(entry.version for entry in converted.model.opset_import if entry.domain in ("", "ai.onnx"))
    onnx_info = manifest.onnx.model_copy(
        update={"sha256": sha256_bytes(content), "nodes": len(graph.node), "opset": opset}
    )
    return manifest.model_copy(
        update={
            "onnx": onnx_info,
            "input": tensor_info(graph.input[0]),
            "outputs": tuple(tensor_info(output) for output in graph.output),
            "parity": None,
            "conversion": conversion,
        }
    )
