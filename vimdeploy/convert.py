"""FP32 ONNX -> FP16 or BF16 ONNX as one function: measure, convert, check, compare, write."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vimdeploy.backends import OnnxBackend, joined, read_onnx
from vimdeploy.errors import UsageError, VerificationError, nearest
from vimdeploy.files import check_writable, sha256_bytes, write_all
from vimdeploy.graph.check import check_model
from vimdeploy.graph.emulate import emulate
from vimdeploy.graph.precision import PRECISIONS, Policy, Report, convert_model
from vimdeploy.images import synthetic_images
from vimdeploy.manifest import Manifest, manifest_path, read_manifest
from vimdeploy.models.recipe import ParityContract
from vimdeploy.verify.metrics import Metrics, compare

if TYPE_CHECKING:
    import onnx

Say = Callable[[str], None]
Images = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ConvertRequest:
    """How to convert; the defaults are the recommended way."""

    precision: str = "fp16"
    keep: tuple[str, ...] = ()
    """Patterns of node names to keep in float32, beyond the recipe's."""
    half_io: bool = False
    verify: bool = True
    samples: int = 4


@dataclass(frozen=True)
class Converted:
    """A converted model."""

    model: onnx.ModelProto
    report: Report
    metrics: Metrics | None
    """Against the float32 model in ONNX Runtime, every half-precision value rounded; None where it was left out."""


def convert(path: Path, output: Path, request: ConvertRequest, say: Say) -> Converted:
    """Convert a file and write the result with its manifest.

    Raises:
        ArtifactError: the file or its manifest is missing, corrupt or foreign.
        UsageError: the model is in half precision already, or a pattern matches no node.
        VerificationError: the converted model does not keep the recipe's contract; nothing is written.

    """
    check_writable(output)
    if output.resolve() == path.resolve():
        raise UsageError(f"{output}: is the file to convert.", hint="Choose another name with -o.")
    model, manifest = read_onnx(path), read_manifest(path)
    converted = convert_in_memory(model, manifest, request, str(path), say)
    content = converted.model.SerializeToString(deterministic=True)
    sidecar = converted_manifest(manifest, converted, content)
    write_all({manifest_path(output): sidecar.to_bytes(), output: content})
    return converted


def convert_in_memory(
    model: onnx.ModelProto, manifest: Manifest | None, request: ConvertRequest, source: str, say: Say
) -> Converted:
    """Convert a model as ``build-engine``, ``verify`` and ``convert`` do; see :func:`convert`."""
    if request.precision not in PRECISIONS:
        raise UsageError(f"There is no precision '{request.precision}'.", hint=nearest(request.precision, PRECISIONS))
    precision = PRECISIONS[request.precision]
    images = None
    ranges: dict[str, float] = {}
    if manifest is not None and importlib.util.find_spec("onnxruntime"):
        from vimdeploy.verify.ranges import measure

        images = synthetic_images(request.samples, manifest.preprocessing)
        say("Measuring activations on sample images")
        ranges = dict(measure(model, images))
    policy = Policy(keep=(*(manifest.precision.keep_fp32 if manifest else ()), *request.keep))
    say(f"Converting to {precision.name}")
    result, report = convert_model(model, precision, policy, ranges=ranges, half_io=request.half_io)
    check_model(result, source, allow_reversal=True)
    metrics = None
    if request.verify and images is not None and manifest is not None:
        say("Comparing with float32 in ONNX Runtime")
        metrics = _compare(model, result, precision.name, images, manifest)
        if not metrics.passed:
            raise VerificationError(
                f"{source}: the {precision.name} model does not compute what the float32 model computes: "
                f"{'; '.join(metrics.violations)}.",
                hint="Keep nodes in float32 with --keep PATTERN, or take what was measured with --no-verify.",
            )
    return Converted(result, report, metrics)


def _compare(
    model: onnx.ModelProto, result: onnx.ModelProto, precision: str, images: Images, manifest: Manifest
) -> Metrics:
    """Compare a converted model, rounded as a GPU would, with the float32 one."""
    fixed = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    batch = fixed or len(images)
    reference, candidate = OnnxBackend(model), OnnxBackend(emulate(result))
    images = np.resize(images, (-(-len(images) // batch) * batch, *images.shape[1:]))
    parts = [images[i : i + batch] for i in range(0, len(images), batch)]
    a, b = (np.concatenate([joined(backend.run(p)) for p in parts]) for backend in (candidate, reference))
    contract: ParityContract = getattr(manifest.contract, precision)
    return compare(a, b, contract, classes=manifest.model.task == "classify")


def converted_manifest(manifest: Manifest, converted: Converted, content: bytes) -> Manifest:
    """Return the manifest of a converted file: the original's, with what the conversion changed."""
    from vimdeploy.pipeline import tensor_info

    report = converted.report
    conversion: dict[str, Any] = {
        "precision": report.precision,
        "source_sha256": manifest.onnx.sha256,
        "nodes": report.nodes,
        "casts": report.casts,
        "kept_float32": {k.node: k.reason for k in report.kept},
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
