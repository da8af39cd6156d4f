"""Rewrites of an exported graph towards the ops that are fast, each behind its own name.

Patterns are onnxscript's; what a pattern cannot say (a reversal that wanders through a dozen operators) is a walk over
the graph in :mod:`vimdeploy.graph.reversal`. Whoever calls this proves the result: a rewrite that changes what a model
computes is caught by the comparison that follows it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRuleSet, pattern
from onnxscript.rewriter.rules.common import (
    no_op_transpose_rule,
    transpose_transpose_rule,
    unsqueeze_unsqueeze_rule,
)

from vimdeploy import contract
from vimdeploy.errors import UsageError, nearest
from vimdeploy.graph.bodies import add_functions, custom_nodes
from vimdeploy.graph.export import remove_unused
from vimdeploy.graph.reversal import absorb_reversals

DOMAIN = contract.DOMAIN
_PLUGIN = dict(zip(contract.PLUGIN_ATTRIBUTES, (contract.PLUGIN_VERSION, contract.PLUGIN_NAMESPACE), strict=True))
_SWAP = [0, 2, 1]


def rewrite_model(model: onnx.ModelProto, names: Sequence[str] | None = None) -> tuple[onnx.ModelProto, dict[str, int]]:
    """Return the model after rewrites, with the bodies it then needs, and how often each rewrite applied.

    Args:
        model: as exported; it is not changed.
        names: of :data:`REWRITES`; None applies all of them, in their order.

    Raises:
        UsageError: a name that does not exist.

    """
    for name in names or ():
        if name not in REWRITES:
            raise UsageError(f"There is no rewrite '{name}'.", hint=nearest(name, REWRITES))
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))
    graph.functions.clear()
    counts = {name: apply(graph) for name, apply in REWRITES.items() if names is None or name in names}
    result = ir.to_proto(graph)
    remove_unused(result.graph)
    custom = {name for node in custom_nodes(result) for name in node.output}
    kept = [value for value in result.graph.value_info if value.name in custom]
    del result.graph.value_info[:]
    result.graph.value_info.extend(kept)
    add_functions(result)
    return result, {name: count for name, count in counts.items() if count}


def _matched(holds: bool) -> MatchResult:
    result = MatchResult()
    return result if holds else result.fail("the values are not what the rewrite needs")


def _silu(op: Any, value: Any) -> Any:
    return op.Mul(value, op.Sigmoid(value))


class _Gate(pattern.RewriteRuleClassBase):
    """``NoGate(...) * silu(z)`` becomes the gated op, which rounds once."""

    def pattern(self, op: Any, u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, bias: Any, z: Any) -> Any:
        y = op.SelectiveScanDeltaNoGate(
            u, delta, A, B, C, D, bias, _domain=DOMAIN, _outputs=["y"], _allow_other_attributes=True
        )
        return op.Mul(y, _silu(op, z))

    def check(self, op: Any, *args: Any, **kwargs: Any) -> MatchResult:
        del op, args
        y, z, u = kwargs["y"], kwargs["z"], kwargs["u"]
        return _matched(len(y.uses()) == 1 and z.dtype == u.dtype and z.shape is not None and len(z.shape) == 3)

    def rewrite(self, op: Any, **values: Any) -> Any:
        inputs = [values[name] for name in ("u", "delta", "A", "B", "C", "D", "bias", "z")]
        attributes = _attributes(values["y"].producer())
        return op.SelectiveScanDelta(*inputs, **attributes, _domain=DOMAIN, _version=contract.OP_VERSION)


class _GateTransposed(_Gate):
    """The same where the caller's layout is channels-first on both sides of the product."""

    def pattern(self, op: Any, u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, bias: Any, z: Any) -> Any:
        y = op.SelectiveScanDeltaNoGate(
            u, delta, A, B, C, D, bias, _domain=DOMAIN, _outputs=["y"], _allow_other_attributes=True
        )
        return op.Mul(op.Transpose(y, perm=_SWAP), _silu(op, z))

    def rewrite(self, op: Any, **values: Any) -> Any:
        gated = super().rewrite(op, **{**values, "z": op.Transpose(values["z"], perm=_SWAP)})
        return op.Transpose(gated, perm=_SWAP)


