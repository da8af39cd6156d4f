"""The portable body of the scan with explicit delta: equal to the torch op, in every reader of ONNX that takes it."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from vimdeploy import contract
from vimdeploy.graph.bodies import add_functions
from vimdeploy.graph.check import check_model
from vimdeploy.graph.emulate import emulate
from vimdeploy.graph.policy import BF16, FP16
from vimdeploy.graph.precision import convert_model
from vimdeploy.graph.schema import register_schemas
from vimdeploy.ops.scan_delta import selective_scan_delta

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias", "z")
register_schemas()


def arguments(sizes=(2, 5, 3, 2, 4), *, gated=True, seed=0):
    batch, length, size, groups, states = sizes
    random = np.random.default_rng(seed)
    channels = size * groups
    tokens, pair = (batch, length, channels), (batch, length, groups, states)
    shapes = [tokens, tokens, (channels, states), pair, pair, (channels,), (channels,), tokens]
    values = dict(zip(NAMES, (random.standard_normal(s).astype("f4") for s in shapes), strict=True))
    values["A"] = -np.exp(0.5 * values["A"])
    if not gated:
        del values["z"]
    return values


def build(values, softplus=1, reverse=0, opset=contract.DEFAULT_OPSET):
    """Return a checked model whose inputs have symbolic batch and length; A, D and delta_bias are stored in it."""
    stored = ("A", "D", "delta_bias")
    plugin = {"plugin_version": "1", "plugin_namespace": "vimdeploy"}
    name = contract.SELECTIVE_SCAN_DELTA.name if "z" in values else contract.SELECTIVE_SCAN_DELTA_NO_GATE.name
    node = helper.make_node(
        name, list(values), ["y"], "scan", domain=contract.DOMAIN, delta_softplus=softplus, reverse=reverse, **plugin
    )
    inputs = [
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", "length", *v.shape[2:]])
        for n, v in values.items()
        if n not in stored
    ]
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", "length", len(values["D"])])
    weights = [numpy_helper.from_array(values[n], n) for n in stored]
    graph = helper.make_graph([node], "test", inputs, [output], weights)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(contract.DOMAIN, contract.OP_VERSION)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    add_functions(model)
    check_model(model, "test.onnx")
    return model


def feed(model, values):
    return {i.name: values[i.name] for i in model.graph.input}


def run(model, values):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed(model, values))[0]


def in_torch(values, softplus=1, reverse=0):
    tensors = [torch.from_numpy(values[n]) if n in values else None for n in NAMES]
    return selective_scan_delta(*tensors, bool(softplus), bool(reverse)).numpy()


def assert_close(actual, expected, tolerance=1e-5):
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, atol=tolerance, rtol=10 * tolerance)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.tuples(*(st.integers(1, high) for high in (3, 6, 4, 4, 5))), *[st.booleans()] * 3)
def test_the_body_equals_the_torch_op(sizes, gated, softplus, reverse):
    values = arguments(sizes, gated=gated)
    if not softplus:
        values["delta"], values["delta_bias"] = abs(values["delta"]) * 0.3, values["delta_bias"] * 0
    flags = (int(softplus), int(reverse))
    assert_close(run(build(values, *flags), values), in_torch(values, *flags))


@pytest.mark.parametrize("opset", range(contract.MIN_OPSET, contract.MAX_OPSET + 1))
def test_the_body_works_at_every_opset_that_the_contract_promises(opset):
    values = arguments()
    assert_close(run(build(values, opset=opset), values), in_torch(values))


def test_one_file_serves_every_batch_and_every_length():
    model = build(arguments())
    for sizes in ((1, 1, 3, 2, 4), (3, 11, 3, 2, 4)):
        values = arguments(sizes, seed=3) | {n: arguments()[n] for n in ("A", "D", "delta_bias")}
        assert_close(run(model, values), in_torch(values))


def test_two_hundred_and_fifty_six_states_run_through_the_body():
    values = arguments((1, 3, 2, 1, 256))
    assert_close(run(build(values), values), in_torch(values), 1e-4)


@pytest.mark.parametrize("reverse", [0, 1])
def test_the_body_runs_in_onnxs_reference_evaluator(reverse):
    values = arguments()
    model = build(values, reverse=reverse)
    y = ReferenceEvaluator(onnx.inliner.inline_local_functions(model)).run(None, feed(model, values))[0]
    assert_close(y, in_torch(values, reverse=reverse))


@pytest.mark.parametrize("gated", [True, False], ids=["gate", "no gate"])
def test_the_scan_of_the_body_captures_nothing_and_walks_axis_0(gated):
    (function,) = build(arguments(gated=gated)).functions
    (scan,) = [node for node in function.node if node.op_type == "Scan"]
    assert not [a.name for a in scan.attribute if "axes" in a.name]
    (body,) = [a.g for a in scan.attribute if a.name == "body"]
    known = {i.name for i in body.input} | {name for node in body.node for name in node.output}
    assert {name for node in body.node for name in node.input} <= known
    constants = [node.attribute[0].name for node in function.node if node.op_type == "Constant"]
    assert set(constants) == {"value"}


@pytest.mark.parametrize("gated", [True, False], ids=["gate", "no gate"])
def test_half_precision_is_computed_in_float32_and_rounded_once(gated):
    values = arguments((2, 9, 3, 2, 4), gated=gated)
    model, report = convert_model(build(values), FP16)
    check_model(model, "fp16.onnx")
    assert report.kept == []
    (node,) = [n for n in model.graph.node if n.domain == contract.DOMAIN]
    op = contract.OPS[node.op_type]
    stored = {t.name: t.data_type for t in model.graph.initializer}
    assert {t.name for t, name in zip(op.inputs, node.input, strict=True) if name in stored} == {"A", "D", "delta_bias"}
    assert set(stored.values()) == {onnx.TensorProto.FLOAT}
    assert_close(run(model, values), in_torch(values), 2e-2)
    assert_close(run(emulate(model), values), run(model, values), 2e-3)


def test_bfloat16_graphs_are_valid_and_run_where_they_are_emulated():
    values = arguments()
    model, _ = convert_model(build(values, opset=22), BF16)
    check_model(model, "bf16.onnx")
    assert_close(run(emulate(model), values), in_torch(values), 2e-1)
