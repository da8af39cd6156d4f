"""From a checkpoint file to a model: the one way in, for every command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vimdeploy.artifacts.recipe import InputSpec, Recipe, find_recipe
from vimdeploy.errors import CheckpointError, UsageError
from vimdeploy.models.checkpoint.reading import Checkpoint, read_checkpoint
from vimdeploy.models.config import ModelConfig
from vimdeploy.models.evidence import GUESS, summarise_keys
from vimdeploy.models.family import FamilyModel, Recognised
from vimdeploy.models.registry import build, config_of, family_of, recognise


@dataclass(frozen=True)
class ModelRequest:
    """What a user asks for beside the checkpoint; the defaults ask for nothing."""

    recipe: str | None = None
    model_args: Mapping[str, Any] | None = None
    """What shapes cannot tell, in the official constructor's argument names."""
    weights: str = "model"
    """``model``, ``ema``, or the name of an entry of the checkpoint."""
    prefix: str | None = None
    """What stands before the model's keys in the checkpoint; None finds it."""
    img_size: tuple[int, int] | None = None
    """(height, width) to resize to."""
    official_pos_resize: bool = False
    task: str | None = None
    """``dense`` takes a classifier's layers as a backbone; None and the other tasks take what the checkpoint is."""
    arch: str | None = None
    """Name of a recipe whose model is made with random weights, where there is no checkpoint."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode with everything known about it."""

    model: FamilyModel
    config: ModelConfig
    """Of the model as it is: resized, if that was asked for."""
    checkpoint: Checkpoint
    recognised: Recognised
    input: InputSpec
    labels: tuple[str, ...] | None
    """Class names, where a recipe knows them."""
    notes: tuple[str, ...]

    @property
    def recipe(self) -> Recipe | None:
        """The recipe of this model, named by the user or found."""
        return self.recognised.recipe


def load_model(path: Path | None, request: ModelRequest | None = None) -> LoadedModel:
    """Read a checkpoint, recognise its architecture, load it strictly and resize it if asked to.

    Whole detectors and segmentors give their backbone; the notes say what was left. Without a path the model of
    ``request.arch`` gets random weights, the same ones every time.

    Raises:
        CheckpointError: the file cannot be read, or its weights do not fit the architecture.
        UsageError: an unknown recipe or argument, or one that the checkpoint contradicts.
        ModelError: a variant that the official code cannot run.

    """
    request = request or ModelRequest()
    if path is None:
        return _random_model(request)
    recipe = find_recipe(request.recipe) if request.recipe else None
    model_args = dict(request.model_args or {})
    checkpoint, recognised = recognise(
        read_checkpoint(path, request.weights),
        model_args,
        recipe,
        dense=request.task == "dense",
        prefix=request.prefix,
    )
    config, state = recognised.config, checkpoint.state
    notes = [*checkpoint.notes, *recognised.notes]
    model = _shapes_alone(config)
    check_keys(checkpoint, model.weights())
    if request.img_size is not None and request.img_size != config.img_size:
        trained, config = config, config.at_size(request.img_size)
        resized = family_of(config).resize(state, trained, config, request.official_pos_resize)
        state, model = resized.state, _shapes_alone(config)
        notes.append(resized.note)
    config.check_image()
    model.fill(state)
    spec, labels = _input_spec(recognised, config, checkpoint.arguments, notes)
    return LoadedModel(model.eval(), config, checkpoint, recognised, spec, labels, tuple(notes))


def _shapes_alone(config: ModelConfig) -> FamilyModel:
    """Return a model without values: drawing random ones to overwrite them takes longer than reading the checkpoint."""
    with torch.device("meta"):
        return build(config)


def _random_model(request: ModelRequest) -> LoadedModel:
    """Make the model of a recipe with random weights, at another image size if asked to."""
    if request.arch is None:
        raise UsageError(
            "There is no checkpoint.", hint="Name a checkpoint, or --arch with a recipe's name for random weights."
        )
    if request.model_args is not None or request.recipe is not None:
        raise UsageError(
            "Without a checkpoint, --arch alone says what the model is: leave out --recipe and --model-args."
        )
    recipe = find_recipe(request.arch)
    trained = config_of(recipe)
    config = trained if request.img_size is None else trained.at_size(request.img_size)
    config.check_image()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(config).eval()
    checkpoint = Checkpoint(Path(recipe.name), "", {}, "random", {}, ())
    sources = dict.fromkeys(recipe.model, f"recipe {recipe.name}")
    recognised = Recognised(trained, sources, recipe)
    notes = [f"random weights: {recipe.title} computes nothing useful, but as fast as a trained one"]
    spec, labels = _input_spec(recognised, config, {}, notes)
    return LoadedModel(model, config, checkpoint, recognised, spec, labels, tuple(notes))


def check_keys(checkpoint: Checkpoint, wanted: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless the checkpoint has exactly the keys and shapes of ``wanted``."""
    state = checkpoint.state
    shapes = [
        f"{key} has shape {tuple(state[key].shape)}, the model {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    problems = [
        f"{text} {summarise_keys(keys)}"
        for text, keys in (
            ("missing:", [key for key in wanted if key not in state]),
            ("not in the model:", [key for key in state if key not in wanted]),
        )
        if keys
    ]
    if shapes:
        more = f" and {len(shapes) - 3} more" if len(shapes) > 3 else ""
        problems.append("; ".join(shapes[:3]) + more)
    if problems:
        raise CheckpointError(
            f"{checkpoint.path}: the weights do not fit the architecture. {'. '.join(problems)}.",
            hint="If the model has options that its shapes cannot tell, pass them with --model-args.",
        )


def _input_spec(
    recognised: Recognised, config: ModelConfig, arguments: Mapping[str, Any], notes: list[str]
) -> tuple[InputSpec, tuple[str, ...] | None]:
    """Return the preprocessing and the class names, said by the recipe and the training arguments or assumed."""
    recipe = recognised.recipe
    ratio = arguments.get("eval_crop_ratio")
    crop = {"crop_ratio": float(ratio)} if isinstance(ratio, (int, float)) and 0.05 <= ratio <= 1 else {}
    if recipe is None or recipe.input.channels != config.channels:
        notes.append(f"{GUESS}no recipe fits, so ImageNet's mean, standard deviation and crop are the preprocessing")
        c = config.channels
        mean, std = InputSpec(size=config.img_size).mean, InputSpec(size=config.img_size).std
        if c != 3:
            mean, std = (0.5,) * c, (0.5,) * c
            notes.append(f"{c} channels: mean and standard deviation 0.5 are assumed")
        assumed = InputSpec(size=config.img_size, channels=c, mean=mean, std=std)
        return assumed.model_copy(update=crop), None
    spec = recipe.input.model_copy(update={"size": config.img_size, **crop})
    if config.is_backbone:
        return spec, None
    labels = recipe.classes.labels() if recipe.classes.count == config.num_classes else None
    if recipe.classes.count != config.num_classes:
        notes.append(f"{config.num_classes} classes where recipe {recipe.name} has {recipe.classes.count}: no names")
    return spec, labels
