"""The benchmark of cost against resolution: its table says what its numbers say, also where DeiT wins."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("scaling")


def row(scaling, model, size, seconds, mib, **more):
    found = {"model": model, "backend": "onnxruntime", "size": size, "tokens": scaling.tokens(size)}
    return {**found, "seconds": seconds, "peak_mib": mib, **more}


def test_growth_is_the_power_of_the_tokens(scaling):
    rows = [
        row(scaling, "vim", size, 1e-3 * scaling.tokens(size), 2.0 * scaling.tokens(size) ** 2) for size in (512, 2048)
    ]
    assert scaling.growth(rows, "seconds") == pytest.approx(1)
    assert scaling.growth(rows, "peak_mib") == pytest.approx(2)


def test_each_line_names_the_winner_and_what_was_not_run(scaling):
    vim, deit = row(scaling, "vim", 512, 0.9, 90.0), row(scaling, "deit", 512, 0.3, 120.0)
    assert scaling.line(vim, deit) == "| 512 | 1,025 | 0.9 | 0.3 | DeiT-Ti 3.0x | 90 | 120 | Vim-Ti 1.3x |"
    left_out = row(scaling, "deit", 512, None, None, not_run="would need about 13 of 16 GiB")
    assert scaling.line(vim, left_out).count("would need about 13 of 16 GiB") == 2


def test_too_large_a_run_is_left_out_with_the_reason(scaling):
    assert scaling.too_large("deit", "onnxruntime", 2**15).startswith("would need")
    assert scaling.too_large("deit", "torch", 2**15) == ""
    assert scaling.too_large("deit", "onnxruntime", 32) == ""


def test_the_committed_table_is_that_of_the_committed_numbers(scaling):
    folder = ROOT / "benchmarks" / "results"
    results = json.loads((folder / "scaling.json").read_text())
    assert (folder / "scaling.md").read_text() == scaling.table(results)
    assert (folder / "scaling.png").read_bytes().startswith(b"\x89PNG")
    sizes = sorted({measured["size"] for measured in results["measurements"]})
    assert (sizes[0], sizes[-1]) == (512, 2048)
