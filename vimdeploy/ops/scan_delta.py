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

from vimdeploy.ops.arguments import ScanDelta
from vimdeploy.ops.dispatch import implementation
from vimdeploy.ops.kernels import kernels_for
from vimdeploy.ops.recurrence import samples_at_once, scan_tokens


def selective_scan_delta_reference(*arguments: Any) -> Tensor:
    """Compute the op as a loop over groups and tokens, one line per line of the equations above.

    Same arguments and result as :func:`selective_scan_delta`. It exists to be read and to be compared with.
    """
    s = ScanDelta(*arguments)
    batch, length, channels = s.u.shape
    groups, d_state = s.B.shape[2:]
    size = channels // groups
    y = torch.zeros(batch, length, channels)
    for g in range(groups):
        part = slice(g * size, (g + 1) * size)
        u = s.u[:, :, part].float()
        delta = s.delta[:, :, part].float() + s.delta_bias[part]
        if s.delta_softplus:
            delta = F.softplus(delta)
        h = torch.zeros(batch, size, d_state)
        for t in range(length)[::-1] if s.reverse else range(length):
            h = torch.exp(delta[:, t, :, None] * s.A[part]) * h
            h = h + (delta[:, t] * u[:, t])[..., None] * s.B[:, t, g, None, :].float()
            y[:, t, part] = (h * s.C[:, t, g, None, :].float()).sum(-1) + s.D[part] * u[:, t]
    return y if s.z is None else (y * F.silu(s.z.float())).to(s.u.dtype)


def selective_scan_delta_differentiable(*arguments: Any) -> Tensor:
    """Compute the op with torch functions that autograd can follow. Same arguments as :func:`selective_scan_delta`."""
    return scan_with_state(*arguments, in_place=False)[0]


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
    """Scan the tokens in one direction, channels partitioned into groups; :class:`.ScanDelta` describes each argument.

    Returns:
        (B, L, E): T with a gate, float32 without. Gradients of every tensor are defined; the backward pass computes
        the scan again instead of keeping its states.

    Raises:
        ValueError: a shape does not fit the contract.

    """
    s = ScanDelta(u, delta, A, B, C, D, delta_bias, z, delta_softplus, reverse)
    s.check()
    if implementation() == "kernels" and (kernels := kernels_for(u)) is not None:
        y = kernels.selective_scan_delta(s)
        if y is not None:
            return y
    samples = samples_at_once(A.numel())
    gates: Any = z.split(samples) if z is not None else [None] * -(-len(u) // samples)  # type: ignore[no-untyped-call]
    parts = zip(*(v.split(samples) for v in (u, delta, B, C)), gates, strict=True)  # type: ignore[no-untyped-call]
    return torch.cat(
        [scan_with_state(*s._replace(u=u, delta=d, B=b, C=c, z=z), in_place=True)[0] for u, d, b, c, z in parts]
    )


@selective_scan_delta.register_fake
def _(*arguments: Any) -> Tensor:
    s = ScanDelta(*arguments)
    s.check()
    shape, dtype = s.result
    return s.u.new_empty(shape, dtype=dtype)


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


def scan_with_state(*arguments: Any, in_place: bool) -> tuple[Tensor, Tensor]:
    """Return the op's result and the state after the last token, (B, E, N) float32.

    Takes what :func:`selective_scan_delta` takes; ``in_place`` is faster, and autograd cannot follow it.
    """
    s = ScanDelta(*arguments)
    dtype = torch.promote_types(s.u.dtype, torch.float32)
    u = s.u.to(dtype)
    delta = s.delta.to(dtype) + s.delta_bias.to(dtype)
    if s.delta_softplus:
        delta = F.softplus(delta)
    groups, d_state = s.B.shape[2:]
    walked = [v.flip(1) if s.reverse else v for v in (delta, delta * u, s.B.to(dtype), s.C.to(dtype))]
    # Time first, then groups, samples and channels: (L, G, B, E / G) and (L, G, B, N).
    steps, drive = (v.reshape(*v.shape[:2], groups, -1).permute(1, 2, 0, 3).contiguous() for v in walked[:2])
    B, C = (v.permute(1, 2, 0, 3).contiguous() for v in walked[2:])
    A = s.A.to(dtype).reshape(groups, -1, d_state).transpose(1, 2)[:, None]
    y, state = scan_tokens(steps, drive, A, B, C, in_place=in_place)
    y = y.permute(2, 0, 1, 3).flatten(2)
    if s.reverse:
        y = y.flip(1)
    y = y + s.D.to(dtype) * u
    last = state.permute(1, 0, 3, 2).flatten(1, 2)
    return (y if s.z is None else (y * F.silu(s.z.to(dtype))).to(s.u.dtype)), last
