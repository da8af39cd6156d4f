"""Kernels that the comparison needs and this project does not ship, in Triton.

``scan``: one direction of the selective scan, with the structure and the interface of mamba-ssm's
``selective_scan_fwd``: tensors (B, E, L), one channel per program, delta read from memory, the states in turn around a
scan over a block of tokens, and both the plain and the gated output written. It stands in for that kernel where it
cannot be built, under its own name. Its block size is tuned on the device, once per length.
``add_norm``: residual add and RMSNorm in one pass, for both sides of the comparison of whole models.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _combine(decay_a, value_a, decay_b, value_b):
    return decay_a * decay_b, value_a * decay_b + value_b


def _configurations() -> list[triton.Config]:
    blocks = ((128, 1), (256, 2), (256, 4), (512, 4), (1024, 4), (1024, 8), (2048, 8))
    return [triton.Config({"BLOCK": block}, num_warps=warps) for block, warps in blocks]


@triton.jit
def scan_kernel(
    u, delta, A, B, C, D, z, bias, out, out_z, E, L, delta_batch, delta_channel, z_batch, z_channel,
    N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0).to(tl.int64)
    row = (batch * E + channel) * L
    delta += batch * delta_batch + channel * delta_channel
    z += batch * z_batch + channel * z_channel
    B += batch * N * L
    C += batch * N * L
    skip = tl.load(D + channel)
    shift = tl.load(bias + channel)
    states = tl.arange(0, N)
    index = tl.arange(0, BLOCK)
    h = tl.zeros((N,), tl.float32)
    for first in range(0, L, BLOCK):
        t = first + index
        inside = t < L
        value = tl.load(u + row + t, inside, 0.0).to(tl.float32)
        step = tl.load(delta + t, inside, 0.0).to(tl.float32) + shift
        step = tl.where(step > 20.0, step, tl.log(1.0 + tl.exp(step)))
        step = tl.where(inside, step, 0.0)  # past the end: decay 1, input 0
        y = value * skip
        for n in range(N):
            rate = tl.load(A + channel * N + n) * 1.4426950408889634
            b = tl.load(B + n * L + t, inside, 0.0).to(tl.float32)
            c = tl.load(C + n * L + t, inside, 0.0).to(tl.float32)
            decay, local = tl.associative_scan((tl.exp2(step * rate), step * value * b), 0, _combine)
            before = tl.sum(tl.where(states == n, h, 0.0), 0)
            state = decay * before + local
            y += state * c
            last = tl.sum(tl.where(index == BLOCK - 1, state, 0.0), 0)
            h = tl.where(states == n, last, h)
        tl.store(out + row + t, y.to(out.dtype.element_ty), inside)
        gate = tl.load(z + t, inside, 0.0).to(tl.float32)
        gated = y * gate / (1.0 + tl.exp(-gate))
        tl.store(out_z + row + t, gated.to(out_z.dtype.element_ty), inside)


tuned_scan_kernel = triton.autotune(_configurations(), key=["L"])(scan_kernel)


def scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor,
    block: int | None = None,
) -> Tensor:  # fmt: skip
    """Return the gated output (B, E, L). u, delta and z with contiguous tokens; B and C (B, 1, N, L).

    Args:
        block: tokens per step; None tunes it, once per length.
    """
    batch, channels, length = u.shape
    u = u.contiguous()  # as it is, unless a convolution left the layout of in_proj
    out, out_z = torch.empty_like(u), torch.empty_like(u)
    arguments = (u, delta, A, B, C, D, z, delta_bias, out, out_z, channels, length)
    strides = (*delta.stride()[:2], *z.stride()[:2])
    grid = (channels, batch)
    if block is None:
        tuned_scan_kernel[grid](*arguments, *strides, A.shape[1])
    else:
        scan_kernel[grid](*arguments, *strides, A.shape[1], block)
    return out_z


@triton.jit
def add_norm_kernel(hidden, residual, weight, normed, total, D, eps, HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * D
    index = tl.arange(0, BLOCK)
    inside = index < D
    value = tl.load(hidden + row + index, inside, 0.0).to(tl.float32)
    if HAS_RESIDUAL:
        value += tl.load(residual + row + index, inside, 0.0)
    tl.store(total + row + index, value, inside)
    scale = tl.rsqrt(tl.sum(value * value, 0) / D + eps)
    result = value * scale * tl.load(weight + index, inside, 0.0)
    tl.store(normed + row + index, result.to(normed.dtype.element_ty), inside)


def add_norm(hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return (RMSNorm(residual + hidden) in the type of ``hidden``, residual + hidden in float32)."""
    hidden = hidden.contiguous()
    dim = hidden.shape[-1]
    normed, total = torch.empty_like(hidden), torch.empty_like(hidden, dtype=torch.float32)
    block = triton.next_power_of_2(dim)
    add_norm_kernel[(hidden.numel() // dim,)](
        hidden, residual if residual is not None else total, weight, normed, total, dim, eps, residual is not None,
        block, num_warps=4 if block > 256 else 2,
    )  # fmt: skip
    return normed, total
