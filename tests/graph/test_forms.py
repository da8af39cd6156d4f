"""The other forms of an exported model compute the same, in runtimes that know nothing of it."""

import numpy as np
import onnx
import onnxruntime
import pytest
import vmamba_cases
from goldens import TOLERANCE, golden
from onnx.reference import ReferenceEvaluator

from vimdeploy.commands.convert_form import convert_form
from vimdeploy.errors import UsageError
from vimdeploy.graph.export import export_onnx
from vimdeploy.graph.forms import plugin_only, portable
from vimdeploy.runtime.ort import has_custom_ops, open_session


def scans(model):
    return [node for node in model.graph.node if node.op_type == "Scan"]


def captured(graph):
    """Return the names that a subgraph takes from outside."""
    made = {v.name for v in (*graph.input, *graph.initializer)} | {o for n in graph.node for o in n.output}
    return {name for node in graph.node for name in node.input if name} - made


@pytest.mark.parametrize("name", ["cls_tiny", "bimamba_v1", "bidirectional_v2"])
def test_the_portable_form_agrees_with_the_golden_in_the_reference_evaluator(name, exported):
    model = portable(exported(name))
    onnx.checker.check_model(model)
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert not has_custom_ops(model.SerializeToString()) or "vimdeploy" not in {e.domain for e in model.opset_import}
    arrays = golden(name).arrays
    found = ReferenceEvaluator(model).run(None, {"images": arrays["images"]})[0]
    np.testing.assert_allclose(found, arrays["logits"], **TOLERANCE)


def test_vmamba_is_portable_too():
    model, arrays = vmamba_cases.golden("vmamba_v05")
    content = portable(export_onnx(model)).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"images": arrays["images"]})[0], arrays["logits"], **TOLERANCE)


def test_its_scans_capture_nothing_and_walk_axis_0(exported):
    found = scans(portable(exported("cls_tiny")))
    assert found
    for node in found:
        attributes = {a.name: a for a in node.attribute}
        assert not captured(attributes["body"].g)
        assert "scan_input_axes" not in attributes


def test_the_file_without_bodies_is_for_those_who_know_the_ops(exported, tmp_path):
    stripped = plugin_only(exported("cls_tiny"))
    assert not stripped.functions
    arrays = golden("cls_tiny").arrays
    session = open_session(stripped.SerializeToString(), "m", ops="native")
    np.testing.assert_allclose(session.run(None, {"images": arrays["images"]})[0], arrays["logits"], **TOLERANCE)
    onnx.save(exported("cls_tiny"), tmp_path / "m.onnx")
    written = convert_form(tmp_path / "m.onnx", form="plugin-only")
    assert written == tmp_path / "m.plugin-only.onnx"
    assert onnx.load(written) == stripped
    with pytest.raises(UsageError, match="There is no form 'small'"):
        convert_form(tmp_path / "m.onnx", form="small")
    with pytest.raises(UsageError, match="is the file to convert"):
        convert_form(tmp_path / "m.onnx", tmp_path / "m.onnx", form="portable")
