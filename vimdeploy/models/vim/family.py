"""Vision Mamba (hustvl/Vim, arXiv 2401.09417) as a family: classifiers, and backbones of segmentors and detectors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vimdeploy.errors import UsageError
from vimdeploy.models.checkpoint.reading import Checkpoint
from vimdeploy.models.family import Family, Given, Recognised, Resized, change_of_size
from vimdeploy.models.vim.config import VimConfig, read_official_arguments
from vimdeploy.models.vim.dense import VisionMambaDense
from vimdeploy.models.vim.dense_config import DENSE_ARGUMENTS, VimDenseConfig, read_dense_arguments
from vimdeploy.models.vim.model import VisionMamba, make_rope
from vimdeploy.models.vim.pos_embed import resize_pos_embed, resize_pos_embed_officially
from vimdeploy.models.vim.recognise import recognise_vim
from vimdeploy.models.vim.recognise_dense import class_tokens, classifier_as_backbone, is_dense, recognise_dense


def read_classifier(arguments: Mapping[str, Any], source: str) -> VimConfig:
    """Return the configuration that arguments of the official ``VisionMamba`` ask for."""
    return VimConfig(**read_official_arguments(arguments, source).values)


def read_backbone(arguments: Mapping[str, Any], source: str) -> VimDenseConfig:
    """Return the configuration that arguments of the official ``VisionMambaSeg`` or ``VisionMambaDet`` ask for."""
    return VimDenseConfig(**read_dense_arguments(arguments, source).values)


def recognise(checkpoint: Checkpoint, given: Given) -> tuple[Checkpoint, Recognised]:
    """Find out which classifier or backbone a checkpoint holds; see :func:`vimdeploy.models.registry.recognise`."""
    wants_backbone = given.as_backbone or any(name in given.arguments for name in DENSE_ARGUMENTS)
    headless = "head.weight" not in checkpoint.state and not class_tokens(checkpoint)
    if is_dense(checkpoint) or (wants_backbone and headless):
        return checkpoint, recognise_dense(checkpoint, given)
    if given.recipe is not None and given.recipe.family == "vim_dense":
        raise UsageError(
            f"{checkpoint.path}: holds a classifier, recipe {given.recipe.name} is a backbone ({given.recipe.title}).",
            hint="Leave the recipe out; --task dense takes the classifier's layers as a backbone.",
        )
    if wants_backbone:
        return classifier_as_backbone(checkpoint, given)
    return checkpoint, recognise_vim(checkpoint, given)


def build(config: VimConfig) -> VisionMamba:
    """Return the classifier or the backbone of a configuration, with random weights."""
    return VisionMambaDense(config) if isinstance(config, VimDenseConfig) else VisionMamba(config)


def resize(state: Mapping[str, Tensor], old: VimConfig, new: VimConfig, official: bool) -> Resized:
    """Interpolate the position embeddings, and compute the rotations, which the image size alone decides, anew."""
    resized = dict(state)
    if old.if_abs_pos_embed and new.grid != old.grid:
        interpolate = resize_pos_embed_officially if official else resize_pos_embed
        resized["pos_embed"] = interpolate(state["pos_embed"], old, new)
    if old.if_rope:
        for key, value in make_rope(new).state_dict(prefix="rope.").items():
            # Those of a sequence of the same length stay the checkpoint's own.
            resized[key] = state[key] if state[key].shape == value.shape else value
    how = "as the official code does" if official else "around the class token"
    return Resized(resized, f"position embeddings resized {change_of_size(old, new)} {how}")


VIM = Family(
    title="Vision Mamba",
    keys=re.compile(r"layers\.\d+\.mixer\."),
    configs={"vim": read_classifier, "vim_dense": read_backbone},
    recognise=recognise,
    build=build,
    resize=resize,
)
