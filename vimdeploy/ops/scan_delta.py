"""The selective scan as mamba_ssm's callers know it: delta given, channels partitioned by group.

The op contract's ``SelectiveScanDelta`` and ``...NoGate``. With the tokens in the order they are walked, for channel e
of group g = e // (E / G)::

    delta[t] = softplus(delta[t] + delta_bias)                      where delta_softplus is set
    h[t]     = exp(delta[t] * A) * h[t-1] + (delta[t] * u[t]) * B_g[t]           h[-1] = 0
    y        = (h . C_g + D * u) * silu(z)

``SelectiveScan`` fuses the projection of delta and sums its groups; this op is for models whose code does neither.
State and accumulation are float32 (float64 for float64 inputs), whatever the inputs are.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vimdeploy.ops.recurrence import samples_at_once, scan_tokens


def selective_scan_delta_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    z: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
) -> Tensor:
    """Compute the op as a loop over groups and tokens, one line per line of the equations above.

    Same arguments and result as :func:`selective_scan_delta`. It exists to be read and to be compared with.
    """
    batch, length, channels = u.shape
    groups, d_state = B.shape[2:]
    size = channels // groups
    y = torch.zeros(batch, length, channels)
    for g in range(groups):
        part = slice(g * size, (g + 1) * size)
        u_g = u[:, :, part].float()
        delta_g = delta[:, :, part].float() + delta_bias[part]
        if delta_softplus:
            delta_g = F.softplus(delta_g)
        h = torch.zeros(batch, size, d_state)
        for t in range(length)[::-1] if reverse else range(length):
            h = torch.exp(delta_g[:, t, :, None] * A[part]) * h
            h = h + (delta_g[:, t] * u_g[:, t])[..., None] * B[:, t, g, None, :].float()
            y[:, t, part] = (h * C[:, t, g, None, :].float()).sum(-1) + D[part] * u_g[:, t]
    return y if z is None else (y * F.silu(z.float())).to(u.dtype)


def selective_scan_delta_differentiable(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    z: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
) -> Tensor:
    """Compute the op with torch functions that autograd can follow. Same arguments as :func:`selective_scan_delta`."""
    return scan_with_state(u, delta, A, B, C, D, delta_bias, z, delta_softplus, reverse, in_place=False)[0]


@torch.library.custom_op("vimdeploy::selective_scan_delta", mutates_args=())
def selective_scan_delta(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    z: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
) -> Tensor:
    """Scan the tokens in one direction, channels partitioned into G groups that have their own B and C.

    Args:
        u: (B, L, E) float32, float16 or bfloat16 (T).
        delta: (B, L, E) T, before bias and softplus.
        A: (E, N) float32, already ``-exp(A_log)``.
        B: (B, L, G, N) T; G divides E.
        C: (B, L, G, N) T.
        D: (E) float32, the skip connection; zeros where the model has none.
        delta_bias: (E) float32, added to delta; zeros where the model has none.
        z: (B, L, E) T, the gate; None leaves it out.
        delta_softplus: whether delta passes through a softplus.
        reverse: whether the last token is walked first.

    Returns:
        (B, L, E): T with a gate, float32 without. Gradients of every tensor are defined; the backward pass computes
        the scan again instead of keeping its states.

    Raises:
        ValueError: a shape does not fit the contract.

    """
    _check(u, delta, A, B, C, D, delta_bias, z)
    samples = samples_at_once(A.numel())
    gates: Any = z.split(samples) if z is not None else [None] * -(-len(u) // samples)  # type: ignore[no-untyped-call]
    parts = zip(*(v.split(samples) for v in (u, delta, B, C)), gates, strict=True)  # type: ignore[no-untyped-call]
    return torch.cat(
        [
            scan_with_state(u, d, A, b, c, D, delta_bias, gate, delta_softplus, reverse, in_place=True)[0]
            for u, d, b, c, gate in parts
        ]
    )


@selective_scan_delta.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    z: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
) -> Tensor:
    _check(u, delta, A, B, C, D, delta_bias, z)
    return u.new_empty(u.shape, dtype=u.dtype if z is not None else torch.promote_types(u.dtype, torch.float32))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs[:8])
    ctx.flags = inputs[8:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved: list[Any] = [None if v is None else v.detach().requires_grad_() for v in ctx.saved_tensors]
    with torch.enable_grad():
        y = selective_scan_delta_differentiable(*saved, *ctx.flags)
    wanted = [v for v, needed in zip(saved, ctx.needs_input_grad, strict=False) if needed]
    found = iter(torch.autograd.grad(y, wanted, grad))
    return (*(next(found) if needed else None for needed in ctx.needs_input_grad[:8]), None, None)


selective_scan_delta.register_autograd(_backward, setup_context=_setup_context)


def scan_with_state(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    z: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    *,
    in_place: bool,
) -> tuple[Tensor, Tensor]:
    """Return the op's result and the state after the last token, (B, E, N) float32.

    Takes what :func:`selective_scan_delta` takes; ``in_place`` is faster, and autograd cannot follow it.
    """
    dtype = torch.promote_types(u.dtype, torch.float32)
    u_f = u.to(dtype)
    delta = delta.to(dtype) + delta_bias.to(dtype)
    if delta_softplus:
        delta = F.softplus(delta)
    groups, d_state = B.shape[2:]
    walked = [v.flip(1) if reverse else v for v in (delta, delta * u_f, B.to(dtype), C.to(dtype))]
    # Time first, then groups, samples and channels: (L, G, B, E / G) and (L, G, B, N).
    steps, drive = (v.reshape(*v.shape[:2], groups, -1).permute(1, 2, 0, 3).contiguous() for v in walked[:2])
    B_t, C_t = (v.permute(1, 2, 0, 3).contiguous() for v in walked[2:])
    A_t = A.to(dtype).reshape(groups, -1, d_state).transpose(1, 2)[:, None]
    y, state = scan_tokens(steps, drive, A_t, B_t, C_t, in_place=in_place)
    y = y.permute(2, 0, 1, 3).flatten(2)
    if reverse:
        y = y.flip(1)
    y = y + D.to(dtype) * u_f
    last = state.permute(1, 0, 3, 2).flatten(1, 2)
    return (y if z is None else (y * F.silu(z.to(dtype))).to(u.dtype)), last


def _check(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor, z: Tensor | None
) -> None:
    if u.dim() != 3 or A.dim() != 2 or B.dim() != 4:
        raise ValueError(
            "selective_scan_delta: expected u (B, L, E), A (E, N), B (B, L, G, N); got "
            f"{tuple(u.shape)}, {tuple(A.shape)}, {tuple(B.shape)}"
        )
    batch, length, channels = u.shape
    d_state, groups = A.shape[1], B.shape[2]
    if groups < 1 or channels % groups:
        raise ValueError(f"selective_scan_delta: {channels} channels cannot be partitioned into {groups} groups")
    wanted: list[tuple[str, Tensor | None, tuple[Any, ...]]] = [
        ("delta", delta, (batch, length, channels)),
        ("A", A, (channels, d_state)),
        ("B", B, (batch, length, groups, d_state)),
        ("C", C, (batch, length, groups, d_state)),
        ("D", D, (channels,)),
        ("delta_bias", delta_bias, (channels,)),
        ("z", z, (batch, length, channels)),
    ]
    for name, tensor, shape in wanted:
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"selective_scan_delta: {name} has shape {tuple(tensor.shape)}, expected {shape}")
    for name, tensor in (("delta", delta), ("B", B), ("C", C), ("z", z)):
        if tensor is not None and tensor.dtype != u.dtype:
            raise ValueError(f"selective_scan_delta: {name} is {tensor.dtype}, u is {u.dtype}: they share one type")
