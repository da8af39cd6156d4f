"""A half-precision model as a float32 one that rounds where the original would: faithful on any CPU.

ONNX Runtime's CPU computes FP16 nodes in float32 and drops the rounding between neighbours, at every optimisation
level: an overflow that a GPU would show stays hidden. BF16 it cannot run at all. Here every half-precision value passes
through an explicit Cast down and up, which ONNX Runtime keeps. Products accumulate in float32, as in TensorRT.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vimdeploy.graph.bodies import add_functions
from vimdeploy.graph.policy import FOLLOW

_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def emulate(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float32 model that computes what ``model`` does, each half-precision value rounded as stored.

    Values keep their names; inputs and outputs are float32.
    """
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    graph = inferred.graph
    half = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.elem_type in _HALF
    }
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.value_info[:]
    for tensor in result.graph.initializer:
        if tensor.data_type in _HALF:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    nodes: list[onnx.NodeProto] = []
    renamed: dict[str, str] = {}
    for value in (*result.graph.input, *result.graph.output):
        if value.type.tensor_type.elem_type in _HALF:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for value in result.graph.input:
        if value.name in half:
            renamed[value.name] = f"{value.name}_rounded"
            nodes += _round(value.name, renamed[value.name], half[value.name])
    for node in result.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [renamed.get(name, name) for name in node.input]
        nodes += _rounded(copy, half)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    add_functions(result)
    return result


def _rounded(node: onnx.NodeProto, half: dict[str, int]) -> Iterator[onnx.NodeProto]:
    """Yield a node with its half-precision outputs rounded. Ops that only move values need no rounding."""
    if node.op_type == "Cast" and not node.domain:
        target = next(a.i for a in node.attribute if a.name == "to")
        if target in _HALF:
            yield from _round(node.input[0], node.output[0], target)
            return
    if node.op_type not in FOLLOW or node.domain:
        for index, name in enumerate(node.output):
            if name in half:
                node.output[index] = f"{name}_exact"
                yield node
                yield from _round(f"{name}_exact", name, half[name])
                return
    yield node


def _round(source: str, target: str, dtype: int) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Cast", [source], [f"{target}_half"], f"{target}_down", to=dtype),
        helper.make_node("Cast", [f"{target}_half"], [target], f"{target}_up", to=TensorProto.FLOAT),
    ]
