"""`vimdeploy demo` does the whole main job and would notice if it went wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vimdeploy.backends.base import Array
from vimdeploy.backends.onnxruntime import OnnxBackend
from vimdeploy.commands import demo
from vimdeploy.errors import ArtifactError, MissingDependencyError, VerificationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vimdeploy", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The demo as a user runs it, in an empty folder, without options."""
    folder = tmp_path_factory.mktemp("demo")
    done = run("demo", "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_both_backends_classify_the_held_back_digits_alike_and_well(finished: tuple[Path, dict[str, Any]]) -> None:
    _, result = finished
    assert result["held_out"] == 450
    assert result["agreement"] == 1.0
    assert result["accuracy"]["torch"] == result["accuracy"]["onnxruntime"] >= 0.97
    assert result["metrics"]["passed"]
    assert 0 < result["metrics"]["max_abs"] < 1e-4


def test_everything_lies_where_the_demo_says(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, result = finished
    for what in ("path", "manifest_path", "checkpoint", "images"):
        assert (folder / result[what]).exists(), what
    assert sorted(path.name for path in (folder / "vimdeploy-demo").iterdir()) == [
        "held_out",
        "vim_digits.onnx",
        "vim_digits.onnx.golden.npz",
        "vim_digits.onnx.json",
    ]
    assert len(list((folder / result["images"]).iterdir())) == result["held_out"]


def test_the_digits_it_shows_are_named_by_what_they_show(finished: tuple[Path, dict[str, Any]]) -> None:
    _, result = finished
    for prediction in result["predictions"]:
        assert prediction["classes"][0]["label"] == Path(prediction["image"]).stem[-1]
    assert len(result["predictions"]) == 5


def test_what_it_suggests_next_works(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, result = finished
    done = run("predict", result["path"], result["predictions"][0]["image"], "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["classes"][0]["label"] == result["predictions"][0]["classes"][0]["label"]


def test_people_get_accuracy_agreement_and_places(tmp_path: Path) -> None:
    done = run("demo", "-o", "here", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ("accuracy, PyTorch", "accuracy, ONNX Runtime", "100.00%", "here/vim_digits.onnx", "here/held_out"):
        assert words in done.stdout, words


def test_a_model_that_departs_fails_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = OnnxBackend.run

    def swap_two_classes(self: OnnxBackend, images: Array) -> dict[str, Array]:
        outputs = honest(self, images)
        # Only in the large batches of the held-back digits, so that the export's own verification passes.
        wrong = {name: np.roll(value, 1, axis=-1) for name, value in outputs.items()}
        return wrong if len(images) > 8 else outputs

    monkeypatch.setattr(OnnxBackend, "run", swap_two_classes)
    with pytest.raises(VerificationError, match="does not compute what PyTorch computes"):
        demo.run_demo(tmp_path)


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        demo.run_demo(tmp_path / "taken")


def test_a_package_without_the_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_PACKAGED", tmp_path / "no")
    monkeypatch.setattr(demo, "_CHECKOUT", tmp_path)
    with pytest.raises(MissingDependencyError, match="the example model is not here"):
        demo.demo_folder()


def test_the_installed_package_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vim_digits.pth").write_text("")
    monkeypatch.setattr(demo, "_PACKAGED", tmp_path)
    assert demo.demo_folder() == tmp_path


def test_the_wheel_carries_the_model_where_the_demo_looks() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    carried = {ROOT / source: ROOT / target for source, target in wheel["force-include"].items()}
    assert carried[demo._CHECKOUT] == demo._PACKAGED
