"""Sequences that are reversed, scanned and reversed back: the reversals are absorbed into the ops' own directions.

A reversed value is not computed: it is remembered as the value it reverses, and every operator that treats tokens alike
passes the reversal on to its result. Scans and causal convolutions absorb it by walking the other way. Where an
operator can do neither, the reversal is written down there; where two meet, they cancel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vimdeploy import contract

_POINTWISE = ("Sigmoid", "Mul", "Add", "Sub", "Div", "Cast", "Exp", "Neg", "Softplus", "Identity", "Tanh")
_LEAST = -(1 << 63)
_TOKEN_AXIS = {
    "CausalConv1d": {0: 1},
    "SelectiveScan": {0: 2, 1: 2, 6: 1},
    "SelectiveScanNoGate": {0: 2, 1: 2},
    "SelectiveScanDelta": {0: 1, 1: 1, 3: 1, 4: 1, 7: 1},
    "SelectiveScanDeltaNoGate": {0: 1, 1: 1, 3: 1, 4: 1},
}
"""Per custom op: on which axis of which input its tokens lie."""


@dataclass(frozen=True)
class _Reversed:
    """What a value means to its consumers: ``plain`` with one axis reversed. Its own node may compute it plain."""

    plain: ir.Value
    axis: int


Axes = dict[ir.Value, int]


def absorb_reversals(model: ir.Model) -> int:
    """Rewrite the main graph in place; returns how many reversals are fewer."""
    before = _count(model.graph)
    walk = _Walk(model.graph)
    for node in list(model.graph):
        walk.visit(node)
    for index, value in enumerate(list(model.graph.outputs)):
        if value in walk.known:
            model.graph.outputs[index] = walk.write_down(value)
    for marker in walk.markers:
        source = marker.inputs[0]
        assert source is not None
        marker.outputs[0].replace_all_uses_with(source)
        model.graph.remove(marker, safe=True)
    for node in reversed(list(model.graph)):
        if _reversed_axis(node) is not None and not any(v.uses() or v.is_graph_output() for v in node.outputs):
            model.graph.remove(node, safe=True)
    return max(0, before - _count(model.graph))


def _count(graph: ir.Graph) -> int:
    return sum(_reversed_axis(node) is not None for node in graph)


class _Walk:
    """Visits nodes in the order of computation."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.known: dict[ir.Value, _Reversed] = {}
        self.markers: list[ir.Node] = []

    def visit(self, node: ir.Node) -> None:
        """Let ``node`` pass on, absorb or cancel the reversals of its inputs, or write them down before it."""
        axis, first = _reversed_axis(node), node.inputs[0] if node.inputs else None
        if axis is not None and first is not None:
            inner = self.known.get(first)
            if inner is None:
                self.known[node.outputs[0]] = _Reversed(first, axis)
                return
            if inner.axis == axis:
                self._cancel(node, inner.plain)
                return
        reversed_inputs = [v for v in dict.fromkeys(node.inputs) if v is not None and v in self.known]
        if not reversed_inputs:
            return
        # Blocks keep their values as they are: comparisons look them up by name.
        named = any((output.name or "").startswith("block.") for output in node.outputs)
        axes = None if named else _pass_on(node, {v: self.known[v].axis for v in reversed_inputs})
        for index, value in enumerate(node.inputs):
            if value is not None and value in self.known:
                known = self.known[value]
                node.replace_input_with(index, self.write_down(value) if axes is None else known.plain)
        for output, output_axis in zip(node.outputs, axes or (), strict=bool(axes)):
            self.known[output] = _Reversed(output, output_axis)

    def _cancel(self, node: ir.Node, plain: ir.Value) -> None:
        """Give the consumers of a reversal of a reversal what was there before, marked as not reversed."""
        marker, before = ir.node("Identity", [plain], name=f"{node.name}_cancelled"), node.outputs[0]
        self.graph.insert_after(node, marker)
        after = marker.outputs[0]
        if before.is_graph_output():
            # An output of the graph keeps its name.
            name, after.shape, after.type = before.name, before.shape, before.type
            before.name, after.name = f"{name}_twice", name
        else:
            self.markers.append(marker)
        before.replace_all_uses_with(after, replace_graph_outputs=True)

    def write_down(self, value: ir.Value) -> ir.Value:
        """Return a value that is really reversed, computed right after what it reverses."""
        known = self.known[value]
        if known.plain is not value:
            return value  # the reversal that was there is still there
        numbers = [_initializer(self.graph, f"reversal_{number}", number) for number in (-1, _LEAST, known.axis)]
        start, end, axes = numbers
        result = ir.Value(name=f"{value.name}_reversed", shape=value.shape, type=value.type)
        node = ir.node("Slice", [value, start, end, axes, start], outputs=[result], name=f"{value.name}_reversal")
        producer = value.producer()
        assert producer is not None
        self.graph.insert_after(producer, node)
        self.known[value] = _Reversed(value, known.axis)
        return result


