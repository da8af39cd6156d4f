"""The trained example: it learns, its files belong together, and it loads like any official checkpoint."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from vimdeploy.artifacts.recipe import find_recipe
from vimdeploy.models.load import LoadedModel, ModelRequest, load_model
from vimdeploy.models.vim.model import VisionMamba

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "digits"
REPORT = json.loads((DIGITS / "vim_digits.json").read_text())


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_digits", ROOT / "examples" / "train_digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def held_out() -> dict[str, np.ndarray]:
    with np.load(DIGITS / "held_out.npz") as file:
        return dict(file)


def loaded(weights: str) -> LoadedModel:
    return load_model(DIGITS / "vim_digits.pth", ModelRequest(weights=weights))


def test_the_checkpoint_has_the_official_layout_and_is_small() -> None:
    path = DIGITS / "vim_digits.pth"
    assert path.stat().st_size < 1_500_000
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(path, weights_only=True)
    assert set(content) == {"model", "model_ema", "epoch", "args"}
    assert content["args"].nb_classes == 10
    assert content["epoch"] == REPORT["training"]["epochs"] - 1
    assert any(not torch.equal(content["model"][key], content["model_ema"][key]) for key in content["model"])


def test_the_checkpoint_finds_its_recipe_by_itself() -> None:
    model = loaded("model")
    assert model.recipe is not None
    assert model.recipe.name == "vim_digits"
    assert model.labels == tuple("0123456789")
    assert model.input.size == (32, 32)
    assert model.recipe.parameters == REPORT["parameters"] == sum(p.numel() for p in model.model.parameters())


def test_the_held_back_split_is_a_quarter_of_each_digit_and_comes_from_its_seed(
    script: ModuleType, held_out: dict[str, np.ndarray]
) -> None:
    train, (images, labels, index) = script.load_split(REPORT["held_out"]["split_seed"])
    assert np.array_equal(held_out["images"], images)
    assert np.array_equal(held_out["labels"], labels)
    assert np.array_equal(held_out["index"], index)
    assert not set(index) & set(train[2])
    counts, all_counts = np.bincount(labels), np.bincount(np.concatenate([labels, train[1]]))
    assert np.all(np.abs(counts - all_counts / 4) < 1)


@pytest.mark.parametrize("weights", ["model", "ema"])
def test_both_sets_of_weights_reach_the_accuracy_they_claim(
    script: ModuleType, held_out: dict[str, np.ndarray], weights: str
) -> None:
    claimed = REPORT["accuracy"]["model" if weights == "model" else "model_ema"]
    reached = script.accuracy(loaded(weights).model, held_out["images"], held_out["labels"])
    assert reached >= 0.97
    # Another processor may round one image's logits to the other side of a tie.
    assert abs(reached - claimed) <= 1.5 / len(held_out["labels"])


def test_the_example_images_are_held_back_digits(held_out: dict[str, np.ndarray]) -> None:
    known = {image.tobytes(): label for image, label in zip(held_out["images"], held_out["labels"], strict=True)}
    for digit in range(10):
        pixels = np.asarray(Image.open(DIGITS / f"{digit}.png"))
        assert known[pixels.tobytes()] == digit


def test_the_recipe_is_the_model_that_is_trained(script: ModuleType) -> None:
    from vimdeploy.models.vim.config import VimConfig, read_official_arguments

    recipe = find_recipe("vim_digits")
    assert VimConfig(**read_official_arguments(recipe.model, "recipe").values) == script.CONFIG
    assert recipe.input.mean == recipe.input.std == (script.MEAN,) * 3
    assert script.official_arguments(
        argparse.Namespace(batch_size=1, epochs=1, lr=1, weight_decay=0, seed=0)
    ).model == (recipe.official_name)


def train_briefly(script: ModuleType, seed: int) -> tuple[VisionMamba, VisionMamba, float, float]:
    """Train on 128 images for a few seconds; returns model, average, and accuracy on them before and after."""
    (images, labels, index), _ = script.load_split(0)
    subset = images[:128], labels[:128], index[:128]
    arguments = argparse.Namespace(epochs=5, batch_size=32, lr=3e-3, weight_decay=0.05, seed=seed)
    torch.manual_seed(seed)
    untrained = VisionMamba(script.CONFIG)
    before = script.accuracy(untrained.eval(), *subset[:2])
    model, ema = script.fit(untrained, subset, arguments)
    return model, ema, before, script.accuracy(model, *subset[:2])


def test_training_learns_and_repeats_bit_for_bit(script: ModuleType) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(script.THREADS)
    try:
        model, ema, before, after = train_briefly(script, seed=3)
        again, again_ema, _, _ = train_briefly(script, seed=3)
    finally:
        torch.set_num_threads(threads)
    assert after > before + 0.2, (before, after)
    for first, second in ((model, again), (ema, again_ema)):
        for key, value in first.state_dict().items():
            assert torch.equal(value, second.state_dict()[key]), key
