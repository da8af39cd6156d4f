"""The three models of "Your own model", through the command line as the guide says it, and through Python."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vimdeploy

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "your-own-model.md").read_text()
COMMANDS = {name: line for line, name in re.findall(r"^\$ vimdeploy (export (\w+):build .*)$", GUIDE, re.M)}
INPUTS = {"unet": (1, 3, 32, 32), "ss2d": (1, 3, 32, 32), "video": (1, 3, 2, 16, 16)}
DYNAMIC = {
    "unet": {"batch": True, "size": 4},
    "ss2d": {"batch": True, "size": 8},
    "video": {"batch": True, "frames": True},
}


def test_the_guide_exports_every_model() -> None:
    assert set(COMMANDS) == set(INPUTS) == {path.stem for path in (ROOT / "examples" / "own_models").glob("*.py")}


@pytest.mark.parametrize("name", INPUTS)
def test_the_guides_command(name: str, tmp_path: Path) -> None:
    command = COMMANDS[name].replace("examples/own_models", str(ROOT / "examples" / "own_models"))
    done = subprocess.run(
        [sys.executable, "-m", "vimdeploy", *shlex.split(command)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.onnx", f"{name}.onnx.json", f"{name}.onnx.golden.npz"
    }  # fmt: skip


@pytest.mark.parametrize("name", INPUTS)
def test_the_same_in_python(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "own_models"))
    with vimdeploy.substitute_mamba_ssm() as substitution:
        model = importlib.import_module(name).build()
    assert any(module.startswith("mamba_ssm") for module in substitution.substituted)
    made = vimdeploy.export_module(model, torch.randn(INPUTS[name]), tmp_path / f"{name}.onnx", dynamic=DYNAMIC[name])
    assert made.report is not None
    assert made.report.passed
    assert sum(made.manifest.onnx.custom_ops.values()) >= 2
    assert vimdeploy.verify(made.path).passed
