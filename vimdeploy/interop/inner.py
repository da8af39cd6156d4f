"""The fused functions of mamba_ssm and its bidirectional forks: convolution, projections, scan and output in one.

xz (B, 2E, L); weights as the Mamba module holds them. Source: mamba_ssm, ``ops/selective_scan_interface.py``; Vim and
VideoMamba for the bidirectional form.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from vimdeploy.interop.conv import causal_conv1d_fn
from vimdeploy.interop.norms import layer_norm_fn
from vimdeploy.interop.scan import selective_scan_fn


def _projected(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None,
    C: Tensor | None,
    rms: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return u, delta, B, C and z, channels-first."""
    x, z = xz.chunk(2, dim=1)
    u = causal_conv1d_fn(x, conv1d_weight, conv1d_bias, activation="silu")
    rank, d_state = delta_proj_weight.shape[1], A.shape[-1]
    x_dbl = F.linear(u.transpose(1, 2), x_proj_weight)
    delta = F.linear(x_dbl[..., :rank], delta_proj_weight)
    eps = rms.get("b_c_dt_rms_eps", 1e-6)

    def own(values: Tensor, bias: Any, weight: Any) -> Tensor:
        values = values if bias is None else values + bias.to(values.dtype)
        if weight is not None:
            values = layer_norm_fn(values, weight, None, eps=eps, is_rms_norm=True)
        return values.transpose(1, 2)

    if B is None:
        B = own(x_dbl[..., rank : rank + d_state], rms.get("B_proj_bias"), rms.get("b_rms_weight"))
    if C is None:
        C = own(x_dbl[..., -d_state:], rms.get("C_proj_bias"), rms.get("c_rms_weight"))
    return u, own(delta, None, rms.get("dt_rms_weight")), B, C, z


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    **rms: Any,
) -> Tensor:
    """Stand in for the form without the output projection; returns (B, E, L)."""
    del checkpoint_lvl
    rms |= {"B_proj_bias": B_proj_bias, "C_proj_bias": C_proj_bias}
    u, delta, B, C, z = _projected(xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, rms)
    y: Tensor = selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return y


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """Stand in for the whole mixer after ``in_proj``; returns (B, L, D)."""
    y = mamba_inner_fn_no_out_proj(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, D, delta_bias, B_proj_bias,
        C_proj_bias, delta_softplus, checkpoint_lvl, b_rms_weight=b_rms_weight, c_rms_weight=c_rms_weight,
        dt_rms_weight=dt_rms_weight, b_c_dt_rms_eps=b_c_dt_rms_eps,
    )  # fmt: skip
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
) -> Tensor:
    """Stand in for Vim's first bidirectional mixer: the convolved tokens are scanned again, reversed, with A_b."""
    del checkpoint_lvl
    biases = {"B_proj_bias": B_proj_bias, "C_proj_bias": C_proj_bias}
    u, delta, B, C, z = _projected(xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, biases)
    y = selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    u, delta, B, C, z = (v.flip([-1]) for v in (u, delta, B, C, z))
    back = selective_scan_fn(u, delta, A_b, B, C, D, z, delta_bias, delta_softplus)
    return F.linear((y + back.flip([-1])).transpose(1, 2), out_proj_weight, out_proj_bias)
