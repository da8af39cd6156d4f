"""The comparison after a build takes any count of images, whatever batch the model takes; ONNX Runtime stands for the
engine here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from exports import DATA, export
from PIL import Image

from vimdeploy.artifacts.manifest import read_manifest
from vimdeploy.commands import build_engine
from vimdeploy.runtime.onnx_session import OnnxSession


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(DATA / "cls_tiny.pth", tmp_path_factory.mktemp("fixed") / "fixed.onnx", batch=16)


def parity(model: Path, images: Path | None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any] | None:
    monkeypatch.setattr(build_engine, "PlanSession", lambda _path, **_options: OnnxSession(model))
    profile = {"images": ((16, 3, 64, 64),) * 3}
    sidecar: Any = SimpleNamespace(
        source=read_manifest(model), profiles=(profile,), precision="fp32", to_bytes=lambda: b"{}"
    )
    request = build_engine.Request(images=images)
    return build_engine._parity(b"plan", sidecar, model, request)


def test_a_model_of_a_large_fixed_batch(fixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = parity(fixed, None, monkeypatch)
    assert metrics is not None
    assert (metrics["samples"], metrics["passed"]) == (8, True)


def test_a_folder_of_any_number_of_images(fixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(19):
        Image.new("RGB", (64, 64), (13 * index, 7 * index, index)).save(tmp_path / f"{index}.png")
    metrics = parity(fixed, tmp_path, monkeypatch)
    assert metrics is not None
    assert (metrics["samples"], metrics["passed"]) == (19, True)
