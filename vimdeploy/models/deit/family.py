"""DeiT (facebookresearch/deit, arXiv 2012.12877) as a family: the classifiers that Vision Mamba is measured against."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vimdeploy.errors import CheckpointError, UsageError
from vimdeploy.models.checkpoint.reading import Checkpoint
from vimdeploy.models.deit.config import DeitConfig, read_deit_arguments
from vimdeploy.models.deit.keys import adapt_state, common_name
from vimdeploy.models.deit.model import Deit
from vimdeploy.models.evidence import (
    MODEL_ARGS,
    SHAPES,
    Layer,
    check_ranks,
    merge_layers,
    recipes_of,
    refuse_contradictions,
    summarise_keys,
)
from vimdeploy.models.family import Family, Given, Recognised, Resized, change_of_size


def read_config(arguments: Mapping[str, Any], source: str) -> DeitConfig:
    """Return the configuration that arguments of timm's VisionTransformer ask for."""
    return DeitConfig(**read_deit_arguments(arguments, source).values)


def recognise(checkpoint: Checkpoint, given: Given) -> tuple[Checkpoint, Recognised]:
    """Find out which DeiT a checkpoint holds; see :func:`vimdeploy.models.registry.recognise`."""
    if given.dense:
        raise UsageError(f"{checkpoint.path}: is a DeiT, a baseline for classification; it has no dense form here.")
    _check(checkpoint)
    checkpoint = replace(checkpoint, state=adapt_state(checkpoint.state, str(checkpoint.path)))
    facts = _facts_from_shapes(checkpoint.state, str(checkpoint.path))
    arguments = read_deit_arguments(given.arguments, MODEL_ARGS).values
    refuse_contradictions(checkpoint, facts, arguments, MODEL_ARGS, free=("num_heads",))
    named = given.recipe
    for known in recipes_of("deit") if named is None else ():
        values = read_deit_arguments(known.model, known.name).values
        if all(values[name] == facts[name] for name in ("embed_dim", "depth", "patch_size", "mlp_ratio")):
            named = known
    layers: list[Layer] = [(MODEL_ARGS, arguments), (SHAPES, facts)]
    if named is not None:
        values = read_deit_arguments(named.model, f"recipe {named.name}").values
        refuse_contradictions(checkpoint, facts, values, f"recipe {named.name}", free=("num_classes", "img_size"))
        layers.append((f"recipe {named.name}", values))
    values, sources = merge_layers(layers)
    return checkpoint, Recognised(DeitConfig(**values), sources, named)


def resize(state: Mapping[str, Tensor], old: DeitConfig, new: DeitConfig, official: bool) -> Resized:
    """Interpolate the position embeddings as the official code does.

    Row 0 is the class token's, always, in a DeiT: there its bicubic resize is right.
    """
    del official
    rows = state["pos_embed"]
    resized = dict(state)
    if old.grid != new.grid:
        image = rows[:, 1:].reshape(1, *old.grid, -1).permute(0, 3, 1, 2)
        image = nn.functional.interpolate(image, size=new.grid, mode="bicubic", align_corners=False)
        resized["pos_embed"] = torch.cat([rows[:, :1], image.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    return Resized(resized, f"resized {change_of_size(old, new)}")


def _check(checkpoint: Checkpoint) -> None:
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


def _facts_from_shapes(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Return the fields of :class:`DeitConfig` that weights under common names decide; heads of 64 channels each."""
    embed_dim, channels, patch, _ = state["patch_embed.proj.weight"].shape
    side = int((state["pos_embed"].shape[1] - 1) ** 0.5)
    if side * side != state["pos_embed"].shape[1] - 1:
        raise CheckpointError(f"{source}: its {state['pos_embed'].shape[1] - 1} patches do not form a square image.")
    return {
        "img_size": (side * patch, side * patch),
        "patch_size": patch,
        "channels": channels,
        "num_classes": state["head.weight"].shape[0],
        "embed_dim": embed_dim,
        "depth": 1 + max(int(m[1]) for key in state if (m := re.match(r"blocks\.(\d+)\.", key))),
        "num_heads": max(embed_dim // 64, 1),
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / embed_dim,
    }


DEIT = Family(
    title="DeiT",
    keys=re.compile(r"blocks\.\d+\.attn\.|vit\.(layers|encoder\.layer)\.\d+\."),
    configs={"deit": read_config},
    recognise=recognise,
    build=Deit,
    resize=resize,
)
