"""The custom ops through the official CUDA kernels (mamba-ssm, causal-conv1d), to cross-check ours with.

Those kernels know one direction and one layout, (B, E, L): directions become flips, groups become calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vimdeploy.ops.arguments import Scan

Function = Callable[..., Tensor]
"""Of packages that carry no types."""


def official_causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor, directions: Sequence[int], activation: str
) -> Tensor:
    """Compute ``causal_conv1d`` with the package of that name; same arguments and result as our op."""
    from causal_conv1d import causal_conv1d_fn

    conv: Function = causal_conv1d_fn
    tokens = x.transpose(1, 2)
    outputs = []
    for g, direction in enumerate(directions):
        source, kernel = (tokens, weight[g]) if direction == 1 else (tokens.flip(-1), weight[g].flip(-1))
        u = conv(source.contiguous(), kernel.contiguous(), bias[g], activation="silu" if activation == "silu" else None)
        outputs.append((u if direction == 1 else u.flip(-1)).transpose(1, 2))
    return torch.stack(outputs).contiguous()


def official_selective_scan(s: Scan, orders: Sequence[Tensor]) -> Tensor:
    """Compute ``selective_scan`` with mamba-ssm's kernel; same result as our op.

    Only directions and walks are said otherwise: ``orders`` holds per group the token indices, (L,) int64, in the order
    in which it visits them. The gate is applied once, in float32, to the sum of the groups.
    """
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    scan: Function = selective_scan_fn
    total = torch.zeros(s.u.shape[1:], dtype=torch.float32, device=s.u.device)
    for g, order in enumerate(orders):
        tokens, dt, B, C = (v[:, order] for v in s.of_group(g))
        delta = dt @ s.dt_weight[g].T
        y = scan(
            *(v.transpose(1, 2).contiguous() for v in (tokens, delta)),
            s.A[g],
            *(v.transpose(1, 2).contiguous() for v in (B, C)),
            s.D[g],
            delta_bias=s.dt_bias[g],
            delta_softplus=True,
        )
        total[:, order] += y.transpose(1, 2).float()
    total = total * s.scale
    return total if s.z is None else (total * F.silu(s.z.float())).to(s.u.dtype)
