"""Which family a checkpoint belongs to, and how its model is built: the one place that knows them all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from vimdeploy.artifacts.recipe import Recipe, recipes
from vimdeploy.errors import CheckpointError, ModelError, UsageError, nearest
from vimdeploy.models.checkpoint.reading import Checkpoint
from vimdeploy.models.deit.model import Deit, DeitConfig, adapt_deit_state, common_name, load_deit, read_deit_arguments
from vimdeploy.models.deit.model import facts_from_shapes as deit_facts
from vimdeploy.models.vim.config import VimConfig, read_official_arguments
from vimdeploy.models.vim.dense import VisionMambaDense
from vimdeploy.models.vim.dense_config import DENSE_ARGUMENTS, VimDenseConfig, quarters, read_dense_arguments
from vimdeploy.models.vim.model import VisionMamba
from vimdeploy.models.vim.recognise import (
    MODEL_ARGS,
    SHAPES,
    FamilyConfig,
    Recognised,
    check_ranks,
    merge_layers,
    recognise_vim,
    refuse_contradictions,
    summarise_keys,
)
from vimdeploy.models.vim.recognise_dense import is_dense, recognise_dense
from vimdeploy.models.vmamba.config import VmambaConfig, read_vmamba_arguments
from vimdeploy.models.vmamba.model import VSSM, adapt_state, make_vmamba
from vimdeploy.models.vmamba.recognise import recognise_vmamba

FamilyModel = VisionMamba | VSSM | Deit
FAMILIES = ("vim", "vim_dense", "vmamba", "deit")
"""Families of recipes."""
_PATTERNS = {
    "vim": re.compile(r"layers\.\d+\.mixer\."),
    "vmamba": re.compile(r"layers\.\d+\.blocks\.\d+\."),
    "deit": re.compile(r"blocks\.\d+\.attn\.|vit\.(layers|encoder\.layer)\.\d+\."),
}
_TITLES = {"vim": "Vision Mamba", "vmamba": "VMamba", "deit": "DeiT"}
_BACKBONES = ("backbone.net.", "backbone.")
"""Where detectors (detectron2's feature pyramid, then others) and segmentors keep their backbone."""
_HEADLESS: dict[str, Any] = {"if_cls_token": False, "num_classes": 0, "use_double_cls_token": False}
"""What a classifier loses when it becomes a backbone."""


def build(config: FamilyConfig) -> FamilyModel:
    """Return the model of a configuration, with random weights."""
    if isinstance(config, VimDenseConfig):
        return VisionMambaDense(config)
    if isinstance(config, VimConfig):
        return VisionMamba(config)
    return Deit(config) if isinstance(config, DeitConfig) else make_vmamba(config)


def config_of(recipe: Recipe) -> FamilyConfig:
    """Return the configuration that a recipe describes."""
    source = f"recipe {recipe.name}"
    if recipe.family == "vim":
        return VimConfig(**read_official_arguments(recipe.model, source).values)
    if recipe.family == "vim_dense":
        return VimDenseConfig(**read_dense_arguments(recipe.model, source).values)
    if recipe.family == "vmamba":
        return VmambaConfig(**read_vmamba_arguments(recipe.model, source).values)
    if recipe.family == "deit":
        return DeitConfig(**read_deit_arguments(recipe.model, source).values)
    raise UsageError(f"{source}: there is no family '{recipe.family}'.", hint=nearest(recipe.family, FAMILIES))


def weights_of(model: FamilyModel) -> dict[str, Tensor]:
    """Return the weights of a model under the keys that :func:`recognise` leaves in a checkpoint."""
    if isinstance(model, Deit):
        return adapt_deit_state(model.net.state_dict(), "the model")
    return model.state_dict()


def load_weights(model: FamilyModel, state: Mapping[str, Tensor]) -> None:
    """Load a checkpoint's weights, strictly. What is a function of the image size alone keeps the model's values."""
    if isinstance(model, Deit):
        load_deit(model, state)
        return
    fixed = {key: value for key, value in model.state_dict().items() if key.startswith("rope.")}
    fixed = {key: value for key, value in fixed.items() if state[key].shape != value.shape}
    model.load_state_dict({**state, **fixed})


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
    if family == "deit":
        if dense:
            raise UsageError(f"{checkpoint.path}: is a DeiT, a baseline for classification; it has no dense form here.")
        _check_deit(checkpoint)
        checkpoint = replace(checkpoint, state=adapt_deit_state(checkpoint.state, str(checkpoint.path)))
        return checkpoint, _recognise_deit(checkpoint, model_args, recipe)
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
    """Return ``vim``, ``vmamba`` or ``deit``.

    Raises:
        CheckpointError: the keys are those of none.

    """
    for family, pattern in _PATTERNS.items():
        if any(pattern.match(key) for key in checkpoint.state):
            return family
    raise CheckpointError(
        f"{checkpoint.path}: is neither a Vision Mamba nor a VMamba nor a DeiT; it has "
        f"{summarise_keys(list(checkpoint.state))}.",
        hint="vimdeploy exports checkpoints trained with the official code, with its key names.",
    )


def _check_deit(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError unless the weights are all of a DeiT's: many transformers name their layers alike."""
    names = {common_name(key) for key in checkpoint.state}
    needed = ("patch_embed.proj.weight", "pos_embed", "cls_token", "head.weight", "blocks.0.mlp.fc1.weight")
    if missing := [name for name in needed if name not in names]:
        raise CheckpointError(
            f"{checkpoint.path}: is not a DeiT: {', '.join(missing)} missing; it has "
            f"{summarise_keys(list(checkpoint.state))}.",
            hint="vimdeploy exports Vision Mamba, VMamba and, to measure against, the DeiT classifiers.",
        )
    shapes = {name: tuple(value.shape) for key, value in checkpoint.state.items() if (name := common_name(key))}
    ranks = {"patch_embed.proj.weight": 4, "pos_embed": 3, "head.weight": 2, "mlp.fc1.weight": 2, "attn.qkv.weight": 2}
    check_ranks(checkpoint, shapes, ranks, "DeiT")


def _recognise_deit(checkpoint: Checkpoint, model_args: Mapping[str, Any], recipe: Recipe | None) -> Recognised:
    facts = deit_facts(checkpoint.state, str(checkpoint.path))
    given = read_deit_arguments(model_args, MODEL_ARGS).values
    refuse_contradictions(checkpoint, facts, given, MODEL_ARGS, free=("num_heads",))
    named = recipe
    for known in recipes().values() if named is None else ():
        if known.family == "deit":
            values = read_deit_arguments(known.model, known.name).values
            if all(values[name] == facts[name] for name in ("embed_dim", "depth", "patch_size", "mlp_ratio")):
                named = known
    layers = [(MODEL_ARGS, given), (SHAPES, facts)]
    if named is not None:
        values = read_deit_arguments(named.model, f"recipe {named.name}").values
        refuse_contradictions(checkpoint, facts, values, f"recipe {named.name}", free=("num_classes", "img_size"))
        layers.append((f"recipe {named.name}", values))
    values, sources = merge_layers(layers)
    return Recognised("deit", DeitConfig(**values), sources, named, ())


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
    if given.get("if_fpn") and given.get("kind") != "det":
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
    sources["in_chans"] = sources.pop("channels")
    return replace(checkpoint, state=state, notes=notes), Recognised(
        "vim_dense", config, sources, recognised.recipe, (*recognised.notes, *config.notes)
    )
