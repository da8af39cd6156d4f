"""Planted faults: each computes something else than the checkpoint's model, and `vimdeploy verify` must say so."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from commandline import refuse, succeed, vimdeploy
from goldens import DATA, golden, write_checkpoint
from onnx import helper, numpy_helper
from PIL import Image

from vimdeploy.artifacts.manifest import manifest_path
from vimdeploy.graph.bodies import add_functions, custom_nodes


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return a folder with two exports and their checkpoints."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copy(DATA / "cls_tiny.pth", folder)
    write_checkpoint(folder, "eps_sensitive")
    for name in ("cls_tiny", "eps_sensitive"):
        succeed("export", folder / f"{name}.pth", "--no-verify")
    return folder


class Editor:
    """A copy of an export that a test damages."""

    def __init__(self, home, folder, name="cls_tiny"):
        self.path = folder / f"{name}.onnx"
        for suffix in (".onnx", ".onnx.json", ".pth"):
            shutil.copy(home / f"{name}{suffix}", folder)
        self.model = onnx.load(self.path)

    def scan(self, block):
        return [node for node in custom_nodes(self.model) if node.op_type == "SelectiveScan"][block]

    def weight(self, name):
        return next(tensor for tensor in self.model.graph.initializer if tensor.name == name)

    def change(self, name, function):
        tensor = self.weight(name)
        values = numpy_helper.to_array(tensor)
        changed = np.asarray(function(values.copy()), dtype=values.dtype, order="C")
        assert not np.array_equal(changed, values)
        tensor.CopyFrom(numpy_helper.from_array(changed, name))

    def producer(self, name):
        return next(node for node in self.model.graph.node if name in node.output)

    def save(self):
        add_functions(self.model)
        onnx.save(self.model, self.path)
        return self.path


@pytest.fixture
def editor(home, tmp_path):
    return Editor(home, tmp_path)


def assert_caught(path, *words):
    result = refuse("verify", path, "--samples", 4, code=1, words=(path, "does not compute", *words))
    assert "NO" in result.stdout + result.stderr
    return result


def test_the_sound_files_pass(home):
    for name in ("cls_tiny", "eps_sensitive"):
        assert "computes what the PyTorch model computes" in succeed("verify", home / f"{name}.onnx").stdout


def set_attribute(node, name, value):
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def test_a_wrong_direction_is_caught_in_its_block(editor):
    set_attribute(editor.scan(1), "directions", [1, 1])
    assert_caught(editor.save(), "block 1, the output of its mixer")


def test_a_wrong_direction_of_the_convolution_is_caught_in_its_block(editor):
    convs = [node for node in custom_nodes(editor.model) if node.op_type == "CausalConv1d"]
    set_attribute(convs[2], "directions", [1, 1])
    assert_caught(editor.save(), "block 2, the output of its mixer")


def test_a_forgotten_halving_is_caught_in_its_block(editor):
    set_attribute(editor.scan(0), "scale", 1.0)
    assert_caught(editor.save(), "block 0, the output of its mixer")


def test_a_missing_skip_connection_is_caught_in_its_block(editor):
    editor.change(editor.scan(2).input[3], np.zeros_like)
    assert_caught(editor.save(), "block 2, the output of its mixer")


def test_a_missing_gate_is_caught_in_its_block(editor):
    node = editor.scan(3)
    node.op_type = "SelectiveScanNoGate"
    del node.input[6]
    assert_caught(editor.save(), "block 3, the output of its mixer")


def test_swapped_b_and_c_are_caught_in_their_block(editor):
    def swap(x_proj):
        rank, states = x_proj.shape[-1] - 32, 16
        return np.concatenate(
            [x_proj[..., :rank], x_proj[..., rank + states :], x_proj[..., rank : rank + states]], axis=-1
        )

    editor.change(editor.producer(editor.scan(1).input[1]).input[1], swap)
    assert_caught(editor.save(), "block 1, the output of its mixer")


def test_a_dropped_dt_bias_is_caught_in_its_block(editor):
    editor.change(editor.scan(0).input[5], np.zeros_like)
    assert_caught(editor.save(), "block 0, the output of its mixer")


def test_a_wrong_epsilon_is_caught_where_the_residual_stream_is_small(home, tmp_path):
    editor = Editor(home, tmp_path, "eps_sensitive")
    constants = [tensor for tensor in editor.model.graph.initializer if not tensor.dims]
    (epsilon,) = [t.name for t in constants if np.isclose(numpy_helper.to_array(t), 1e-5, rtol=1e-3)]
    editor.change(epsilon, lambda _: np.float32(1e-6))
    assert_caught(editor.save(), "block 0, the output of its mixer")


def test_reading_the_token_beside_the_class_token_is_caught_after_the_blocks(editor):
    (gather,) = [node for node in editor.model.graph.node if node.op_type == "Gather"]
    assert numpy_helper.to_array(editor.weight(gather.input[1])) == 8
    editor.change(gather.input[1], lambda index: index + 1)
    assert_caught(editor.save(), "after the last block")


def test_inserting_the_class_token_one_place_off_is_caught_before_the_blocks(editor):
    class_token = next(n for n in editor.model.graph.node if "model.cls_token" in n.input).output[0]
    concat = next(n for n in editor.model.graph.node if n.op_type == "Concat" and class_token in n.input)
    first = editor.producer(concat.input[0])
    assert first.op_type == "Slice"
    editor.change(first.input[2], lambda end: end + 1)  # the second half starts at the same constant
    assert_caught(editor.save(), "before block 0")


def test_stale_position_embeddings_are_caught_before_the_blocks(editor):
    older = torch.load(DATA / "cls_tiny.pth", weights_only=False)["model_ema"]["pos_embed"]
    editor.change("model.pos_embed", lambda _: older.numpy())
    assert_caught(editor.save(), "before block 0: patch embedding, class token or position embeddings")


def test_the_official_resize_in_place_of_the_right_one_is_caught(home, tmp_path):
    shutil.copy(home / "cls_tiny.pth", tmp_path)
    path = tmp_path / "cls_tiny.onnx"
    succeed("export", tmp_path / "cls_tiny.pth", "--img-size", 96, "--official-pos-resize", "--no-verify")
    succeed("verify", path, "--samples", 2)
    manifest = json.loads(manifest_path(path).read_text())
    assert manifest["model"]["official_pos_resize"] is True
    manifest["model"]["official_pos_resize"] = False
    manifest_path(path).write_text(json.dumps(manifest))
    assert_caught(path, "before block 0")


def test_other_weights_are_caught(home, tmp_path):
    editor = Editor(home, tmp_path)
    manifest = json.loads(manifest_path(editor.path).read_text())
    manifest["checkpoint"]["weights"] = "ema"
    manifest_path(editor.path).write_text(json.dumps(manifest))
    assert_caught(editor.path)


def test_values_that_are_no_numbers_are_caught(editor):
    editor.change("model.head.bias", lambda bias: bias * np.nan)
    assert_caught(editor.save(), "NaN or infinite", "after the last block")
    report = refuse("verify", editor.path, "--samples", 2, "--json", code=1)
    assert "NaN" not in report.stdout.replace("NaN or infinite", "")
    assert report.json()["results"][0]["max_abs"] is None


def test_an_attribute_that_the_body_does_not_follow_is_caught_though_it_computes_the_same_here(editor):
    set_attribute(editor.scan(1), "directions", [1, 1])
    onnx.save(editor.model, editor.path)  # a plugin would read the attribute, ONNX Runtime reads the body
    refuse("verify", editor.path, code=1, words=(editor.path, "SelectiveScan"))


def test_a_damaged_model_says_where_it_departs_even_if_its_bodies_are_wrong_too(editor):
    set_attribute(editor.scan(1), "directions", [1, 1])
    editor.change(editor.scan(2).input[3], np.zeros_like)
    onnx.save(editor.model, editor.path)
    refuse("verify", editor.path, code=1, words=(editor.path, "block 2", "SelectiveScan"))


def test_a_changed_file_is_pointed_out_even_if_it_still_computes_the_same(editor):
    editor.model.doc_string = "touched"
    result = succeed("verify", editor.save(), "--samples", 2)
    assert "was changed after the export" in result.stderr


def test_another_checkpoint_of_the_same_shape_is_pointed_out_and_caught(home, tmp_path, editor):
    other = tmp_path / "other.pth"
    torch.save({k: v * 1.01 for k, v in golden("cls_tiny").state().items()}, other)
    result = refuse("verify", editor.path, "--checkpoint", other, code=1)
    assert "other.pth is not the checkpoint" in result.stderr


# The report


def test_the_report_as_json_is_clean_and_complete_whether_it_passes_or_fails(home, editor):
    passed = succeed("verify", home / "cls_tiny.onnx", "--json", "--samples", 3, "--batch", 2).json()
    assert (passed["passed"], passed["departs"]) == (True, None)
    result, native = passed["results"]
    assert (result["ops"], native["ops"]) == ("body", "native")
    assert (result["batch"], result["samples"], result["passed"]) == (2, 3, True)
    assert result["max_abs"] < 1e-4
    assert passed["contract"]["atol"] == 1e-4
    editor.change(editor.scan(2).input[3], np.zeros_like)
    failed = refuse("verify", editor.save(), "--json", code=1).json()
    assert failed["passed"] is False
    assert "block 2" in failed["departs"]
    assert failed["results"][0]["violations"]


def test_the_report_is_written_to_a_file(home, tmp_path):
    succeed("verify", home / "cls_tiny.onnx", "-o", tmp_path / "report.json", "--samples", 2)
    assert json.loads((tmp_path / "report.json").read_text())["passed"] is True


def test_every_batch_size_asked_for_is_compared_on_every_image(home):
    report = succeed("verify", home / "cls_tiny.onnx", "--json", "--samples", 3, "--batch", 1, "--batch", 4).json()
    expected = [(batch, ops, 3) for batch in (1, 4) for ops in ("body", "native")]
    assert [(r["batch"], r["ops"], r["samples"]) for r in report["results"]] == expected


def test_tolerances_of_the_command_replace_the_contract(home):
    report = refuse(
        "verify", home / "cls_tiny.onnx", "--atol", "1e-12", "--rtol", 0, "--json", "--samples", 2, code=1
    ).json()
    assert (report["contract"]["atol"], report["contract"]["rtol"], report["contract"]["cosine"]) == (1e-12, 0, None)


def test_images_of_a_folder_are_used_in_place_of_synthetic_ones(home, tmp_path):
    random = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(random.integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    report = succeed("verify", home / "cls_tiny.onnx", "--images", tmp_path, "--json").json()
    assert {r["samples"] for r in report["results"]} == {3}


@pytest.mark.parametrize("checkpoint", ["moved", "named"])
def test_a_checkpoint_that_is_gone_is_asked_for_by_its_hash(home, tmp_path, checkpoint):
    editor = Editor(home, tmp_path)
    if checkpoint == "named":
        refuse("verify", editor.path, "--checkpoint", tmp_path / "no.pth", words=("no.pth", "--checkpoint"))
        return
    (tmp_path / "cls_tiny.pth").rename(tmp_path / "moved.pth")
    sha256 = json.loads(manifest_path(editor.path).read_text())["checkpoint"]["sha256"]
    refuse("verify", editor.path, words=("cls_tiny.pth", "--checkpoint", sha256))
    assert vimdeploy("verify", editor.path, "--checkpoint", tmp_path / "moved.pth", "--samples", 2).code == 0
