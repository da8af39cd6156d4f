import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from goldens import FULL, NAMES, TOLERANCE, golden
from onnx import TensorProto, helper, numpy_helper

from vimdeploy import contract
from vimdeploy.backends.onnxruntime import OnnxBackend
from vimdeploy.errors import ArtifactError, UsageError
from vimdeploy.graph.check import check_model
from vimdeploy.graph.export import export_onnx, serialize
from vimdeploy.models.vim.config import VimConfig
from vimdeploy.models.vim.model import VisionMamba

SMALL = "layernorm"


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, **TOLERANCE, equal_nan=False)


def run(model, images, **options):
    return OnnxBackend(model, **options).run(images)


def operators(model):
    return Counter(node.op_type for node in model.graph.node)


# What an export computes


@pytest.mark.parametrize("name", NAMES)
def test_onnx_runtime_reproduces_every_value_of_the_official_run_at_two_batch_sizes(exported, name):
    case, model = golden(name), exported(name)
    check_model(model, name)
    images, arrays = case.arrays["images"], case.arrays
    expected = {}
    for i, (hidden, residual) in enumerate(zip(arrays["block_hidden"], arrays["block_residual"], strict=True)):
        # The backward layers of pairs keep the order of the tokens here, where the official code turns them around.
        order = slice(None, None, -1) if case.config.if_bidirectional and i % 2 else slice(None)
        expected |= {f"block.{i}.residual": residual[:, order], f"block.{i}.hidden": hidden[:, order]}
    if case.config.if_bidirectional:  # both layers of a pair get the same residual: one value in the file
        del expected["block.1.residual"], expected["block.3.residual"]
    found = run(model, images, taps=list(expected))
    assert list(found) == ["logits", *expected]
    assert_close(found["logits"], arrays["logits"])
    for tap, values in expected.items():
        assert_close(found[tap], values)
    for batch in (1, 5):
        part = np.resize(images, (batch, *images.shape[1:]))
        assert_close(run(model, part)["logits"], np.resize(arrays["logits"], (batch, arrays["logits"].shape[1])))


def test_the_real_vim_tiny_at_224_pixels_is_reproduced_by_the_nodes_that_were_promised():
    case = golden(FULL)
    model = export_onnx(case.model())
    check_model(model, FULL)
    found = run(model, case.arrays["images"], taps=["block.0.residual", "block.23.hidden"])
    assert_close(found["logits"], case.arrays["logits"])
    last = case.arrays["block_hidden_cls"][23].reshape(-1)
    assert_close(found["block.23.hidden"][0, 98], last)
    counts = operators(model)
    assert (counts["SelectiveScan"], counts["CausalConv1d"], counts["MatMul"], counts["Transpose"]) == (24, 24, 96, 1)
    assert not {"Flip", "ReverseSequence", "Loop", "Scan"} & set(counts)
    assert len(model.graph.node) < 400
    assert len(model.functions) == 2


@pytest.mark.parametrize(("task", "output"), [("features", "features"), ("tokens", "tokens")])
def test_other_tasks_give_what_precedes_the_logits(exported, task, output):
    case, model = golden(SMALL), exported(SMALL, task=task)
    found = run(model, case.arrays["images"])[output]
    if task == "features":
        assert_close(found, case.arrays["features"])
    else:
        with torch.no_grad():
            assert_close(found, case.model().forward_tokens(case.images).numpy())
    assert "head.weight" not in {tensor.name.removeprefix("model.") for tensor in model.graph.initializer}


def test_a_fixed_batch_is_fixed_and_right(exported):
    case, model = golden(SMALL), exported(SMALL, batch=2)
    check_model(model, SMALL)
    assert OnnxBackend(model).fixed_batch == 2
    assert_close(run(model, case.arrays["images"])["logits"], case.arrays["logits"])
    assert_close(run(model, case.arrays["images"][:1])["logits"], case.arrays["logits"][:1])


@pytest.mark.parametrize("opset", [contract.MIN_OPSET, contract.MAX_OPSET])
def test_the_first_and_the_last_opset_of_the_contract_work(exported, opset):
    case, model = golden(SMALL), exported(SMALL, opset=opset)
    check_model(model, SMALL)
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", opset), (contract.DOMAIN, 1)}
    assert_close(run(model, case.arrays["images"])["logits"], case.arrays["logits"])


