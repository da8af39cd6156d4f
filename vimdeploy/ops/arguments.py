"""What the scans take: names, shapes and types of their arguments, in the order of the op contract, and the checks.

torch's schema needs each op's arguments written out once, flat. Everything else says ``Scan(*arguments)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Scan(NamedTuple):
    """Arguments of ``selective_scan``: G scans over the same L tokens of B samples, E channels and N states each.

    T is float32, float16 or bfloat16, one type for all.
    """

    u: Tensor
    """(G or 1, B, L, E) T; 1 shares it between the groups."""
    x_dbl: Tensor
    """(G or 1, B, L, R+2N) T: dt, B and C side by side, as ``x_proj`` emits them."""
    A: Tensor
    """(G, E, N) float32, already ``-exp(A_log)``."""
    D: Tensor
    """(G, E) float32, the skip connection."""
    dt_weight: Tensor
    """(G, E, R) T."""
    dt_bias: Tensor
    """(G, E) float32, added inside the softplus."""
    z: Tensor | None
    """(B, L, E) T, the gate; None leaves it out."""
    directions: Sequence[int]
    """Per group 1 (forward) or -1 (backward)."""
    column_major: Sequence[int]
    """Per group 1 walks the ``height`` x (L / height) grid of tokens column by column."""
    height: int
    """Rows of the token grid; read only where a group is column-major."""
    scale: float
    """Multiplies the result (0.5 averages the two directions of a v2 block)."""

    @property
    def result(self) -> tuple[torch.Size, torch.dtype]:
        """Shape and type of the result: (B, L, E), T with a gate and float32 without (float64 for float64)."""
        wide = torch.promote_types(self.u.dtype, torch.float32)
        return self.u.shape[1:], self.u.dtype if self.z is not None else wide

    @property
    def walks(self) -> list[tuple[int, int]]:
        """Per group its direction and whether it is column-major."""
        return list(zip(self.directions, self.column_major, strict=True))

    def of_group(self, g: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return u (B, L, E), dt (B, L, R), B (B, L, N) and C (B, L, N) of one group, in the order stored."""
        rank, d_state = self.dt_weight.shape[-1], self.A.shape[-1]
        x = self.x_dbl[g if self.x_dbl.shape[0] > 1 else 0]
        dt, B, C = torch.split_with_sizes(x, [rank, d_state, d_state], dim=-1)
        return self.u[g if self.u.shape[0] > 1 else 0], dt, B, C

    def check(self) -> None:
        """Raise ValueError where a shape or attribute does not fit the contract."""
        u, x_dbl, A, D, dt_weight, dt_bias, z = self[:7]
        if u.dim() != 4 or x_dbl.dim() != 4 or A.dim() != 3 or dt_weight.dim() != 3:
            raise ValueError(
                "selective_scan: expected u (G, B, L, E), x_dbl (G, B, L, R+2N), A (G, E, N), dt_weight (G, E, R); got "
                f"{tuple(u.shape)}, {tuple(x_dbl.shape)}, {tuple(A.shape)}, {tuple(dt_weight.shape)}"
            )
        groups, channels, d_state = A.shape
        _, batch, length, _ = u.shape
        check_shapes(
            "selective_scan",
            u=(u, (None, batch, length, channels)),
            x_dbl=(x_dbl, (None, batch, length, dt_weight.shape[-1] + 2 * d_state)),
            D=(D, (groups, channels)),
            dt_weight=(dt_weight, (groups, channels, dt_weight.shape[-1])),
            dt_bias=(dt_bias, (groups, channels)),
            z=(z, (batch, length, channels)),
        )
        for name, tensor in (("u", u), ("x_dbl", x_dbl)):
            if tensor.shape[0] not in (1, groups):
                raise ValueError(f"selective_scan: {name} has {tensor.shape[0]} groups, expected 1 or {groups}")
        check_directions("selective_scan", self.directions, groups)
        if len(self.column_major) != groups or any(c not in (0, 1) for c in self.column_major):
            raise ValueError(
                f"selective_scan: column_major must hold 0 or 1 for each of {groups} groups, "
                f"not {list(self.column_major)}"
            )
        if any(self.column_major) and (self.height < 1 or length % self.height):
            raise ValueError(f"selective_scan: {length} tokens do not form a grid of height {self.height}")


class ScanDelta(NamedTuple):
    """Arguments of ``selective_scan_delta``: one direction, E channels partitioned into G groups of N states.

    T is float32, float16 or bfloat16, one type for all.
    """

    u: Tensor
    """(B, L, E) T."""
    delta: Tensor
    """(B, L, E) T, before bias and softplus."""
    A: Tensor
    """(E, N) float32, already ``-exp(A_log)``."""
    B: Tensor
    """(B, L, G, N) T; G divides E."""
    C: Tensor
    """(B, L, G, N) T."""
    D: Tensor
    """(E) float32, the skip connection; zeros where the model has none."""
    delta_bias: Tensor
    """(E) float32, added to delta; zeros where the model has none."""
    z: Tensor | None
    """(B, L, E) T, the gate; None leaves it out."""
    delta_softplus: bool
    """Whether delta passes through a softplus."""
    reverse: bool
    """Whether the last token is walked first."""

    @property
    def result(self) -> tuple[torch.Size, torch.dtype]:
        """Shape and type of the result: (B, L, E), T with a gate and float32 without (float64 for float64)."""
        wide = torch.promote_types(self.u.dtype, torch.float32)
        return self.u.shape, self.u.dtype if self.z is not None else wide

    def check(self) -> None:
        """Raise ValueError where a shape or a type does not fit the contract."""
        u, delta, A, B, C, D, delta_bias, z = self[:8]
        if u.dim() != 3 or A.dim() != 2 or B.dim() != 4:
            raise ValueError(
                "selective_scan_delta: expected u (B, L, E), A (E, N), B (B, L, G, N); got "
                f"{tuple(u.shape)}, {tuple(A.shape)}, {tuple(B.shape)}"
            )
        batch, length, channels = u.shape
        d_state, groups = A.shape[1], B.shape[2]
        if groups < 1 or channels % groups:
            raise ValueError(f"selective_scan_delta: {channels} channels cannot be partitioned into {groups} groups")
        check_shapes(
            "selective_scan_delta",
            delta=(delta, (batch, length, channels)),
            A=(A, (channels, d_state)),
            B=(B, (batch, length, groups, d_state)),
            C=(C, (batch, length, groups, d_state)),
            D=(D, (channels,)),
            delta_bias=(delta_bias, (channels,)),
            z=(z, (batch, length, channels)),
        )
        for name, tensor in (("delta", delta), ("B", B), ("C", C), ("z", z)):
            if tensor is not None and tensor.dtype != u.dtype:
                raise ValueError(f"selective_scan_delta: {name} is {tensor.dtype}, u is {u.dtype}: they share one type")


def check_shapes(op: str, **wanted: tuple[Tensor | None, tuple[Any, ...]]) -> None:
    """Raise ValueError naming the first tensor that has another shape than wanted; None in a shape takes any size."""
    for name, (tensor, shape) in wanted.items():
        if tensor is None:
            continue
        fits = (size is None or got == size for got, size in zip(tensor.shape, shape, strict=False))
        if tensor.dim() != len(shape) or not all(fits):
            raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}, expected {shape}")


def check_directions(op: str, directions: Sequence[int], groups: int) -> None:
    """Raise ValueError unless ``directions`` holds one 1 or -1 per group."""
    if len(directions) != groups or any(d not in (1, -1) for d in directions):
        raise ValueError(f"{op}: directions must hold 1 or -1 for each of {groups} groups, not {list(directions)}")
