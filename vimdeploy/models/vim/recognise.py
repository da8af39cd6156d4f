"""Which Vision Mamba a checkpoint holds.

What shapes leave open comes, in this order, from the user's arguments, the recipe named, the checkpoint's own training
arguments, its file's name, and the released model that fits. Where these contradict each other, both are named.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from vimdeploy.artifacts.recipe import Recipe
from vimdeploy.errors import CheckpointError, UsageError
from vimdeploy.models.checkpoint.reading import Checkpoint
from vimdeploy.models.evidence import (
    FILE_NAME,
    GUESS,
    MODEL_ARGS,
    OFFICIAL,
    OWN,
    RELEASED,
    SHAPES,
    Layer,
    Shapes,
    check_ranks,
    merge_layers,
    ratio_of,
    recipes_of,
    refuse_contradictions,
    refuse_disagreement,
    require_keys,
    shapes_of,
    show_value,
)
from vimdeploy.models.family import Given, Recognised
from vimdeploy.models.vim.config import VimConfig, read_official_arguments
from vimdeploy.models.vim.image_size import settle_img_size

_UNSEEN = ("use_middle_cls_token", "if_divide_out", "final_pool_type", "stride", "img_size")
"""What no shape shows."""
_RELEASED_DEFAULTS = {"final_pool_type": "mean"}
"""Where every released model differs from the official constructor's defaults and shapes cannot tell."""


def recognise_vim(checkpoint: Checkpoint, wanted: Given) -> Recognised:
    """Find the configuration of the classifier in ``checkpoint``.

    Args:
        checkpoint: weights under the official keys.
        wanted: the user's arguments and recipe.

    Raises:
        CheckpointError: the weights are not a Vision Mamba's.
        UsageError: an argument or the recipe contradicts the checkpoint's shapes.
        ModelError: the official code crashes on this variant.

    """
    shapes, recipe = shapes_of(checkpoint), wanted.recipe
    facts = facts_from_shapes(checkpoint, shapes)
    given = read_official_arguments(wanted.arguments, MODEL_ARGS)
    notes = list(given.notes)
    layers: list[Layer] = [(SHAPES, facts), (MODEL_ARGS, given.values)]
    refuse_others(checkpoint, facts, given.values, MODEL_ARGS)
    if recipe is not None:
        values = read_official_arguments(recipe.model, f"recipe {recipe.name}").values
        # Fine-tuning to other classes keeps the recipe; its class names then no longer apply.
        refuse_others(checkpoint, facts, values, f"recipe {recipe.name}", free=("num_classes", "img_size"))
        layers.append((f"recipe {recipe.name}", values))
    layers += [*own_arguments(checkpoint, notes), *from_file_name(checkpoint)]
    refuse_classes(checkpoint, facts)
    refuse_disagreement(checkpoint, layers[2:], decided={*facts, *given.values}, free=("img_size", "stride"))
    released = _released_with(shapes)
    if released is not None:
        values = read_official_arguments(released.model, f"recipe {released.name}").values
        layers.append((f"{RELEASED} ({released.title})", values))
    layers.append((RELEASED, _RELEASED_DEFAULTS))

    values, sources = merge_layers(layers)
    settle_img_size(checkpoint, shapes, layers, values, sources, notes)
    config = VimConfig(**values)
    if config.num_classes == 0:
        notes.append(
            "the weights have no head: the logits are what one would see; for a segmentation backbone without a "
            "pyramid, pass --task dense"
        )
    sources.update({f.name: OFFICIAL for f in fields(VimConfig) if f.name not in sources})
    _say_guesses(checkpoint, config, sources, notes)
    return Recognised(config, sources, recipe or _recipe_for(config), tuple(notes))


