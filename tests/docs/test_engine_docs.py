"""Every command and the example of docs/engines.md run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pages import ROOT, commands, examples, make_checkout, run, text

PAGE = text("docs/engines.md")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkout(tmp_path_factory.mktemp("docs"), "examples", "export")


@pytest.mark.parametrize("command", commands("docs/engines.md"))
def test_the_commands_run_in_order(command: str, checkout: Path) -> None:
    run(command, checkout)


def test_the_example_runs_on_what_they_made(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = examples("docs/engines.md")
    monkeypatch.chdir(checkout)
    names: dict[str, object] = {}
    exec(example, names)
    assert names["logits"].shape == (5, 10)  # type: ignore[attr-defined]


def test_the_errors_are_those_of_the_committed_results() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "precision.json").read_text())
    vim, readme = results["keys_tiny"], (ROOT / "README.md").read_text()

    def written(error: float) -> str:
        return f"{error:.1e}".replace("e-0", "e-")

    for error in vim["precisions"]["fp16"].values():
        assert written(error) in PAGE
    for bound in (b for b in vim["bounds"] if b["precision"] == "fp16"):
        sentence = rf"{len(bound['kept'])} of (24 blocks in float32 it is|them)\s{written(bound['error'])}"
        assert re.search(sentence, " ".join(PAGE.split())), sentence
    assert written(vim["precisions"]["fp16"]["policy"]) in readme
    assert written(results["vim_digits"]["precisions"]["fp16"]["policy"]) in readme
