import json
import os

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vimdeploy.artifacts.files import sha256_bytes
from vimdeploy.artifacts.manifest import (
    SCHEMA_VERSION,
    CheckpointInfo,
    Manifest,
    ModelInfo,
    OnnxInfo,
    TensorInfo,
    checkpoint_reference,
    is_stale,
    manifest_path,
    moved,
    parse_manifest,
    read_manifest,
    referenced_checkpoint,
    refuse_modified_file,
    sealed,
)
from vimdeploy.artifacts.onnx_facts import FACTS_KEY, read_facts
from vimdeploy.artifacts.recipe import BatchProfile, Classes, InputSpec, Parity, Precision
from vimdeploy.errors import ArtifactError

CONTENT = b"an ONNX file"


@pytest.fixture
def artifact(tmp_path):
    """Return an artifact with its manifest beside it."""
    path = tmp_path / "vim.onnx"
    path.write_bytes(CONTENT)
    manifest_path(path).write_bytes(make().to_bytes())
    return path


def make():
    return Manifest(
        tools={"vimdeploy": "1.0"},
        model=ModelInfo(
            family="vim", task="classify", recipe=None, parameters=3, arguments={"depth": 2, "ssm_cfg": {"d_conv": 4}},
            img_size=(64, 96), official_pos_resize=False, sources={"depth": "shapes"},
        ),
        checkpoint=CheckpointInfo(file="../vim.pth", sha256="0" * 64, weights="model"),
        onnx=OnnxInfo(sha256=sha256_bytes(CONTENT), opset=20, op_contract=1, custom_ops={"SelectiveScan": 2}, nodes=9),
        preprocessing=InputSpec(size=(64, 96)),
        classes=Classes(count=2, names=("cat", "dog")),
        input=TensorInfo(name="images", dtype="float32", shape=("batch", 3, 64, 96)),
        outputs=(TensorInfo(name="logits", dtype="float32", shape=("batch", 2)),),
        precision=Precision(),
        batch=BatchProfile(),
        contract=Parity(),
        parity={"passed": True},
        notes=("a note",),
    )  # fmt: skip


def rewrite(artifact, change):
    path = manifest_path(artifact)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_manifest_lies_beside_its_artifact(tmp_path):
    assert manifest_path(tmp_path / "a.b.onnx") == tmp_path / "a.b.onnx.json"


def test_a_manifest_reads_back_as_it_was_written(artifact):
    assert read_manifest(artifact) == make()


def test_a_manifest_is_text_that_people_and_machines_can_read(artifact):
    text = manifest_path(artifact).read_text()
    assert text.endswith("}\n")
    assert json.loads(text)["schema_version"] == SCHEMA_VERSION
    assert json.loads(text)["input"]["shape"] == ["batch", 3, 64, 96]


def test_equal_manifests_give_equal_bytes():
    assert make().to_bytes() == make().to_bytes()


def test_an_artifact_that_was_changed_is_noticed(artifact):
    manifest = read_manifest(artifact)
    assert not is_stale(manifest, artifact)
    artifact.write_bytes(CONTENT + b" ")
    assert is_stale(manifest, artifact)


def refused(artifact):
    with pytest.raises(ArtifactError) as caught:
        read_manifest(artifact)
    assert str(manifest_path(artifact)) in caught.value.message
    assert caught.value.hint
    return str(caught.value)


def test_a_missing_manifest_is_asked_for(artifact):
    manifest_path(artifact).unlink()
    assert "missing" in refused(artifact)


def test_a_manifest_of_a_newer_schema_asks_for_a_newer_vimdeploy(artifact):
    rewrite(artifact, lambda data: data.update(schema_version=SCHEMA_VERSION + 1, something="new"))
    text = refused(artifact)
    assert f"schema {SCHEMA_VERSION + 1}" in text
    assert "Upgrade vimdeploy" in text


STRANGE = {
    "nothing": b"",
    "cut": b"{",
    "not text": b"\xff\xfe",
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "another JSON": b'{"a": 1}',
    "a version in words": b'{"schema_version": "1"}',
    "an engine's": b'{"schema_version": 1, "kind": "engine"}',
    "nested 100,000 deep": b"[" * 100_000 + b"]" * 100_000,
    "tables 100,000 deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "nested 65 deep": b'{"schema_version": 1, "model": ' + b"[" * 65 + b"]" * 65 + b"}",
    "a number of 5,000 digits": b'{"schema_version": ' + b"9" * 5000 + b"}",
    "a number of 65 bits": b'{"schema_version": 18446744073709551616}',
    "larger than any manifest": b" " * (33 << 20),
}


