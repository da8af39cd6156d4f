"""Which dense Vision Mamba backbone a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch

from vimdeploy.artifacts.recipe import Recipe
from vimdeploy.errors import ModelError, UsageError
from vimdeploy.models.checkpoint.reading import Checkpoint
from vimdeploy.models.evidence import (
    MODEL_ARGS,
    OFFICIAL,
    SHAPES,
    Layer,
    merge_layers,
    recipes_of,
    shapes_of,
    summarise_keys,
)
from vimdeploy.models.family import Given, Recognised
from vimdeploy.models.vim.config import VimConfig
from vimdeploy.models.vim.dense_config import (
    DENSE_ARGUMENTS,
    NOT_OF_DETECTION,
    VimDenseConfig,
    quarters,
    read_dense_arguments,
)
from vimdeploy.models.vim.image_size import settle_img_size
from vimdeploy.models.vim.recognise import facts_from_shapes, recognise_vim, refuse_others

SHIPPED = "the official segmentation and detection configurations"
_UNREAD = {
    *("ssm_cfg", "num_classes", "if_cls_token", "use_double_cls_token", "use_middle_cls_token", "final_pool_type"),
    *("flip_img_sequences_ratio", "in_chans"),
}
"""Arguments of the classifier that a backbone does not read, and those that go by another name here."""
_HEADLESS: dict[str, Any] = {"if_cls_token": False, "num_classes": 0, "use_double_cls_token": False}
"""What a classifier loses when it becomes a backbone."""


def is_dense(checkpoint: Checkpoint) -> bool:
    """Whether the weights can only be a backbone's: no last norm (detection), or a pyramid (segmentation)."""
    return "norm_f.weight" not in checkpoint.state or "fpn1.0.weight" in checkpoint.state


def recognise_dense(checkpoint: Checkpoint, wanted: Given) -> Recognised:
    """Find the configuration of the dense backbone in ``checkpoint``.

    Raises:
        CheckpointError: the weights are not a Vision Mamba's.
        UsageError: an argument or the recipe contradicts the checkpoint's shapes.
        ModelError: the official code crashes on this variant.

    """
    shapes, recipe = shapes_of(checkpoint), wanted.recipe
    facts = facts_from_shapes(checkpoint, shapes)
    facts = {name: value for name, value in facts.items() if name not in ("if_cls_token", "num_classes")}
    facts |= {"kind": "seg" if "norm_f.weight" in shapes else "det", "if_fpn": "fpn1.0.weight" in shapes}
    given = read_dense_arguments(wanted.arguments, MODEL_ARGS)
    notes = list(given.notes)
    mine = _leave_unread(given.values, facts, notes)
    refuse_others(checkpoint, facts, mine, MODEL_ARGS)
    layers: list[Layer] = [(SHAPES, facts), (MODEL_ARGS, mine)]
    if recipe is not None:
        if recipe.family != "vim_dense":
            raise UsageError(f"{checkpoint.path}: is a dense backbone, recipe {recipe.name} is not.")
        values = read_dense_arguments(recipe.model, f"recipe {recipe.name}").values
        refuse_others(checkpoint, facts, values, f"recipe {recipe.name}", free=("img_size",))
        layers.append((f"recipe {recipe.name}", values))
    layers.append((SHIPPED, _shipped(facts)))
    values, sources = merge_layers(layers)
    values["if_cls_token"] = False
    settle_img_size(checkpoint, shapes, layers, values, sources, notes)
    config = VimDenseConfig(**values)
    assumed = {*config.official(), "use_fast_path"} - sources.keys() - _UNREAD
    sources.update(dict.fromkeys(sorted(assumed), OFFICIAL))
    sources["in_chans"] = sources.pop("channels")
    return Recognised(config, sources, recipe or _recipe_for(config), (*notes, *config.notes))


def _leave_unread(values: Mapping[str, Any], facts: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return the arguments that the official constructor of this backbone reads; note those it only takes."""
    unread = [name for name in values if facts["kind"] == "det" and name in NOT_OF_DETECTION]
    if unread:
        notes.append(f"{', '.join(unread)}: a detection backbone has one map, its official code does not read this")
    return {name: value for name, value in values.items() if name not in unread}


def _shipped(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what every shipped configuration has and shapes cannot tell."""
    common = {"if_rope_residual": facts["if_rope"]}
    if facts["kind"] == "det":
        return {**common, "last_layer_process": "add"}
    return {**common, "out_indices": quarters(facts["depth"])}


def _recipe_for(config: VimDenseConfig) -> Recipe | None:
    for recipe in recipes_of("vim_dense"):
        if VimDenseConfig(**read_dense_arguments(recipe.model, recipe.name).values) == config:
            return recipe
    return None


def classifier_as_backbone(checkpoint: Checkpoint, wanted: Given) -> tuple[Checkpoint, Recognised]:
    """Take the layers of a Vim classifier as a backbone without a pyramid, for which it has no weights."""
    mine = {name: value for name, value in wanted.arguments.items() if name in DENSE_ARGUMENTS}
    given = read_dense_arguments(mine, MODEL_ARGS).values
    if given.get("if_fpn") and given.get("kind") != "det":
        raise ModelError(
            f"{checkpoint.path}: is a classifier; it has no weights for the pyramid that if_fpn asks for.",
            hint="Leave if_fpn out, or pass the segmentor's checkpoint.",
        )
    rest = {key: value for key, value in wanted.arguments.items() if key not in (*DENSE_ARGUMENTS, *_HEADLESS)}
    if "in_chans" in rest:
        rest["channels"] = rest.pop("in_chans")
    recognised = recognise_vim(checkpoint, replace(wanted, arguments=rest))
    assert isinstance(recognised.config, VimConfig)
    vim = recognised.config
    values = {f.name: getattr(vim, f.name) for f in fields(VimConfig)}
    values |= {**_HEADLESS, "if_fpn": False}
    config = VimDenseConfig(**{**values, "out_indices": quarters(vim.depth), **given})
    left = ("head.", "norm_f.") if config.kind == "det" else ("head.",)
    dropped = (*left, *class_tokens(checkpoint))
    state = {key: value for key, value in checkpoint.state.items() if not key.startswith(dropped)}
    rows = [row for row in range(vim.num_tokens) if row not in vim.class_tokens]
    state["pos_embed"] = state["pos_embed"][:, torch.tensor(rows)]
    notes = (*checkpoint.notes, f"a classifier taken as a backbone: left {summarise_keys(list(dropped))}")
    if vim.class_tokens and vim.class_tokens != (0,):
        notes += ("its class token's position embedding was left out where it stands; the official code drops row 0",)
    sources = {**recognised.sources, **dict.fromkeys(given, MODEL_ARGS)}
    sources["in_chans"] = sources.pop("channels")
    return replace(checkpoint, state=state, notes=notes), Recognised(
        config, sources, recognised.recipe, (*recognised.notes, *config.notes)
    )


def class_tokens(checkpoint: Checkpoint) -> list[str]:
    """Return the keys of the class tokens."""
    return [key for key in checkpoint.state if key.startswith("cls_token")]
