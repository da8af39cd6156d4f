"""Which VMamba a checkpoint holds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from vimdeploy.artifacts.recipe import Recipe
from vimdeploy.errors import CheckpointError, UsageError
from vimdeploy.models.checkpoint.reading import Checkpoint
from vimdeploy.models.evidence import (
    GUESS,
    MODEL_ARGS,
    OFFICIAL,
    SHAPES,
    Layer,
    Shapes,
    check_ranks,
    contradict,
    merge_layers,
    recipes_of,
    refuse_contradictions,
    require_keys,
    shapes_of,
)
from vimdeploy.models.family import Given, Recognised
from vimdeploy.models.vmamba.config import ForwardType, VmambaConfig, read_vmamba_arguments

ASSUMED = "the released models (shapes cannot tell)"
_BLOCK = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.")
_RANKS = {
    **dict.fromkeys((".A_logs", "classifier.head.weight"), 2),
    **dict.fromkeys((".in_proj.weight", ".out_proj.weight", ".fc1.weight", ".fc2.weight"), 2),
    **dict.fromkeys((".x_proj_weight", ".dt_projs_weight"), 3),
    **dict.fromkeys(("conv2d.weight", "patch_embed.0.weight", "downsample.1.weight", "pos_embed"), 4),
}
"""Ranks by the end of the key, of what the configuration is read from."""
_FREE = ("num_classes", "imgsize", "out_indices")
"""What fine-tuning changes without making it another model."""


def recognise_vmamba(checkpoint: Checkpoint, wanted: Given) -> Recognised:
    """Find the configuration of the VMamba in ``checkpoint``, whose keys are today's.

    Args:
        checkpoint: weights under the official keys, see :func:`vimdeploy.models.vmamba.model.adapt_state`.
        wanted: the user's arguments and recipe; a classifier can be taken for a backbone.

    Raises:
        CheckpointError: the weights are not a VMamba's.
        UsageError: an argument or the recipe contradicts the checkpoint's shapes, or one has to be given.
        ModelError: the official code crashes on this variant.

    """
    shapes = shapes_of(checkpoint)
    facts = facts_from_shapes(checkpoint, shapes)
    given = read_vmamba_arguments(wanted.arguments, MODEL_ARGS)
    if wanted.as_backbone and not facts["out_indices"]:
        facts["out_indices"] = given.values.get("out_indices") or tuple(range(len(facts["depths"])))
    layers: list[Layer] = [(SHAPES, facts), (MODEL_ARGS, given.values)]
    _refuse_others(checkpoint, facts, given.values, MODEL_ARGS, shapes, free=())
    named = wanted.recipe or _released_with(facts, shapes)
    if named is not None:
        values = read_vmamba_arguments(named.model, f"recipe {named.name}").values
        _refuse_others(checkpoint, facts, values, f"recipe {named.name}", shapes, free=_FREE)
        layers.append((f"recipe {named.name}", values))
    if not any("forward_type" in layer for _, layer in layers):
        layers.append((ASSUMED, {"forward_type": _forward_type(checkpoint, shapes)}))
    values, sources = merge_layers([*layers, (ASSUMED, {"ssm_act_layer": "silu", "mlp_act_layer": "gelu"})])
    config = VmambaConfig(**values)
    sources.update({name: OFFICIAL for name in config.official() if name not in sources})
    notes = [*given.notes, *config.notes]
    if sources.get("forward_type") == ASSUMED:
        notes.append(
            f"{GUESS}forward_type {config.official()['forward_type']}, as {ASSUMED}; --model-args says another"
        )
    return Recognised(config, sources, named, tuple(notes))


def facts_from_shapes(checkpoint: Checkpoint, shapes: Shapes) -> dict[str, Any]:
    """Return the fields of :class:`VmambaConfig` that keys and shapes alone decide.

    Raises:
        CheckpointError: keys that every VMamba has are missing; the message lists what is there instead.

    """
    first = "layers.0.blocks.0.op."
    needed = ("patch_embed.0.weight", *(first + key for key in ("A_logs", "x_proj_weight", "dt_projs_weight")))
    needed += (first + "in_proj.weight", first + "out_proj.weight")
    require_keys(checkpoint, needed, "VMamba")
    depths = _depths(checkpoint, shapes)
    check_ranks(checkpoint, shapes, _RANKS, "VMamba")
    ops = [f"layers.{i}.blocks.0.op." for i in range(len(depths))]
    dims = tuple(shapes[op + "out_proj.weight"][0] for op in ops)
    inner = [shapes[op + "out_proj.weight"][1] for op in ops]
    ranks = [shapes[op + "dt_projs_weight"][2] for op in ops]
    automatic = all(rank == math.ceil(dim / 16) for rank, dim in zip(ranks, dims, strict=True))
    mlp = [shapes.get(op.removesuffix("op.") + "mlp.fc2.weight", (0, 0))[1] for op in ops]
    gated_mlp = mlp[0] > 0 and shapes["layers.0.blocks.0.mlp.fc1.weight"][0] == 2 * mlp[0]
    return {
        "dims": dims,
        "depths": depths,
        "in_chans": shapes["patch_embed.0.weight"][1],
        "num_classes": shapes["classifier.head.weight"][0] if "classifier.head.weight" in shapes else 0,
        "ssm_d_state": shapes[first + "A_logs"][1],
        "ssm_ratio": _common_ratio(checkpoint, inner, dims),
        "ssm_dt_rank": 0 if automatic else ranks[0],
        "ssm_conv": shapes[first + "conv2d.weight"][2] if first + "conv2d.weight" in shapes else -1,
        "ssm_conv_bias": first + "conv2d.bias" in shapes,
        "mlp_ratio": _common_ratio(checkpoint, mlp, dims),
        "gmlp": gated_mlp,
        "out_indices": tuple(i for i in range(len(depths)) if f"outnorm{i}.weight" in shapes),
        **_stem_facts(shapes),
        **({"norm_layer": "bn"} if "layers.0.blocks.0.norm.running_mean" in shapes else {}),
    }


def _depths(checkpoint: Checkpoint, shapes: Shapes) -> tuple[int, ...]:
    """Return the blocks per stage; a gap, or a stage whose first block lacks what it is recognised by, is refused."""
    blocks = {(int(m[1]), int(m[2])) for key in shapes if (m := _BLOCK.match(key))}
    stages = sorted({stage for stage, _ in blocks})
    mlp = ("mlp.fc1.weight", "mlp.fc2.weight") if any(".mlp." in key for key in shapes) else ()
    keys = (*mlp, "op.dt_projs_weight", "op.out_proj.weight")
    missing = [f"layers.{i}.blocks.0.{key}" for i in range(len(stages)) for key in keys]
    if missing := [key for key in missing if key not in shapes]:
        raise CheckpointError(
            f"{checkpoint.path}: {missing[0]} is missing; there are blocks in stages {', '.join(map(str, stages))}.",
            hint="Save the whole model's state_dict().",
        )
    return tuple(sum(stage == i for stage, _ in blocks) for i in range(len(stages)))


def _stem_facts(shapes: Shapes) -> dict[str, Any]:
    """Return the facts of the patch embedding, the downsampling and the position embedding."""
    kernel = shapes["patch_embed.0.weight"][2]
    two_convs = "patch_embed.5.weight" in shapes
    patch = 2 * (kernel - 1) if two_convs else kernel
    facts: dict[str, Any] = {
        "patchembed_version": "v2" if two_convs else "v1",
        "patch_size": patch,
        "patch_norm": "patch_embed.2.weight" in shapes,
        "posembed": "pos_embed" in shapes,
    }
    if "layers.0.downsample.reduction.weight" in shapes:
        facts["downsample_version"] = "v1"
    elif "layers.0.downsample.1.weight" in shapes:
        facts["downsample_version"] = "v2" if shapes["layers.0.downsample.1.weight"][2] == 2 else "v3"
    if "pos_embed" in shapes:
        facts["imgsize"] = (shapes["pos_embed"][2] * patch, shapes["pos_embed"][3] * patch)
    return facts


def _common_ratio(checkpoint: Checkpoint, sizes: list[int], dims: tuple[int, ...]) -> float:
    """Return the ratio with int(ratio * dim) == size in every stage, as the official constructor computes sizes."""
    lower = max(size / dim for size, dim in zip(sizes, dims, strict=True))
    for ratio in (round(lower, 6), lower, math.nextafter(lower, math.inf)):
        if all(int(ratio * dim) == size for size, dim in zip(sizes, dims, strict=True)):
            return float(ratio)
    raise CheckpointError(f"{checkpoint.path}: widths {sizes} of stages with {list(dims)} channels share no ratio.")


def _features(shapes: Shapes) -> tuple[bool, str | None]:
    """Return whether the blocks have a gate, and their output norm where its weights tell."""
    op = "layers.0.blocks.0.op."
    inner = shapes[op + "out_proj.weight"][1]
    gated = shapes[op + "in_proj.weight"][0] == 2 * inner
    for key, norm in (
        ("out_norm.0.weight", "cnorm"),
        ("out_norm.1.weight", "dwconv3"),
        ("out_norm.weight", "layernorm"),
    ):
        if op + key in shapes:
            return gated, norm
    return gated, None


def _forward_type(checkpoint: Checkpoint, shapes: Shapes) -> str:
    gated, norm = _features(shapes)
    if norm is None:
        raise UsageError(
            f"{checkpoint.path}: its blocks have no weights between scan and out_proj; shapes cannot tell which of "
            "_onnone, _onsoftmax and _onsigmoid that is.",
            hint='Pass it: --model-args \'{"forward_type": "v05_onnone_noz"}\'.',
        )
    return "v05" + ("" if norm == "layernorm" else f"_on{norm}") + ("" if gated else "_noz")


def _refuse_others(
    checkpoint: Checkpoint, facts: Mapping[str, Any], values: Mapping[str, Any], source: str, shapes: Shapes, free: Any
) -> None:
    unread = _without_effect(facts, values)
    refuse_contradictions(checkpoint, facts, values, source, free={*free, *unread}, same=_same_effect)
    if "forward_type" in values:
        kind = ForwardType.parse(values["forward_type"])
        gated, norm = _features(shapes)
        if kind.gated != gated or (
            kind.out_norm != norm if norm else kind.out_norm in ("layernorm", "cnorm", "dwconv3")
        ):
            contradict(
                checkpoint,
                f"{source} says forward_type = {kind.name}, but its blocks have {'a' if gated else 'no'} gate and "
                f"{norm or 'no weights'} as output norm.",
                "forward_type",
            )


def _same_effect(name: str, value: Any, facts: Mapping[str, Any]) -> bool:
    """Whether the official constructor makes the same model of ``value`` as of ``facts[name]``, which differs."""
    dims: tuple[int, ...] = facts["dims"]
    made: Callable[[Any], Any] = {
        "ssm_ratio": lambda ratio: [int(ratio * dim) for dim in dims],
        "mlp_ratio": lambda ratio: [int(ratio * dim) for dim in dims],
        "ssm_dt_rank": lambda rank: [rank or math.ceil(dim / 16) for dim in dims],
        # patchembed v2 reads the half of it alone
        "patch_size": lambda size: size // 2 if facts["patchembed_version"] == "v2" else size,
        "imgsize": lambda pair: [size // facts["patch_size"] for size in pair],
        # the maps come in the stages' order, whatever the arguments' is
        "out_indices": lambda indices: sorted(set(indices)),
    }.get(name, lambda other: other)
    return bool(made(value) == made(facts[name]))


def _without_effect(facts: Mapping[str, Any], values: Mapping[str, Any]) -> set[str]:
    """Return the options that the official code does not read in this model."""
    unread = {"num_classes"} if facts["out_indices"] else set()
    if facts["mlp_ratio"] == 0:
        unread.add("gmlp")
    original = "forward_type" in values and ForwardType.parse(values["forward_type"]).original
    if original or (facts["ssm_conv"] < 2 and values.get("ssm_conv", -1) < 2):
        unread |= {"ssm_conv", "ssm_conv_bias"}
    return unread


def _released_with(facts: Mapping[str, Any], shapes: Shapes) -> Recipe | None:
    """Return the released VMamba with this backbone, whatever its classes, image size or feature maps are."""
    gated, norm = _features(shapes)
    for recipe in recipes_of("vmamba"):
        values = read_vmamba_arguments(recipe.model, recipe.name).values
        kind = ForwardType.parse(values["forward_type"])
        same = all(value == facts[name] for name, value in values.items() if name in facts and name not in _FREE)
        if same and kind.gated == gated and kind.out_norm == norm:
            return recipe
    return None
