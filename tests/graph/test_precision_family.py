"""Half precision for VMamba and the dense backbones: the scan's output and the norm behind it stay float32."""

import dense_cases
import numpy as np
import onnx
import pytest
import vmamba_cases

from vimdeploy.artifacts.recipe import Parity
from vimdeploy.backends.base import joined
from vimdeploy.backends.onnxruntime import OnnxBackend
from vimdeploy.graph.check import check_model
from vimdeploy.graph.emulate import emulate
from vimdeploy.graph.export import export_onnx
from vimdeploy.graph.policy import FP16
from vimdeploy.graph.precision import convert_model
from vimdeploy.parity.metrics import compare

HALF, FLOAT = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT


def types(model):
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


@pytest.mark.parametrize("name", ["vmamba_v0", "vmamba_v05", "seg_fpn", "det_rope"])
def test_half_precision_keeps_the_contract(name):
    if name.startswith("vmamba"):
        model, arrays = vmamba_cases.golden(name)
        images, task = arrays["images"], "classify"
    else:
        model, tensor, _ = dense_cases.golden(name)
        images, task = tensor.numpy(), "dense"
    exported = export_onnx(model, task=task)
    converted, report = convert_model(exported, FP16)
    check_model(converted, name)
    assert report.half_weight_bytes > report.float_weight_bytes
    reference, rounded = OnnxBackend(exported).run(images), OnnxBackend(emulate(converted)).run(images)
    metrics = compare(joined(rounded), joined(reference), Parity().fp16, classes=False)
    assert metrics.passed, metrics
    assert metrics.max_abs > 0
    if task == "classify":
        scan_leaves_in_float32(converted)


def scan_leaves_in_float32(converted):
    known = types(converted)
    users = {}
    for node in converted.graph.node:
        for value in node.input:
            users.setdefault(value, []).append(node)
    scans = [node for node in converted.graph.node if node.op_type == "SelectiveScanNoGate"]
    assert scans
    for scan in scans:
        assert [known.get(value) for value in (scan.input[0], scan.input[1])] == [HALF, HALF]
        (reshape,) = users[scan.output[0]]
        (norm,) = users[reshape.output[0]]
        assert (reshape.op_type, norm.op_type) == ("Reshape", "LayerNormalization")
        assert known[norm.output[0]] == FLOAT
        # One Cast, tight behind the norm, leads to the next product.
        assert {user.op_type for user in users[norm.output[0]]} <= {"Cast", "Mul"}


def test_several_outputs_are_compared_as_one():
    outputs = {"p2": np.ones((2, 3, 2, 2), np.float32), "p3": np.zeros((2, 3, 1, 1), np.float32)}
    assert joined(outputs).shape == (2, 15)
    assert joined({"logits": outputs["p2"]}) is outputs["p2"]
