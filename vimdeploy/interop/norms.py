"""The norms that mamba_ssm computes in Triton: layer and RMS norm with residual, and the gated RMS norm of Mamba-2.

Statistics and sums are float32, outputs have the dtype of x; the residual comes back in its own dtype, or in float32
where ``residual_in_fp32`` is set and there was none. Source: mamba_ssm, ``ops/triton/layer_norm.py`` and
``layernorm_gated.py``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimdeploy.interop.refusal import refuse


def _normed(v: Tensor, weight: Tensor, bias: Tensor | None, eps: float, *, rms: bool) -> Tensor:
    dtype = v.dtype
    bias = None if bias is None else bias.to(dtype)
    if not rms:
        return F.layer_norm(v, (v.shape[-1],), weight.to(dtype), bias, eps)
    y = v * torch.rsqrt(v.square().mean(-1, keepdim=True) + eps) * weight.to(dtype)
    return y if bias is None else y + bias


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | float | bool | None = None,
    weight1: Tensor | bool | None = None,
    bias1: Tensor | bool | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
    zero_centered_weight: bool = False,
) -> Any:
    """Stand in for both generations of the function: (y), or (y, sum) with ``prenorm``.

    Before 2.0 the fifth to seventh positions were (eps, prenorm, residual_in_fp32), or (prenorm, residual_in_fp32,
    eps) in ``rms_norm_fn``.
    """
    if isinstance(x1, bool):
        prenorm, residual_in_fp32 = x1, bool(weight1)
        eps, x1, weight1, bias1 = (bias1 if isinstance(bias1, float) else eps), None, None, None
    elif isinstance(x1, (int, float)):
        eps, prenorm, residual_in_fp32, x1, weight1, bias1 = float(x1), bool(weight1), bool(bias1), None, None, None
    if x1 is not None or weight1 is not None or bias1 is not None:
        raise refuse("layer_norm_fn", "a second branch (x1, weight1)", "Add the branch before the norm.")
    if dropout_p or return_dropout_mask:
        raise refuse("layer_norm_fn", "dropout (training only)", "Call model.eval().")
    if rowscale is not None:
        x = x * rowscale[..., None]
    exact = torch.promote_types(x.dtype, torch.float32)
    kept = residual.dtype if residual is not None else (torch.float32 if residual_in_fp32 else x.dtype)
    total = x.to(exact) if residual is None else x.to(exact) + residual.to(exact)
    scale = weight.to(exact) + 1 if zero_centered_weight else weight
    y = _normed(total, scale, bias, eps, rms=is_rms_norm).to(x.dtype)
    return (y, total.to(kept)) if prenorm else y


def rms_norm_fn(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any, **named: Any) -> Any:
    """Stand in for the RMS norm; arguments as :func:`layer_norm_fn`."""
    return layer_norm_fn(x, weight, bias, *rest, **{**named, "is_rms_norm": True})


def layer_norm_fwd(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None = None, *rest: Any, **named: Any
) -> tuple[Any, ...]:
    """Stand in for ``_layer_norm_fwd``, of which callers read the first value: (y, mean, rstd, sum)."""
    if rest or any(named.get(name) is not None for name in ("x1", "weight1", "bias1", "rowscale")):
        raise refuse("_layer_norm_fwd", "a second branch or a scale per row")
    y, total = layer_norm_fn(
        x, weight, bias, residual, eps=eps, prenorm=True, is_rms_norm=bool(named.get("is_rms_norm"))
    )
    return y, None, None, total


def layer_norm_ref(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any, **named: Any) -> Any:
    """Stand in for the reference forms, which say the same."""
    named.pop("upcast", None)
    return layer_norm_fn(x, weight, bias, *rest, **named)


class RMSNorm(nn.Module):
    """RMS norm with the key ``weight``; also takes and returns a residual."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        dropout_p: float = 0.0,
        zero_centered_weight: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.eps, self.dropout_p, self.zero_centered_weight = eps, dropout_p, zero_centered_weight
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False
    ) -> Any:
        """Norm (..., D); with ``prenorm`` returns the sum with the residual as well."""
        return layer_norm_fn(
            x, self.weight, None, residual, eps=self.eps, prenorm=prenorm, residual_in_fp32=residual_in_fp32,
            dropout_p=self.dropout_p if self.training else 0.0, is_rms_norm=True,
            zero_centered_weight=self.zero_centered_weight,
        )  # fmt: skip


def _gated_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    eps: float,
    group_size: int | None,
    norm_before_gate: bool,
    *,
    rms: bool,
) -> Tensor:
    exact = torch.promote_types(x.dtype, torch.float32)
    v = x.to(exact)
    if z is not None and not norm_before_gate:
        v = v * F.silu(z.to(exact))
    if group_size is not None and group_size != x.shape[-1]:
        grouped = v.unflatten(-1, (-1, group_size))  # type: ignore[no-untyped-call]
        ones = weight.new_ones(group_size, dtype=exact)
        v = _normed(grouped, ones, None, eps, rms=rms).flatten(-2) * weight.to(exact)
        v = v if bias is None else v + bias.to(exact)
    else:
        v = _normed(v, weight, bias, eps, rms=rms)
    if z is not None and norm_before_gate:
        v = v * F.silu(z.to(exact))
    return v.to(x.dtype)


def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    """Stand in for Mamba-2's norm: RMS over the last dimension or over groups of it, times silu(z) before or after."""
    return _gated_norm(x, weight, bias, z, eps, group_size, norm_before_gate, rms=True)


def gated_layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """Stand in for ``layernorm_gated.layernorm_fn``."""
    return _gated_norm(x, weight, bias, z, eps, group_size, norm_before_gate, rms=is_rms_norm)


class RMSNormGated(nn.Module):
    """Mamba-2's gated norm with the key ``weight``."""

    _rms = True
    bias: Tensor | None

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        bias = None if self._rms else nn.Parameter(torch.zeros(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Norm and gate (..., D)."""
        return _gated_norm(
            x, self.weight, self.bias, z, self.eps, self.group_size, self.norm_before_gate, rms=self._rms
        )


class LayerNormGated(RMSNormGated):
    """The same with a layer norm, keys ``weight`` and ``bias``."""

    _rms = False
