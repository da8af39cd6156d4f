"""The pages on the family: commands run, tables name every recipe, links lead somewhere."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from vimdeploy.artifacts.recipe import recipes

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "family.md").read_text()
COMMANDS = [line[2:] for line in PAGE.splitlines() if line.startswith("$ ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run_and_say_what_they_saw(command, tmp_path):
    program, *arguments = shlex.split(command)
    assert program == "vimdeploy"
    done = subprocess.run(
        [sys.executable, "-m", "vimdeploy", *arguments],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"recipe {arguments[arguments.index('--arch') + 1]}" in done.stdout
    manifest = json.loads((tmp_path / f"{arguments[-1]}.json").read_text())
    assert manifest["parity"]["passed"]
    names = [output["name"] for output in manifest["outputs"]]
    assert names == (["logits"] if "deit" in command else ["p2", "p3", "p4", "p5"])
    assert bool(manifest["onnx"]["custom_ops"]) == ("deit" not in command)


def test_the_table_of_models_names_every_recipe():
    table = (ROOT / "docs" / "models.md").read_text()
    assert [name for name in recipes() if f"`{name}`" not in table] == []


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