@pytest.mark.parametrize(
    "options",
    [
        {"if_cls_token": False, "final_pool_type": "max"},
        {"if_cls_token": False, "final_pool_type": "all"},
        {"flip_img_sequences_ratio": 2.0, "if_cls_token": False, "final_pool_type": "none"},
        {"bias": True, "conv_bias": False, "d_conv": 3, "dt_rank": 3, "expand": 1.5, "num_classes": 0},
        {"if_bidirectional": True, "depth": 3, "use_fast_path": False, "if_abs_pos_embed": False},
    ],
    ids=str,
)
def test_variants_without_a_golden_compute_what_torch_computes(options):
    torch.manual_seed(0)
    values = {"img_size": (32, 32), "embed_dim": 16, "depth": 2, "num_classes": 5, "channels": 3} | options
    model = VisionMamba(VimConfig(**values)).eval()
    exported = export_onnx(model)
    check_model(exported, "variant", allow_reversal=model.config.flips_sequence)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert_close(next(iter(run(exported, images.numpy()).values())), model(images).numpy())


# What an export is


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"opset": contract.MIN_OPSET - 1}, "opset 17"),
        ({"opset": contract.MAX_OPSET + 1}, "opset 24"),
        ({"task": "clasify"}, "clasify"),
    ],
)
def test_an_unknown_task_or_opset_is_refused(options, words):
    with pytest.raises(UsageError, match=words):
        export_onnx(golden(SMALL).model(), **options)


def test_exporting_leaves_the_model_as_it_was(exported):
    model = golden(SMALL).model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    serialized = serialize(export_onnx(model))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model.folded
    assert serialized == serialize(exported(SMALL))  # and equal inputs give equal bytes


SCRIPT = """
import hashlib
from goldens import golden
from vimdeploy.graph.export import export_onnx, serialize
print(hashlib.sha256(serialize(export_onnx(golden({name!r}).model()))).hexdigest())
"""


def test_another_process_makes_the_same_bytes(exported):
    tests = Path(__file__).parents[1]
    path = os.pathsep.join(map(str, (tests.parent, tests / "support", tests / "data")))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(name=SMALL)],
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == hashlib.sha256(serialize(exported(SMALL))).hexdigest()


def test_nothing_of_the_machine_or_the_exporter_is_left_in_the_file(exported):
    model = exported("cls_tiny")
    content = serialize(model)
    for word in (b"torch", b"pkg.", b"namespace\x12", str(Path.home()).encode(), b".py"):
        assert word not in content, word
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        assert not item.metadata_props
        assert not item.doc_string
    assert (model.producer_name, graph.input[0].name, [o.name for o in graph.output]) == (
        "vimdeploy",
        "images",
        ["logits"],
    )
    assert not any(tensor.HasField("data_location") and tensor.data_location for tensor in graph.initializer)


def test_every_custom_node_carries_every_attribute_and_the_plugin_s_name(exported):
    nodes = [node for node in exported("cls_tiny").graph.node if node.domain == contract.DOMAIN]
    assert {node.op_type for node in nodes} == {"CausalConv1d", "SelectiveScan"}
    for node in nodes:
        values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert values["plugin_version"] == contract.PLUGIN_VERSION.encode()
        assert values["plugin_namespace"] == contract.PLUGIN_NAMESPACE.encode()
        op = contract.OPS[node.op_type]
        assert values.keys() == {a.name for a in op.attributes} | set(contract.PLUGIN_ATTRIBUTES)
        assert len(node.input) == len(op.inputs)
        assert list(values["directions"]) == [1, -1]


@pytest.mark.parametrize(
    ("name", "directions", "scale"),
    [("cls_tiny", [1, -1], 0.5), ("no_divide", [1, -1], 1), ("bimamba_v1", [1, -1], 1), ("bimamba_none", [1], 1)],
)
def test_the_recipe_s_halving_and_directions_are_attributes(exported, name, directions, scale):
    for node in exported(name).graph.node:
        if node.op_type == "SelectiveScan":
            values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            assert (list(values["directions"]), values["scale"]) == (directions, scale)


