"""Mamba-2's scan (state space duality) through the same op: a head's scalars spread over its channels.

x (B, L, H, P), dt (B, L, H), A (H), B and C (B, L, G, N), D (H) or (H, P), dt_bias (H). Source: mamba_ssm,
``ops/triton/ssd_combined.py``; Dao and Gu, arXiv 2405.21060.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vimdeploy.interop.conv import causal_conv1d_fn
from vimdeploy.interop.norms import rmsnorm_fn
from vimdeploy.interop.refusal import refuse
from vimdeploy.interop.scan import scan

_NO_LIMIT = (0.0, float("inf"))


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int = 0,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Any = None,
    seq_idx: Any = None,
    cu_seqlens: Any = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = _NO_LIMIT,
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    state_dtype: Any = None,
) -> Any:
    """Stand in for the chunked scan: (B, L, H, P), and the final states (B, H, P, N) float32 if asked for.

    ``chunk_size`` only says how the official kernel walks; the result does not depend on it.
    """
    del chunk_size, state_dtype
    name = "mamba_chunk_scan_combined"
    if initial_states is not None:
        raise refuse(name, "initial_states")
    if seq_idx is not None or cu_seqlens is not None or return_varlen_states:
        raise refuse(name, "packed sequences (seq_idx, cu_seqlens)")
    heads, size = x.shape[2:]
    exact = torch.promote_types(x.dtype, torch.float32)
    if tuple(dt_limit) != _NO_LIMIT:
        dt = dt.to(exact) if dt_bias is None else dt.to(exact) + dt_bias.to(exact)
        dt = (F.softplus(dt) if dt_softplus else dt).clamp(*dt_limit)
        dt_bias, dt_softplus = None, False

    def spread(values: Tensor) -> Tensor:
        return values.repeat_interleave(size, -1)

    skip = None if D is None else (spread(D) if D.dim() == 1 else D.flatten())
    scanned = scan(
        name,
        x.flatten(2).transpose(1, 2),
        spread(dt).transpose(1, 2),
        spread(A.to(exact))[:, None].expand(-1, B.shape[-1]),
        B.permute(0, 2, 3, 1),
        C.permute(0, 2, 3, 1),
        skip,
        None if z is None else z.flatten(2).transpose(1, 2),
        None if dt_bias is None else spread(dt_bias),
        dt_softplus,
        want_last=return_final_states,
    )
    y = scanned.out if scanned.gated is None else scanned.gated
    y = y.transpose(1, 2).unflatten(2, (heads, size))  # type: ignore[no-untyped-call]
    if not return_final_states:
        return y
    assert scanned.last is not None
    return y, scanned.last.unflatten(1, (heads, size))  # type: ignore[no-untyped-call]


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int = 0,
    initial_states: Any = None,
    seq_idx: Any = None,
    dt_limit: tuple[float, float] = _NO_LIMIT,
    return_final_states: bool = False,
    activation: str = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
    state_dtype: Any = None,
) -> Any:
    """Stand in for the whole Mamba-2 mixer after ``in_proj``; zxbcdt (B, L, 2 d_mlp + 2 H P + 2 G N + H)."""
    del state_dtype
    if return_final_states:
        raise refuse("mamba_split_conv1d_scan_combined", "return_final_states")
    heads = len(dt_bias)
    size = D.shape[1] if D.dim() == 2 else headdim
    if size is None:
        raise refuse("mamba_split_conv1d_scan_combined", "D without headdim", "Pass headdim.")
    inner, pairs = heads * size, conv1d_weight.shape[0] - heads * size
    mlp = (zxbcdt.shape[-1] - 2 * inner - pairs - heads) // 2
    z0, x0, z, xbc, dt = torch.split_with_sizes(zxbcdt, [mlp, mlp, inner, inner + pairs, heads], dim=-1)
    xbc = causal_conv1d_fn(xbc.transpose(1, 2), conv1d_weight, conv1d_bias, activation=activation).transpose(1, 2)
    x, B, C = torch.split_with_sizes(xbc, [inner, pairs // 2, pairs // 2], dim=-1)

    def parts(values: Tensor, count: int) -> Tensor:
        result: Tensor = values.unflatten(-1, (count, -1))  # type: ignore[no-untyped-call]
        return result

    gate = None if rmsnorm_weight is not None else parts(z, heads)
    y = mamba_chunk_scan_combined(
        parts(x, heads), dt, A, parts(B, ngroups), parts(C, ngroups), chunk_size, D, gate, dt_bias, initial_states,
        seq_idx, dt_softplus=True, dt_limit=dt_limit,
    ).flatten(2)  # fmt: skip
    if rmsnorm_weight is not None:
        y = rmsnorm_fn(y, rmsnorm_weight, None, z, rmsnorm_eps, inner // ngroups, norm_before_gate)
    if mlp:
        y = torch.cat([F.silu(z0) * x0, y], dim=-1)
    return y if outproj_weight is None else F.linear(y, outproj_weight, outproj_bias)
