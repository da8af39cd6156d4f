"""Exported models that the tests of precision and engines share."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from exports import DATA, export
from trained_like import trained_like


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
