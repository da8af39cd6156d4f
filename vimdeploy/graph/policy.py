"""Which ops of a graph compute in half precision, and why: one table, for FP16 and BF16 alike.

Only what :data:`POLICY` names goes down; everything else (norms, the residual stream, A, D, dt_bias, pooling, inputs
and outputs) stays float32.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from vimdeploy import contract


@dataclass(frozen=True)
class Precision:
    """A half-precision type. ``largest`` finite value; below ``normal`` the relative precision is lost."""

    name: str
    dtype: ir.DataType
    largest: float
    normal: float
    min_opset: int


FP16 = Precision("fp16", ir.DataType.FLOAT16, 65504.0, 2.0**-14, contract.MIN_OPSET)
# Conv and others take BF16 only from opset 22 on.
BF16 = Precision("bf16", ir.DataType.BFLOAT16, (2 - 2.0**-7) * 2.0**127, 2.0**-126, 22)
PRECISIONS = {p.name: p for p in (FP16, BF16)}

FLOAT32_INPUTS = frozenset(t.name for op in contract.OPS.values() for t in op.inputs if t.dtype == "float")
"""Inputs of the custom ops that stay float32 by contract: A, D, dt_bias."""

ALL = -1
Inputs = tuple[int, ...]


@dataclass(frozen=True)
class Rule:
    """What goes down at one op: positions of inputs (``(ALL,)`` for every one) and whether the output is half too."""

    inputs: Inputs
    output: bool
    why: str


def _custom(op: contract.CustomOp) -> Rule:
    """Return the rule of a custom op: what the contract types T goes down, what it types float stays."""
    typed = tuple(i for i, tensor in enumerate(op.inputs) if tensor.dtype == "T")
    kept = [tensor.name for tensor in op.inputs if tensor.dtype == "float"]
    leaves = "" if op.output.dtype == "T" else "; its result leaves in float32"
    states = f"{', '.join(kept)}, state and softplus stay float32 by contract" if kept else "accumulated in float32"
    return Rule(typed, op.output.dtype == "T", f"memory-bound; {states}{leaves}")


POLICY: dict[tuple[str, str], Rule] = {
    ("", "MatMul"): Rule((ALL,), True, "tensor cores; accumulated in float32"),
    ("", "Gemm"): Rule((ALL,), True, "tensor cores; accumulated in float32"),
    ("", "Conv"): Rule((ALL,), True, "tensor cores; accumulated in float32"),
    ("", "ConvTranspose"): Rule((ALL,), True, "tensor cores; accumulated in float32"),
    **{(contract.DOMAIN, op.name): _custom(op) for op in contract.OPS.values()},
}
"""The ops that compute in half precision. What is not here stays float32."""

FOLLOW = frozenset(
    ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Identity", "Flatten", "Gather")
)
"""Ops that only move values: half where every value they move is half already, so that no Cast is added for them."""

BETWEEN = frozenset(("Softmax", "Mul"))
"""What stands between the products of an attention: Softmax, and Mul by a scalar. Half where their input is half: that
costs nothing, it is rounded on both sides of them anyway, and TensorRT fuses an attention only if it is of one type."""

TYPELESS = ("Shape", "Size")
"""Ops that look at no value."""

BIASED = ("MatMul",)
"""``Add`` of a constant to one of these is its bias and goes down with it, or the sum would cost two Casts."""


@dataclass(frozen=True)
class Policy:
    """The table above, plus what must stay float32.

    ``keep`` holds patterns of node names (``*/head*``), ``held`` names of nodes with the reason that the report gives.
    """

    rules: Mapping[tuple[str, str], Rule] = field(default_factory=lambda: dict(POLICY))
    keep: Sequence[str] = ()
    held: Mapping[str, str] = field(default_factory=dict)

    def rule(self, node: ir.Node) -> Rule | None:
        """Return the rule that applies to a node, or None where it stays float32."""
        name = node.name or ""
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.keep):
            return None
        return self.rules.get((node.domain, node.op_type)) or self.rules.get((name, "*"))


def policy_table(policy: Policy | None = None) -> list[tuple[str, str, str, str]]:
    """Return rows of (op, inputs that go down, output, why) for people."""
    rows = []
    for (domain, op), rule in (policy or Policy()).rules.items():
        custom = contract.OPS.get(op) if domain == contract.DOMAIN else None
        names: Iterable[str] = ["all"] if ALL in rule.inputs else [str(i) for i in rule.inputs]
        if custom is not None:
            names = [custom.inputs[i].name for i in rule.inputs]
        rows.append((op, ", ".join(names), "half" if rule.output else "float32", rule.why))
    rows.append((", ".join(sorted(FOLLOW)), "follow", "follow", "they only move values"))
    rows.append((", ".join(sorted(BETWEEN)), "follow", "follow", "inside an attention; Mul by a scalar only"))
    rows.append(("everything else", "none", "float32", "norms, residual stream, softplus, pooling, inputs and outputs"))
    return rows
