"""Which function body each custom node of a model needs; adding, expecting and removing them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx
from onnx import helper

from vimdeploy import contract
from vimdeploy.errors import ArtifactError
from vimdeploy.graph.body import Attributes, Body, make_function
from vimdeploy.graph.conv_body import ConvBody
from vimdeploy.graph.delta_body import DeltaBody
from vimdeploy.graph.scan_body import ScanBody

Shapes = Mapping[str, tuple[int, ...]]


def custom_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the custom nodes of the main graph."""
    return [node for node in model.graph.node if node.domain == contract.DOMAIN]


def body_of(node: onnx.NodeProto, shapes: Shapes) -> Body:
    """Return the body that a node's attributes ask for.

    Args:
        node: a custom node.
        shapes: shapes of the initializers; the width of a convolution is its weight's last dimension.

    Raises:
        ArtifactError: an op, attribute or weight that the contract does not have.

    """
    if node.op_type not in contract.OPS:
        raise ArtifactError(f"Node {node.name}: there is no op {node.op_type} in {contract.DOMAIN}'s contract.")
    op = contract.OPS[node.op_type]
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if missing := [attribute.name for attribute in op.attributes if attribute.name not in values]:
        raise ArtifactError(f"Node {node.name} ({node.op_type}): attribute {', '.join(missing)} is missing.")
    return _BODIES[op.name](node, values, shapes)


def _conv_body(node: onnx.NodeProto, values: Attributes, shapes: Shapes) -> Body:
    if node.input[1] not in shapes:
        raise ArtifactError(f"Node {node.name} (CausalConv1d): its weight {node.input[1]} is not an initializer.")
    return ConvBody.of(values, shapes[node.input[1]])


_BODIES: dict[str, Callable[[onnx.NodeProto, Attributes, Shapes], Body]] = {
    "CausalConv1d": _conv_body,
    "SelectiveScan": lambda _node, values, _shapes: ScanBody.of(values, gated=True),
    "SelectiveScanNoGate": lambda _node, values, _shapes: ScanBody.of(values, gated=False),
    "SelectiveScanDelta": lambda _node, values, _shapes: DeltaBody.of(values, gated=True),
    "SelectiveScanDeltaNoGate": lambda _node, values, _shapes: DeltaBody.of(values, gated=False),
}
"""How a node's attributes become the body of its op."""


def initializer_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all initializers by name."""
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def default_opset(model: onnx.ModelProto) -> int:
    """Return the version of the standard ONNX operators that a model uses."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def expected_functions(model: onnx.ModelProto) -> dict[tuple[str, str], onnx.FunctionProto]:
    """Return the functions that the custom nodes need, by (op, overload), and set nothing.

    Several bodies of one op are told apart by overload; the first one met has none.
    """
    functions: dict[tuple[str, str], onnx.FunctionProto] = {}
    for node, body, overload in _assign(model):
        key = (node.op_type, overload)
        if key not in functions:
            functions[key] = make_function(body, default_opset(model), overload)
    return functions


def add_functions(model: onnx.ModelProto) -> None:
    """Give every custom node its body, in place."""
    for node, _, overload in _assign(model):
        node.overload = overload
    functions = expected_functions(model)
    del model.functions[:]
    model.functions.extend(functions.values())


def strip_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without bodies: its custom nodes are for a parser that knows the plugins."""
    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    del stripped.functions[:]
    for node in custom_nodes(stripped):
        node.overload = ""
    return stripped


def _assign(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, Body, str]]:
    shapes = initializer_shapes(model)
    seen: dict[str, list[Body]] = {}
    assigned = []
    for node in custom_nodes(model):
        body = body_of(node, shapes)
        known = seen.setdefault(node.op_type, [])
        if body not in known:
            known.append(body)
        index = known.index(body)
        assigned.append((node, body, f"v{index}" if index else ""))
    return assigned
