"""``vimdeploy export package.module:function``: bad input is explained with exit code 2, and nothing is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = """
import torch
from torch import nn
print("their code prints")
class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.linear = nn.Linear(4, width)
    def forward(self, x):
        return self.linear(x)
def build(width=4):
    return Net(width)
def broken():
    return undefined_name
number = 3
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vimdeploy", "export", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "their_net.py").write_text(MODEL)
    (tmp_path / "code" / "wants.py").write_text("import a_missing_cuda_extension\n")
    return tmp_path


CASES = {
    "no input": (["their_net:build"], "--input"),
    "an input that is none": (["their_net:build", "--input", "axb"], "must be [NAME=]SIZExSIZE"),
    "a folder that is not there": (["their_net:build", "--input", "1x4", "--import-path", "nowhere"], "no such folder"),
    "kwargs that are no JSON": (["their_net:build", "--input", "1x4", "--kwargs", "{"], "is no JSON"),
    "options without an entry": (["model.pth", "--input", "1x4"], "there is no module of your own"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_options_are_explained_before_anything_runs(case: str, folder: Path) -> None:
    arguments, message = CASES[case]
    done = run(folder, *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert [path.name for path in folder.iterdir()] == ["code"]


def test_an_export_and_its_report(folder: Path) -> None:
    done = run(folder, "their_net:build", "--import-path", "code", "--input", "x=1x4", "--dynamic", "batch",
               "--kwargs", '{"width": 3}', "--report", "report.json", "--json", "-o", "net.onnx")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["module"]["entry"] == "their_net:build"
    assert "their code prints" in done.stderr
    report = json.loads((folder / "report.json").read_text())
    assert report["kwargs"] == {"width": 3}
    assert "Tracing it" in report["stages"]


FAILURES = {
    "a missing extension": ("wants:build", "the package 'a_missing_cuda_extension' is missing"),
    "a missing function": ("their_net:biuld", "Did you mean 'build'?"),
    "a function that fails": ("their_net:broken", "return undefined_name"),
    "a module that is not there": ("nothing_here:build", "--import-path DIR"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_what_goes_wrong_in_the_users_code_is_named(case: str, folder: Path) -> None:
    entry, message = FAILURES[case]
    done = run(folder, entry, "--import-path", "code", "--input", "1x4", "-o", "net.onnx")
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert [path.name for path in folder.iterdir()] == ["code"]
