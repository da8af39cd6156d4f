"""FP32 -> FP16 or BF16: the types of an ONNX graph, rewritten under the policy of :mod:`.policy`.

Casts sit where a value crosses. Weights and measured activations that do not fit the type keep their node in float32
and are reported.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir

from vimdeploy.errors import ArtifactError, UsageError
from vimdeploy.graph import bodies
from vimdeploy.graph.policy import ALL, BETWEEN, BIASED, FOLLOW, PRECISIONS, TYPELESS, Policy, Precision, Rule

_SUBGRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


@dataclass(frozen=True)
class Kept:
    """A node left in float32 although the policy would lower it, and why."""

    node: str
    op: str
    reason: str


@dataclass
class Report:
    """What a conversion did."""

    precision: str
    nodes: int = 0
    casts: int = 0
    half_weight_bytes: int = 0
    float_weight_bytes: int = 0
    kept: list[Kept] = field(default_factory=list)


def convert(
    model: ir.Model,
    precision: Precision,
    policy: Policy | None = None,
    *,
    ranges: Mapping[str, float] | None = None,
    half_io: bool = False,
) -> Report:
    """Rewrite the main graph of ``model`` in place. Function bodies are generic in T: see :func:`convert_model`.

    Args:
        model: a float32 model.
        precision: the type to go down to.
        policy: what goes down; :data:`~vimdeploy.graph.policy.POLICY` by default.
        ranges: largest absolute value of tensors by name, as measured on sample inputs
            (:func:`vimdeploy.parity.ranges.measure`).
        half_io: also make the graph's float inputs and outputs half.

    Raises:
        UsageError: the model already holds half-precision values, or a pattern of ``policy.keep`` matches no node.
    """
    policy = policy or Policy()
    _refuse_unfit(model, policy)
    return _Pass(model, precision, policy, dict(ranges or {})).run(half_io=half_io)


def refuse_quantised(model: onnx.ModelProto, source: str) -> None:
    """Raise ArtifactError for a quantised model: rounding it to half precision on top is nothing that was measured."""
    graphs = [model.graph, *model.functions]
    node = next((n for g in graphs for n in g.node if n.op_type in _QUANTISED and n.domain in _QUANTISING), None)
    if node is not None:
        raise ArtifactError(
            f"{source}: is quantised already (node '{node.name}' is {node.op_type}), so it is not converted on top",
            hint="Convert the float32 file it was quantised from, or build this one as it is: build-engine --fp32.",
        )


_QUANTISED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger",
     "ConvInteger", "MatMulNBits", "QAttention", "DynamicQuantizeMatMul", "QGemm", "BlockQuantizedMatMul"}
)  # fmt: skip
_QUANTISING = frozenset({"", "ai.onnx", "com.microsoft", "trt"})


def convert_model(
    model: onnx.ModelProto,
    precision: Precision,
    policy: Policy | None = None,
    *,
    ranges: Mapping[str, float] | None = None,
    half_io: bool = False,
) -> tuple[onnx.ModelProto, Report]:
    """Return a converted copy of ``model`` with the bodies of its custom ops; see :func:`convert`."""
    converted = ir.from_proto(model)  # reads the weights where they are: a copy of them would be half of the time
    converted.functions.clear()
    report = convert(converted, precision, policy, ranges=ranges, half_io=half_io)
    result = ir.to_proto(converted)
    bodies.add_functions(result)
    return result, report


def _refuse_unfit(model: ir.Model, policy: Policy) -> None:
    half = {p.dtype for p in PRECISIONS.values()}
    if any(attribute.type in _SUBGRAPHS for node in model.graph for attribute in node.attributes.values()):
        raise UsageError(
            "this model has control flow in its main graph, whose types cannot be changed from outside",
            hint="Convert a model that 'vimdeploy export' wrote: its loops are inside functions.",
        )
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    if any(v.dtype in half for v in values):
        raise UsageError(
            "this model is in half precision already",
            hint="Convert the float32 model that 'vimdeploy export' wrote.",
        )
    names = [n.name or "" for n in model.graph]
    for pattern in policy.keep:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                f"no node is named like {pattern!r}, so nothing can be kept in float32 by it",
                hint="'vimdeploy inspect MODEL.onnx --layers' lists the node names.",
            )


class _Pass:
    """One conversion: decide per node, rewire inputs, then name the types of all values."""

    def __init__(self, model: ir.Model, precision: Precision, policy: Policy, ranges: Mapping[str, float]) -> None:
        self.model = model
        self.graph = model.graph
        self.precision = precision
        self.policy = policy
        self.ranges = ranges
        self.report = Report(precision.name)
        self.half: set[ir.Value] = set()
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def run(self, *, half_io: bool) -> Report:
        opset = self.graph.opset_imports.get("", 0)
        if opset < self.precision.min_opset:
            _raise_opset(self.model, self.precision)
        if half_io:
            for value in self.graph.inputs:
                if value.dtype == ir.DataType.FLOAT:
                    self._lower(value)
        outputs = list(self.graph.outputs)
        for node in list(self.graph):
            self._visit(node)
        for index, value in enumerate(outputs):
            self._output(index, value, half_io=half_io)
        self._drop_unused_weights()
        self._count()
        return self.report

    def _visit(self, node: ir.Node) -> None:
        if node.op_type in TYPELESS and not node.domain:
            return
        rule = self._rule(node)
        if rule is None:
            for index, value in enumerate(node.inputs):
                self._feed(node, index, value, half=False)
            return
        for index, value in enumerate(node.inputs):
            self._feed(node, index, value, half=index in rule.inputs or ALL in rule.inputs)
        self.report.nodes += 1
        if rule.output:
            for output in node.outputs:
                self._lower(output)

    def _rule(self, node: ir.Node) -> Rule | None:
        rule = self.policy.rule(node)
        if rule is None:
            return self._followed(node)
        reason = self.policy.held.get(node.name or "") or self._unfit(node, rule)
        if reason:
            self.report.kept.append(Kept(node.name or "", node.op_type, reason))
            return None
        return rule

    def _followed(self, node: ir.Node) -> Rule | None:
        """Return a rule for nodes that go down because what they move, or add a bias to, is half already."""
        if node.domain:
            return None
        inputs = [v for v in node.inputs if v is not None]
        if node.op_type in FOLLOW:
            moved = inputs if node.op_type == "Concat" else inputs[:1]
            if moved and all(v in self.half for v in moved):
                return Rule(tuple(range(len(moved))), True, "moves half values")
        between = node.op_type in BETWEEN and any(v in self.half for v in inputs)
        if between and len(inputs) - sum(map(_is_scalar, inputs)) == 1:
            return Rule((ALL,), True, "inside an attention")
        if node.op_type == "Add" and len(inputs) == 2:
            weights = [v for v in inputs if v.is_initializer()]
            producers = [v.producer() for v in inputs if v in self.half]
            if len(weights) == 1 and any(p and p.op_type in BIASED for p in producers):
                rule = Rule((ALL,), True, "bias")
                return None if self._unfit(node, rule) else rule
        return None

    def _unfit(self, node: ir.Node, rule: Rule) -> str:
        """Say why a node cannot go down, or return an empty string."""
        limit, name = self.precision.largest, self.precision.name.upper()
        for index, value in enumerate(node.inputs):
            if value is None or not (index in rule.inputs or ALL in rule.inputs):
                continue
            largest = _largest(value) if value.is_initializer() else self.ranges.get(value.name or "", 0.0)
            what = "weight" if value.is_initializer() else "input"
            if not largest <= limit:
                return f"{what} {value.name} reaches {largest:.3g}, beyond {name}'s {limit:.5g}"
            if value.is_initializer() and 0.0 < largest < self.precision.normal:
                return f"weight {value.name} is at most {largest:.3g}, where {name} has no precision left"
        for value in node.outputs if rule.output else ():
            largest = self.ranges.get(value.name or "", 0.0)
            if not largest <= limit:
                return f"output {value.name} reaches {largest:.3g}, beyond {name}'s {limit:.5g}"
        return ""

    def _lower(self, value: ir.Value) -> None:
        value.dtype = self.precision.dtype
        self.half.add(value)

    def _feed(self, node: ir.Node, index: int, value: ir.Value | None, *, half: bool) -> None:
        """Give input ``index`` of a node its value in the type the node takes."""
        if value is None or (value in self.half) == half:
            return
        if half and value.is_initializer() and not value.is_graph_input():
            node.replace_input_with(index, self._weight(value))
            return
        target = self.precision.dtype if half else ir.DataType.FLOAT
        node.replace_input_with(index, self._cast(value, target, before=node))

    def _weight(self, value: ir.Value) -> ir.Value:
        key = (value, self.precision.dtype)
        if key not in self.casts:
            tensor = value.const_value
            assert tensor is not None
            array = tensor.numpy().astype(self.precision.dtype.numpy())
            name = f"{value.name}_{self.precision.name}"
            lowered = ir.Value(
                name=name,
                shape=value.shape,
                type=ir.TensorType(self.precision.dtype),
                const_value=ir.tensor(array, dtype=self.precision.dtype, name=name),
            )
            self.graph.register_initializer(lowered)
            self.half.add(lowered)
            self.casts[key] = lowered
        return self.casts[key]

    def _cast(self, value: ir.Value, dtype: ir.DataType, before: ir.Node | None) -> ir.Value:
        key = (value, dtype)
        if key not in self.casts:
            name = f"{value.name}_{dtype.name.lower()}"
            output = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype))
            cast = ir.node("Cast", [value], {"to": int(dtype)}, outputs=[output], name=f"{name}_cast")
            producer = value.producer()
            if producer is not None:
                self.graph.insert_after(producer, cast)
            elif before is not None:
                self.graph.insert_before(before, cast)
            else:
                self.graph.append(cast)
            if dtype == self.precision.dtype:
                self.half.add(output)
            self.casts[key] = output
            self.report.casts += 1
        return self.casts[key]

    def _output(self, index: int, value: ir.Value, *, half_io: bool) -> None:
        """Give a graph output its promised type under its own name."""
        want_half = half_io and (value in self.half or value.dtype == ir.DataType.FLOAT)
        if (value in self.half) == want_half:
            return
        cast = self._cast(value, self.precision.dtype if want_half else ir.DataType.FLOAT, before=None)
        name = value.name
        value.name = f"{name}_{self.precision.name if not want_half else 'float'}"
        cast.name = name
        self.graph.outputs[index] = cast

    def _drop_unused_weights(self) -> None:
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del self.graph.initializers[name]

    def _count(self) -> None:
        for value in self.graph.initializers.values():
            if value.const_value is None:
                continue
            if value.dtype == self.precision.dtype:
                self.report.half_weight_bytes += value.const_value.nbytes
            elif value.dtype == ir.DataType.FLOAT:
                self.report.float_weight_bytes += value.const_value.nbytes


def _is_scalar(value: ir.Value) -> bool:
    return value.is_initializer() and value.const_value is not None and value.const_value.size == 1


def _largest(value: ir.Value) -> float:
    tensor = value.const_value
    if tensor is None or tensor.size == 0:
        return 0.0
    array = tensor.numpy()
    # max and min rather than abs: no copy of a weight that may hold 100 MB. NaN stays NaN and is refused by the caller.
    return float(np.maximum(array.max(), -array.min()))


def _raise_opset(model: ir.Model, precision: Precision) -> None:
    """Declare a later opset. Between 18 and 22 only GroupNormalization changed its meaning; types were added."""
    if any(node.op_type == "GroupNormalization" and not node.domain for node in model.graph.all_nodes()):
        raise UsageError(
            f"{precision.name} needs opset {precision.min_opset}, where GroupNormalization means something else",
            hint=f"Export again with --opset {precision.min_opset}.",
        )
    model.graph.opset_imports[""] = precision.min_opset
