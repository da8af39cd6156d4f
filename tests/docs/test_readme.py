"""Every command in the documentation runs."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def commands(page: str) -> list[str]:
    """Return the lines that start with ``$`` in the console blocks of a page."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder that looks like the root of a checkout to the commands, and takes their output."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("examples", "export", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def test_the_readme_has_the_commands_users_type():
    named = {shlex.split(command)[1] for command in commands("README.md")}
    assert {"export", "verify", "predict", "inspect", "recipes", "doctor"} <= named


@pytest.mark.parametrize("command", commands("README.md"))
def test_readme_command_runs(command, checkout):
    program, *arguments = shlex.split(command)
    assert program == "vimdeploy"
    done = subprocess.run(
        [sys.executable, "-m", "vimdeploy", *arguments],
        cwd=checkout,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(checkout)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_python_example_runs_on_what_the_commands_made(checkout, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(checkout)
    names: dict[str, object] = {}
    exec(example, names)
    assert names["logits"].shape == (5, 10)


def test_readme_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


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
