"""The pages on the family: commands run, tables name every recipe."""

import json
import shlex

import pytest
from pages import commands, run, text

from vimdeploy.artifacts.recipe import recipes


@pytest.mark.parametrize("command", commands("docs/family.md"))
def test_commands_run_and_say_what_they_saw(command, tmp_path):
    said, arguments = run(command, tmp_path), shlex.split(command)
    assert f"recipe {arguments[arguments.index('--arch') + 1]}" in said
    manifest = json.loads((tmp_path / f"{arguments[-1]}.json").read_text())
    assert manifest["parity"]["passed"]
    names = [output["name"] for output in manifest["outputs"]]
    assert names == (["logits"] if "deit" in command else ["p2", "p3", "p4", "p5"])
    assert bool(manifest["onnx"]["custom_ops"]) == ("deit" not in command)


def test_the_table_of_models_names_every_recipe():
    table = text("docs/models.md")
    assert [name for name in recipes() if f"`{name}`" not in table] == []