@pytest.mark.parametrize("content", STRANGE.values(), ids=STRANGE)
def test_what_is_no_manifest_is_refused(artifact, content):
    manifest_path(artifact).write_bytes(content)
    refused(artifact)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda d: d.pop("model"), "model"),
        (lambda d: d["model"].pop("task"), "model.task"),
        (lambda d: d["onnx"].update(opset="new"), "onnx.opset"),
        (lambda d: d["input"].update(shape=3), "input.shape"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d["model"].update(extra=1), "model.extra"),
        (lambda d: d["preprocessing"].update(size=[0, 5]), "preprocessing.size"),
        (lambda d: d["preprocessing"].update(interpolation="cubic"), "preprocessing.interpolation"),
        (lambda d: d["preprocessing"].update(size=[10**9, 10**9]), "preprocessing.size"),
        (lambda d: d["preprocessing"].update(crop_ratio=1e-9), "preprocessing.crop_ratio"),
        (lambda d: d["preprocessing"].update(crop_ratio=float("nan")), "preprocessing.crop_ratio"),
        (lambda d: d["preprocessing"].update(std=[0, 1, 1]), "preprocessing.std"),
        (lambda d: d["preprocessing"].update(std=[1, 1]), "preprocessing"),
        (lambda d: d["preprocessing"].update(mean=[float("inf"), 0, 0]), "preprocessing.mean"),
        (lambda d: d["preprocessing"].update(channels=10**9), "preprocessing.channels"),
        (lambda d: d["model"].update(img_size=[10**9, 1]), "model.img_size"),
        (lambda d: d["model"].update(parameters=-1), "model.parameters"),
        (lambda d: d["input"].update(shape=[10**12]), "input.shape"),
        (lambda d: d["input"].update(shape=[1] * 1000), "input.shape"),
        (lambda d: d["classes"].update(count=10**12), "classes.count"),
        (lambda d: d["batch"].update(max=10**12), "batch.max"),
        (lambda d: d["onnx"].update(opset=10**15), "onnx.opset"),
    ],
)
def test_a_field_that_is_wrong_is_named(artifact, change, field):
    rewrite(artifact, change)
    assert field in refused(artifact)


def test_a_manifest_cannot_be_changed_once_made():
    with pytest.raises(ValueError, match="frozen"):
        make().notes = ()


def test_parsed_content_is_validated_like_a_file(tmp_path):
    assert parse_manifest(json.loads(make().to_bytes()), tmp_path / "m.json") == make()


def test_a_manifest_that_is_no_file_is_not_read(artifact):
    manifest_path(artifact).unlink()
    os.mkfifo(manifest_path(artifact))  # reading it would wait forever
    assert "is not a file" in refused(artifact)


# ---- the facts inside an ONNX file


def small_onnx(**metadata):
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 2]) for n in "xy"]
    function = onnx.helper.make_function(
        "own", "F", ["a"], ["b"], [onnx.helper.make_node("Relu", ["a"], ["b"])],
        [onnx.helper.make_opsetid("", 20)],
    )  # fmt: skip
    graph = onnx.helper.make_graph([node], "g", value[:1], value[1:])
    model = onnx.helper.make_model(graph, functions=[function], ir_version=9)
    onnx.helper.set_model_props(model, metadata)
    return model


@pytest.fixture
def alone(tmp_path):
    """Return an ONNX file that travelled without its manifest."""
    content, _ = sealed(small_onnx(author="me").SerializeToString(), make())
    path = tmp_path / "alone.onnx"
    path.write_bytes(content)
    return path


def test_an_onnx_file_says_of_itself_what_its_manifest_says(alone):
    manifest = read_manifest(alone)
    assert manifest.onnx.sha256 == sha256_bytes(alone.read_bytes())
    assert not is_stale(manifest, alone)
    wanted = make()
    assert manifest == wanted.model_copy(
        update={
            "onnx": wanted.onnx.model_copy(update={"sha256": manifest.onnx.sha256}),
            "checkpoint": wanted.checkpoint.model_copy(update={"file": ""}),
            "parity": None,
        }
    )