def refuse_classes(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> None:
    """Raise UsageError where the training arguments count other classes than the head has."""
    classes = checkpoint.arguments.get("nb_classes", checkpoint.arguments.get("num_classes"))
    if isinstance(classes, int) and classes > 0 and facts["num_classes"] not in (0, classes):
        raise UsageError(
            f"{checkpoint.path}: {OWN} say {classes} classes, the checkpoint's head has {facts['num_classes']}.",
            hint="Arguments and weights are of different runs: pass the checkpoint that belongs together, or save "
            "model.state_dict() alone.",
        )


def facts_from_shapes(checkpoint: Checkpoint, shapes: Shapes) -> dict[str, Any]:
    """Return the fields of :class:`VimConfig` that keys and shapes alone decide.

    Raises:
        CheckpointError: keys that every Vision Mamba has are missing; the message lists what is there instead.

    """
    first = "layers.0.mixer."
    needed = ("patch_embed.proj.weight", "layers.0.norm.weight", *(first + k for k in ("A_log", "in_proj.weight")))
    needed += tuple(first + k for k in ("conv1d.weight", "dt_proj.weight", "x_proj.weight"))
    hint = "vimdeploy exports checkpoints trained with the official Vim code, with its key names."
    require_keys(checkpoint, needed, "Vision Mamba", hint)
    ranks = {"patch_embed.proj.weight": 4, "pos_embed": 3, "head.weight": 2}
    ranks |= {first + k: n for k, n in (("A_log", 2), ("dt_proj.weight", 2), ("conv1d.weight", 3))}
    check_ranks(checkpoint, {key: shape for key, shape in shapes.items() if key in ranks}, ranks, "Vision Mamba")
    embed_dim, channels, *patch = shapes["patch_embed.proj.weight"]
    d_inner, d_state = shapes[first + "A_log"]
    facts: dict[str, Any] = {
        "embed_dim": embed_dim,
        "channels": channels,
        "patch_size": tuple(patch),
        "depth": _depth(checkpoint, shapes),
        "d_state": d_state,
        "expand": ratio_of(d_inner, embed_dim),
        "dt_rank": shapes[first + "dt_proj.weight"][1],
        "d_conv": shapes[first + "conv1d.weight"][2],
        "conv_bias": first + "conv1d.bias" in shapes,
        "bias": first + "in_proj.bias" in shapes,
        "rms_norm": "layers.0.norm.bias" not in shapes,
        "num_classes": shapes["head.weight"][0] if "head.weight" in shapes else 0,
        "if_abs_pos_embed": "pos_embed" in shapes,
        "if_rope": "rope.freqs_cos" in shapes,
        "if_cls_token": "cls_token" in shapes or "cls_token_head" in shapes,
    }
    if facts["if_cls_token"]:
        facts["use_double_cls_token"] = "cls_token_head" in shapes
    if first + "A_b_log" not in shapes:
        facts["bimamba_type"] = "none"
    else:
        facts["bimamba_type"] = "v2" if first + "conv1d_b.weight" in shapes else "v1"
    if first + "gamma" not in shapes:
        facts["init_layer_scale"] = None
    else:
        facts["init_layer_scale"] = 1.0  # its trained values are in the weights
    return facts


def refuse_others(
    checkpoint: Checkpoint, facts: Mapping[str, Any], values: Mapping[str, Any], source: str, free: Collection[str] = ()
) -> None:
    """Raise UsageError where ``values`` of a source make another Vision Mamba than the shapes say."""
    if values.get("dt_rank") == 0:  # "auto"
        values = {**values, "dt_rank": math.ceil(facts["embed_dim"] / 16)}
    refuse_contradictions(checkpoint, facts, values, source, free=free, same=_same_effect)


def _same_effect(name: str, value: Any, facts: Mapping[str, Any]) -> bool:
    """Whether the official constructor makes the same model of ``value`` as of ``facts[name]``, which differs."""
    embed_dim = facts["embed_dim"]
    return bool(
        (name == "init_layer_scale" and None not in (value, facts[name]))  # its trained values are in the weights
        or (name == "expand" and int(value * embed_dim) == int(facts[name] * embed_dim))
        or (name == "use_double_cls_token" and not facts["if_cls_token"])
    )


def _depth(checkpoint: Checkpoint, shapes: Shapes) -> int:
    """Return the number of layers; a gap in their numbers is refused before a model of that depth is built."""
    numbers = {int(m[1]) for key in shapes if (m := re.match(r"layers\.(\d+)\.", key))}
    if missing := [i for i in range(len(numbers)) if i not in numbers]:
        raise CheckpointError(
            f"{checkpoint.path}: layer {missing[0]} is missing; it has layers up to {max(numbers)}.",
            hint="Save the whole model's state_dict().",
        )
    return len(numbers)


def own_arguments(checkpoint: Checkpoint, notes: list[str]) -> list[Layer]:
    """Return what the checkpoint's training arguments say; its model name is a hint, its shapes are not overridden."""
    own: dict[str, Any] = {}
    size = checkpoint.arguments.get("input_size")
    size = size[-1] if isinstance(size, (list, tuple)) and size else size  # timm's (3, 224, 224)
    if isinstance(size, int) and size > 0:
        own["img_size"] = (size, size)
    name = checkpoint.arguments.get("model")
    for recipe in recipes_of("vim"):
        if isinstance(name, str) and name in (recipe.official_name, recipe.name):
            values = read_official_arguments(recipe.model, f"recipe {recipe.name}").values
            own = {**values, "img_size": own.get("img_size", values["img_size"])}
            if "input_size" not in checkpoint.arguments:
                own.pop("img_size")
    if isinstance(name, str) and len(own) <= 1:
        notes.append(f"the checkpoint was trained as '{name}', which is no released model")
    return [(OWN, own)]


def from_file_name(checkpoint: Checkpoint) -> list[Layer]:
    """Return what the name of the file says: a published checkpoint's, or the marks that authors put into names."""
    name = checkpoint.path.name.lower()
    stem = checkpoint.path.stem.lower()
    for recipe in recipes_of("vim"):
        known = [recipe.name, *([Path(recipe.checkpoint).stem] if recipe.checkpoint else [])]
        if any(stem.startswith(each.lower()) for each in known):
            values = read_official_arguments(recipe.model, f"recipe {recipe.name}").values
            return [(FILE_NAME, {key: value for key, value in values.items() if key in _UNSEEN})]
    if "videomamba" in name:
        return [(FILE_NAME, {"use_middle_cls_token": False, "if_divide_out": False})]
    marks = {"midclstok": ("use_middle_cls_token", True), "div2": ("if_divide_out", True)}
    said = dict(value for mark, value in marks.items() if mark in name.replace("_", ""))
    return [(FILE_NAME, said)] if said else []


def _released_with(shapes: Shapes) -> Recipe | None:
    """Return the released model whose every shape this is, whatever its classes, for what shapes leave open.

    Relatives share shapes with the family's own models, which are meant more often and come first.
    """
    found = []
    for recipe in recipes_of("vim"):
        config = VimConfig(**read_official_arguments(recipe.model, recipe.name).values)
        if (
            shapes.get("pos_embed") == (1, config.num_tokens, config.embed_dim)
            and f"layers.{config.depth - 1}.norm.weight" in shapes
            and f"layers.{config.depth}.norm.weight" not in shapes
        ):
            found.append(recipe)
    return min(found, key=lambda recipe: not recipe.name.startswith(recipe.family), default=None)


def _recipe_for(config: VimConfig) -> Recipe | None:
    """Return the recipe of this model; fine-tuning to other classes and another size keeps it."""
    for recipe in recipes_of("vim"):
        known = VimConfig(**read_official_arguments(recipe.model, recipe.name).values)
        if replace(known, num_classes=config.num_classes, img_size=config.img_size) == config:
            return recipe
    return None


def _say_guesses(checkpoint: Checkpoint, config: VimConfig, sources: Mapping[str, str], notes: list[str]) -> None:
    """Note, loudly, what came from released models or defaults and would change every logit if it were wrong."""
    unseen = ["if_divide_out"] if config.bimamba_type == "v2" else []
    unseen += ["use_middle_cls_token"] if config.if_cls_token and not config.use_double_cls_token else []
    unseen += [] if config.if_cls_token else ["final_pool_type"]
    guessed = [name for name in unseen if sources[name].startswith((RELEASED, OFFICIAL))]
    if guessed:
        values = config.official()
        said = ", ".join(f"{name} = {show_value(values[name])}" for name in guessed)
        origins = " and ".join(dict.fromkeys(sources[name] for name in guessed))
        notes.append(
            f"{GUESS}{said}, from {origins}; other models of the same shapes (VideoMamba's have the class token "
            "first and halve nothing) need --recipe or --model-args"
        )
