"""The image models of VideoMamba against their published code (OpenGVLab/VideoMamba, run on a CPU).

tests/data/videomamba.npz holds the logits that ``videomamba_{tiny,small,middle}`` gave with the weights and images of
trained_like.py: as released, and with their first two layers at 64 pixels.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from goldens import DATA, TOLERANCE
from trained_like import image, trained_like

from vimdeploy.artifacts.recipe import recipes
from vimdeploy.models.load import load_model
from vimdeploy.models.registry import build, config_of

NAMES = ("tiny", "small", "middle")
WHOLE = {"tiny": 415, "small": 415, "middle": 551}


def published(case):
    with np.load(DATA / "videomamba.npz") as file:
        return file[case]


def computed(name, config, size):
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in build(config).state_dict().items()}
    model = build(config).eval()
    model.load_state_dict({key: torch.from_numpy(value) for key, value in trained_like(shapes).items()})
    with torch.no_grad():
        return model(torch.from_numpy(image(f"videomamba_{name}", (2, 3, size, size)))).numpy()


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_computes_what_the_published_code_computes(name):
    config = replace(config_of(recipes()[f"videomamba_{name}_224"]), depth=2, img_size=(64, 64))
    np.testing.assert_allclose(computed(name, config, 64), published(name), **TOLERANCE)


def test_the_tiny_model_as_released_computes_what_the_published_code_computes():
    config = config_of(recipes()["videomamba_tiny_224"])
    np.testing.assert_allclose(computed("tiny", config, 224), published("tiny_full"), **TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_read_as_a_vim_the_same_weights_give_other_classes(name):
    """What a wrong guess would cost: the test that the recipe's options matter."""
    config = replace(config_of(recipes()[f"videomamba_{name}_224"]), depth=2, img_size=(64, 64))
    wrong = computed(name, replace(config, use_middle_cls_token=True, if_divide_out=True), 64)
    right = published(name)
    cosine = (wrong * right).sum() / np.linalg.norm(wrong) / np.linalg.norm(right)
    assert cosine < 0.6


@pytest.mark.parametrize("name", NAMES)
def test_recipes_state_the_parameters_and_keys_of_the_published_models(name):
    recipe = recipes()[f"videomamba_{name}_224"]
    with torch.device("meta"):
        model = build(config_of(recipe))
    assert sum(p.numel() for p in model.parameters()) == recipe.parameters
    assert len(model.state_dict()) == WHOLE[name]


def test_a_checkpoint_under_its_published_name_is_recognised(tmp_path):
    config = replace(config_of(recipes()["videomamba_tiny_224"]), depth=2)
    path = tmp_path / "videomamba_t16_in1k_res224.pth"
    torch.save({"model": build(config).state_dict()}, path)
    loaded = load_model(path)
    assert (loaded.config.use_middle_cls_token, loaded.config.if_divide_out) == (False, False)
