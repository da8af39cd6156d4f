"""The real polygraphy takes an exported file: docs/polygraphy.md runs and computes what a session does."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from exports import export
from pages import ROOT, commands

import vimdeploy

INSPECT, RUN = commands("docs/polygraphy.md")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("polygraphy")
    export(ROOT / "examples" / "digits" / "vim_digits.pth", folder / "digits.onnx")
    return folder


def polygraphy(command: str, folder: Path) -> str:
    program, *arguments = shlex.split(command)
    script = Path(sys.executable).with_name(program)
    assert script.is_file(), "polygraphy is part of the extra 'dev': pip install --editable '.[dev]'"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), *arguments], cwd=folder, capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_inspect_model_lists_its_face_and_our_operator_set(folder: Path) -> None:
    shown = polygraphy(INSPECT, folder)
    assert "{images [dtype=float32, shape=('batch', 3, 32, 32)]}" in shown
    assert "{logits [dtype=float32, shape=('batch', 10)]}" in shown
    assert "'vimdeploy': 1" in shown


def test_run_onnxrt_computes_what_a_session_computes(folder: Path) -> None:
    assert "PASSED" in polygraphy(RUN, folder)
    # The files hold numpy arrays in polygraphy's own JSON.
    code = (
        "import numpy as np; from polygraphy.json import load_json; from polygraphy.comparator import RunResults;"
        "feeds = load_json('in.json')[0]; np.save('in.npy', np.asarray(feeds['images']));"
        "(_, (run,)), = RunResults.load('out.json').items(); np.save('out.npy', np.asarray(run['logits']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    images, logits = np.load(folder / "in.npy"), np.load(folder / "out.npy")
    assert logits.shape == (4, 10)
    with vimdeploy.load(folder / "digits.onnx") as session:
        np.testing.assert_allclose(session(images), logits, atol=1e-5)
