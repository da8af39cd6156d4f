"""Depthwise causal convolution over tokens, several directions at once (op contract: ``CausalConv1d``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vimdeploy.ops.arguments import check_directions, check_shapes
from vimdeploy.ops.dispatch import implementation
from vimdeploy.ops.kernels import kernels_for
from vimdeploy.ops.official import official_causal_conv1d


def causal_conv1d_reference(
    x: Tensor, weight: Tensor, bias: Tensor, directions: Sequence[int], activation: str = "silu"
) -> Tensor:
    """Compute the op as plain loops over groups, tokens and taps, in float32.

    Same arguments and result as :func:`causal_conv1d`. It exists to be read and to be compared with.
    """
    batch, length, channels = x.shape
    groups, _, width = weight.shape
    u = torch.zeros(groups, batch, length, channels)
    for g in range(groups):
        for t in range(length):
            total = bias[g].float().expand(batch, channels)
            for k in range(width):
                # Forward: the last tap meets token t itself. Backward: the first one does.
                source = t - (width - 1) + k if directions[g] == 1 else t + k
                if 0 <= source < length:
                    total = total + x[:, source].float() * weight[g, :, k].float()
            u[g, :, t] = F.silu(total) if activation == "silu" else total
    return u.to(x.dtype)


def causal_conv1d_differentiable(
    x: Tensor, weight: Tensor, bias: Tensor, directions: Sequence[int], activation: str = "silu"
) -> Tensor:
    """Compute the op with torch functions that autograd can follow. Same arguments as :func:`causal_conv1d`."""
    width = weight.shape[-1]
    length = x.shape[1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    values = x.to(dtype)
    outputs = []
    for g, direction in enumerate(directions):
        before = width - 1 if direction == 1 else 0
        padded = F.pad(values, (0, 0, before, width - 1 - before))
        # K shifted multiply-adds on the channels-last layout: no transpose, and vectorised along the channels.
        total = bias[g].to(dtype).expand_as(values)
        for k in range(width):
            total = torch.addcmul(total, padded[:, k : k + length], weight[g, :, k].to(dtype))
        outputs.append(F.silu(total) if activation == "silu" else total)
    return torch.stack(outputs).to(x.dtype)


@torch.library.custom_op("vimdeploy::causal_conv1d", mutates_args=())
def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor, directions: Sequence[int], activation: str) -> Tensor:
    """Convolve the tokens of ``x`` along each of G directions.

    Args:
        x: (B, L, E), float32, float16 or bfloat16.
        weight: (G, E, K), dtype of ``x``. The kernel of a backward group is stored flipped, so that nothing needs to be
            reversed: a convolution over the reversed sequence equals a right-padded one with the flipped kernel.
        bias: (G, E), dtype of ``x``.
        directions: per group 1 (``u[t]`` sees ``x[t-K+1..t]``) or -1 (``u[t]`` sees ``x[t..t+K-1]``).
        activation: ``"silu"`` or ``"none"``.

    Returns:
        (G, B, L, E), dtype of ``x``; accumulated in float32 (float64 for float64 input).

    Raises:
        ValueError: a shape, direction or activation does not fit the contract.
    """
    _check(x, weight, bias, directions, activation)
    chosen = implementation()
    if chosen == "kernels" and (kernels := kernels_for(x)) is not None:
        u = kernels.causal_conv1d(x, weight, bias, directions, activation)
        if u is not None:
            return u
    if x.is_cuda and chosen == "mamba-ssm":
        return official_causal_conv1d(x, weight, bias, directions, activation)
    return causal_conv1d_differentiable(x, weight, bias, directions, activation)


@causal_conv1d.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, directions: Sequence[int], activation: str) -> Tensor:
    _check(x, weight, bias, directions, activation)
    return x.new_empty(weight.shape[0], *x.shape)


def _check(x: Tensor, weight: Tensor, bias: Tensor, directions: Sequence[int], activation: str) -> None:
    if x.dim() != 3 or weight.dim() != 3 or bias.dim() != 2:
        raise ValueError(
            f"causal_conv1d: expected x (B, L, E), weight (G, E, K), bias (G, E); got {tuple(x.shape)}, "
            f"{tuple(weight.shape)}, {tuple(bias.shape)}"
        )
    groups, channels, _ = weight.shape
    check_shapes("causal_conv1d", x=(x, (None, None, channels)), bias=(bias, (groups, channels)))
    check_directions("causal_conv1d", directions, groups)
    if activation not in ("silu", "none"):
        raise ValueError(f"causal_conv1d: activation must be 'silu' or 'none', not {activation!r}")
