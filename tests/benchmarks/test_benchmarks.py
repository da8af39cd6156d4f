"""The benchmarks measure what they say: the loop is the loop, and the committed tables are those of their numbers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from vimdeploy.models.vim import mamba
from vimdeploy.models.vim.config import VimConfig
from vimdeploy.models.vim.model import VisionMamba
from vimdeploy.models.vmamba import ss2d
from vimdeploy.ops import causal_conv1d, causal_conv1d_reference, selective_scan, selective_scan_reference

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def script(name: str) -> ModuleType:
    """Import a benchmark."""
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["cpu", "engine", "precision"])
def test_the_committed_table_is_that_of_the_committed_numbers(name: str) -> None:
    numbers = json.loads((RESULTS / f"{name}.json").read_text())
    assert (RESULTS / f"{name}.md").read_text() == script(name).table(numbers)


def test_neighbouring_blocks_are_written_as_a_range() -> None:
    ranges = script("precision").ranges
    assert ranges([]) == ""
    assert ranges(["block.0", "block.1"]) == "block.0, block.1"
    assert ranges(["block.3", "block.4", "block.5", "head"]) == "block.3 to block.5, head"
    assert ranges(["block.0", "block.1", "block.7"]) == "block.0, block.1, block.7"


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark, with a model of two small blocks in place of Vim-Ti."""
    module = script("cpu")
    config = VimConfig(img_size=(32, 32), patch_size=(16, 16), embed_dim=32, depth=2, num_classes=5)
    monkeypatch.setattr(module, "vim_tiny", lambda _size: VisionMamba(config))
    monkeypatch.setattr(module, "MIN_SECONDS", 0.01)
    # The benchmark replaces these in its own process; here they are put back.
    monkeypatch.setattr(mamba, "causal_conv1d", causal_conv1d)
    monkeypatch.setattr(mamba, "selective_scan", selective_scan)
    monkeypatch.setattr(ss2d, "selective_scan", selective_scan)
    return module


def test_the_loop_is_the_reference_and_computes_the_same(cpu: ModuleType) -> None:
    threads = torch.get_num_threads()
    vectorised, _ = cpu.prepare("torch", 32, 2, threads, "")
    assert mamba.selective_scan is selective_scan
    expected = vectorised()
    loop, _ = cpu.prepare("loop", 32, 2, threads, "")
    assert mamba.causal_conv1d is causal_conv1d_reference
    assert mamba.selective_scan is ss2d.selective_scan is selective_scan_reference
    assert torch.allclose(loop(), expected, atol=1e-4, rtol=1e-4)


def test_a_measurement_has_times_and_peaks(cpu: ModuleType) -> None:
    found = cpu.measure("torch", 32, 1, torch.get_num_threads(), "")
    assert len(found["seconds"]) == len(found["cpu_seconds"]) >= 1
    assert min(found["seconds"]) > 0
    assert found["peak_mib"] >= found["before_mib"] > 10
    json.dumps(found)


def measurement(cpu: ModuleType, backend: str, cpu_seconds: float, *seconds: float) -> dict[str, Any]:
    turn = {"seconds": seconds, "cpu_seconds": [cpu_seconds] * len(seconds), "peak_mib": 300.0, "before_mib": 250.0}
    result: dict[str, Any] = cpu.summary(backend, 224, 2, 1, [turn])
    return result


def test_the_table_compares_medians_of_one_run(cpu: ModuleType) -> None:
    results = {
        "machine": cpu.machine(0.5),
        "exports": [
            {
                "size": 224,
                "seconds": {"without_verification": 9.0},
                "cpu_seconds": {"without_verification": 8.0},
                "bytes": 1 << 20,
            }
        ],
        "measurements": [
            measurement(cpu, "loop", 1.5, 1.0, 3.0, 2.0),
            measurement(cpu, "torch", 0.5, 1.0),
            measurement(cpu, "onnxruntime", 0.25, 0.25, 0.5, 9.0),
        ],
    }
    rows = [line for line in cpu.table(results).splitlines() if line.startswith("| 224 | 197 | 2 | 1 |")]
    assert [row.split("|")[6:10] for row in rows] == [
        [" 2.000 s ", " 1.500 s ", " 1.00 ", " 1.0 "],
        [" 1.000 s ", " 0.500 s ", " 2.00 ", " 3.0 "],
        [" 0.500 s ", " 0.250 s ", " 4.00 ", " 6.0 "],
    ]
    assert "(+50)" in rows[0]