class _ConvSilu(pattern.RewriteRuleClassBase):
    """A depthwise Conv that is padded on both sides, cut to its first tokens and activated is a causal convolution."""

    def pattern(self, op: Any, x: Any, weight: Any, bias: Any, start: Any, end: Any, axes: Any) -> Any:
        y = op.Conv(x, weight, bias, _outputs=["y"], _allow_other_attributes=True)
        cut = op.Slice(y, start, end, axes, _allow_other_inputs=True, _outputs=["cut"])
        return _silu(op, cut)

    def check(self, op: Any, *args: Any, **kwargs: Any) -> MatchResult:
        del op, args
        x, weight, y, cut = kwargs["x"], kwargs["weight"], kwargs["y"], kwargs["cut"]
        constant = weight.const_value is not None and kwargs["bias"].const_value is not None
        kernel: Any = weight.const_value.numpy() if constant else np.empty(0)
        if kernel.ndim != 3 or kernel.shape[1] != 1 or len(y.uses()) != 1 or x.shape is None or len(x.shape) != 3:
            return _matched(False)
        conv = {name: attribute.value for name, attribute in y.producer().attributes.items()}
        return _matched(
            all(set(conv.get(name, (1,))) == {1} for name in ("strides", "dilations"))
            and conv.get("group") == kernel.shape[0]
            and list(conv.get("pads", ())) == [kernel.shape[2] - 1] * 2
            and _constant(kwargs["start"]) == [0]
            and _constant(kwargs["axes"]) in ([2], [-1])
            and _step(cut.producer()) == 1
            and self._keeps_the_length(x, cut, kernel.shape[2])
        )

    def _keeps_the_length(self, x: Any, cut: Any, width: int) -> bool:
        """Say whether the slice ends where the tokens end: at -(K - 1), or at a size read from a tensor of theirs."""
        end = cut.producer().inputs[2]
        known = _constant(end)
        if known is not None:
            return known == [1 - width] or (isinstance(x.shape[2], int) and known == [x.shape[2]])
        source = end.producer()
        return source is not None and source.op_type in ("Shape", "Unsqueeze", "Reshape", "Gather")

    def rewrite(self, op: Any, x: Any, weight: Any, bias: Any, **_: Any) -> Any:
        kernel = op.initializer(ir.tensor(weight.const_value.numpy()[:, 0][None], name=f"{weight.name}_causal"))
        offset = op.initializer(ir.tensor(bias.const_value.numpy()[None], name=f"{bias.name}_causal"))
        u = op.CausalConv1d(
            op.Transpose(x, perm=_SWAP), kernel, offset, directions=[1], activation="silu", **_PLUGIN,
            _domain=DOMAIN, _version=contract.OP_VERSION,
        )  # fmt: skip
        zero = op.initializer(ir.tensor(np.array(0), name=f"{weight.name}_first"))
        return op.Transpose(op.Gather(u, zero, axis=0), perm=_SWAP)


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _constant(value: Any) -> list[int] | None:
    return None if value is None or value.const_value is None else np.ravel(value.const_value.numpy()).tolist()


def _step(node: ir.Node) -> int:
    steps = _constant(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else [1]
    return int(steps[0]) if steps else 0


def _rules(*rules: Any) -> Callable[[ir.Model], int]:
    def apply(model: ir.Model) -> int:
        count: int = RewriteRuleSet(list(rules)).apply_to_model(model)
        return count

    return apply


def _fold(model: ir.Model) -> int:
    """Compute what follows from weights alone, such as A = -exp(A_log), however large."""
    from onnxscript import optimizer

    before = Counter(node.op_type for node in model.graph)
    optimizer.fold_constants(model, input_size_limit=1 << 28, output_size_limit=1 << 28)
    optimizer.remove_unused_nodes(model)
    return sum((before - Counter(node.op_type for node in model.graph)).values())


REWRITES: dict[str, Callable[[ir.Model], int]] = {
    "fold": _fold,
    "gate": _rules(_GateTransposed.rule(), _Gate.rule()),  # type: ignore[no-untyped-call]
    "conv": _rules(_ConvSilu.rule()),  # type: ignore[no-untyped-call]
    "reversal": absorb_reversals,
    "transposes": _rules(transpose_transpose_rule, no_op_transpose_rule, unsqueeze_unsqueeze_rule),
}
"""Every rewrite by name, in the order in which they are applied; returns how often it applied."""
