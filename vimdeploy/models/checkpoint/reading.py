"""Reading checkpoints safely: ``.pth``/``.pt`` in the layouts people publish, and ``.safetensors``.

Nothing in a checkpoint is ever executed: pickles are read with ``weights_only=True``, see :mod:`.safe_pickle`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vimdeploy.artifacts.files import sha256_file
from vimdeploy.errors import CheckpointError
from vimdeploy.models.checkpoint.safe_pickle import is_company, load_weights_only, named_globals

_WEIGHTS = {"model": ("model", "state_dict", "model_state_dict", "module"), "ema": ("model_ema", "state_dict_ema")}
_PROTOCOL_4 = range(140, 151)
"""Operands that pickle protocols 4 and 5 added."""
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
"""Added to every key by DistributedDataParallel and torch.compile."""


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
        path: ``.pth``, ``.pt`` or ``.safetensors``. Understood are a bare state dict, ``{"model": ...}``, the full
            layout of a training run (``model``, ``model_ema``, ``args``, ...), and keys prefixed by wrappers.
        weights: ``"model"``, or ``"ema"`` for the exponential moving average.

    Raises:
        CheckpointError: the file is missing, empty, truncated or no checkpoint, would execute code, lacks the weights
            asked for, or holds NaN or infinite values.

    """
    _check_file(path)
    notes: list[str] = []
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path, notes)
    state, entry = _select(path, content, weights)
    for prefix in _WRAPPER_PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            state = {key[len(prefix) :]: value for key, value in state.items()}
            notes.append(f"removed the prefix '{prefix}' from every key")
    half = {str(v.dtype).removeprefix("torch.") for v in state.values() if v.is_floating_point()} - {"float32"}
    if half:
        notes.append(f"converted weights from {', '.join(sorted(half))} to float32")
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    _check_finite(path, state)
    arguments = content.get("args")
    return Checkpoint(
        path=path,
        sha256=sha256_file(path),
        state=state,
        weights=entry,
        arguments=dict(vars(arguments)) if isinstance(arguments, argparse.Namespace) else {},
        notes=tuple(notes),
    )


def _check_file(path: Path) -> None:
    try:
        size = path.stat().st_size
        path.open("rb").close()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file.", hint="Check the path of the checkpoint.") from error
    except IsADirectoryError as error:
        raise CheckpointError(
            f"{path}: is a folder, not a checkpoint.", hint="Name the .pth file inside it."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from error
    if size == 0:
        raise CheckpointError(f"{path}: is empty.", hint="Download or copy the checkpoint again.")


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: is truncated or not a safetensors file ({error}).", hint="Download or copy the checkpoint again."
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


def _select(path: Path, content: Mapping[str, Any], weights: str) -> tuple[dict[str, Tensor], str]:
    """Return the state dict asked for and the key it stands under."""
    nested = [key for key in _WEIGHTS[weights] if isinstance(content.get(key), Mapping)]
    if nested:
        return _tensors(path, content[nested[0]]), nested[0]
    others = [key for keys in _WEIGHTS.values() for key in keys if isinstance(content.get(key), Mapping)]
    if weights == "ema" or others:
        held = f"only '{others[0]}'" if others else "a bare state dict"
        other = "ema" if weights == "model" else "model"
        raise CheckpointError(
            f"{path}: has no weights to take for --weights {weights}; it holds {held}.",
            hint=f"Use --weights {other}.",
        )
    return _tensors(path, content), "state dict"


def _tensors(path: Path, content: Mapping[Any, Any]) -> dict[str, Tensor]:
    state = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not state:
        keys = ", ".join(sorted(map(str, content))[:10]) or "nothing"
        raise CheckpointError(
            f"{path}: holds no weights (its entries: {keys}).",
            hint="Save model.state_dict(), or {'model': model.state_dict()}.",
        )
    if sparse := [key for key, value in state.items() if value.layout != torch.strided]:
        raise CheckpointError(f"{path}: {sparse[0]} is sparse.", hint="Save it with .to_dense().")
    return state


def _check_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    broken = [key for key, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise CheckpointError(
            f"{path}: NaN or infinite values in {', '.join(broken[:3])}{more}.",
            hint="The training run diverged; use an earlier checkpoint, or --weights ema if the file has it.",
        )