def test_the_taps_of_a_model_are_the_names_of_its_inner_values(exported):
    names = [name for tap in golden("cls_tiny").model().taps() for name in tap.names]
    assert len(names) == 8
    assert set(names) <= {output for node in exported("cls_tiny").graph.node for output in node.output}


# What the gate catches


def scans(model):
    return [node for node in model.graph.node if node.op_type == "SelectiveScan"]


def attribute(node, name):
    return next(a for a in node.attribute if a.name == name)


def foreign_node(model):
    model.opset_import.append(helper.make_opsetid("org.pytorch.aten", 1))
    model.graph.node.append(helper.make_node("ATen", ["images"], ["stray"], domain="org.pytorch.aten"))


def foreign_node_inside_a_body(model):
    model.functions[0].opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.functions[0].node.append(helper.make_node("Gelu", ["x"], ["stray"], domain="com.microsoft"))


def reversal(model):
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array([value]), name)
        for name, value in (("s", -1), ("e", -(1 << 62)), ("a", 1), ("st", -1))
    )
    last = model.graph.output[0].name
    for node in model.graph.node:
        if last in node.output:
            node.output[0] = "forward_logits"
    model.graph.node.append(helper.make_node("Slice", ["forward_logits", "s", "e", "a", "st"], [last], name="turn"))


def tampered_body(model):
    function = next(f for f in model.functions if f.name == "SelectiveScan")
    node = next(n for n in function.node if n.op_type == "Softplus")
    node.op_type = "Exp"


def changed_direction(model):
    attribute(scans(model)[1], "directions").ints[:] = [1, 1]


def changed_activation(model):
    for node in model.graph.node:
        if node.op_type == "CausalConv1d":
            attribute(node, "activation").s = b"none"


def missing_body(model):
    del model.functions[0]


def missing_attribute(model):
    node = scans(model)[0]
    node.attribute.remove(attribute(node, "height"))


def unknown_op(model):
    scans(model)[0].op_type = "SelectiveScanV2"


def baked_batch(model):
    last = model.graph.output[0]
    for node in model.graph.node:
        if last.name in node.output:
            node.output[0] = "free"
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, -1]), "two"))
    model.graph.node.append(helper.make_node("Reshape", ["free", "two"], [last.name], name="bake"))


def wrong_type(model):
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64


def wrong_weight_type(model):
    bias = scans(model)[0].input[5]
    tensor = next(t for t in model.graph.initializer if t.name == bias)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), bias))


def dangling_input(model):
    scans(model)[0].input[0] = "nowhere"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (foreign_node, "foreign operator org.pytorch.aten::ATen"),
        (foreign_node_inside_a_body, "foreign operator com.microsoft::Gelu"),
        (reversal, "node turn reverses a sequence"),
        (tampered_body, "the body of SelectiveScan is not what"),
        (changed_direction, "no body for SelectiveScan|the body of SelectiveScan"),
        (changed_activation, "the body of CausalConv1d is not what"),
        (missing_body, "no body for"),
        (missing_attribute, "attribute height is missing"),
        (unknown_op, "no op SelectiveScanV2"),
        (baked_batch, "batch"),
        (wrong_type, "not valid ONNX"),
        (wrong_weight_type, "not valid ONNX"),
        (dangling_input, "not valid ONNX"),
    ],
)
def test_the_gate_catches_and_names(exported, damage, words):
    model = exported(SMALL)
    check_model(model, "sound.onnx")
    damage(model)
    with pytest.raises(ArtifactError, match=words) as caught:
        check_model(model, "damaged.onnx")
    assert caught.value.message.startswith("damaged.onnx: ")


def test_a_reversal_is_allowed_where_the_model_asks_for_it(exported):
    model = exported(SMALL)
    reversal(model)
    check_model(model, "turned.onnx", allow_reversal=True)


def test_a_file_read_back_passes_the_gate(exported, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(serialize(exported("bidirectional_v2")))
    check_model(onnx.load(path), str(path))
