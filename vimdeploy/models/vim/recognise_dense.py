"""Which dense Vision Mamba backbone a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vimdeploy.artifacts.recipe import Recipe, recipes
from vimdeploy.errors import UsageError
from vimdeploy.models.checkpoint.reading import Checkpoint
from vimdeploy.models.vim.dense_config import (
    NOT_OF_DETECTION,
    VimDenseConfig,
    quarters,
    read_dense_arguments,
)
from vimdeploy.models.vim.recognise import (
    MODEL_ARGS,
    OFFICIAL,
    SHAPES,
    Recognised,
    facts_from_shapes,
    merge_layers,
    refuse_contradictions,
    settle_img_size,
)

SHIPPED = "the official segmentation and detection configurations"
_UNREAD = {
    *("ssm_cfg", "num_classes", "if_cls_token", "use_double_cls_token", "use_middle_cls_token", "final_pool_type"),
    *("flip_img_sequences_ratio", "in_chans"),
}
"""Arguments of the classifier that a backbone does not read, and those that go by another name here."""


def is_dense(checkpoint: Checkpoint) -> bool:
    """Whether the weights can only be a backbone's: no last norm (detection), or a pyramid (segmentation)."""
    return "norm_f.weight" not in checkpoint.state or "fpn1.0.weight" in checkpoint.state


def recognise_dense(checkpoint: Checkpoint, model_args: Mapping[str, Any], recipe: Recipe | None) -> Recognised:
    """Find the configuration of the dense backbone in ``checkpoint``.

    Raises:
        CheckpointError: the weights are not a Vision Mamba's.
        UsageError: an argument or the recipe contradicts the checkpoint's shapes.
        ModelError: the official code crashes on this variant.

    """
    shapes = {key: tuple(value.shape) for key, value in checkpoint.state.items()}
    facts = facts_from_shapes(checkpoint, shapes)
    facts = {name: value for name, value in facts.items() if name not in ("if_cls_token", "num_classes")}
    facts |= {"kind": "seg" if "norm_f.weight" in shapes else "det", "if_fpn": "fpn1.0.weight" in shapes}
    given = read_dense_arguments(model_args, MODEL_ARGS)
    notes = list(given.notes)
    mine = _leave_unread(given.values, facts, notes)
    refuse_contradictions(checkpoint, facts, mine, MODEL_ARGS, free=())
    layers: list[tuple[str, dict[str, Any]]] = [(SHAPES, facts), (MODEL_ARGS, mine)]
    if recipe is not None:
        if recipe.family != "vim_dense":
            raise UsageError(f"{checkpoint.path}: is a dense backbone, recipe {recipe.name} is not.")
        values = read_dense_arguments(recipe.model, f"recipe {recipe.name}").values
        refuse_contradictions(checkpoint, facts, values, f"recipe {recipe.name}", free=("img_size",))
        layers.append((f"recipe {recipe.name}", values))
    layers.append((SHIPPED, _shipped(facts)))
    values, sources = merge_layers(layers)
    values["if_cls_token"] = False
    settle_img_size(checkpoint, shapes, layers, values, sources)
    config = VimDenseConfig(**values)
    assumed = {*config.official(), "use_fast_path"} - sources.keys() - _UNREAD
    sources.update(dict.fromkeys(sorted(assumed), OFFICIAL))
    sources["in_chans"] = sources.pop("channels")
    return Recognised("vim_dense", config, sources, recipe or _recipe_for(config), (*notes, *config.notes))


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
    for recipe in recipes().values():
        if recipe.family != "vim_dense":
            continue
        if VimDenseConfig(**read_dense_arguments(recipe.model, recipe.name).values) == config:
            return recipe
    return None
