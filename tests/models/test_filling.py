"""Models are built without values and filled from the checkpoint: what a copy would have evened out is evened out."""

import subprocess
import sys

import pytest
import torch
from goldens import golden

from vimdeploy.artifacts.recipe import recipes
from vimdeploy.models.load import ModelRequest, load_model
from vimdeploy.models.registry import build, config_of


def test_weights_in_another_memory_layout_are_laid_out_as_the_model_has_them(tmp_path):
    state = golden("cls_tiny").state()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].to(memory_format=torch.channels_last)
    state["layers.0.mixer.in_proj.weight"] = state["layers.0.mixer.in_proj.weight"].T.contiguous().T
    torch.save({"model": state}, tmp_path / "strided.pth")
    model = load_model(tmp_path / "strided.pth").model
    assert all(value.is_contiguous() for value in model.state_dict().values())
    case = golden("cls_tiny")
    with torch.no_grad():
        torch.testing.assert_close(model(case.images), torch.from_numpy(case.arrays["logits"]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [None, (96, 96)])
def test_rotations_for_another_image_size_have_values(tmp_path, size):
    torch.save({"model": golden("rope_midcls").state()}, tmp_path / "rope.pth")
    model = load_model(tmp_path / "rope.pth", ModelRequest(img_size=size)).model
    assert not any(value.is_meta for value in model.state_dict().values())
    torch.testing.assert_close(model.rope.freqs_cos, build(model.config).rope.freqs_cos)


@pytest.mark.parametrize("name", ["vim_tiny_patch16_224", "vim_tiny_vimdet_1024", "vmamba_tiny_v0"])
def test_shapes_alone_take_no_arithmetic_on_the_meta_device(name):
    """Its first use imports hundreds of modules and a second, which is more than the random values would take."""
    code = (
        "import sys, torch; from vimdeploy.artifacts.recipe import recipes\n"
        "from vimdeploy.models.registry import build, config_of\n"
        f"config = config_of(recipes()['{name}']); before = len(sys.modules)\n"
        "with torch.device('meta'): model = build(config)\n"
        "print(len(sys.modules) - before, sum(p.numel() for p in model.parameters()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported, parameters = map(int, done.stdout.split())
    assert imported < 50
    assert parameters == recipes()[name].parameters
    assert config_of(recipes()[name]).family == recipes()[name].family
