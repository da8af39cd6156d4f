"""How arguments of the API become what the code below works with: one or several, and numbers that make sense."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from vimdeploy.errors import UsageError

T = TypeVar("T", int, str, str | Path)


def several(value: T | Sequence[T]) -> tuple[T, ...]:
    """Return one value as a tuple of it, several as a tuple: a text is one value, not the sequence of its letters."""
    return (value,) if isinstance(value, str | int | Path) else tuple(value)


def default_output(path: Path, suffix: str) -> Path:
    """Return where a result goes that nobody gave a name: beside ``path``, with another suffix.

    Raises:
        UsageError: a path without a name, as ``/``.

    """
    named = path if path.name not in ("", "..") else path.resolve()
    if not named.name:
        raise UsageError(f"{path}: names no file.", hint="Name the file, or where to write with -o.")
    return named.with_suffix(suffix)


def at_least(least: float, **values: float | None) -> None:
    """Raise UsageError for a number below ``least``, or one that is no number; None is none."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least {least}.")
