"""Exports are slow, so tests share them: one per model and options in a session."""

from __future__ import annotations

import signal
from functools import cache
from pathlib import Path

import onnx
import pytest
import torch
from exports import DATA, export
from goldens import golden
from trained_like import trained_like

from vimdeploy.graph.export import export_onnx

# A shell ignores SIGINT for what it starts in the background, and every child inherits that: the tests that press
# Ctrl-C on commands would then test the shell.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@cache
def _exported(name, options):
    return export_onnx(golden(name).model(), **dict(options))


@pytest.fixture(scope="session")
def exported():
    """Return a function from a golden's name and options of the export to a model that the test may change."""

    def export_golden(name, **options):
        copy = onnx.ModelProto()
        copy.CopyFrom(_exported(name, tuple(sorted(options.items()))))
        return copy

    return export_golden


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden four-block Vim (64 pixels, 10 classes), exported with its manifest."""
    return export(DATA / "cls_tiny.pth", tmp_path_factory.mktemp("tiny") / "vim.onnx")


@pytest.fixture(scope="session")
def tiny_model(tiny: Path) -> onnx.ModelProto:
    return onnx.load(tiny)


@pytest.fixture(scope="session")
def vim_ti(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vim-Ti at 224 pixels with trained-like weights, exported with its manifest."""
    folder = tmp_path_factory.mktemp("vim_ti")
    rows = [line.split("\t") for line in (DATA / "keys_tiny.txt").read_text().splitlines() if line[0] != "#"]
    shapes = {key: tuple(int(d) for d in shape.strip("()[]").split(",") if d.strip()) for key, shape, _ in rows}
    state = {key: torch.from_numpy(value) for key, value in trained_like(shapes).items()}
    torch.save({"model": state}, folder / "vim_ti.pth")
    return export(folder / "vim_ti.pth", folder / "vim_ti.onnx")
