"""The gate that every exported file passes: what TensorRT, ONNX Runtime or a second batch size would trip over."""

from __future__ import annotations

from collections import Counter

import onnx
import onnx.checker
import onnx.inliner
import onnx.shape_inference
from onnx import numpy_helper

from vimdeploy import contract
from vimdeploy.errors import ArtifactError
from vimdeploy.graph.bodies import custom_nodes, expected_functions
from vimdeploy.graph.schema import register_schemas

_KNOWN_DOMAINS = ("", "ai.onnx", contract.DOMAIN)


def check_model(model: onnx.ModelProto, source: str, *, allow_reversal: bool = False) -> None:
    """Raise ArtifactError with all findings unless ``model`` keeps the house's promises.

    Promises: operators of ONNX and of the contract only; a body for every custom node, the one its attributes ask for;
    no token reversal outside the bodies; no batch size baked in where the batch is symbolic; valid by onnx's full
    checker and by strict shape inference.

    Args:
        model: to check.
        source: its file name, for messages.
        allow_reversal: the model reverses sequences by construction (``flip_img_sequences_ratio`` above 1).

    """
    register_schemas()
    findings = [*_foreign_operators(model), *_wrong_bodies(model)]
    if not allow_reversal:
        findings += _reversals(model)
    if not findings:
        findings += _invalid(model) or _baked_batch(model)
    if findings:
        raise ArtifactError(
            f"{source}: {'; '.join(findings)}.", hint="Export it again with `vimdeploy export`; change nothing by hand."
        )


def _foreign_operators(model: onnx.ModelProto) -> list[str]:
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    foreign = Counter(f"{node.domain}::{node.op_type}" for node in nodes if node.domain not in _KNOWN_DOMAINS)
    return [f"foreign operator {name} ({count}x)" for name, count in sorted(foreign.items())]


def _wrong_bodies(model: onnx.ModelProto) -> list[str]:
    try:
        expected = expected_functions(model)
    except ArtifactError as error:
        return [error.message.rstrip(".")]
    present = {(function.name, function.overload): function for function in model.functions}
    findings = []
    for (name, overload), function in expected.items():
        users = [node.name for node in custom_nodes(model) if (node.op_type, node.overload) == (name, overload)]
        found = present.get((name, overload))
        if found is None:
            findings.append(f"no body for {name}")
        elif found != function:
            findings.append(f"the body of {name} is not what the attributes of {', '.join(users[:3])} ask for")
    return findings


def _reversals(model: onnx.ModelProto) -> list[str]:
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    return [
        f"node {node.name} reverses a sequence outside the op bodies"
        for node in model.graph.node
        if node.op_type == "Slice"
        and len(node.input) > 4
        and node.input[4] in constants
        and bool((numpy_helper.to_array(constants[node.input[4]]) < 0).any())
    ]


def _invalid(model: onnx.ModelProto) -> list[str]:
    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return [f"not valid ONNX: {str(error).splitlines()[0]}"]
    return []


def _baked_batch(model: onnx.ModelProto) -> list[str]:
    """Infer shapes from the input alone, through the bodies: an output that lost the batch has a size baked in."""
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    if not batch.dim_param:
        return []
    bare = onnx.inliner.inline_local_functions(model)
    del bare.graph.value_info[:]
    for output in bare.graph.output:
        for index, dim in enumerate(output.type.tensor_type.shape.dim):
            dim.Clear()
            dim.dim_param = f"inferred_{output.name}_{index}"
    inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True)
    return [
        f"output {output.name} has batch {output.type.tensor_type.shape.dim[0].dim_value} baked in"
        for output in inferred.graph.output
        if output.type.tensor_type.shape.dim and output.type.tensor_type.shape.dim[0].HasField("dim_value")
    ]
