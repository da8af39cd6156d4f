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


def test_the_speeds_are_those_of_the_committed_run():
    results = json.loads((ROOT / "benchmarks" / "results" / "native.json").read_text())
    found = {(row["size"], row["name"]): row for row in results["scaling"]}
    readme = (ROOT / "README.md").read_text()
    for size in (224, 448, 512, 1024, 1248):
        vim, deit, body = (found.get((size, name)) for name in ("native", "DeiT-Ti", "body"))
        (line,) = (line for line in readme.splitlines() if line.startswith(f"| {size} | {vim['tokens']:,} |"))
        seconds, bodies, against_deit, *added = (cell.strip() for cell in line.strip("| ").split("|")[2:])
        assert seconds == f"{vim['cpu']:.3f} s"
        assert bodies == (f"{body['cpu'] / vim['cpu']:.1f}" if body else "")
        assert float(against_deit) == pytest.approx(deit["cpu"] / vim["cpu"], abs=0.06)
        assert added == [f"{row['added_mib']:.0f} MiB" for row in (vim, deit)]
