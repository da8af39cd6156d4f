"""Which family a checkpoint belongs to, and how its model is built: the one place that knows them all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch

from vimdeploy.errors import CheckpointError, ModelError, UsageError
from vimdeploy.models.checkpoint import Checkpoint
from vimdeploy.models.recipe import Recipe
from vimdeploy.models.recognise import MODEL_ARGS, FamilyConfig, Recognised, recognise_vim, summarise_keys
from vimdeploy.models.recognise_dense import is_dense, recognise_dense
from vimdeploy.models.recognise_vmamba import recognise_vmamba
from vimdeploy.models.vim import VisionMamba
from vimdeploy.models.vim_config import VimConfig
from vimdeploy.models.vim_dense import VisionMambaDense
from vimdeploy.models.vim_dense_config import DENSE_ARGUMENTS, VimDenseConfig, quarters, read_dense_arguments
from vimdeploy.models.vmamba import VSSM, adapt_state, make_vmamba

_FAMILIES = {
    "vim": re.compile(r"layers\.\d+\.mixer\."),
    "vmamba": re.compile(r"layers\.\d+\.blocks\.\d+\."),
}
_TITLES = {"vim": "Vision Mamba", "vmamba": "VMamba"}
_BACKBONES = ("backbone.net.", "backbone.")
"""Where detectors (detectron2's feature pyramid, then others) and segmentors keep their backbone."""
_HEADLESS: dict[str, Any] = {"if_cls_token": False, "num_classes": 0, "use_double_cls_token": False}
"""What a classifier loses when it becomes a backbone."""


def build(config: FamilyConfig) -> VisionMamba | VSSM:
    """Return the model of a configuration, with random weights."""
    if isinstance(config, VimDenseConfig):
        return VisionMambaDense(config)
    return VisionMamba(config) if isinstance(config, VimConfig) else make_vmamba(config)


def recognise(
    checkpoint: Checkpoint, model_args: Mapping[str, Any], recipe: Recipe | None, *, dense: bool
) -> tuple[Checkpoint, Recognised]:
    """Find out which model a checkpoint holds.

    Args:
        checkpoint: as read.
        model_args: arguments of the official constructor that the user gave.
        recipe: the recipe that the user named, if any.
        dense: take a classifier's layers as a backbone.

    Returns:
        The checkpoint with the weights of that model only, under today's keys, and its configuration.

    Raises:
        CheckpointError: the weights belong to no family that vimdeploy knows.
        UsageError: an argument or the recipe contradicts the checkpoint's shapes.
        ModelError: the official code crashes on this variant.

    """
    checkpoint, whole = _take_backbone(checkpoint)
    family = tell_family(checkpoint)
    if recipe is not None and recipe.family.removesuffix("_dense") != family:
        raise UsageError(
            f"{checkpoint.path}: holds a {_TITLES[family]}, recipe {recipe.name} is a {recipe.title}.",
            hint="`vimdeploy recipes` lists the others.",
        )
    if family == "vmamba":
        checkpoint = replace(checkpoint, state=adapt_state(checkpoint.state))
        recognised = recognise_vmamba(checkpoint, model_args, recipe, dense=dense or whole)
        if recognised.family == "vmamba_dense":
            checkpoint = _norm_features(checkpoint, recognised)
        return checkpoint, recognised
    wanted = dense or whole or any(name in model_args for name in DENSE_ARGUMENTS)
    if is_dense(checkpoint) or (wanted and "head.weight" not in checkpoint.state and not _class_tokens(checkpoint)):
        return checkpoint, recognise_dense(checkpoint, model_args, recipe)
    if recipe is not None and recipe.family == "vim_dense":
        raise UsageError(
            f"{checkpoint.path}: holds a classifier, recipe {recipe.name} is a backbone ({recipe.title}).",
            hint="Leave the recipe out; --task dense takes the classifier's layers as a backbone.",
        )
    if wanted:
        return _classifier_as_backbone(checkpoint, model_args, recipe)
    return checkpoint, recognise_vim(checkpoint, model_args, recipe)


def tell_family(checkpoint: Checkpoint) -> str:
    """Return ``vim`` or ``vmamba``.

    Raises:
        CheckpointError: the keys are those of neither.

    """
    for family, pattern in _FAMILIES.items():
        if any(pattern.match(key) for key in checkpoint.state):
            return family
    raise CheckpointError(
        f"{checkpoint.path}: is neither a Vision Mamba nor a VMamba; it has {summarise_keys(list(checkpoint.state))}.",
        hint="vimdeploy exports checkpoints trained with the official code, with its key names.",
    )


def _take_backbone(checkpoint: Checkpoint) -> tuple[Checkpoint, bool]:
    """Return the backbone of a whole detector or segmentor, and whether it was one."""
    for prefix in _BACKBONES:
        taken = {key[len(prefix) :]: value for key, value in checkpoint.state.items() if key.startswith(prefix)}
        if taken:
            left = [key for key in checkpoint.state if not key.startswith(prefix)]
            counts: dict[str, int] = {}
            for key in left:
                group = ".".join(key.split(".")[: 2 if key.startswith("backbone.") else 1])
                counts[group] = counts.get(group, 0) + 1
            rest = ", ".join(f"{group} ({count})" for group, count in counts.items()) or "nothing"
            note = f"took the backbone, {len(taken)} entries under '{prefix}'; left {rest}"
            return replace(checkpoint, state=taken, notes=(*checkpoint.notes, note)), True
    return checkpoint, False


def _norm_features(checkpoint: Checkpoint, recognised: Recognised) -> Checkpoint:
    """Turn a VMamba classifier's weights into its backbone's, which norms each feature map."""
    if any(key.startswith("outnorm") for key in checkpoint.state):
        return checkpoint
    state = {key: value for key, value in checkpoint.state.items() if not key.startswith("classifier.")}
    model = build(recognised.config)
    state.update({key: value for key, value in model.state_dict().items() if key.startswith("outnorm")})
    note = "a classifier taken as a backbone: its feature maps get untrained norms (weight 1, bias 0), as officially"
    return replace(checkpoint, state=state, notes=(*checkpoint.notes, note))


def _class_tokens(checkpoint: Checkpoint) -> list[str]:
    return [key for key in checkpoint.state if key.startswith("cls_token")]


def _classifier_as_backbone(
    checkpoint: Checkpoint, model_args: Mapping[str, Any], recipe: Recipe | None
) -> tuple[Checkpoint, Recognised]:
    """Take the layers of a Vim classifier as a backbone without a pyramid, for which it has no weights."""
    given = read_dense_arguments({k: v for k, v in model_args.items() if k in DENSE_ARGUMENTS}, MODEL_ARGS).values
    if given.get("if_fpn"):
        raise ModelError(
            f"{checkpoint.path}: is a classifier; it has no weights for the pyramid that if_fpn asks for.",
            hint="Leave if_fpn out, or pass the segmentor's checkpoint.",
        )
    rest = {key: value for key, value in model_args.items() if key not in (*DENSE_ARGUMENTS, *_HEADLESS)}
    if "in_chans" in rest:
        rest["channels"] = rest.pop("in_chans")
    recognised = recognise_vim(checkpoint, rest, recipe)
    assert isinstance(recognised.config, VimConfig)
    vim: VimConfig = recognised.config
    values = {f.name: getattr(vim, f.name) for f in fields(VimConfig)}
    values |= {**_HEADLESS, "if_fpn": False}
    config = VimDenseConfig(**{**values, "out_indices": quarters(vim.depth), **given})
    left = ("head.", "norm_f.") if config.kind == "det" else ("head.",)
    dropped = (*left, *_class_tokens(checkpoint))
    state = {key: value for key, value in checkpoint.state.items() if not key.startswith(dropped)}
    rows = [row for row in range(vim.num_tokens) if row not in vim.class_tokens]
    state["pos_embed"] = state["pos_embed"][:, torch.tensor(rows)]
    notes = (*checkpoint.notes, f"a classifier taken as a backbone: left {summarise_keys(list(dropped))}")
    if vim.class_tokens and vim.class_tokens != (0,):
        notes += ("its class token's position embedding was left out where it stands; the official code drops row 0",)
    sources = {**recognised.sources, **dict.fromkeys(given, MODEL_ARGS)}
    return replace(checkpoint, state=state, notes=notes), Recognised(
        "vim_dense", config, sources, recognised.recipe, (*recognised.notes, *config.notes)
    )
