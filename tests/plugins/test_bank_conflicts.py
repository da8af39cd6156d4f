"""The script that counts shared-memory wavefronts: known patterns, planted conflicts, and the table in KERNELS.md."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PLUGINS = Path(__file__).parents[2] / "plugins"


@pytest.fixture(scope="module")
def banks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bank_conflicts", PLUGINS / "tools" / "bank_conflicts.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_patterns_whose_cost_is_known(banks: ModuleType) -> None:
    count, access = banks.wavefronts, banks.Access
    assert count(access("consecutive words", 4, lambda i: 4 * i)) == 1
    assert count(access("one word for all", 4, lambda _: 0)) == 1
    assert count(access("every second word", 4, lambda i: 8 * i)) == 2
    assert count(access("one bank", 4, lambda i: 128 * i)) == 32
    assert count(access("consecutive 16 bytes", 16, lambda i: 16 * i)) == 4
    assert count(access("16 bytes, the same for all", 16, lambda _: 0)) == 2


def test_planted_conflicts_are_seen(banks: ModuleType) -> None:
    """What padding and packing are there for: without them the same script reports eight of a kind."""
    good = {a.what: banks.wavefronts(a) for a in banks.accesses(1)}
    unpadded = {a.what: banks.wavefronts(a) for a in banks.accesses(1, padded=False)}
    unpacked = {a.what: banks.wavefronts(a) for a in banks.accesses(1, packed=False)}
    assert (good["dt projection: u, a word"], unpadded["dt projection: u, a word"]) == (1, 8)
    assert good["epilogue: sums of four channels"] == 4
    assert unpacked["epilogue: sums of two channels"] == 8, "and two such reads for four channels"


def test_the_table_of_the_documentation_is_the_scripts(banks: ModuleType) -> None:
    assert banks.table(12) in (PLUGINS / "KERNELS.md").read_text()
