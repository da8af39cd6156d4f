"""The selective scan of Mamba over several directions at once (op contract: ``SelectiveScan`` and ``...NoGate``).

Per group g, with the tokens in the order the group walks them::

    delta[t] = softplus(x_dbl[t, :R] . dt_weight^T + dt_bias)
    h[t]     = exp(delta[t] * A) * h[t-1] + (delta[t] * u[t]) * B[t]           h[-1] = 0
    y        = scale * silu(z) * sum_g (h_g . C_g + D_g * u_g)

``x_dbl`` holds dt, B and C side by side, as ``x_proj`` emits them (mamba_ssm, ``mamba_simple.py``). State and
accumulation are float32 (float64 for float64 inputs), whatever the inputs are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vimdeploy.ops.arguments import Scan
from vimdeploy.ops.dispatch import implementation
from vimdeploy.ops.kernels import kernels_for
from vimdeploy.ops.official import official_selective_scan
from vimdeploy.ops.recurrence import samples_at_once, scan_tokens


def selective_scan_reference(*arguments: Any) -> Tensor:
    """Compute the op as a loop over groups and tokens, one line per line of the equations above.

    Same arguments and result as :func:`selective_scan`. It exists to be read and to be compared with.
    """
    s = Scan(*arguments)
    groups, channels, d_state = s.A.shape
    _, batch, length, _ = s.u.shape
    total = torch.zeros(batch, length, channels, device=s.u.device)
    for g in range(groups):
        u, dt, B, C = (v.float() for v in s.of_group(g))
        delta = F.softplus(dt @ s.dt_weight[g].float().T + s.dt_bias[g])
        h = torch.zeros(batch, channels, d_state, device=u.device)
        for t in _walk(length, *s.walks[g], s.height):
            decay = torch.exp(delta[:, t, :, None] * s.A[g])
            h = decay * h + (delta[:, t] * u[:, t])[..., None] * B[:, t, None, :]
            total[:, t] += (h * C[:, t, None, :]).sum(-1) + s.D[g] * u[:, t]
    if s.z is None:
        return s.scale * total
    return (s.scale * total * F.silu(s.z.float())).to(s.u.dtype)


def _walk(length: int, direction: int, column_major: int, height: int) -> list[int]:
    """Return the token indices in the order a group visits them."""
    order = list(range(length))
    if column_major:
        width = length // height
        order = [row * width + column for column in range(width) for row in range(height)]
    return order if direction == 1 else order[::-1]


def selective_scan_differentiable(*arguments: Any) -> Tensor:
    """Compute the op with torch functions that autograd can follow. Same arguments as :func:`selective_scan`."""
    return _scan(Scan(*arguments), in_place=False)


@torch.library.custom_op("vimdeploy::selective_scan", mutates_args=())
def selective_scan(
    u: Tensor,
    x_dbl: Tensor,
    A: Tensor,
    D: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    z: Tensor | None,
    directions: Sequence[int],
    column_major: Sequence[int],
    height: int,
    scale: float,
) -> Tensor:
    """Scan the tokens in G directions, sum the groups, gate and scale; :class:`.Scan` describes each argument.

    Returns:
        (B, L, E): T with a gate, float32 without.

    Raises:
        ValueError: a shape or attribute does not fit the contract.
    """
    s = Scan(u, x_dbl, A, D, dt_weight, dt_bias, z, directions, column_major, height, scale)
    s.check()
    chosen = implementation()
    if chosen == "kernels" and (kernels := kernels_for(u)) is not None:
        y = kernels.selective_scan(s)
        if y is not None:
            return y
    if u.is_cuda and chosen == "mamba-ssm":
        orders = [torch.tensor(_walk(u.shape[2], *walk, height), device=u.device) for walk in s.walks]
        return official_selective_scan(s, orders)
    samples = samples_at_once(A.numel())
    gates = z.split(samples) if z is not None else [None] * len(u.split(samples, 1))  # type: ignore[no-untyped-call]
    parts = zip(u.split(samples, 1), x_dbl.split(samples, 1), gates, strict=True)  # type: ignore[no-untyped-call]
    return torch.cat([_scan(s._replace(u=u, x_dbl=x, z=z), in_place=True) for u, x, z in parts])


@selective_scan.register_fake
def _(*arguments: Any) -> Tensor:
    s = Scan(*arguments)
    s.check()
    shape, dtype = s.result
    return s.u.new_empty(shape, dtype=dtype)


def _scan(s: Scan, *, in_place: bool) -> Tensor:
    d_state, rank = s.A.shape[-1], s.dt_weight.shape[-1]
    dtype = torch.promote_types(s.u.dtype, torch.float32)
    u, x = s.u.to(dtype), s.x_dbl.to(dtype)
    dt, B, C = torch.split_with_sizes(x, [rank, d_state, d_state], dim=-1)
    delta = F.softplus(dt @ s.dt_weight.to(dtype)[:, None].transpose(-1, -2) + s.dt_bias.to(dtype)[:, None, None])
    drive = delta * u

    # Time first, channels last: (L, G, B, ...).
    delta, drive, B, C = (_reorder(v, s.walks, s.height).movedim(2, 0).contiguous() for v in (delta, drive, B, C))
    y, _ = scan_tokens(delta, drive, s.A.to(dtype).transpose(-1, -2)[:, None], B, C, in_place=in_place)
    y = _restore(y.movedim(0, 2), s.walks, s.height)
    y = y + s.D.to(dtype)[:, None, None] * u
    total = y.sum(0) * s.scale
    return total if s.z is None else (total * F.silu(s.z.to(dtype))).to(s.u.dtype)


def _reorder(values: Tensor, walks: Sequence[tuple[int, int]], height: int) -> Tensor:
    """Put the tokens of (G or 1, B, L, C) in the order each group walks them: (G, B, L, C)."""
    shared = values.shape[0] == 1
    return torch.stack([_order(values[0 if shared else g], walk, height, forth=True) for g, walk in enumerate(walks)])


def _restore(values: Tensor, walks: Sequence[tuple[int, int]], height: int) -> Tensor:
    """Undo :func:`_reorder` on (G, B, L, C)."""
    return torch.stack([_order(values[g], walk, height, forth=False) for g, walk in enumerate(walks)])


def _order(values: Tensor, walk: tuple[int, int], height: int, *, forth: bool) -> Tensor:
    direction, column_major = walk
    if direction == -1 and not forth:
        values = values.flip(1)
    if column_major:
        batch, length, channels = values.shape
        rows = height if forth else length // height
        values = values.reshape(batch, rows, -1, channels).transpose(1, 2).reshape(values.shape)
    if direction == -1 and forth:
        values = values.flip(1)
    return values
