"""What an export carries with it: facts inside the file, stored outputs, names and preprocessing that the user said."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from commandline import refuse, succeed
from goldens import DATA

import vimdeploy
from vimdeploy.artifacts.golden import golden_path, read_golden
from vimdeploy.artifacts.manifest import manifest_path, read_manifest
from vimdeploy.errors import ArtifactError, UsageError

CHECKPOINT = DATA / "cls_tiny.pth"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An export into a folder that is reached through a link."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "real" / "deep").mkdir(parents=True)
    (folder / "link").symlink_to(folder / "real" / "deep")
    (folder / "names.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    made = vimdeploy.export(
        CHECKPOINT,
        folder / "link" / "vim.onnx",
        classes=folder / "names.txt",
        mean=(0.1, 0.2, 0.3),
        std=(0.5, 0.5, 0.5),
        crop=1.0,
        interpolation="bilinear",
        verify=False,
    )
    return made.path


@pytest.fixture
def no_torch(monkeypatch):
    """As on a host without torch and onnx: their import fails, and find_spec finds nothing."""
    import importlib.util

    right = importlib.util.find_spec

    def find_spec(name, *rest):
        return None if name.partition(".")[0] in ("torch", "onnx", "safetensors") else right(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


def test_what_the_user_says_of_images_and_classes_is_in_the_manifest(exported):
    manifest = read_manifest(exported)
    spec = manifest.preprocessing
    assert (spec.mean, spec.std, spec.crop_ratio, spec.interpolation) == (
        (0.1, 0.2, 0.3),
        (0.5, 0.5, 0.5),
        1.0,
        "bilinear",
    )
    assert manifest.classes.labels() == tuple(f"class {i}" for i in range(10))
    assert not [note for note in manifest.notes if "preprocessing" in note]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mean": (0.5,)}, "mean has 1 values for 3 channels"),
        ({"std": (0.5, 0, 0.5)}, "--std: Input should be greater than 0"),
        ({"crop": 1.5}, "--crop: Input should be less than or equal to 1"),
        ({"interpolation": "cubic"}, "--interpolation"),
        ({"classes": "missing.txt"}, "missing.txt: there is no such file"),
    ],
)
def test_what_images_cannot_have_is_refused(tmp_path, options, words):
    with pytest.raises(UsageError) as caught:
        vimdeploy.export(CHECKPOINT, tmp_path / "vim.onnx", verify=False, **options)
    assert words in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_other_than_one_name_for_each_class_is_refused(tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    with pytest.raises(UsageError, match=r"names\.txt: has 2 class names, the model has 10 classes"):
        vimdeploy.export(CHECKPOINT, tmp_path / "vim.onnx", verify=False, classes=tmp_path / "names.txt")


def test_the_command_line_says_the_same(tmp_path):
    (tmp_path / "names.txt").write_text("\n".join("abcdefghij"))
    options = ("--mean", "0.1,0.2,0.3", "--std", "0.5,0.5,0.5", "--crop", "0.9", "--interpolation", "nearest")
    more = ("--classes", tmp_path / "names.txt", "--no-verify", "--json")
    made = succeed("export", CHECKPOINT, "-o", tmp_path / "vim.onnx", *options, *more).json()
    assert made["preprocessing"]["mean"] == [0.1, 0.2, 0.3]
    assert (made["preprocessing"]["crop_ratio"], made["preprocessing"]["interpolation"]) == (0.9, "nearest")
    assert made["classes"]["names"] == list("abcdefghij")


@pytest.mark.parametrize("name", ["vim.engine", "vim.plan", "vim.trt", "vim.pth", "vim"])
def test_other_names_than_onnx_are_refused(tmp_path, name):
    then = ["vimdeploy build-engine vim.onnx"] if name in ("vim.engine", "vim.plan") else []
    refuse(
        "export", CHECKPOINT, "-o", tmp_path / name, words=[name, "end in .onnx", "vim.onnx", *then], folder=tmp_path
    )


def test_the_checkpoint_is_found_through_a_link_and_from_the_folder_of_a_converted_file(exported, tmp_path):
    half = vimdeploy.convert(exported, tmp_path / "half.onnx", verify=False).path
    for path in (exported, exported.resolve(), half):
        reference = path.resolve().parent / read_manifest(path).checkpoint.file
        assert reference.samefile(CHECKPOINT)


def test_a_file_without_its_manifest_still_predicts_the_same(exported, tmp_path):
    from PIL import Image

    alone = tmp_path / "alone.onnx"
    alone.write_bytes(exported.read_bytes())
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8)).save(tmp_path / "image.png")
    rows = [succeed("predict", path, tmp_path / "image.png", "--json").json() for path in (exported, alone)]
    assert rows[0] == rows[1]
    assert rows[0][0]["classes"][0]["label"].startswith("class ")


def changed(exported, folder):
    model = onnx.load(exported)
    node = next(node for node in model.graph.node if node.op_type == "MatMul")
    del node.input[:]
    node.input.extend(reversed(node.input))
    path = folder / exported.name
    path.write_bytes(model.SerializeToString())
    for beside in (manifest_path, golden_path):
        beside(path).write_bytes(beside(exported).read_bytes())
    return path


def test_no_command_takes_a_file_that_was_changed_after_the_export(exported, tmp_path):
    path = changed(exported, tmp_path)
    for run in (vimdeploy.load, vimdeploy.convert):
        with pytest.raises(ArtifactError, match="is not the file that its manifest describes"):
            run(path)
    refuse("convert", path, words=["changed after the export", "--allow-modified"], folder=tmp_path)


def test_a_host_without_torch_verifies_against_the_stored_outputs(exported, tmp_path, no_torch):
    found = succeed("verify", exported, "--json").json()
    assert found["passed"]
    assert found["reference"] == "torch, as stored at export"
    assert "torch is not installed" in found["notes"][0]
    half = golden_path(exported)
    assert half.stat().st_size < 300_000


@pytest.mark.parametrize("damage", ["missing", "another"])
def test_stored_outputs_that_are_missing_or_others_are_refused(exported, tmp_path, no_torch, damage):
    path = tmp_path / exported.name
    for name in (exported, manifest_path(exported), golden_path(exported)):
        (tmp_path / name.name).write_bytes(name.read_bytes())
    if damage == "missing":
        golden_path(path).unlink()
    else:
        golden_path(path).write_bytes(golden_path(path).read_bytes() + b" ")
    refuse("verify", path, words=[golden_path(path)], folder=tmp_path)


def test_stored_outputs_catch_a_wrong_model(exported, tmp_path, no_torch, monkeypatch):
    """Planted: the runtime gives other logits than PyTorch gave."""
    from vimdeploy.runtime.onnx_session import OnnxSession

    right = OnnxSession.run
    monkeypatch.setattr(OnnxSession, "run", lambda *a, **k: {n: y + 0.01 for n, y in right(*a, **k).items()})
    refuse("verify", exported, words=["does not compute what"], code=1)


def test_the_stored_outputs_are_those_of_pytorch(exported):
    (case,) = read_golden(exported, read_manifest(exported).golden_sha256)
    with vimdeploy.load(exported) as session:
        logits = session(case.inputs.arrays["images"])
    np.testing.assert_allclose(logits, case.outputs["logits"], atol=1e-4, rtol=1e-4)


def test_the_facts_hold_no_path_of_this_machine(exported):
    content = exported.read_bytes()
    for word in (str(Path.home()), str(DATA), str(exported.parent)):
        assert word.encode() not in content
    facts = {entry.key: entry.value for entry in onnx.load(exported).metadata_props}
    assert json.loads(facts["vimdeploy.manifest"])["model"]["family"] == "vim"
