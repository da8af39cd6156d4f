"""Where a module of the user's comes from: an entry point that is imported on request only, and a checkpoint."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vimdeploy.artifacts.files import sha256_file
from vimdeploy.artifacts.manifest import CheckpointInfo
from vimdeploy.errors import CheckpointError, ModelError, UsageError, VimdeployError, nearest
from vimdeploy.graph.symbolic import users_line
from vimdeploy.interop import table
from vimdeploy.models.checkpoint.reading import read_checkpoint

_SHOWN = 8


def build_module(entry: str, kwargs: Mapping[str, Any], import_paths: Sequence[Path] = ()) -> nn.Module:
    """Import ``package.module:function`` and call it; the only place where code of the user's is run by name.

    Args:
        entry: ``package.module:function`` or ``package.module:Class``.
        kwargs: arguments of it.
        import_paths: folders to look in first.

    Raises:
        UsageError: no such module or function, or it gives no ``torch.nn.Module``.
        ModelError: the import or the call failed; says where, and which package is missing.

    """
    name, _, attribute = entry.partition(":")
    if not name or not attribute:
        raise UsageError(f"{entry}: is no entry point.", hint="Write package.module:function.")
    with on_path(import_paths):
        made = _call(_find(name, attribute, import_paths), entry, kwargs)
    if isinstance(made, (tuple, list)) and made and isinstance(made[0], nn.Module):
        made = made[0]
    if not isinstance(made, nn.Module):
        raise UsageError(f"{entry}: gives a {type(made).__name__}, not a torch.nn.Module.")
    return made


@contextmanager
def on_path(folders: Sequence[Path]) -> Iterator[None]:
    """Put folders before everything else that is imported from, inside the block."""
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"--import-path {folder}: there is no such folder.")
    before = list(sys.path)
    sys.path[:0] = [str(folder.resolve()) for folder in folders]
    try:
        yield
    finally:
        sys.path[:] = before


def _find(name: str, attribute: str, import_paths: Sequence[Path]) -> Callable[..., Any]:
    try:
        module = importlib.import_module(name)
    except VimdeployError:
        raise
    except Exception as error:
        raise _import_failed(name, error, import_paths) from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            callables = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            raise UsageError(f"{name}: has no '{attribute}'.", hint=nearest(attribute, callables or [name]))
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{name}:{attribute}: cannot be called.")
    call: Callable[..., Any] = found
    return call


def _import_failed(name: str, error: Exception, import_paths: Sequence[Path]) -> VimdeployError:
    where = users_line(error)
    missing = getattr(error, "name", None) if isinstance(error, ImportError) else None
    root = str(missing or "").partition(".")[0]
    if root and name.partition(".")[0] == root:
        folders = ", ".join(map(str, import_paths)) or "the current Python path"
        return UsageError(f"{name}: cannot be found in {folders}.", hint="Name its folder with --import-path DIR.")
    if root:
        stubbed = root in table.STUBS
        can = (
            f"it is stubbed where it is only imported, but this import expects more of it: pip install {root}"
            if stubbed
            else f"pip install {root}; if the model only imports it and never calls it, --stub {root}"
        )
        extension = " (a compiled extension that vimdeploy has no substitute for?)" if "cuda" in root.lower() else ""
        return ModelError(
            f"Importing {name} failed{f' at {where}' if where else ''}: the package '{root}' is missing{extension}.",
            hint=can[0].upper() + can[1:] + ".",
        )
    first = (str(error).splitlines() or [""])[0]
    return ModelError(
        f"Importing {name} failed{f' at {where}' if where else ''}: {type(error).__name__}: {first[:300]}",
        hint="The module must import on its own: try it in Python inside vimdeploy.substitute_mamba_ssm().",
    )


def _call(function: Callable[..., Any], entry: str, kwargs: Mapping[str, Any]) -> Any:
    try:
        return function(**kwargs)
    except VimdeployError:
        raise
    except Exception as error:
        where = users_line(error)
        first = (str(error).splitlines() or [""])[0]
        raise ModelError(
            f"Building the model with {entry}({', '.join(f'{k}={v!r}' for k, v in kwargs.items())}) failed"
            f"{f' at {where}' if where else ''}: {type(error).__name__}: {first[:300]}",
            hint="Pass its arguments with --kwargs JSON.",
        ) from error


def load_weights(module: nn.Module, path: Path, key: str | None = None) -> CheckpointInfo:
    """Load a checkpoint into a module, strictly; nothing in it is executed.

    Raises:
        CheckpointError: it cannot be read, or its keys or shapes are not the module's; lists the difference.

    """
    state = _state(path, key)
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name}: {tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if missing or unexpected or shapes:
        parts = [
            f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
            for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
            if names
        ]
        raise CheckpointError(
            f"{path}: does not fit the model: {'; '.join(parts)}.",
            hint="Build the model with the arguments it was trained with (--kwargs), or name the entry with --key.",
        )
    module.load_state_dict({name: value.to(own[name].dtype) for name, value in state.items()})
    return CheckpointInfo(file=str(path), sha256=sha256_file(path), weights=key or "model")


def _state(path: Path, key: str | None) -> dict[str, Tensor]:
    if key is None:
        return read_checkpoint(path).state
    from vimdeploy.models.checkpoint.safe_pickle import load_weights_only

    read_checkpoint_errors = (RuntimeError, ValueError, KeyError, EOFError, OSError)
    try:
        content, _ = load_weights_only(path)
    except read_checkpoint_errors:
        return read_checkpoint(path).state  # says in words what is wrong with the file
    entry: Any = content
    for part in key.split("."):
        if not isinstance(entry, Mapping) or part not in entry:
            known = ", ".join(sorted(map(str, entry))[:10]) if isinstance(entry, Mapping) else type(entry).__name__
            raise CheckpointError(f"{path}: has no entry '{key}'.", hint=f"It holds: {known}.")
        entry = entry[part]
    state = {str(k): v for k, v in entry.items() if isinstance(v, Tensor)} if isinstance(entry, Mapping) else {}
    if not state:
        raise CheckpointError(f"{path}: its entry '{key}' holds no weights.")
    prefix = "module."
    if all(name.startswith(prefix) for name in state):
        state = {name[len(prefix) :]: value for name, value in state.items()}
    return state
