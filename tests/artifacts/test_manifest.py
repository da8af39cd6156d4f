import json

import pytest

from vimdeploy.artifacts.files import sha256_bytes
from vimdeploy.artifacts.manifest import (
    SCHEMA_VERSION,
    CheckpointInfo,
    Manifest,
    ModelInfo,
    OnnxInfo,
    TensorInfo,
    is_stale,
    manifest_path,
    parse_manifest,
    read_manifest,
)
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


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[]", b"3", b"null", b'{"a": 1}', b'{"schema_version": "1"}']
)
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
