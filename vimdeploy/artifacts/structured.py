"""JSON and TOML from strangers: bounded in size, depth and numbers before anything is made of them."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

from vimdeploy.errors import ArtifactError, UsageError, VimdeployError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LARGEST_FILE = 32 << 20
"""Bytes. The manifest of a model with 20,000 class names has one million."""
_DEEPEST = 64
_LARGEST_NUMBER = 2**63


def read_json(path: Path, *, hint: str, error: type[VimdeployError] = ArtifactError) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        hint: what to do where it cannot be read.
        error: the kind of error that is raised in place of ArtifactError.

    Raises:
        FileNotFoundError: there is none; the caller knows what it was needed for.
        ArtifactError: it is no regular file, too large, not JSON, nested too deeply, or holds numbers beyond 64 bits.

    """
    return parse_json(_text(path, "JSON", hint, error), str(path), hint=hint, error=error)


def parse_json(text: str, source: str, *, hint: str, error: type[VimdeployError] = ArtifactError) -> Any:
    """Parse JSON text; see :func:`read_json`. ``source`` names it in messages, ``error`` is the kind raised."""
    try:
        data = json.loads(text, parse_int=_bounded)
        _check_depth(data)
    except (ValueError, RecursionError) as found:
        raise error(f"{source}: not a readable JSON file: {_reason(found)}.", hint=hint) from found
    return data


def read_toml(path: Path, *, hint: str = "") -> dict[str, Any]:
    """Read a TOML file; UsageError where it is missing or not readable, in the sense of :func:`read_json`."""
    try:
        text = _text(path, "TOML", hint, UsageError)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: there is no such file.", hint=hint) from error
    try:
        data = tomllib.loads(text)
        _check_depth(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a readable TOML file: {_reason(error)}.", hint=hint) from error
    return data


def _text(path: Path, kind: str, hint: str, error: type[VimdeployError]) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{path}: is not a file.", hint=hint)
        if status.st_size > LARGEST_FILE:
            raise error(f"{path}: has {status.st_size:,} bytes; at most {LARGEST_FILE:,} are read.", hint=hint)
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as found:
        raise error(f"{path}: not a readable {kind} file: it is no text ({found}).", hint=hint) from found
    except OSError as found:
        raise error(f"{path}: cannot be read: {_reason(found)}.", hint=hint) from found


def _bounded(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) >= _LARGEST_NUMBER:
        raise ValueError(f"the number {digits[:20]}... is beyond 64 bits")
    return int(digits)


def _check_depth(data: Any) -> None:
    """Raise ValueError for nesting that later code, which recurses, might not survive."""
    level = [data]
    for _ in range(_DEEPEST):
        inner = [value for value in level if isinstance(value, (dict, list))]
        level = [entry for value in inner for entry in (value.values() if isinstance(value, dict) else value)]
        if not level:
            return
    raise ValueError(f"it is nested more than {_DEEPEST} deep")


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)