def _initializer(graph: ir.Graph, name: str, number: int) -> ir.Value:
    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.Value(
        name=name,
        shape=ir.Shape([1]),
        type=ir.TensorType(ir.DataType.INT64),
        const_value=ir.tensor(np.array([number], np.int64), name=name),
    )
    graph.register_initializer(value)
    return value


def _constant(value: ir.Value | None) -> list[int] | None:
    return None if value is None or value.const_value is None else np.ravel(value.const_value.numpy()).tolist()


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _reversed_axis(node: ir.Node) -> int | None:
    """Return the axis that a node reverses as a whole, None where it does something else."""
    if node.op_type != "Slice" or node.domain or len(node.inputs) < 5:
        return None
    start, end, axes, steps = map(_constant, node.inputs[1:5])
    rank = _rank(node.inputs[0])
    if steps != [-1] or start != [-1] or axes is None or len(axes) != 1 or end is None or end[0] > -(1 << 31):
        return None
    if axes[0] < 0 and rank is None:
        return None
    return axes[0] + (rank or 0) if axes[0] < 0 else axes[0]


def _pass_on(node: ir.Node, axes: Axes) -> list[int] | None:
    """Return the axis on which each output is reversed if the inputs in ``axes`` are taken plain; None if it cannot be.

    A custom op that absorbs a reversal is changed for it.
    """
    if node.domain == contract.DOMAIN:
        return _absorb(node, axes)
    rule = _RULES.get(node.op_type) if not node.domain else None
    axis = rule(node, axes) if rule else None
    return None if axis is None else [axis] * len(node.outputs)


def _pointwise(node: ir.Node, axes: Axes) -> int | None:
    rank = max((_rank(v) or 0 for v in node.inputs if v is not None), default=0)
    from_end = {axis - (_rank(value) or 0) for value, axis in axes.items()}
    if len(from_end) != 1 or any(_rank(v) is None for v in node.inputs):
        return None
    (place,) = from_end
    for value in node.inputs:
        size = _rank(value) or 0
        shape = None if value is None or value in axes or size < -place else value.shape
        if shape is not None and shape[size + place] != 1:
            return None
    return rank + place


def _transpose(node: ir.Node, axes: Axes) -> int | None:
    perm = list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else None
    (axis,) = axes.values()
    return perm.index(axis) if perm else None


def _first_only(node: ir.Node, axes: Axes) -> int | None:
    return next(iter(axes.values())) if list(axes) == [node.inputs[0]] else None


def _on_other_axis(node: ir.Node, axes: Axes) -> int | None:
    """Split and Concat along another axis."""
    found = set(axes.values())
    inputs = node.inputs[:1] if node.op_type == "Split" else node.inputs
    if len(found) != 1 or any(v not in axes for v in inputs):
        return None
    (axis,) = found
    own = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    rank = _rank(node.inputs[0])
    if own < 0 and rank is None:
        return None
    return axis if axis != (own + (rank or 0) if own < 0 else own) else None


