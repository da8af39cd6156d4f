"""The families of models: one line each. A checkpoint, a recipe or a configuration finds its family here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vimdeploy.artifacts.recipe import Recipe
from vimdeploy.errors import CheckpointError, UsageError, nearest
from vimdeploy.models.checkpoint.reading import Checkpoint
from vimdeploy.models.config import ModelConfig
from vimdeploy.models.deit.family import DEIT
from vimdeploy.models.evidence import summarise_keys
from vimdeploy.models.family import Family, FamilyModel, Given, Recognised
from vimdeploy.models.inside import take_model
from vimdeploy.models.vim.family import VIM
from vimdeploy.models.vmamba.family import VMAMBA

FAMILIES: list[Family] = [
    VIM,
    VMAMBA,
    DEIT,
]
"""In the order in which a checkpoint is held against them."""


def family_of(config: ModelConfig) -> Family:
    """Return the family of a configuration."""
    return _named(config.family, "the configuration")


def build(config: ModelConfig) -> FamilyModel:
    """Return the model of a configuration, with random weights; inside ``torch.device("meta")`` with shapes alone."""
    return family_of(config).build(config)


def config_of(recipe: Recipe) -> ModelConfig:
    """Return the configuration that a recipe describes; raises UsageError for an unknown family or argument."""
    source = f"recipe {recipe.name}"
    return _named(recipe.family, source).configs[recipe.family](recipe.model, source)


def recognise(
    checkpoint: Checkpoint,
    model_args: Mapping[str, Any],
    recipe: Recipe | None,
    *,
    dense: bool,
    prefix: str | None = None,
) -> tuple[Checkpoint, Recognised]:
    """Find out which model a checkpoint holds.

    Args:
        checkpoint: as read.
        model_args: arguments of the official constructor that the user gave.
        recipe: the recipe that the user named, if any.
        dense: take a classifier's layers as a backbone.
        prefix: what stands before the model's keys; None finds it.

    Returns:
        The checkpoint with the weights of that model only, under today's keys, and its configuration.

    Raises:
        CheckpointError: the weights belong to no family that vimdeploy knows.
        UsageError: an argument or the recipe contradicts the checkpoint's shapes.
        ModelError: the official code crashes on this variant.

    """
    checkpoint, inside = take_model(checkpoint, [family.keys for family in FAMILIES], prefix)
    family = tell_family(checkpoint)
    if recipe is not None and recipe.family not in family.configs:
        raise UsageError(
            f"{checkpoint.path}: holds a {family.title}, recipe {recipe.name} is a {recipe.title}.",
            hint="`vimdeploy recipes` lists the others.",
        )
    return family.recognise(checkpoint, Given(model_args, recipe, dense=dense, inside=inside))


def tell_family(checkpoint: Checkpoint) -> Family:
    """Return the family that the keys of a checkpoint belong to; raises CheckpointError if there is none."""
    for family in FAMILIES:
        if any(family.keys.match(key) for key in checkpoint.state):
            return family
    raise CheckpointError(
        f"{checkpoint.path}: is neither a {' nor a '.join(family.title for family in FAMILIES)}; it has "
        f"{summarise_keys(list(checkpoint.state))}.",
        hint="vimdeploy exports checkpoints trained with the official code, with its key names.",
    )


def _named(name: str, source: str) -> Family:
    for family in FAMILIES:
        if name in family.configs:
            return family
    known = [known for family in FAMILIES for known in family.configs]
    raise UsageError(f"{source}: there is no family '{name}'.", hint=nearest(name, known))
