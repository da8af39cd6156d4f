"""Inputs and outputs of a model, and the shapes that they may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tensor:
    """One input or output; -1 stands for a dimension that is free."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    is_input: bool


Profile = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Per input: its smallest, best and largest shape."""
