"""Rewrites of exported graphs: each has a graph that it must take and one that it must leave."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from vimdeploy import contract
from vimdeploy.errors import UsageError
from vimdeploy.graph.bodies import add_functions
from vimdeploy.graph.rewrite import REWRITES, rewrite_model
from vimdeploy.graph.schema import register_schemas

register_schemas()
E, N, K = 6, 4, 3
SCAN = 'vimdeploy.{op} <delta_softplus = 1, reverse = {reverse}, plugin_version = "1", plugin_namespace = "vimdeploy">'


def draw(*shape, seed=0):
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype("f4")


WEIGHTS = {
    "A_log": draw(E, N), "A": -np.exp(draw(E, N)), "D": draw(E), "bias": draw(E), "w": draw(E, E),
    "wd": draw(E, E, seed=1),
    "kernel": draw(E, 1, K), "kernel_bias": draw(E), "minus": np.array([-1]), "least": np.array([-(1 << 63)]),
    "zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "cut": np.array([1 - K]),
    "less": np.array([-1 - K]),
}  # fmt: skip


def build(lines, weights):
    """Return a model of x, B, C -> y from a textual graph, with the scan's types known."""
    body = "\n".join(lines)
    pair = f"float[batch, length, 1, {N}]"
    text = f"""<ir_version: 10, opset_import: ["" : 20, "vimdeploy" : 1]>
    test (float[batch, length, {E}] x, {pair} B, {pair} C) => (float[batch, p, q] y) {{ {body} }}"""
    model = parser.parse_model(text)
    for name in weights:
        model.graph.initializer.append(numpy_helper.from_array(WEIGHTS[name], name))
    for node in model.graph.node:
        node.name = node.name or f"node_{node.output[0]}"
        if node.domain == contract.DOMAIN:
            shape = ["batch", "length", E]
            model.graph.value_info.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, shape))
    add_functions(model)
    return model


def scan(out, u="x", delta="delta", B="B", C="C", *, op="SelectiveScanDeltaNoGate", gate="", reverse=0):
    inputs = ", ".join((u, delta, "A", B, C, "D", "bias", *((gate,) if gate else ())))
    return f"{out} = {SCAN.format(op=op, reverse=reverse)} ({inputs})"


def reverse(out, value, axis="one"):
    return f"{out} = Slice ({value}, minus, least, {axis}, minus)"


