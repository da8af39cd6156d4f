"""Portable bodies of the custom ops: the same mathematics in plain ONNX, as model-local functions.

With them ONNX Runtime runs an exported file without any custom library. A body is generated for the attribute values in
use, because a function cannot turn its attributes into the axes and steps that Slice and Scan want; sizes come from the
inputs' shapes, ``height`` and ``scale`` by attribute reference.

Here is what the bodies share, in onnx's textual form; one module per op holds its mathematics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import onnx
import onnx.parser

from vimdeploy import contract

INT_MIN = -(1 << 63)
INT_MAX = 1 << 62
"""Ends of a Slice over everything, backward and forward."""


class Body(Protocol):
    """What one body depends on: a frozen dataclass of attribute values, equal where the bodies are."""

    @property
    def op(self) -> contract.CustomOp:
        """The op that it is a body of."""
        ...

    def lines(self) -> list[str]:
        """Return its nodes in onnx's textual form, one a line."""
        ...


Attributes = Mapping[str, Any]
"""Values of a node's attributes by name."""


def make_function(body: Body, opset: int, overload: str = "") -> onnx.FunctionProto:
    """Return the ONNX function for ``body``.

    Args:
        body: the attribute values it is for.
        opset: ONNX opset of its nodes; it must equal the model's, or inlining silently does nothing.
        overload: tells several bodies of one op apart; empty for the only one.

    """
    op = body.op
    attributes = ", ".join((*contract.PLUGIN_ATTRIBUTES, *(attribute.name for attribute in op.attributes)))
    inputs = ", ".join(tensor.name for tensor in op.inputs)
    nodes = "\n".join(f"  {line}" for line in body.lines())
    function = onnx.parser.parse_function(
        f'<opset_import: ["" : {opset}], domain: "{contract.DOMAIN}">\n'
        f"{op.name} <{attributes}> ({inputs}) => ({op.output.name}) {{\n{nodes}\n}}"
    )
    function.overload = overload
    return function


def ints(name: str, *values: int) -> str:
    """Name a tensor of integers; as ``value_ints`` ONNX Runtime before 1.25 cannot infer the shapes behind it."""
    return f"{name} = Constant <value = int64[{len(values)}] {{{', '.join(map(str, values))}}}> ()"


def integer(name: str, value: int) -> str:
    """Name a scalar integer."""
    return f"{name} = Constant <value = int64 {{{value}}}> ()"


def gate(source: str) -> list[str]:
    """Multiply ``source`` by silu(z), in float32, and round once to the type of u: the output y."""
    return [
        "z_f = Cast <to = 1> (z)",
        "z_s = Sigmoid (z_f)",
        "gate = Mul (z_f, z_s)",
        f"gated = Mul ({source}, gate)",
        "y = CastLike (gated, u)",
    ]
