"""The native ops in ONNX Runtime: the same file, the same numbers, and what happens where they cannot be had."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import vmamba_cases
from goldens import NAMES, TOLERANCE, golden
from onnx import TensorProto, helper, numpy_helper

import vimdeploy
from vimdeploy import contract
from vimdeploy.errors import MissingDependencyError, UsageError
from vimdeploy.graph.bodies import add_functions, strip_functions
from vimdeploy.graph.export import export_onnx
from vimdeploy.native import ops_library
from vimdeploy.runtime.ort import has_custom_ops, open_session

ROOT = Path(__file__).parents[2]
SAMPLE = ("cls_tiny", "bidirectional_v2", "bimamba_v1", "d_state8", "rope_midcls")


def run(session, **feeds):
    return session.run(None, feeds)


@pytest.mark.parametrize("name", SAMPLE)
def test_the_goldens_of_vim_pass_with_native_ops(name, exported):
    assert name in NAMES
    arrays = golden(name).arrays
    session = open_session(strip_functions(exported(name)).SerializeToString(), name, ops="native")
    np.testing.assert_allclose(run(session, images=arrays["images"])[0], arrays["logits"], **TOLERANCE)


@pytest.mark.parametrize("name", vmamba_cases.GOLDENS)
def test_the_goldens_of_vmamba_pass_with_native_ops(name):
    model, arrays = vmamba_cases.golden(name)
    session = open_session(strip_functions(export_onnx(model)).SerializeToString(), name, ops="native")
    np.testing.assert_allclose(run(session, images=arrays["images"])[0], arrays["logits"], **TOLERANCE)


def one_op(op, weights, attributes, u, output_type, output_rank):
    """Return a model of one custom node with its body; all inputs but the first are stored in it."""
    kinds = {np.dtype("f4"): TensorProto.FLOAT, np.dtype("f2"): TensorProto.FLOAT16}
    inputs = ["u", *weights]
    node = helper.make_node(op, inputs, ["y"], domain=contract.DOMAIN, name="node", **attributes)
    graph = helper.make_graph(
        [node],
        "test",
        [helper.make_tensor_value_info("u", kinds[u.dtype], u.shape)],
        [helper.make_tensor_value_info("y", output_type, [f"d{i}" for i in range(output_rank)])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(contract.DOMAIN, contract.OP_VERSION)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    add_functions(model)
    return model


def scan_model(dtype, *, height=3, channels=5):
    random = np.random.default_rng(0)

    def draw(*shape):
        return random.standard_normal(shape).astype(dtype)

    weights = {
        "x_dbl": draw(2, 2, 6, 2 + 2 * 3),
        "A": -np.exp(0.5 * random.standard_normal((2, channels, 3))).astype("f4"),
        "D": random.standard_normal((2, channels)).astype("f4"),
        "dt_weight": draw(2, channels, 2),
        "dt_bias": (random.standard_normal((2, channels)) - 2).astype("f4"),
        "z": draw(2, 6, channels),
    }
    attributes = {"directions": [1, -1], "column_major": [0, 1], "height": height, "scale": 0.5}
    u = draw(1, 2, 6, channels)
    kind = TensorProto.FLOAT if dtype == "f4" else TensorProto.FLOAT16
    return one_op("SelectiveScan", weights, attributes, u, kind, 3), u


@pytest.mark.parametrize(("dtype", "bound"), [("f4", 1e-6), ("f2", 1e-3)])
def test_one_op_computes_what_its_body_computes(dtype, bound):
    model, u = scan_model(dtype)
    content = model.SerializeToString()
    body, native = (run(open_session(content, "m", ops=ops), u=u)[0] for ops in ("body", "native"))
    assert native.dtype == body.dtype == u.dtype
    assert np.abs(native.astype("f8") - body.astype("f8")).max() <= bound * np.abs(body).max()


def test_bfloat16_is_taken():
    """ONNX Runtime's CPU has no MatMul for it, but a node of ours runs, between casts."""
    model, u = scan_model("f4")
    expected = run(open_session(model.SerializeToString(), "m", ops="native"), u=u)[0]
    graph = model.graph
    node = graph.node[0]
    half = ["u", "x_dbl", "dt_weight", "z"]
    casts = [helper.make_node("Cast", [name], [f"{name}_h"], to=TensorProto.BFLOAT16) for name in half]
    node.input[:] = [f"{name}_h" if name in half else name for name in node.input]
    node.output[0] = "y_h"
    back = helper.make_node("Cast", ["y_h"], ["y"], to=TensorProto.FLOAT)
    nodes = [*casts, onnx.NodeProto.FromString(node.SerializeToString()), back]
    del graph.node[:]
    graph.node.extend(nodes)
    del model.functions[:]
    found = run(open_session(model.SerializeToString(), "m", ops="native"), u=u)[0]
    assert 0 < np.abs(found - expected).max() < 3e-2 * np.abs(expected).max()


