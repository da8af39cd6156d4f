"""Where in a checkpoint the model is: under which prefix, beside what, and what it is if it is none of ours."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from vimdeploy.errors import CheckpointError, UsageError
from vimdeploy.models.checkpoint.reading import Checkpoint
from vimdeploy.models.evidence import summarise_keys

_EXTRA = re.compile(
    r"n_averaged|num_updates|(.*\.)?total_(ops|params)|(criterion|loss|loss_fn|optimizer|ema_\w+)(\..*)?|_metadata"
)
"""Entries that optimisers' averages, profilers (thop) and training wrappers leave among the weights."""
_NESTED = re.compile(r"(^|\.)(layers|blocks)\.\d+\.")
_BACKBONE = re.compile(r"(^|\.)(backbone|encoder|img_backbone|trunk|bottom_up)(\.|$)")
"""What detectors and segmentors call the part that gives feature maps."""
_HEADS = ("head.weight", "classifier.head.weight")
_STRANGERS = (
    ("VideoMamba for video", r"temporal_pos_embedding"),
    ("MedMamba", r"conv33conv33conv11\."),
    ("VM-UNet", r"layers_up\.\d+\."),
    ("MambaVision", r"levels\.\d+\.blocks\.\d+\.(mixer|norm1)\."),
    ("LocalVim or LocalVMamba", r"layers\.\d+\.(blocks\.\d+\.)?(op|mixer|self_attention)\.(multi_scan|attn)\."),
    ("EfficientVMamba", r"layers\.\d+\.blocks\.\d+\.(conv_branch|se|sse|conv_reduce)\."),
    ("Mamba language model", r"embedding\.weight|layers\.0\.mixer\.(norm|dt_bias)\b"),
    ("Swin Transformer", r"layers\.\d+\.blocks\.\d+\.attn\.relative_position_bias_table"),
)
"""Relatives that share key names with what is supported; (title, keys that only they have)."""


def take_model(
    checkpoint: Checkpoint, families: Sequence[re.Pattern[str]], prefix: str | None = None
) -> tuple[Checkpoint, bool]:
    """Return the model inside a checkpoint under its own keys, and whether it is the backbone of something larger.

    Args:
        checkpoint: as read.
        families: what keys of each family begin with.
        prefix: where the model is, from the user; None looks for it.

    Raises:
        CheckpointError: it holds a model of another family, told by name.
        UsageError: there are several models, or none under the prefix.

    """
    refuse_strangers(checkpoint)
    found = _prefixes(checkpoint.state, families)
    if prefix is not None:
        chosen = prefix if prefix.endswith(".") or not prefix else prefix + "."
        if chosen not in found:
            listed = ", ".join(map(repr, sorted(found))) or "nowhere"
            raise UsageError(f"{checkpoint.path}: has no model under --prefix {prefix}.", hint=f"Models are: {listed}.")
    elif not found or "" in found:
        chosen = ""
    elif len(found) == 1:
        (chosen,) = found
    else:
        raise UsageError(
            f"{checkpoint.path}: holds several models, under {', '.join(map(repr, sorted(found)))}.",
            hint=f"Say which: --prefix {min(found)}",
        )
    state = {key[len(chosen) :]: value for key, value in checkpoint.state.items() if key.startswith(chosen)}
    beside = [key for key in checkpoint.state if not key.startswith(chosen)]
    extra = [key for key in state if _EXTRA.fullmatch(key)]
    left = [key for key in beside if not _EXTRA.fullmatch(key)]
    state = {key: value for key, value in state.items() if key not in extra}
    notes = list(checkpoint.notes)
    if dropped := [*extra, *(key for key in beside if _EXTRA.fullmatch(key))]:
        notes.append(f"left out what is no weight of a model: {summarise_keys(dropped)}")
    is_classifier = any(head in state for head in _HEADS)
    inside = bool(chosen) and not is_classifier and bool(left or _BACKBONE.search(chosen))
    if inside:
        notes.append(f"took the backbone, {len(state)} entries under '{chosen}'; left {_by_group(left) or 'nothing'}")
    elif left:
        notes.append(f"took the model, {len(state)} entries under '{chosen}'; left {_by_group(left)}")
    elif chosen:
        notes.append(f"removed the prefix '{chosen}' from every key")
    return replace(checkpoint, state=state, notes=tuple(notes)), inside


def refuse_strangers(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for a relative that is not supported, by its name."""
    for title, pattern in _STRANGERS:
        own = re.compile(rf"(^|.*\.)({pattern})")
        if mark := next((key for key in checkpoint.state if own.match(key)), None):
            raise CheckpointError(
                f"{checkpoint.path}: holds a {title} (it has {mark}), which is not supported.",
                hint="With its PyTorch module at hand, vimdeploy.export_module exports it (docs/your-own-model.md).",
            )


def _prefixes(keys: Collection[str], families: Sequence[re.Pattern[str]]) -> set[str]:
    """Return every prefix under which keys of the first fitting family are."""
    for family in families:
        pattern = re.compile(rf"((?:[^.]+\.)*?)(?:{family.pattern})")
        found = {match[1] for key in keys if (match := pattern.match(key))}
        if found := {prefix for prefix in found if not _NESTED.search(prefix)}:
            return found
    return set()


def _by_group(keys: Sequence[str]) -> str:
    """Return keys by their first name, those of a backbone by their first two, with counts."""
    counts: dict[str, int] = {}
    for key in keys:
        group = ".".join(key.split(".")[: 2 if _BACKBONE.match(key) else 1])
        counts[group] = counts.get(group, 0) + 1
    return ", ".join(f"{group} ({count})" for group, count in counts.items())
