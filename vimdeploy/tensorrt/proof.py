"""What a plan will be, read from the parsed network before anything is built.

A strongly typed network's dtypes are the engine's, so these figures need no GPU: how many layers are plugins, and how
much of the arithmetic and of the weights is in half precision. Projects that trusted a flag built float32 for months.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vimdeploy.errors import ArtifactError
from vimdeploy.tensorrt.boundary import Layer

HALF = ("float16", "bfloat16")
LEAST_HALF_WEIGHTS = 0.5
LEAST_HALF_COMPUTE = 0.25
"""A half-precision build below either is refused. Inlined custom ops keep float32 products of their own (state and
accumulation), so an honest network has well below all of its compute layers in half; Vim-Ti has more than half."""
LEAST_WITH_KEPT_BLOCKS = 0.2
"""Takes the place of both where blocks stay float32 for a contract: up to half of them, at twice the bytes."""


@dataclass(frozen=True)
class NetworkSummary:
    """Figures of a parsed network; shares are between 0 and 1, of compute layers and of float weight bytes."""

    layers: int
    compute_layers: int
    plugin_layers: int
    half_compute_share: float
    half_weight_share: float
    kinds: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for the manifest."""
        return asdict(self)


def summarise(layers: Sequence[Layer]) -> NetworkSummary:
    """Count a network."""
    compute = [layer for layer in layers if layer.compute]
    floats = [layer for layer in layers if layer.weight_bytes and layer.dtype in (*HALF, "float32")]
    return NetworkSummary(
        layers=len(layers),
        compute_layers=len(compute),
        plugin_layers=sum(layer.plugin for layer in layers),
        half_compute_share=_share((1, layer) for layer in compute),
        half_weight_share=_share((layer.weight_bytes, layer) for layer in floats),
        kinds=dict(Counter(layer.kind for layer in layers).most_common()),
    )


def _share(weighted: Iterable[tuple[int, Layer]]) -> float:
    rows = list(weighted)
    total = sum(weight for weight, _ in rows)
    return sum(weight for weight, layer in rows if layer.dtype in HALF) / total if total else 0.0


def require(summary: NetworkSummary, *, precision: str, plugins: int, kept_blocks: bool = False) -> None:
    """Refuse a network that is not what was asked for.

    Args:
        summary: of the parsed network.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        plugins: number of custom ops that must have become plugin layers; 0 where they are inlined.
        kept_blocks: whole blocks stay float32, because the contract could not be kept otherwise.

    Raises:
        ArtifactError: plugin layers are missing, or a half-precision network has almost nothing in half precision.
    """
    if summary.plugin_layers != plugins:
        raise ArtifactError(
            f"the model has {plugins} custom ops but TensorRT made {summary.plugin_layers} plugin layers of them",
            hint="The parser did not take the plugin for every node: rebuild the library with 'vimdeploy build-plugin' "
            "and check with 'vimdeploy doctor' that a single TensorRT is visible.",
        )
    if precision == "fp32":
        return
    weights, compute = (LEAST_WITH_KEPT_BLOCKS,) * 2 if kept_blocks else (LEAST_HALF_WEIGHTS, LEAST_HALF_COMPUTE)
    if summary.half_weight_share < weights or summary.half_compute_share < compute:
        raise ArtifactError(
            f"this would not be a {precision} engine: only {summary.half_weight_share:.0%} of the weight bytes and "
            f"{summary.half_compute_share:.0%} of the compute layers are in half precision",
            hint="Too many nodes are kept in float32: 'vimdeploy convert' lists them with the reason; "
            "--bf16 has float32's range.",
        )


@dataclass(frozen=True)
class EngineSummary:
    """Figures of a built engine, from TensorRT's inspector: after fusion, with the reformats it had to insert."""

    layers: int
    fused_layers: int
    reformats: int
    reformat_bytes: int
    kinds: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for the manifest."""
        return asdict(self)


def engine_layers(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (kind, name, tactic) of every layer in the inspector's JSON report."""
    entries = [entry if isinstance(entry, dict) else {"Name": entry} for entry in report.get("Layers", [])]
    return [
        (str(e.get("LayerType", "")), str(e["Name"]), str(e.get("TacticName") or e.get("TacticValue", "")))
        for e in entries
        if "Name" in e
    ]


_BYTES = {"FP32": 4, "FLOAT": 4, "INT32": 4, "FP16": 2, "HALF": 2, "BF16": 2, "BFLOAT16": 2, "INT64": 8, "INT8": 1,
          "BOOL": 1, "FP8": 1, "UINT8": 1}  # fmt: skip


def summarise_engine(report: dict[str, Any]) -> EngineSummary:
    """Count the inspector's JSON report (layers are plain names where the plan was built without details)."""
    layers: list[dict[str, Any]] = [
        entry if isinstance(entry, dict) else {"Name": str(entry)} for entry in report.get("Layers", [])
    ]
    reformats = [e for e in layers if "reformat" in f"{e.get('LayerType', '')} {e.get('Name', '')}".lower()]
    return EngineSummary(
        layers=len(layers),
        fused_layers=sum("+" in str(e.get("Name", "")) or "ForeignNode" in str(e.get("Name", "")) for e in layers),
        reformats=len(reformats),
        reformat_bytes=sum(_tensor_bytes(t) for e in reformats for t in e.get("Outputs", [])),
        kinds=dict(Counter(str(e.get("LayerType", "unknown")) for e in layers).most_common()),
    )


def _tensor_bytes(tensor: dict[str, Any]) -> int:
    # TensorRT 10 writes one text ("Row major linear FP16 format"), 11 a DataType ("Half") beside the format.
    text = tensor.get("DataType") or tensor.get("Format/Datatype") or tensor.get("Format", "")
    words = str(text).upper().replace(":", " ").split()
    size = next((_BYTES[word] for word in words if word in _BYTES), 4)
    for dimension in tensor.get("Dimensions", []):
        size *= max(int(dimension), 1)
    return size
