"""A family is one folder and one line of the registry: everything else takes it as it takes the others."""

import ast
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from commandline import refuse, succeed
from onnx import numpy_helper
from toy.family import TOY, Toy, ToyConfig

import vimdeploy
from vimdeploy.models import registry
from vimdeploy.models.load import load_model
from vimdeploy.parity.torch_policy import lowered


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The checkpoint of a toy; its family is registered."""
    monkeypatch.setattr(registry, "FAMILIES", [*registry.FAMILIES, TOY])
    torch.manual_seed(0)
    path = tmp_path / "toy.pth"
    torch.save({"model": Toy(ToyConfig(dim=6, num_classes=4)).state_dict()}, path)
    return path


def test_a_new_family_is_exported_proven_verified_and_converted(toy, tmp_path):
    exported = tmp_path / "toy.onnx"
    succeed("export", toy, "-o", exported, "--img-size", 32)
    manifest = json.loads((tmp_path / "toy.onnx.json").read_text())
    assert (manifest["model"]["family"], manifest["model"]["arguments"]["dim"]) == ("toy", 6)
    assert manifest["model"]["img_size"] == [32, 32]
    assert "image size changed from 16 x 16 to 32 x 32 pixels" in manifest["notes"]
    assert manifest["onnx"]["custom_ops"] == {"SelectiveScan": 1}
    assert manifest["parity"]["passed"]
    succeed("verify", exported)
    succeed("convert", exported, "--fp16", "-o", tmp_path / "half.onnx")
    assert succeed("inspect", toy, "--json").json()["architecture"]["family"] == "toy"


def test_a_departure_is_found_at_its_own_block(toy, tmp_path):
    exported = tmp_path / "toy.onnx"
    succeed("export", toy, "-o", exported, "--no-verify")
    broken = onnx.load(exported)
    weights = next(t for t in broken.graph.initializer if t.name.endswith("mixer.x_proj"))
    weights.CopyFrom(numpy_helper.from_array(np.zeros((6, 3), np.float32), weights.name))
    onnx.save(broken, exported)
    refuse("verify", exported, code=1, words=["They part in block 0, its output"])


def test_under_the_half_precision_policy_its_mixer_is_half_and_its_state_is_not(toy):
    halved = lowered(load_model(toy).model, "fp16")
    assert halved.mixer.x_proj.dtype == torch.float16
    assert halved.mixer.A.dtype == torch.float32


def test_what_contradicts_it_is_refused_in_the_words_of_all_families(toy, tmp_path):
    for arguments, words in (
        (["--model-args", '{"dim": 7}'], "says dim = 7, the checkpoint's weights say 6"),
        (["--recipe", "vim_tiny_patch16_224"], "holds a toy, recipe vim_tiny_patch16_224 is a Vim-Ti"),
        (["--task", "dense"], "Task 'dense' does not fit a classifier"),
    ):
        refused = refuse("export", toy, "-o", tmp_path / "toy.onnx", *arguments, folder=tmp_path)
        assert words in " ".join(refused.stderr.split())


def test_without_its_line_in_the_registry_the_checkpoint_is_of_no_family(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "FAMILIES", registry.FAMILIES[:-1])
    refused = refuse("export", toy, "-o", tmp_path / "toy.onnx", folder=tmp_path)
    assert "neither a Vision Mamba nor a VMamba nor a DeiT" in " ".join(refused.stderr.split())


def test_nothing_but_the_registry_knows_the_families_by_name():
    package = Path(vimdeploy.__file__).parent
    names = {name for family in registry.FAMILIES for name in family.configs}
    folders = {path.parent for path in package.glob("models/*/family.py")}
    assert {folder.name for folder in folders} <= names
    found = []
    for path in package.rglob("*.py"):
        if path.parent in folders or path == Path(registry.__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.Constant) and node.value in names
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if named or any(module.startswith(f"vimdeploy.models.{folder.name}") for folder in folders):
                found.append(f"{path.relative_to(package)}:{node.lineno}")
    assert not found
