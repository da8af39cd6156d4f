"""A repository written by `serve-repo`, in the real tritonserver: the answers are those of the session, bit for bit."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import refuse, succeed
from fleet import ROOT, write_digits
from triton_server import REQUIREMENTS, TritonServer, environment, python_path

import vimdeploy
from vimdeploy.artifacts.images import load_images
from vimdeploy.artifacts.manifest import read_manifest
from vimdeploy.commands.predict import predict

CLIENT = ROOT / "tests" / "serving" / "triton_client.py"
MODELS = ["digits", "digits_image", "digits_preprocess"]


def write(digits: Path, folder: Path, *options: object) -> dict[str, Any]:
    paths = [part for path in python_path() for part in ("--python-path", path)]
    return succeed("serve-repo", digits, "-o", folder, "--backend", "python", *paths, *options, "--json").json()


@pytest.fixture(scope="module")
def served(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TritonServer, Path, Path]]:
    scratch = tmp_path_factory.mktemp("triton")
    write(digits, scratch / "repository")
    paths = write_digits(scratch / "files", 12)
    np.save(scratch / "images.npy", load_images(paths, read_manifest(digits).preprocessing))
    server = TritonServer(scratch / "repository", scratch, *MODELS)
    try:
        server.wait(MODELS)
        yield server, scratch, digits
    finally:
        code = server.stop()
    assert code == 0, server.log.read_text()[-3000:]


def client(server: TritonServer, task: str, folder: Path) -> subprocess.Popen[str]:
    command = [str(server.python), str(CLIENT), task, str(server.http), str(server.grpc), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out)


def test_held_out_digits_come_back_bit_for_bit_over_http_and_grpc(served):
    server, scratch, digits = served
    found = result(client(server, "answers", scratch))
    images = np.load(scratch / "images.npy")
    with vimdeploy.load(digits) as session:
        alone = np.concatenate([session(image[None]) for image in images])
        together = session(images)
    with np.load(scratch / "answers.npz") as answers:
        for kind in ("http", "grpc"):
            np.testing.assert_array_equal(answers[f"{kind}_tensor"], alone)
            np.testing.assert_array_equal(answers[f"{kind}_image"], alone)
            np.testing.assert_array_equal(answers[f"{kind}_batch"], together)
    (predicted,) = predict(digits, [sorted((scratch / "files").iterdir())[0]], top=1)
    assert found["label"] == predicted.classes[0].label
    refusals = found["refusals"]
    assert "cannot be read as an image" in refusals["bad image"]
    assert "shape" in refusals["shape"]
    assert "type" in refusals["type"]
    assert "batch" in refusals["batch"]
    assert found["alive"], "the server answers after all of that"


def test_a_new_version_is_loaded_while_requests_run_and_none_is_lost(served):
    server, scratch, digits = served
    running = [client(server, "loop", scratch) for _ in range(2)]
    while not (scratch / "started").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    made = write(digits, scratch / "repository")
    assert made["models"][0]["version"] == 2
    assert server.status("v2/repository/models/digits/load", {}) == 200
    server.wait(["digits"])
    time.sleep(0.5)
    (scratch / "stop").touch()
    for process in running:
        found = result(process)
        assert found["failed"] == []
        assert set(found["versions"]) == {"1", "2"}, "some before, some after, none in between"


# ---- what needs no server


def schema(folder: Path) -> dict[str, Any]:
    python = environment("triton", REQUIREMENTS, layered=False)
    command = [str(python), str(CLIENT), "schema", "0", "0", str(folder)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_every_configuration_fits_the_servers_schema(digits, tmp_path):
    succeed("serve-repo", digits, "-o", tmp_path / "plain")
    found = schema(tmp_path / "plain")
    assert found["digits"] == {"backend": "onnxruntime", "platform": "", "max_batch_size": 128}
    assert found["digits_image"]["platform"] == "ensemble"
    assert (tmp_path / "plain" / "digits" / "labels.txt").read_text().split() == list("0123456789")
    options = ["--instances", 3, "--keep-versions", 2, "--queue", 9, "--no-warmup", "--no-images"]
    succeed("serve-repo", digits, "-o", tmp_path / "other", *options)
    assert list(schema(tmp_path / "other")) == ["digits"]


def test_models_that_cannot_be_served_are_refused_and_nothing_is_written(digits, tmp_path):
    repository = tmp_path / "repository"
    refuse("serve-repo", tmp_path / "missing.onnx", "-o", repository, words=["missing.onnx"])
    changed = tmp_path / "digits.onnx"
    changed.write_bytes(digits.read_bytes() + b" ")
    (tmp_path / "digits.onnx.json").write_bytes(digits.with_name("digits.onnx.json").read_bytes())
    refuse("serve-repo", changed, "-o", repository, words=["digits.onnx", "not the file"])
    refuse("serve-repo", digits, digits, "-o", repository, words=["Two models"])
    (tmp_path / "file").write_text("")
    refuse("serve-repo", digits, "-o", tmp_path / "file" / "below", words=["cannot be written"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["digits.onnx", "digits.onnx.json", "file"]