SILU = ["s = Sigmoid (z)", "g = Mul (z, s)"]
CONV = ["xt = Transpose <perm = [0, 2, 1]> (x)"]
DELTA = ["delta = MatMul (x, wd)"]
TAKEN = {
    "fold": (
        ["Ae = Exp (A_log)", "A = Neg (Ae)", *DELTA, scan("s"), "y = Identity (s)"],
        ("A_log", "D", "bias", "wd"),
        lambda ops: "Exp" not in ops and "Neg" not in ops,
    ),
    "gate": (
        [*DELTA, scan("s0"), "z = MatMul (x, w)", *SILU, "y = Mul (s0, g)"],
        ("A", "D", "bias", "wd", "w"),
        lambda ops: "SelectiveScanDelta" in ops and "Sigmoid" not in ops,
    ),
    "gate, channels first": (
        [*DELTA, scan("s0"), "zt = MatMul (x, w)", "z = Transpose <perm = [0, 2, 1]> (zt)", *SILU,
         "t = Transpose <perm = [0, 2, 1]> (s0)", "y = Mul (t, g)"],
        ("A", "D", "bias", "wd", "w"),
        lambda ops: "SelectiveScanDelta" in ops and "Sigmoid" not in ops,
    ),
    "conv": (
        [*CONV, f"c = Conv <group = {E}, pads = [{K - 1}, {K - 1}]> (xt, kernel, kernel_bias)",
         "z = Slice (c, zero, cut, two)", *SILU, "y = Identity (g)"],
        ("kernel", "kernel_bias", "zero", "cut", "two"),
        lambda ops: "CausalConv1d" in ops and "Conv" not in ops,
    ),
    "reversal": (
        [reverse("r", "x"), "delta = MatMul (r, wd)", reverse("Br", "B"), reverse("Cr", "C"),
         scan("s", "r", "delta", "Br", "Cr"), reverse("y", "s")],
        ("A", "D", "bias", "wd", "minus", "least", "one"),
        lambda ops: "Slice" not in ops,
    ),
    "transposes": (
        ["a = Transpose <perm = [0, 2, 1]> (x)", "b = Transpose <perm = [0, 2, 1]> (a)", "y = MatMul (b, w)"],
        ("w",),
        lambda ops: "Transpose" not in ops,
    ),
}  # fmt: skip
LEFT = {
    "fold": (["Ae = Exp (x)", "y = Neg (Ae)"], ()),
    "gate": (  # not a SiLU: the gate is not multiplied with its own sigmoid
        [*DELTA, scan("s0"), "z = MatMul (x, w)", "s = Sigmoid (z)", "g = Mul (x, s)", "y = Mul (s0, g)"],
        ("A", "D", "bias", "wd", "w"),
    ),
    "gate, used twice": (
        [*DELTA, scan("s0"), "z = MatMul (x, w)", *SILU, "m = Mul (s0, g)", "y = Add (m, s0)"],
        ("A", "D", "bias", "wd", "w"),
    ),
    "conv": (  # cut too short: what is left is another convolution's
        [*CONV, f"c = Conv <group = {E}, pads = [{K - 1}, {K - 1}]> (xt, kernel, kernel_bias)",
         "z = Slice (c, zero, less, two)", *SILU, "y = Identity (g)"],
        ("kernel", "kernel_bias", "zero", "less", "two"),
    ),
    "reversal": (  # only one of the inputs is reversed
        [reverse("r", "x"), *DELTA, scan("s", "r"), reverse("y", "s")],
        ("A", "D", "bias", "wd", "minus", "least", "one"),
    ),
    "transposes": (["a = Transpose <perm = [0, 2, 1]> (x)", "y = Sigmoid (a)"], ()),
}  # fmt: skip


def run(model, length=5):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"x": draw(2, length, E), "B": draw(2, length, 1, N), "C": draw(2, length, 1, N, seed=9)}
    return session.run(None, {i.name: feed[i.name] for i in session.get_inputs()})[0]


def operators(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("case", TAKEN)
def test_what_a_rewrite_takes_computes_the_same_afterwards(case):
    lines, weights, holds = TAKEN[case]
    model, name = build(lines, weights), case.partition(",")[0]
    assert not holds(operators(model))
    result, counts = rewrite_model(model, [name])
    assert counts[name] >= 1
    assert holds(operators(result)), operators(result)
    onnx.checker.check_model(result)
    for length in (1, 5, 8):
        np.testing.assert_allclose(run(result, length), run(model, length), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", LEFT)
def test_what_looks_alike_and_is_something_else_is_left(case):
    lines, weights = LEFT[case]
    model, name = build(lines, weights), case.partition(",")[0]
    result, counts = rewrite_model(model, [name])
    assert counts == {}
    assert sorted(operators(result)) == sorted(operators(model))
    np.testing.assert_allclose(run(result), run(model), rtol=1e-5, atol=1e-6)


def test_every_rewrite_has_a_graph_that_it_takes_and_one_that_it_leaves():
    for cases in (TAKEN, LEFT):
        assert {case.partition(",")[0] for case in cases} == set(REWRITES)


def test_all_together_and_none():
    lines, weights, _ = TAKEN["gate, channels first"]
    model = build(lines, weights)
    assert rewrite_model(model, [])[1] == {}
    result, counts = rewrite_model(model)
    assert {"gate", "transposes"} <= set(counts)
    np.testing.assert_allclose(run(result), run(model), rtol=1e-4, atol=1e-5)


def test_a_rewrite_that_does_not_exist_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="no rewrite 'gates'") as caught:
        rewrite_model(build(["y = Identity (x)"], ()), ["gates"])
    assert "'gate'" in caught.value.hint
