"""Every command in the documentation runs."""

import json
import shlex

import pytest
from pages import ROOT, broken_links, commands, examples, make_checkout, run


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return make_checkout(tmp_path_factory.mktemp("readme"), "examples", "export", "benchmarks")


def test_the_readme_has_the_commands_users_type():
    named = {shlex.split(command)[1] for command in commands("README.md")}
    assert {"export", "verify", "predict", "inspect", "recipes", "doctor"} <= named


@pytest.mark.parametrize("command", commands("README.md"))
def test_readme_command_runs(command, checkout):
    run(command, checkout)


def test_the_python_example_runs_on_what_the_commands_made(checkout, monkeypatch):
    (example,) = examples("README.md")
    monkeypatch.chdir(checkout)
    names: dict[str, object] = {}
    exec(example, names)
    assert names["logits"].shape == (5, 10)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


def test_the_speeds_are_those_of_the_committed_results():
    results = json.loads((ROOT / "benchmarks" / "results" / "cpu.json").read_text())
    rows = [m for m in results["measurements"] if (m["batch"], m["threads"]) == (1, 1)]
    readme = (ROOT / "README.md").read_text()
    for size in (224, 512, 1248):
        loop, torch, ort = (
            next(m for m in rows if (m["size"], m["backend"]) == (size, backend))
            for backend in ("loop", "torch", "onnxruntime")
        )
        ratios = [f"{loop['cpu_seconds'] / other['cpu_seconds']:.1f}x" for other in (torch, ort)]
        row = (str(size), f"{loop['tokens']:,}", f"{loop['cpu_seconds']:.2f} s", *ratios, f"{ort['peak_mib']:.0f} MiB")
        assert f"| {' | '.join(row)} |" in readme
