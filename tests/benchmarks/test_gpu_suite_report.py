"""The GPU suite's timing and report, on synthetic measurements, so that every number on the page is known."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from gpu_suite_support import EMULATION, ROOT, all_cases, assert_nothing_measured, measured_case, part, section, timed
from torch import Tensor

from benchmarks.gpu_suite import build, cases, ceilings, goals, kernels, models, peers, report, timing
from benchmarks.gpu_suite.library import Kernels
from benchmarks.gpu_suite.store import NOT_MEASURED, Store
from vimdeploy.models.vim.config import VimConfig


@pytest.fixture(scope="module")
def library() -> Kernels:
    return Kernels(build.build_emulated(EMULATION).kernels)


def test_report_of_nothing_says_so(tmp_path: Path) -> None:
    assert_nothing_measured(report.write(tmp_path))
    assert all(goal["value"] is None for goal in json.loads((tmp_path / "report.json").read_text())["goals"])


def test_report_believes_no_number_of_a_dry_run(tmp_path: Path) -> None:
    (tmp_path / "kernels.json").write_text(json.dumps(part("kernels", all_cases(100.0), dry=True)))
    assert_nothing_measured(report.write(tmp_path))


def test_report_of_measurements(tmp_path: Path) -> None:
    found = all_cases(80.0)
    found[kernels.key(768, 197, 1)] = measured_case(200.0, 350.0, 50.0)
    (tmp_path / "kernels.json").write_text(json.dumps(part("kernels", found)))
    page = report.write(tmp_path)
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| 384") and "| 6085 |" in line]
    assert [row[3].strip() for row in rows] == ["1", "8", "64", "128"]
    values = [cell.strip() for cell in rows[0][4:-1]]
    assert values == ["80.0", "thread-16", "chosen", "225.0", "450.0", "2.81x", "5.62x", "50.0 (exp)", "62 %"]
    lines = section(page, "Goals").strip().splitlines()
    assert [line.partition("(peer: peer): ")[2] for line in lines] == [
        "met: 5.62x",
        "met: 5.62x",
        "MISSED by 12 %: 1.75x at E=768 L=197 B=1",
        "MISSED by 4 %: 62 % at E=384 L=197 B=64",
    ]
    assert section(page, "Whole networks").strip() == "Not measured."


def test_goal_with_a_missing_case_is_not_measured() -> None:
    found = all_cases(80.0)
    del found[kernels.key(1536, 197, 64)]
    texts = [verdict.text for verdict in goals.verdicts(found)]
    assert texts[3] == NOT_MEASURED
    assert texts[0].startswith("met")


def test_results_of_two_devices_are_not_mixed(tmp_path: Path) -> None:
    older = part("kernels", all_cases(80.0), device="NVIDIA Other")
    (tmp_path / "kernels.json").write_text(json.dumps(older))
    newer = part("models", {"tiny 224 B=1 vim": {"status": "out of memory"}})
    newer["environment"]["started"] = "2026-01-02T00:00:00Z"
    (tmp_path / "models.json").write_text(json.dumps(newer))
    page = report.write(tmp_path)
    assert section(page, "Scan, both directions").strip() == "Not measured."
    assert "out of memory" in page


def test_committed_results_are_what_the_report_makes_of_them() -> None:
    folder = ROOT / "benchmarks" / "gpu_suite" / "results"
    assert (folder / "report.md").read_text() == report.render(report.load(folder))


def test_measuring_flow_with_a_stopped_clock(library: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Part ``kernels`` as on a GPU, except for the device and the clock: sets, variants, peer, floor, report."""
    small = [cases.vim_case(64, 19, 1), cases.vim_case(64, 5, 1)]
    monkeypatch.setattr(kernels, "timed_cases", lambda dry_run: iter(small))
    calls: list[int] = []

    def measure(call: Callable[[int], Any], sets: int) -> dict[str, Any]:
        for i in range(sets):
            call(i)
        calls.append(sets)
        return timed(100.0)

    monkeypatch.setattr(kernels, "measure", measure)
    facts = {**part("kernels", {})["environment"], "l2_bytes": 10_000}
    store = Store.open(tmp_path, "kernels", facts)
    peer = peers.Peer("peer", peers.torch_scan)
    speeds = {"copy_bytes_per_s": 1e12, "exp_per_s": 1e12}
    later = time.monotonic() + 100
    assert kernels.run(library, peer, store, ceilings=lambda: speeds, seed=1, device="cpu", deadline=later)
    assert store.complete
    assert set(calls) == {timing.input_sets(ceilings.scan_bytes(case), 10_000) for case in small}
    assert all(len(case["ours"]["variants"]) == 4 for case in store.cases.values())
    assert goals.ratio(store.cases[kernels.key(64, 19, 1)], "whole") == 1.0
    page = report.write(tmp_path)
    assert "copy 1.00 TB/s" in page
    assert "Geometric mean of the whole operation: 1.00x of 2 cases." in page

    wrong = peers.Peer("wrong", lambda *tensors: -peers.torch_scan(*tensors))
    store = Store.open(tmp_path, "kernels", facts)
    assert not kernels.run(library, wrong, store, ceilings=lambda: speeds, seed=1, device="cpu", deadline=later)


