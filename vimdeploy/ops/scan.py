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

import torch
import torch.nn.functional as F
from torch import Tensor

from vimdeploy.ops.conv import check_directions
from vimdeploy.ops.dispatch import implementation
from vimdeploy.ops.kernels import kernels_for
from vimdeploy.ops.official import official_selective_scan
from vimdeploy.ops.recurrence import samples_at_once, scan_tokens


def selective_scan_reference(
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
    """Compute the op as a loop over groups and tokens, one line per line of the equations above.

    Same arguments and result as :func:`selective_scan`. It exists to be read and to be compared with.
    """
    groups, _, d_state = A.shape
    rank = dt_weight.shape[-1]
    _, batch, length, channels = u.shape
    total = torch.zeros(batch, length, channels, device=u.device)
    for g in range(groups):
        u_g = u[g if u.shape[0] > 1 else 0].float()
        x_g = x_dbl[g if x_dbl.shape[0] > 1 else 0].float()
        dt, B, C = torch.split_with_sizes(x_g, [rank, d_state, d_state], dim=-1)
        delta = F.softplus(dt @ dt_weight[g].float().T + dt_bias[g])
        h = torch.zeros(batch, channels, d_state, device=u.device)
        for t in _walk(length, directions[g], column_major[g], height):
            decay = torch.exp(delta[:, t, :, None] * A[g])
            h = decay * h + (delta[:, t] * u_g[:, t])[..., None] * B[:, t, None, :]
            total[:, t] += (h * C[:, t, None, :]).sum(-1) + D[g] * u_g[:, t]
    if z is None:
        return scale * total
    return (scale * total * F.silu(z.float())).to(u.dtype)


def _walk(length: int, direction: int, column_major: int, height: int) -> list[int]:
    """Return the token indices in the order a group visits them."""
    order = list(range(length))
    if column_major:
        width = length // height
        order = [row * width + column for column in range(width) for row in range(height)]
    return order if direction == 1 else order[::-1]


def selective_scan_differentiable(
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
    """Compute the op with torch functions that autograd can follow. Same arguments as :func:`selective_scan`."""
    return _scan(u, x_dbl, A, D, dt_weight, dt_bias, z, directions, column_major, height, scale, in_place=False)


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
    """Scan the tokens in G directions, sum the groups, gate and scale.

    Args:
        u: (G or 1, B, L, E) float32, float16 or bfloat16 (T); 1 shares it between the groups.
        x_dbl: (G or 1, B, L, R+2N) T: dt, B and C as ``x_proj`` emits them.
        A: (G, E, N) float32, already ``-exp(A_log)``.
        D: (G, E) float32, the skip connection.
        dt_weight: (G, E, R) T.
        dt_bias: (G, E) float32, added inside the softplus.
        z: (B, L, E) T, the gate; None leaves it out.
        directions: per group 1 (forward) or -1 (backward).
        column_major: per group 1 walks the ``height`` x (L / height) grid of tokens column by column.
        height: rows of the token grid; read only where a group is column-major.
        scale: multiplies the result (0.5 averages the two directions of a v2 block).

    Returns:
        (B, L, E): T with a gate, float32 without.

    Raises:
        ValueError: a shape or attribute does not fit the contract.
    """
    _check(u, x_dbl, A, D, dt_weight, dt_bias, z, directions, column_major, height)
    chosen = implementation()
    if chosen == "kernels" and (kernels := kernels_for(u)) is not None:
        y = kernels.selective_scan(u, x_dbl, A, D, dt_weight, dt_bias, z, directions, column_major, height, scale)
        if y is not None:
            return y
    if u.is_cuda and chosen == "mamba-ssm":
        orders = [
            torch.tensor(_walk(u.shape[2], *walk, height), device=u.device)
            for walk in zip(directions, column_major, strict=True)
        ]
        return official_selective_scan(u, x_dbl, A, D, dt_weight, dt_bias, z, orders, scale)
    samples = samples_at_once(A.numel())
    gates = z.split(samples) if z is not None else [None] * len(u.split(samples, 1))  # type: ignore[no-untyped-call]
    parts = zip(u.split(samples, 1), x_dbl.split(samples, 1), gates, strict=True)  # type: ignore[no-untyped-call]
    walks = (directions, column_major, height)
    return torch.cat([_scan(u, x, A, D, dt_weight, dt_bias, z, *walks, scale, in_place=True) for u, x, z in parts])


@selective_scan.register_fake
def _(
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
    _check(u, x_dbl, A, D, dt_weight, dt_bias, z, directions, column_major, height)
    dtype = u.dtype if z is not None else torch.promote_types(u.dtype, torch.float32)
    return u.new_empty(u.shape[1:], dtype=dtype)


def _scan(
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
    *,
    in_place: bool,
) -> Tensor:
    d_state, rank = A.shape[-1], dt_weight.shape[-1]
    dtype = torch.promote_types(u.dtype, torch.float32)
    u_f, x_f = u.to(dtype), x_dbl.to(dtype)
    dt, B, C = torch.split_with_sizes(x_f, [rank, d_state, d_state], dim=-1)
    delta = F.softplus(dt @ dt_weight.to(dtype)[:, None].transpose(-1, -2) + dt_bias.to(dtype)[:, None, None])
    drive = delta * u_f
    walks = list(zip(directions, column_major, strict=True))

    # Time first, channels last: (L, G, B, ...).
    delta, drive, B, C = (_reorder(v, walks, height).movedim(2, 0).contiguous() for v in (delta, drive, B, C))
    y, _ = scan_tokens(delta, drive, A.to(dtype).transpose(-1, -2)[:, None], B, C, in_place=in_place)
    y = _restore(y.movedim(0, 2), walks, height)
    y = y + D.to(dtype)[:, None, None] * u_f
    total = y.sum(0) * scale
    return total if z is None else (total * F.silu(z.to(dtype))).to(u.dtype)


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


def _check(
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
) -> None:
    if u.dim() != 4 or x_dbl.dim() != 4 or A.dim() != 3 or dt_weight.dim() != 3:
        raise ValueError(
            "selective_scan: expected u (G, B, L, E), x_dbl (G, B, L, R+2N), A (G, E, N), dt_weight (G, E, R); got "
            f"{tuple(u.shape)}, {tuple(x_dbl.shape)}, {tuple(A.shape)}, {tuple(dt_weight.shape)}"
        )
    groups, channels, d_state = A.shape
    _, batch, length, _ = u.shape
    wanted: list[tuple[str, Tensor, tuple[object, ...]]] = [
        ("u", u, (None, batch, length, channels)),
        ("x_dbl", x_dbl, (None, batch, length, dt_weight.shape[-1] + 2 * d_state)),
        ("D", D, (groups, channels)),
        ("dt_weight", dt_weight, (groups, channels, dt_weight.shape[-1])),
        ("dt_bias", dt_bias, (groups, channels)),
    ]
    if z is not None:
        wanted.append(("z", z, (batch, length, channels)))
    for name, tensor, shape in wanted:
        if tensor.dim() != len(shape) or any(
            w is not None and got != w for got, w in zip(tensor.shape, shape, strict=True)
        ):
            raise ValueError(f"selective_scan: {name} has shape {tuple(tensor.shape)}, expected {shape}")
    for name, tensor in (("u", u), ("x_dbl", x_dbl)):
        if tensor.shape[0] not in (1, groups):
            raise ValueError(f"selective_scan: {name} has {tensor.shape[0]} groups, expected 1 or {groups}")
    check_directions("selective_scan", directions, groups)
    if len(column_major) != groups or any(c not in (0, 1) for c in column_major):
        raise ValueError(
            f"selective_scan: column_major must hold 0 or 1 for each of {groups} groups, not {list(column_major)}"
        )
    if any(column_major) and (height < 1 or length % height):
        raise ValueError(f"selective_scan: {length} tokens do not form a grid of height {height}")
