"""What recognition does alike in every family: sources of evidence, in order, and refusal of what contradicts them.

Keys and shapes decide what they can; nothing overrides them. The rest comes from the user's arguments, the recipe that
the user named, and what is known about released models. Every value remembers its source.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

from vimdeploy.artifacts.recipe import Recipe, recipes
from vimdeploy.errors import CheckpointError, UsageError
from vimdeploy.models.checkpoint.reading import Checkpoint

MODEL_ARGS = "--model-args"
SHAPES = "the checkpoint's shapes"
RELEASED = "the released models' defaults"
OFFICIAL = "the official constructor's defaults"

Shapes = Mapping[str, tuple[int, ...]]
Layer = tuple[str, Mapping[str, Any]]
"""A source, and the values it knows by name."""

OWN = "the checkpoint's training arguments"
FILE_NAME = "the file's name"
GUESS = "a guess that parity cannot check: "
"""Begins notes about what neither the weights nor the user said: reference and export would share the mistake."""


def shapes_of(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by key."""
    return {key: tuple(value.shape) for key, value in checkpoint.state.items()}


def merge_layers(layers: Collection[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return each value from the first source that has it, and that source's name."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, layer in layers:
        for name, value in layer.items():
            if name not in values:
                values[name], sources[name] = value, source
    return values, sources


def refuse_contradictions(
    checkpoint: Checkpoint,
    facts: Mapping[str, Any],
    values: Mapping[str, Any],
    source: str,
    *,
    free: Collection[str] = (),
    same: Callable[[str, Any, Mapping[str, Any]], bool] = lambda _name, _value, _facts: False,
) -> None:
    """Raise UsageError where the ``values`` of a source contradict the facts.

    Args:
        checkpoint: that the facts are of, for the message.
        facts: what its keys and shapes say.
        values: what the source says.
        source: its name.
        free: names that may differ.
        same: whether the official constructor makes the same model of a value that differs from ``facts[name]``.

    """
    for name, value in values.items():
        if name in free or name not in facts or value == facts[name] or same(name, value, facts):
            continue
        contradict(
            checkpoint,
            f"{source} says {name} = {show_value(value)}, the checkpoint's weights say {show_value(facts[name])}.",
            name,
        )


def contradict(checkpoint: Checkpoint, what: str, name: str) -> NoReturn:
    """Raise UsageError for argument ``name``, which contradicts the checkpoint in the words ``what``."""
    raise UsageError(f"{checkpoint.path}: {what}", hint=f"Leave {name} out, or pass the checkpoint it belongs to.")


def require_keys(checkpoint: Checkpoint, needed: Collection[str], title: str, hint: str = "") -> None:
    """Raise CheckpointError, listing what is there instead, unless all ``needed`` keys of a ``title`` are there."""
    if missing := [key for key in needed if key not in checkpoint.state]:
        raise CheckpointError(
            f"{checkpoint.path}: is not a {title}: {summarise_keys(missing)} missing; it has "
            f"{summarise_keys(list(checkpoint.state))}.",
            hint=hint,
        )


def check_ranks(checkpoint: Checkpoint, shapes: Shapes, ranks: Mapping[str, int], title: str) -> None:
    """Raise CheckpointError for an empty tensor, or one of another rank than its kind has in a ``title``.

    Args:
        checkpoint: that the shapes are of, for the message.
        shapes: by key.
        ranks: by the end of the key.
        title: of the family, for the message.

    """
    for key, shape in shapes.items():
        rank = next((rank for end, rank in ranks.items() if key.endswith(end)), len(shape))
        if len(shape) != rank or 0 in shape:
            raise CheckpointError(
                f"{checkpoint.path}: {key} has shape {shape}: no {title} has that.",
                hint="Save the whole model's state_dict() again, or compare the file's checksum with the source's.",
            )


def summarise_keys(keys: list[str], most: int = 10) -> str:
    """Return keys for a message: layers of one kind as one entry, at most ``most`` entries."""
    groups: dict[str, int] = {}
    for key in keys:
        pattern = re.sub(r"\.\d+\.", ".*.", key)
        groups[pattern] = groups.get(pattern, 0) + 1
    shown = [f"{name} ({count}x)" if count > 1 else name for name, count in list(groups.items())[:most]]
    more = len(groups) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def show_value(value: Any) -> str:
    """Return a value of a configuration for a message."""
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()


def ratio_of(inner: int, outer: int) -> float:
    """Return the ratio with int(ratio * outer) == inner, as the official constructors compute inner widths."""
    ratio = inner / outer
    while int(ratio * outer) < inner:
        ratio = math.nextafter(ratio, math.inf)
    return int(ratio) if ratio == int(ratio) else ratio


def recipes_of(family: str) -> list[Recipe]:
    """Return the recipes of a family, under the name that recipes give it."""
    return [recipe for recipe in recipes().values() if recipe.family == family]


def refuse_disagreement(
    checkpoint: Checkpoint, layers: Collection[Layer], *, decided: Collection[str], free: Collection[str]
) -> None:
    """Raise UsageError, naming both sides, where two sources say different things that nothing else decides.

    Args:
        checkpoint: for the message.
        layers: the sources.
        decided: names that shapes or the user's arguments settle.
        free: names in which the sources may differ.

    """
    said: dict[str, tuple[str, Any]] = {}
    for source, layer in layers:
        for name, value in layer.items():
            if name in decided or name in free:
                continue
            other, held = said.setdefault(name, (source, value))
            if held != value:
                raise UsageError(
                    f"{checkpoint.path}: {other} says {name} = {show_value(held)}, {source} says {show_value(value)}.",
                    hint=f"Say which is right: --model-args '{json.dumps({name: value})}'",
                )
