"""Exported models that the tests of precision and engines share."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from vimdeploy import pipeline
from vimdeploy.models.load import ModelRequest

DATA = Path(__file__).parents[1] / "data"
sys.path.insert(0, str(DATA))


def export(checkpoint: Path, output: Path, **request: object) -> Path:
    options = pipeline.ExportRequest(verify=False, **request)  # type: ignore[arg-type]
    pipeline.export(checkpoint, output, ModelRequest(), options, lambda _: lambda *_: None)
    return output


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
    from trained_like import trained_like

    folder = tmp_path_factory.mktemp("vim_ti")
    rows = [line.split("\t") for line in (DATA / "keys_tiny.txt").read_text().splitlines() if line[0] != "#"]
    shapes = {key: tuple(int(d) for d in shape.strip("()[]").split(",") if d.strip()) for key, shape, _ in rows}
    state = {key: torch.from_numpy(value) for key, value in trained_like(shapes).items()}
    torch.save({"model": state}, folder / "vim_ti.pth")
    return export(folder / "vim_ti.pth", folder / "vim_ti.onnx")


def relative_rms(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a.astype(np.float64) - b) ** 2) / np.mean(b.astype(np.float64) ** 2)))
