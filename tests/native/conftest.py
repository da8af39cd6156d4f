"""A bare machine, and one with an nvcc that is a shell script."""

from __future__ import annotations

from pathlib import Path

import pytest
from bare_machine import NVCC, executable, make_bare


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bare(tmp_path, monkeypatch)


@pytest.fixture
def nvcc(bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    return executable(tmp_path / "cuda" / "bin" / "nvcc", NVCC)
