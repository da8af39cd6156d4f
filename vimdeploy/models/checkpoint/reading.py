"""Reading checkpoints safely, in the formats and layouts that people publish.

Nothing in a checkpoint is ever executed: pickles are read with ``weights_only=True``, see :mod:`.safe_pickle`. Formats
are told by content (:mod:`.kinds`), files by folder and index (:mod:`.parts`), weights by entry (:mod:`.entries`).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vimdeploy.errors import CheckpointError
from vimdeploy.models.checkpoint.entries import as_tensors, refuse_inflated, select, unwrap
from vimdeploy.models.checkpoint.kinds import Kind, tell_kind
from vimdeploy.models.checkpoint.parts import Parts, find_parts
from vimdeploy.models.checkpoint.safe_pickle import is_company, load_weights_only, named_globals

_PROTOCOL_4 = range(140, 151)
"""Operands that pickle protocols 4 and 5 added."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights and what came with them."""

    path: Path
    sha256: str
    state: dict[str, Tensor]
    """Parameters and buffers by official key; floating-point ones in float32."""
    weights: str
    """Which entry of the file they are: its key, or ``"state dict"`` for a bare one."""
    arguments: dict[str, Any]
    """The training script's arguments, where the file holds them."""
    notes: tuple[str, ...]


def read_checkpoint(path: Path, weights: str = "model") -> Checkpoint:
    """Read the weights of a checkpoint.

    Args:
        path: a file of torch, safetensors or numpy (``.npz``), whatever its suffix says; an index of shards, one of
            its shards, or a folder with one of these. Understood are a bare state dict, ``{"model": ...}`` and the
            same under any other single name, the full layout of a training run (``model``, ``model_ema``, ``args``,
            ...), and keys prefixed by wrappers.
        weights: ``"model"``, ``"ema"`` for the exponential moving average, or the name of an entry.

    Raises:
        CheckpointError: the file is missing, empty, truncated or no checkpoint, would execute code, lacks the weights
            asked for, or holds NaN or infinite values.

    """
    parts = find_parts(path)
    notes = list(parts.notes)
    content = _read_all(parts, notes)
    state, entry = select(parts.path, content, weights)
    refuse_inflated(parts.path, state, sum(file.stat().st_size for file in parts.files))
    state, removed = unwrap(state)
    notes += removed
    half = {str(v.dtype).removeprefix("torch.") for v in state.values() if v.is_floating_point()} - {"float32"}
    if half:
        notes.append(f"converted weights from {', '.join(sorted(half))} to float32")
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    _check_finite(parts.path, state)
    return Checkpoint(
        path=parts.path,
        sha256=parts.sha256(),
        state=state,
        weights=entry,
        arguments=_arguments(content),
        notes=tuple(notes),
    )


def _arguments(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the training script was called with, as far as it was saved as plain values."""
    for name in ("args", "hyper_parameters", "config"):
        arguments = content.get(name)
        if isinstance(arguments, argparse.Namespace):
            return dict(vars(arguments))
        if isinstance(arguments, Mapping):
            return {key: value for key, value in arguments.items() if isinstance(key, str)}
    return {}


def _read_all(parts: Parts, notes: list[str]) -> dict[str, Any]:
    """Return the content of one file, or the weights of all shards together."""
    if len(parts.files) == 1 and parts.keys is None:
        return _read_one(parts.files[0], notes)
    state: dict[str, Any] = {}
    for file in parts.files:
        shard = as_tensors(file, _read_one(file, notes))
        if twice := next((key for key in shard if key in state), None):
            raise CheckpointError(f"{file}: holds {twice}, which another shard holds too.")
        state |= shard
    if missing := sorted((parts.keys or frozenset()) - state.keys()):
        raise CheckpointError(
            f"{parts.path}: promises {missing[0]}, which no shard holds ({len(missing)} are missing).",
            hint="Download the checkpoint again: index and shards belong together.",
        )
    return state


def _read_one(path: Path, notes: list[str]) -> dict[str, Any]:
    kind = tell_kind(path)
    if kind is Kind.SAFETENSORS:
        return _read_safetensors(path)
    return _read_npz(path) if kind is Kind.NPZ else _read_torch(path, notes)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: is truncated or not a safetensors file ({error}).", hint="Download or copy the checkpoint again."
        ) from error


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except Exception as error:  # numpy meets damaged bytes at any depth, as torch does
        raise CheckpointError(
            f"{path}: is truncated or not a file of numpy arrays ({error}).",
            hint="Download or copy the checkpoint again.",
        ) from error


def _read_torch(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        content, frameworks = load_weights_only(path)
    except Exception as error:
        # torch.load meets damaged bytes at any depth and raises a dozen types, from EOFError to RuntimeError.
        raise _unreadable(path, error) from error
    if frameworks:
        notes.append(f"objects of {', '.join(frameworks)} beside the weights were not read")
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, not a checkpoint.",
            hint="Save model.state_dict(), or {'model': model.state_dict()}.",
        )
    return dict(content)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    blocked = re.search(r"GLOBAL (\S+)", str(error))
    name = blocked[1] if blocked else _foreign_name(path)
    if name:
        return CheckpointError(
            f"{path}: loading it would execute code (it calls {name}); nothing was executed.",
            hint="If you trust its author, load it with torch in a sandbox and save model.state_dict() alone.",
        )
    if "Can only" in str(error) or "call reduce" in str(error):
        return CheckpointError(
            f"{path}: holds an object beside its weights that cannot be skipped safely; nothing was executed.",
            hint="If you trust its author, load it with torch in a sandbox and save model.state_dict() alone.",
        )
    operand = re.search(r"Unsupported operand (\d+)", str(error))
    if operand and int(operand[1]) in _PROTOCOL_4:
        return CheckpointError(
            f"{path}: was pickled with a protocol that cannot be read safely (operand {operand[1]}), or is damaged.",
            hint="Save it again with torch.save(...) and its default pickle_protocol.",
        )
    return CheckpointError(
        f"{path}: is truncated, damaged or not a PyTorch checkpoint.",
        hint="Download or copy the checkpoint again, and compare its size or checksum with the source's.",
    )


def _foreign_name(path: Path) -> str:
    """Return what a pickle names beyond what checkpoints are made of; empty if nothing, or if it is no pickle.

    torch gives up on pickle protocols that it does not write before it meets the name. Nothing is executed here either.
    """
    known = ("torch", "collections", "argparse", "numpy")
    foreign = (n for n in named_globals(path) if n.partition(".")[0] not in known and not is_company(n))
    return next(foreign, "")


def _check_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    broken = [key for key, value in state.items() if value.is_floating_point() and not _is_finite(value)]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise CheckpointError(
            f"{path}: NaN or infinite values in {', '.join(broken[:3])}{more}.",
            hint="The training run diverged; use an earlier checkpoint, or --weights ema if the file has it.",
        )


def _is_finite(value: Tensor) -> bool:
    # isfinite writes three temporaries of the weight's size. A sum tells in one pass, unless finite values overflow it.
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())