def test_threads_do_not_change_a_bit():
    arrays = golden("cls_tiny").arrays
    content = export_onnx(golden("cls_tiny").model()).SerializeToString()
    outputs = [run(open_session(content, "m", threads=n, ops="native"), images=arrays["images"])[0] for n in (1, 2, 3)]
    # Of the products before and after the ops, MLAS's, this holds only with one and the same cut: compare one op.
    model, u = scan_model("f4", channels=300)
    one, two, three = (
        run(open_session(model.SerializeToString(), "m", threads=n, ops="native"), u=u)[0] for n in (1, 2, 3)
    )
    assert np.array_equal(one, two)
    assert np.array_equal(one, three)
    np.testing.assert_allclose(outputs[1], outputs[0], **TOLERANCE)


def test_a_wrong_shape_is_an_error_that_names_the_tensor():
    model, u = scan_model("f4", height=4)
    session = open_session(model.SerializeToString(), "m", ops="native")
    with pytest.raises(Exception, match="SelectiveScan: 6 tokens do not form a grid of height 4"):
        run(session, u=u)


def test_a_faulty_parameter_stops_the_load():
    model, _ = scan_model("f4")
    weight = next(t for t in model.graph.initializer if t.name == "dt_bias")
    weight.CopyFrom(numpy_helper.from_array(np.zeros((2, 4), "f4"), "dt_bias"))
    with pytest.raises(Exception, match=r"dt_bias has shape \(2, 4\), expected \(2, 5\)"):
        open_session(model.SerializeToString(), "m", ops="native")


def test_the_choice_of_ops_is_checked():
    with pytest.raises(UsageError, match="there are no ops 'fast'"):
        open_session(b"vimdeploy", "m", ops="fast")


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_compiler_the_bodies_run_and_one_line_says_so(tmp_path, exported):
    file = tmp_path / "m.onnx"
    onnx.save(exported("cls_tiny"), file)
    done = python(
        f"import vimdeploy; [vimdeploy.load({str(file)!r}) for _ in range(2)]",
        PATH="",
        CXX="",
        XDG_CACHE_HOME=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("native ops are not here, models run slower: there is no C++ compiler") == 1
    assert "apt-get install g++" in done.stderr
    done = python(
        f"import vimdeploy; vimdeploy.load({str(file)!r}, ops='native')", PATH="", XDG_CACHE_HOME=str(tmp_path)
    )
    assert "MissingDependencyError: the native ops are not here: there is no C++ compiler" in done.stderr


def test_a_model_without_custom_ops_builds_nothing(tmp_path):
    node = helper.make_node("Relu", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2]) for n in "xy")
    model = helper.make_model(helper.make_graph([node], "g", [x], [y]), ir_version=10)
    assert not has_custom_ops(model.SerializeToString())
    onnx.save(model, tmp_path / "plain.onnx")
    code = f"import vimdeploy; vimdeploy.load({str(tmp_path / 'plain.onnx')!r})"
    done = python(code, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "cache" / "vimdeploy").exists()


def test_an_instruction_set_that_the_machine_lacks_is_refused(tmp_path, exported):
    file = tmp_path / "m.onnx"
    onnx.save(exported("cls_tiny"), file)
    done = python(f"import vimdeploy; vimdeploy.load({str(file)!r})", VIMDEPLOY_CPU_ISA="mmx")
    assert "VIMDEPLOY_CPU_ISA=mmx: this machine has no such kernels" in done.stderr


def test_a_build_is_kept_by_the_hash_of_its_sources(tmp_path):
    sources = tmp_path / "plugins"
    for folder in ("cpu", "onnxruntime"):
        shutil.copytree(ROOT / "plugins" / folder, sources / folder)
    before = ops_library.built_path(sources)
    assert before == ops_library.built_path(sources)
    (sources / "cpu" / "scan.inl").write_text("// changed")
    assert ops_library.built_path(sources) != before
    with pytest.raises(MissingDependencyError, match="could not build the native ops"):
        ops_library.compile_ops(sources, tmp_path / "out" / ops_library.OPS)
    assert list((tmp_path / "out").iterdir()) == []


def test_one_line_registers_the_library_in_any_program(exported):
    arrays = golden("cls_tiny").arrays
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(vimdeploy.ops_library())
    session = onnxruntime.InferenceSession(exported("cls_tiny").SerializeToString(), options)
    np.testing.assert_allclose(run(session, images=arrays["images"])[0], arrays["logits"], **TOLERANCE)