def test_the_facts_hold_no_path_and_change_nothing_else_in_the_file(alone):
    model = onnx.load(alone)
    onnx.checker.check_model(model, full_check=True)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert list(facts) == ["author", FACTS_KEY]
    assert "vim.pth" not in facts[FACTS_KEY]
    onnx.helper.set_model_props(model, {"author": "me"})
    assert model == small_onnx(author="me")


def test_facts_are_replaced_not_repeated_and_survive_another_protobuf(alone):
    content, manifest = sealed(alone.read_bytes(), make().model_copy(update={"notes": ("newer",)}))
    alone.write_bytes(onnx.load_from_string(content).SerializeToString())
    assert read_manifest(alone).notes == ("newer",)
    assert read_manifest(alone).onnx.sha256 == manifest.onnx.sha256
    assert len(onnx.load(alone).metadata_props) == 2


@pytest.mark.parametrize("beside", [True, False], ids=["with its manifest", "alone"])
def test_a_file_that_was_changed_after_export_is_refused_unless_the_user_says_so(alone, beside):
    content, manifest = sealed(small_onnx().SerializeToString(), make())
    if beside:
        manifest_path(alone).write_bytes(manifest.to_bytes())
    model = onnx.load_from_string(content)
    model.graph.node[0].op_type = "Sigmoid"
    alone.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match="it was changed after the export") as caught:
        refuse_modified_file(alone)
    assert "--allow-modified" in caught.value.hint
    refuse_modified_file(alone, allow_modified=True)


def test_another_model_in_its_place_is_called_that(alone):
    other = make().model_copy(update={"model": make().model.model_copy(update={"parameters": 4})})
    _, manifest = sealed(small_onnx().SerializeToString(), make())
    manifest_path(alone).write_bytes(manifest.to_bytes())
    alone.write_bytes(sealed(small_onnx().SerializeToString(), other)[0])
    with pytest.raises(ArtifactError, match="another model was put in its place"):
        refuse_modified_file(alone)


def test_files_that_nobody_described_are_nobodys_lie(tmp_path):
    path = tmp_path / "foreign.onnx"
    path.write_bytes(small_onnx(author="me").SerializeToString())
    refuse_modified_file(path)
    assert read_facts(path) is None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1), st.binary(max_size=8))
def test_damaged_onnx_files_have_no_facts_or_refused_ones_but_no_accidents(alone, where, change):
    content = sealed(small_onnx(author="me").SerializeToString(), make())[0]
    place = int(where * len(content))
    damaged = alone.with_name("damaged.onnx")
    damaged.write_bytes(content[:place] + change + content[place + len(change) :][: place % 7 * 100])
    try:
        manifest = read_manifest(damaged)
    except ArtifactError as error:
        assert str(damaged) in error.message  # noqa: PT017
    else:
        assert is_stale(manifest, damaged) or content == damaged.read_bytes()


# ---- the checkpoint's place


def test_a_checkpoint_is_found_through_links_of_folders(tmp_path):
    (tmp_path / "disk" / "runs").mkdir(parents=True)
    (tmp_path / "home" / "deep").mkdir(parents=True)
    (tmp_path / "home" / "deep" / "out").symlink_to(tmp_path / "disk" / "runs")
    checkpoint = tmp_path / "home" / "vim.pth"
    checkpoint.write_bytes(b"weights")
    artifact = tmp_path / "home" / "deep" / "out" / "vim.onnx"
    file = checkpoint_reference(checkpoint, artifact)
    assert file == "../../home/vim.pth"
    manifest = make().model_copy(update={"checkpoint": make().checkpoint.model_copy(update={"file": file})})
    for place in (artifact, artifact.resolve()):
        assert referenced_checkpoint(manifest, place).read_bytes() == b"weights"
    elsewhere = tmp_path / "elsewhere" / "half.onnx"
    elsewhere.parent.mkdir()
    assert referenced_checkpoint(moved(manifest, artifact, elsewhere), elsewhere).read_bytes() == b"weights"


def test_on_another_drive_the_checkpoint_is_named_in_full(tmp_path, monkeypatch):
    def other_drive(*_):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(os.path, "relpath", other_drive)
    assert checkpoint_reference(tmp_path / "vim.pth", tmp_path / "vim.onnx") == str(tmp_path / "vim.pth")