def _slice(node: ir.Node, axes: Axes) -> int | None:
    axis, cut, rank = (
        _first_only(node, axes),
        _constant(node.inputs[3]) if len(node.inputs) > 3 else None,
        _rank(node.inputs[0]),
    )
    if axis is None or cut is None or rank is None or axis in [c % rank for c in cut]:
        return None
    return axis


def _matmul(node: ir.Node, axes: Axes) -> int | None:
    axis, left, right = _first_only(node, axes), _rank(node.inputs[0]), _rank(node.inputs[1])
    if axis is None or left is None or right is None or axis >= left - 1:
        return None
    place, other = axis - left, node.inputs[1]
    if right >= -place and right > 2 and (other is None or other.shape is None or other.shape[right + place] != 1):
        return None
    return max(left, right) + place


def _gather(node: ir.Node, axes: Axes) -> int | None:
    axis, index = _first_only(node, axes), node.inputs[1]
    own = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    if axis is None or own < 0 or own == axis or index is None or index.const_value is None or _rank(index) != 0:
        return None
    return axis - (own < axis)


def _unsqueeze(node: ir.Node, axes: Axes) -> int | None:
    axis, added, rank = _first_only(node, axes), _constant(node.inputs[1]), _rank(node.inputs[0])
    if axis is None or added is None or rank is None:
        return None
    for place in sorted(a % (rank + len(added)) for a in added):
        axis += place <= axis
    return axis


def _squeeze(node: ir.Node, axes: Axes) -> int | None:
    axis, rank = _first_only(node, axes), _rank(node.inputs[0])
    gone = _constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if axis is None or gone is None or rank is None:
        return None
    return axis - sum(g % rank < axis for g in gone)


_RULES: dict[str, Callable[[ir.Node, Axes], int | None]] = {
    **dict.fromkeys(_POINTWISE, _pointwise),
    "Transpose": _transpose,
    "Split": _on_other_axis,
    "Concat": _on_other_axis,
    "Slice": _slice,
    "MatMul": _matmul,
    "Gather": _gather,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
}


def _absorb(node: ir.Node, axes: Axes) -> list[int] | None:
    """Let a custom op walk its tokens the other way."""
    places = _TOKEN_AXIS.get(node.op_type)
    if places is None or any(axes.get(node.inputs[i]) != axis for i, axis in places.items()):  # type: ignore[arg-type]
        return None
    if any(value in axes for i, value in enumerate(node.inputs) if i not in places):
        return None
    if node.op_type.startswith("SelectiveScanDelta"):
        node.attributes["reverse"] = ir.AttrInt64("reverse", 1 - node.attributes["reverse"].as_int())
        return [1]
    if node.op_type != "CausalConv1d" and any(node.attributes["column_major"].as_ints()):
        return None
    if node.op_type == "CausalConv1d" and not _flip_kernel(node):
        return None
    directions = [-d for d in node.attributes["directions"].as_ints()]
    node.attributes["directions"] = ir.AttrInt64s("directions", directions)
    return [2 if node.op_type == "CausalConv1d" else 1]


def _flip_kernel(node: ir.Node) -> bool:
    """Store the kernel of a convolution flipped, as the contract wants it for the other direction."""
    weight = node.inputs[1]
    graph = node.graph
    if weight is None or weight.const_value is None or not isinstance(graph, ir.Graph):
        return False
    array = np.ascontiguousarray(weight.const_value.numpy()[..., ::-1])
    name = f"{weight.name}_flipped"
    flipped = ir.Value(name=name, shape=weight.shape, type=weight.type, const_value=ir.tensor(array, name=name))
    if name not in graph.initializers:
        graph.register_initializer(flipped)
    node.replace_input_with(1, graph.initializers[name])
    return True
