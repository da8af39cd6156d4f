"""Synthetic results of the GPU suite, and how to read its page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.gpu_suite import cases, kernels
from benchmarks.gpu_suite.store import NOT_MEASURED

ROOT = Path(__file__).parents[2]
EMULATION = Path(os.environ.get("VIMDEPLOY_EMULATION_BUILD", ROOT / "build" / "emulation"))


def assert_nothing_measured(page: str) -> None:
    """No section of measurements holds a number, and every goal says that it was not measured."""
    kernels_section = section(page, "Scan, both directions")
    networks_section = section(page, "Whole networks")
    for text in (kernels_section, networks_section):
        assert text.strip() == "Not measured."
    for line in section(page, "Goals").strip().splitlines():
        assert line.endswith(f": {NOT_MEASURED}"), line


def section(page: str, title: str) -> str:
    start = page.index("\n", page.index(f"## {title}"))
    end = page.find("\n## ", start)
    return page[start : end if end > 0 else None]


def timed(microseconds: float) -> dict[str, Any]:
    return {"median_us": microseconds, "p10_us": 1.0, "p90_us": 1.0, "again_us": 1.0, "replays": 7, "calls": 2}


def measured_case(ours: float, whole: float, floor: float) -> dict[str, Any]:
    return {
        "ours": {"chosen": "thread-16", "launches": 1, "variants": {"thread-16": timed(ours), "chunked": timed(999.0)}},
        "peer": {"name": "peer", "kernels": timed(whole / 2), "flips": timed(whole), "whole": timed(whole)},
        "floor": {"us": floor, "bound": "exp", "memory_us": 1.0, "exp_us": floor},
        "agreement": 1e-3,
    }


def part(name: str, found: dict[str, Any], *, dry: bool = False, device: str = "NVIDIA Test") -> dict[str, Any]:
    facts = {"device": device, "dry_run": dry, "sources": "abc", "torch": "2.11.0", "compute_capability": "9.0"}
    facts |= {"sm_count": 132, "l2_bytes": 60 << 20, "driver": "1", "nvcc": "13.0", "python": "3.12", "packages": {}}
    return {
        "format": 1,
        "identity": {"part": name, "dry_run": dry, "device": device, "sources": "abc", "torch": "2.11.0"},
        "environment": {**facts, "started": "2026-01-01T00:00:00Z"},
        "complete": True,
        "notes": {"peer": "peer", "peer_notes": "", "ceilings": {"copy_bytes_per_s": 4e12, "exp_per_s": 4e12}},
        "cases": found,
    }


def all_cases(ours: float) -> dict[str, Any]:
    keys = (kernels.key(*shape, batch) for batch in kernels.BATCHES for shape in cases.VIM_SHAPES)
    return {name: measured_case(ours, 450.0, 50.0) for name in keys}
