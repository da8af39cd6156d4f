"""The custom ops, version 1: names, attributes and limits.

This is the single source that the exporter, the function bodies, the checks, the TensorRT builder and the tests of the
C++ plugins read. Shapes use B batch, L tokens, E inner channels (``d_inner``), N states (``d_state``), R ``dt_rank``,
K conv width and G groups; T is float32, float16 or bfloat16, one T per node.

``CausalConv1d(x, weight, bias) -> u``: a depthwise convolution over tokens in G directions at once::

    x (B, L, E) T    weight (G, E, K) T    bias (G, E) T    u (G, B, L, E) T

``SelectiveScan(u, x_dbl, A, D, dt_weight, dt_bias, z) -> y``: G selective scans (Mamba, arXiv 2312.00752, equation 2
with the discretisation of its section 3.6) over the same tokens, summed, gated and scaled::

    u (G or 1, B, L, E) T    x_dbl (G or 1, B, L, R+2N) T    A (G, E, N) f32    D (G, E) f32
    dt_weight (G, E, R) T    dt_bias (G, E) f32              z (B, L, E) T      y (B, L, E) T

``SelectiveScanNoGate`` is the same without z; its y is float32 whatever T is.

``SelectiveScanDelta(u, delta, A, B, C, D, delta_bias, z) -> y``: one scan as mamba_ssm's callers know it, with delta
given and the channels partitioned into G groups: channel e reads group ``e // (E / G)`` of B and C::

    u (B, L, E) T    delta (B, L, E) T    A (E, N) f32    B, C (B, L, G, N) T    D, delta_bias (E) f32
    z (B, L, E) T    y (B, L, E) T

``SelectiveScanDeltaNoGate`` is the same without z; its y is float32 whatever T is. D and delta_bias are zeros where a
model has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

DOMAIN = "vimdeploy"
OP_VERSION = 1
"""Version of the opset ``vimdeploy``: raised when a node of an older file would compute something else."""
PLUGIN_VERSION = "1"
PLUGIN_NAMESPACE = "vimdeploy"

DEFAULT_OPSET = 20
MIN_OPSET = 18
"""ReduceSum, Split and Pad of the function bodies have their present form since opset 18."""
MAX_OPSET = 23

FLOAT_TYPES = ("tensor(float)", "tensor(float16)", "tensor(bfloat16)")


class AttributeKind(Enum):
    """ONNX attribute types in use; the values are ONNX's names for them."""

    INT = "INT"
    INTS = "INTS"
    FLOAT = "FLOAT"
    STRING = "STRING"


@dataclass(frozen=True)
class Attribute:
    """One attribute of a custom op. Every attribute is emitted on every node, so that no reader needs a default."""

    name: str
    kind: AttributeKind
    doc: str


@dataclass(frozen=True)
class Tensor:
    """One input or output: ``dtype`` is ``"T"`` or ``"float"``, ``shape`` the symbols of its dimensions."""

    name: str
    dtype: str
    shape: tuple[str, ...]


@dataclass(frozen=True)
class CustomOp:
    """Signature of one custom op."""

    name: str
    inputs: tuple[Tensor, ...]
    output: Tensor
    attributes: tuple[Attribute, ...]


_DIRECTIONS = Attribute("directions", AttributeKind.INTS, "per group: 1 walks the tokens forward, -1 backward")
_SCAN_ATTRIBUTES = (
    _DIRECTIONS,
    Attribute("column_major", AttributeKind.INTS, "per group: 1 walks the H x W grid of tokens column by column"),
    Attribute("height", AttributeKind.INT, "H, where some group is column-major (L = H * W); otherwise 1"),
    Attribute("scale", AttributeKind.FLOAT, "multiplies the summed output"),
)
_SCAN_INPUTS = (
    Tensor("u", "T", ("G|1", "B", "L", "E")),
    Tensor("x_dbl", "T", ("G|1", "B", "L", "R+2N")),
    Tensor("A", "float", ("G", "E", "N")),
    Tensor("D", "float", ("G", "E")),
    Tensor("dt_weight", "T", ("G", "E", "R")),
    Tensor("dt_bias", "float", ("G", "E")),
)

CAUSAL_CONV1D = CustomOp(
    name="CausalConv1d",
    inputs=(
        Tensor("x", "T", ("B", "L", "E")),
        Tensor("weight", "T", ("G", "E", "K")),
        Tensor("bias", "T", ("G", "E")),
    ),
    output=Tensor("u", "T", ("G", "B", "L", "E")),
    attributes=(_DIRECTIONS, Attribute("activation", AttributeKind.STRING, "silu or none")),
)
SELECTIVE_SCAN = CustomOp(
    name="SelectiveScan",
    inputs=(*_SCAN_INPUTS, Tensor("z", "T", ("B", "L", "E"))),
    output=Tensor("y", "T", ("B", "L", "E")),
    attributes=_SCAN_ATTRIBUTES,
)
SELECTIVE_SCAN_NO_GATE = CustomOp(
    name="SelectiveScanNoGate",
    inputs=_SCAN_INPUTS,
    output=Tensor("y", "float", ("B", "L", "E")),
    attributes=_SCAN_ATTRIBUTES,
)
_DELTA_INPUTS = (
    Tensor("u", "T", ("B", "L", "E")),
    Tensor("delta", "T", ("B", "L", "E")),
    Tensor("A", "float", ("E", "N")),
    Tensor("B", "T", ("B", "L", "G", "N")),
    Tensor("C", "T", ("B", "L", "G", "N")),
    Tensor("D", "float", ("E",)),
    Tensor("delta_bias", "float", ("E",)),
)
_DELTA_ATTRIBUTES = (
    Attribute("delta_softplus", AttributeKind.INT, "1: delta + delta_bias passes through a softplus; 0: it does not"),
    Attribute("reverse", AttributeKind.INT, "1 walks the tokens backward; 0 forward"),
)
SELECTIVE_SCAN_DELTA = CustomOp(
    name="SelectiveScanDelta",
    inputs=(*_DELTA_INPUTS, Tensor("z", "T", ("B", "L", "E"))),
    output=Tensor("y", "T", ("B", "L", "E")),
    attributes=_DELTA_ATTRIBUTES,
)
SELECTIVE_SCAN_DELTA_NO_GATE = CustomOp(
    name="SelectiveScanDeltaNoGate",
    inputs=_DELTA_INPUTS,
    output=Tensor("y", "float", ("B", "L", "E")),
    attributes=_DELTA_ATTRIBUTES,
)
OPS: dict[str, CustomOp] = {
    op.name: op
    for op in (
        CAUSAL_CONV1D,
        SELECTIVE_SCAN,
        SELECTIVE_SCAN_NO_GATE,
        SELECTIVE_SCAN_DELTA,
        SELECTIVE_SCAN_DELTA_NO_GATE,
    )
}

PLUGIN_ATTRIBUTES = ("plugin_version", "plugin_namespace")
"""Carried by every node beside its own attributes: TensorRT's parser finds the plugin by them."""

# What the TensorRT plugin serves. Export and the function bodies have no such limits.
PLUGIN_OPS = tuple(OPS)
PLUGIN_MAX_STATE = 64
PLUGIN_CONV_WIDTHS = (2, 3, 4)
PLUGIN_MAX_DT_RANK = 128
PLUGIN_GROUPS = (1, 2, 4)