class FakeGraphs:
    """torch.cuda as far as timing uses it. Replays take a millisecond; the calls run at capture."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from contextlib import nullcontext
        from types import SimpleNamespace

        def event(enable_timing: bool) -> Any:
            return SimpleNamespace(record=lambda: None, elapsed_time=lambda other: 1.0)

        stream = SimpleNamespace(wait_stream=lambda other: None)
        graph = SimpleNamespace(replay=self._replay)
        fakes: dict[str, Any] = {
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "stream": nullcontext,
            "CUDAGraph": lambda: graph,
            "graph": nullcontext,
            "Event": event,
            "synchronize": lambda: None,
            "empty_cache": lambda: None,
            "reset_peak_memory_stats": lambda: None,
            "max_memory_allocated": lambda: 3 << 30,
        }
        self.replays = 0
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    def _replay(self) -> None:
        self.replays += 1


def test_measure_walks_through_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = FakeGraphs(monkeypatch)
    calls: list[int] = []
    found = timing.measure(calls.append, 4)
    assert calls == [0, 1, 2, 0, 1, 2, 3], "three to warm up, then the graph of all"
    assert found["median_us"] == 250.0
    assert graphs.replays > 2 * found["replays"]


def test_models_flow_with_a_stopped_clock(library: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Part ``models`` as on a GPU, except for the device, the clock and the sizes; a network that does not fit too."""
    FakeGraphs(monkeypatch)
    monkeypatch.setattr(models, "PIXELS", (32,))
    monkeypatch.setattr(models, "BATCHES", (2, 1))
    monkeypatch.setattr(models.networks, "SIZES", {"tiny": 192})
    monkeypatch.setattr(models.networks, "vim_config", lambda *_, **__: tiny)
    tiny = VimConfig(img_size=(32, 32), embed_dim=32, depth=2, num_classes=10)

    class Deit(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 1:
                raise torch.OutOfMemoryError("too large")
            return images.mean((2, 3))

    monkeypatch.setattr(models.networks, "deit", lambda *_, **__: Deit())
    monkeypatch.setitem(sys.modules, "timm", ModuleType("timm"))
    sys.modules["timm"].__spec__ = ModuleSpec("timm", None)  # installed, as far as the suite looks
    store = Store.open(tmp_path, "models", part("models", {})["environment"])
    peer, later = peers.Peer("peer", peers.torch_scan), time.monotonic() + 100
    assert models.run(library.path, peer, store, seed=1, device="cpu", deadline=later, dry_run=False)
    assert store.complete
    assert store.cases["tiny 32 B=2 vim"]["images_per_s"] == 2000.0
    assert store.cases["tiny 32 B=2 deit"] == {"status": "out of memory"}
    page = report.write(tmp_path)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if "| 32 " in line]
    assert rows == [
        ["tiny", "32", "1", *["1000/s 3.00 GiB"] * 5],
        ["tiny", "32", "2", *["2000/s 3.00 GiB"] * 3, "out of memory", "out of memory"],
    ]


def test_medians_are_of_one_call() -> None:
    found = timing.summarise([30.0, 10.0, 20.0], [40.0, 40.0], 2)
    assert (found.median_us, found.again_us, found.replays) == (10.0, 20.0, 3)
    assert timing.input_sets(10 << 20, 60 << 20) == 18, "three times the cache"
    assert timing.input_sets(1 << 30, 60 << 20) == 2
    assert timing.replays_of(10.0, 0.3) == timing.MAX_REPLAYS
    assert timing.replays_of(100_000.0, 0.3) == timing.MIN_REPLAYS
    assert timing.replays_of(2_000_000.0, 0.3) == timing.MIN_SLOW_REPLAYS


def test_floor_is_that_of_the_cost_model() -> None:
    """36 exp-unit operations and about 8.5 bytes per token and channel (both directions, dt_proj fused, E = 384)."""
    case = cases.vim_case(384, 197, 64)
    elements = case.batch * case.length * case.channels
    assert ceilings.scan_exponentials(case) == 36 * elements
    assert 8.3 < ceilings.scan_bytes(case) / elements < 8.6
    assert ceilings.floor(case, {"copy_bytes_per_s": 4e12, "exp_per_s": 4e12})["bound"] == "exp"
