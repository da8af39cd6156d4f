"""Which entry of a checkpoint holds the weights, under the many names that training scripts give it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vimdeploy.errors import CheckpointError
from vimdeploy.models.checkpoint.kinds import SLACK

KNOWN = {"model": ("model", "state_dict", "model_state_dict", "module"), "ema": ("model_ema", "state_dict_ema")}
"""Names of the trained weights and of their moving average, in the order in which they are looked for."""
_BESIDE = ("optimizer", "lr_scheduler", "scheduler", "scaler", "loss_scaler", "amp", "rng", "criterion", "hyper")
"""Beginnings of entries that hold tensors and no model."""
_WRAPPERS = ("module.", "_orig_mod.")
"""Added to every key by DistributedDataParallel and torch.compile, in any nesting."""
_SAVE = "Save model.state_dict(), or {'model': model.state_dict()}."
_LARGEST_GAIN = 8
"""Tied weights may count more than once; views that repeat one value millions of times are no weights."""


def select(path: Path, content: Mapping[Any, Any], weights: str) -> tuple[dict[str, Tensor], str]:
    """Return the weights asked for and the name of the entry that they are under.

    Args:
        path: for messages.
        content: what the file holds.
        weights: ``"model"``, ``"ema"``, or the name of an entry.

    Raises:
        CheckpointError: the entry is not there, which of several is not plain, or it is not what weights are.

    """
    _refuse_deepspeed(path, content)
    found = dict(_candidates(content))
    if weights not in KNOWN:
        if weights not in found:
            raise _absent(path, content, weights, found)
        return as_tensors(path, found[weights]), weights
    for name in KNOWN[weights]:
        inner = content.get(name)
        if isinstance(inner, Mapping):
            nested = dict(_candidates(inner))
            if not _holds_tensors(inner) and nested:
                state, entry = select(path, inner, weights)
                return state, f"{name}.{entry}"
            return as_tensors(path, inner), name
    others = [name for names in KNOWN.values() for name in names if name in found]
    if weights == "ema" or others:
        raise _absent(path, content, weights, found)
    if _holds_tensors(content):
        return as_tensors(path, content), "state dict"
    if len(found) == 1:
        name = next(iter(found))
        return as_tensors(path, found[name]), name
    if found:
        raise CheckpointError(
            f"{path}: which weights are meant is not plain; it holds {', '.join(map(repr, sorted(found)))}.",
            hint=f"Name them: --weights {min(found)}",
        )
    return as_tensors(path, content), "state dict"


def unwrap(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Remove what wrappers put before every key, in any nesting; returns notes too."""
    notes = []
    unwrapped = dict(state)
    while prefix := next((p for p in _WRAPPERS if unwrapped and all(key.startswith(p) for key in unwrapped)), None):
        unwrapped = {key[len(prefix) :]: value for key, value in unwrapped.items()}
        notes.append(f"removed the prefix '{prefix}' from every key")
    return unwrapped, notes


def as_tensors(path: Path, content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors and numeric arrays of an entry by key; whatever else is there is left out."""
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            value = torch.from_numpy(np.ascontiguousarray(value.astype(value.dtype.newbyteorder("="))))  # noqa: PLW2901
        if isinstance(value, Tensor):
            state[key] = value
    if not state:
        names = ", ".join(sorted(key for key in content if isinstance(key, str))[:10]) or "nothing"
        raise CheckpointError(f"{path}: holds no weights (its entries: {names}).", hint=_SAVE)
    for key, value in state.items():
        if value.layout != torch.strided:
            raise CheckpointError(f"{path}: {key} is sparse.", hint="Save it with .to_dense().")
        if value.is_quantized or value.is_complex():
            kind = "quantized" if value.is_quantized else "complex"
            raise CheckpointError(f"{path}: {key} is {kind}.", hint="Save the weights as they were trained.")
        if value.is_meta:
            raise CheckpointError(f"{path}: {key} has a shape and no values.", hint=_SAVE)
    return state


def refuse_inflated(path: Path, state: Mapping[str, Tensor], size: int) -> None:
    """Raise CheckpointError for tensors of far more values than ``size`` bytes of files can hold."""
    total = sum(value.numel() * value.element_size() for value in state.values())
    if total > _LARGEST_GAIN * size + SLACK:
        raise CheckpointError(
            f"{path}: its tensors claim {total:,} bytes, the file has {size:,}: one value stands for many.",
            hint=_SAVE,
        )


def _candidates(content: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping) and not key.lower().startswith(_BESIDE):
            if _holds_tensors(value):
                yield key, value
            else:
                yield from ((f"{key}.{name}", inner) for name, inner in _directly(value))


def _directly(content: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping) and _holds_tensors(value):
            yield key, value


def _holds_tensors(content: Mapping[Any, Any]) -> bool:
    return any(isinstance(key, str) and isinstance(value, (Tensor, np.ndarray)) for key, value in content.items())


def _absent(
    path: Path, content: Mapping[Any, Any], weights: str, found: Mapping[str, Mapping[Any, Any]]
) -> CheckpointError:
    named = [name for names in KNOWN.values() for name in names if name in found]
    held = f"only {', '.join(map(repr, named or sorted(found)))}" if found else "a bare state dict"
    if not found and not _holds_tensors(content):
        held = "no weights at all"
    other = "ema" if weights == "model" else "model"
    known = any(name in found for name in KNOWN[other]) or not found
    return CheckpointError(
        f"{path}: has no weights to take for --weights {weights}; it holds {held}.",
        hint=f"Use --weights {other if known else min(found)}.",
    )


def _refuse_deepspeed(path: Path, content: Mapping[Any, Any]) -> None:
    hint = "python zero_to_fp32.py FOLDER OUTPUT, which DeepSpeed leaves beside its folders, makes one file of them."
    if "optimizer_state_dict" in content and any(str(key).startswith(("ds_", "zero_")) for key in content):
        raise CheckpointError(f"{path}: holds the optimizer's part of a checkpoint of DeepSpeed.", hint=hint)
    for inner in (content.get("module"), content):
        if isinstance(inner, Mapping):
            tensors = [value for value in inner.values() if isinstance(value, Tensor)]
            if tensors and sum(value.numel() == 0 for value in tensors) * 2 > len(tensors):
                raise CheckpointError(f"{path}: its weights are empty: DeepSpeed (ZeRO-3) keeps them apart.", hint=hint)
