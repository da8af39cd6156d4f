import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from vimdeploy import contract
from vimdeploy.graph.bodies import add_functions, strip_functions
from vimdeploy.graph.body import make_function
from vimdeploy.graph.check import check_model
from vimdeploy.graph.conv_body import ConvBody
from vimdeploy.graph.scan_body import ScanBody
from vimdeploy.graph.schema import register_schemas
from vimdeploy.ops import causal_conv1d, selective_scan

PLUGIN = {"plugin_version": "1", "plugin_namespace": "vimdeploy"}
TYPES = {np.dtype("f4"): TensorProto.FLOAT, np.dtype("f2"): TensorProto.FLOAT16}
SESSIONS = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
register_schemas()


def draw(seed, *shapes, dtype="f4"):
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape).astype(dtype) for shape in shapes]


def build(nodes, weights, inputs, output, opset=contract.DEFAULT_OPSET):
    """Return a checked model of custom nodes with their bodies; only ``inputs`` are not stored in it."""

    def value(name, array, rank=None):
        shape = [f"d{i}" for i in range(rank)] if rank else array.shape
        return helper.make_tensor_value_info(name, TYPES[array.dtype], shape)

    graph = helper.make_graph(
        nodes,
        "test",
        [value(name, array) for name, array in inputs.items()],
        [value(*output)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(contract.DOMAIN, contract.OP_VERSION)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    add_functions(model)
    check_model(model, "test.onnx")
    return model


def run(model, feed):
    """Run a model as it is; the backends would turn half-precision inputs and outputs into float32."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: feed})[0]


def conv_model(x, weight, bias, directions, activation, opset=contract.DEFAULT_OPSET):
    node = helper.make_node(
        "CausalConv1d", ["x", "weight", "bias"], ["u"], domain=contract.DOMAIN, name="conv",
        directions=directions, activation=activation, **PLUGIN,
    )  # fmt: skip
    return build([node], {"weight": weight, "bias": bias}, {"x": x}, ("u", x, 4), opset)


def scan_arguments(sizes, directions, column_major, *, shared_u=False, shared_x=False, gated=True, seed=0, dtype="f4"):
    batch, rows, columns, channels, d_state, rank = sizes
    groups, length = len(directions), rows * columns
    u, x_dbl, weight, z = draw(
        seed,
        (1 if shared_u else groups, batch, length, channels),
        (1 if shared_x else groups, batch, length, rank + 2 * d_state),
        (groups, channels, rank),
        (batch, length, channels),
        dtype=dtype,
    )
    A, D, bias = draw(seed + 1, (groups, channels, d_state), (groups, channels), (groups, channels))
    weights = {"x_dbl": x_dbl, "A": -np.exp(0.5 * A), "D": D, "dt_weight": weight, "dt_bias": bias - 2}
    if gated:
        weights["z"] = z
    attributes = {"directions": list(directions), "column_major": list(column_major), "height": rows, "scale": 0.5}
    return u, weights, attributes


def scan_node(weights, attributes, u="u", y="y"):
    name = "SelectiveScan" if "z" in weights else "SelectiveScanNoGate"
    return helper.make_node(name, [u, *weights], [y], domain=contract.DOMAIN, name=y, **attributes, **PLUGIN)


def scan_model(u, weights, attributes, opset=contract.DEFAULT_OPSET):
    result = u if "z" in weights else u.astype("f4")
    return build([scan_node(weights, attributes)], weights, {"u": u}, ("y", result, 3), opset)


def scan_in_torch(u, weights, attributes):
    tensors = [torch.from_numpy(v) for v in (u, *weights.values())]
    tensors += [] if "z" in weights else [None]
    return selective_scan(*tensors, *attributes.values()).numpy()


def assert_close(actual, expected, tolerance=1e-5):
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, atol=tolerance, rtol=10 * tolerance, equal_nan=False)


@SESSIONS
@given(
    st.lists(st.sampled_from((1, -1)), min_size=1, max_size=4),
    st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 4)),
    st.integers(1, 5),
    st.sampled_from(("silu", "none")),
)
def test_the_conv_body_equals_the_torch_op(directions, shape, width, activation):
    groups, channels = len(directions), shape[2]
    x, weight, bias = draw(0, shape, (groups, channels, width), (groups, channels))
    expected = causal_conv1d(*map(torch.from_numpy, (x, weight, bias)), directions, activation).numpy()
    assert_close(run(conv_model(x, weight, bias, directions, activation), x), expected)


@st.composite
def scan_cases(draw):
    directions = draw(st.lists(st.sampled_from((1, -1)), min_size=1, max_size=4))
    walks = draw(st.lists(st.sampled_from((0, 1)), min_size=len(directions), max_size=len(directions)))
    sizes = draw(st.tuples(*(st.integers(1, high) for high in (2, 3, 4, 4, 4, 3))))
    flags = {name: draw(st.booleans()) for name in ("shared_u", "shared_x", "gated")}
    return scan_arguments(sizes, directions, walks, **flags)


@settings(SESSIONS, max_examples=25)
@given(scan_cases())
def test_the_scan_body_equals_the_torch_op(case):
    assert_close(run(scan_model(*case), case[0]), scan_in_torch(*case))


VMAMBA = ((2, 3, 4, 4, 2, 1), (1, 1, -1, -1), (0, 1, 0, 1))


@pytest.mark.parametrize("gated", [True, False], ids=["gate", "no gate"])
@pytest.mark.parametrize("opset", range(contract.MIN_OPSET, contract.MAX_OPSET + 1))
def test_the_bodies_work_at_every_opset_that_the_contract_promises(opset, gated):
    case = scan_arguments(*VMAMBA, gated=gated)
    assert_close(run(scan_model(*case, opset=opset), case[0]), scan_in_torch(*case))
    x, weight, bias = draw(0, (2, 5, 3), (2, 3, 4), (2, 3))
    expected = causal_conv1d(*map(torch.from_numpy, (x, weight, bias)), [1, -1], "silu").numpy()
    assert_close(run(conv_model(x, weight, bias, [1, -1], "silu", opset), x), expected)


@pytest.mark.parametrize("gated", [True, False], ids=["gate", "no gate"])
def test_half_precision_is_computed_in_float32_and_rounded_once(gated):
    case = scan_arguments(*VMAMBA, gated=gated, dtype="f2")
    assert_close(run(scan_model(*case), case[0]), scan_in_torch(*case), 1e-3)
    x, weight, bias = draw(0, (2, 5, 3), (2, 3, 4), (2, 3), dtype="f2")
    expected = causal_conv1d(*map(torch.from_numpy, (x, weight, bias)), [1, -1], "silu").numpy()
    assert_close(run(conv_model(x, weight, bias, [1, -1], "silu"), x), expected, 1e-3)


def two_scans(first, second):
    """Return a model of two scans in a row whose attributes differ, its input, and torch's result."""
    u, weights, attributes = scan_arguments((2, 2, 3, 4, 2, 1), *first, shared_u=True)
    _, weights2, attributes2 = scan_arguments((2, 2, 3, 4, 2, 1), *second, shared_u=True, seed=7)
    renamed = {f"{k}2": v for k, v in weights2.items()}
    again = helper.make_node("Unsqueeze", ["y", "axis"], ["u2"], name="again")
    last = scan_node(dict.fromkeys(renamed) | {"z": None}, attributes2, "u2", "y2")
    del last.input[:]
    last.input.extend(["u2", *renamed])
    stored = {**weights, **renamed, "axis": np.array([0])}
    model = build([scan_node(weights, attributes), again, last], stored, {"u": u}, ("y2", u, 3))
    expected = scan_in_torch(scan_in_torch(u, weights, attributes)[None], weights2, attributes2)
    return model, u, expected


def test_nodes_of_one_op_with_other_attributes_get_bodies_of_their_own():
    model, u, expected = two_scans(([1, -1], [0, 0]), ([-1, 1], [1, 0]))
    assert [(f.name, f.overload) for f in model.functions] == [("SelectiveScan", ""), ("SelectiveScan", "v1")]
    assert_close(run(model, u), expected)


def test_nodes_of_one_op_with_the_same_attributes_share_a_body():
    model, u, expected = two_scans(([1, -1], [0, 0]), ([1, -1], [0, 0]))
    assert len(model.functions) == 1
    assert_close(run(model, u), expected)


def test_stripping_leaves_the_custom_nodes_alone_for_a_parser_that_knows_them():
    model, _, _ = two_scans(([1, -1], [0, 0]), ([-1, 1], [1, 0]))
    stripped = strip_functions(model)
    assert not stripped.functions
    assert all(node.overload == "" for node in stripped.graph.node)
    assert len(model.functions) == 2


@pytest.mark.parametrize("body", [ConvBody((1, -1), "silu", 4), ScanBody((1, -1), (0, 1), True)])
def test_a_body_is_made_the_same_every_time(body):
    assert make_function(body, 20) == make_function(body, 20)
    assert make_function(body, 20) != make_function(body, 21)
    assert make_function(body, 20, "v1").overload == "v1"


def test_no_body_holds_a_size_of_the_model_it_was_made_for():
    u, weights, attributes = scan_arguments(*VMAMBA)
    wide, more, _ = scan_arguments((3, 2, 2, 7, 5, 2), *VMAMBA[1:])
    assert scan_model(u, weights, attributes).functions[0] == scan_model(wide, more, attributes).functions[0]
