"""Mamba and Mamba-2 as modules with the official keys, for repositories that carry no copy of mamba_ssm.

``Mamba`` also knows the mixers of Vim (``bimamba_type`` v1, v2), VideoMamba (``bimamba``) and SegMamba (v3). Sources:
mamba_ssm, ``modules/mamba_simple.py``, ``mamba2.py`` and ``block.py``; the forks' ``mamba_simple.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimdeploy.interop.inner import bimamba_inner_fn, mamba_inner_fn_no_out_proj
from vimdeploy.interop.norms import RMSNorm, RMSNormGated, layer_norm_fn
from vimdeploy.interop.refusal import refuse
from vimdeploy.interop.ssd import mamba_split_conv1d_scan_combined

_SETS = {"none": ("",), "v1": ("",), "v2": ("", "_b"), "v3": ("", "_b", "_s")}
"""Suffixes of the parameter sets that a kind of mixer has; A_b_log exists in v1 too."""


def _inverse_softplus_dt(count: int, dt_min: float, dt_max: float, floor: float, **kind: Any) -> Tensor:
    """Return biases whose softplus is log-uniform between ``dt_min`` and ``dt_max``."""
    spread = math.log(dt_max) - math.log(dt_min)
    dt = torch.exp(torch.rand(count, **kind) * spread + math.log(dt_min)).clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))


class Mamba(nn.Module):
    """The Mamba mixer: tokens (B, L, d_model) to the same shape."""

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: Any = None,
        dtype: Any = None,
        bimamba_type: str = "none",
        bimamba: bool | None = None,
        nslices: int = 5,
        if_divide_out: bool = False,
        init_layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        if bimamba:
            bimamba_type = "v2"
        if bimamba_type not in _SETS:
            raise refuse("Mamba", f"bimamba_type {bimamba_type!r}", f"Known: {', '.join(_SETS)}.")
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = inner = int(expand * d_model)
        self.dt_rank = rank = math.ceil(d_model / 16) if isinstance(dt_rank, str) else dt_rank
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx
        self.bimamba_type, self.nslices, self.if_divide_out = bimamba_type, nslices, if_divide_out
        self.activation, self.act = "silu", nn.SiLU()
        kind = {"device": device, "dtype": dtype}
        self.gamma = None if init_layer_scale is None else nn.Parameter(torch.full((d_model,), float(init_layer_scale)))
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=bias, **kind)
        for suffix in _SETS[bimamba_type]:
            conv = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1, bias=conv_bias, **kind)
            dt_proj = nn.Linear(rank, inner, **kind)
            deviation = rank**-0.5 * dt_scale
            nn.init.constant_(dt_proj.weight, deviation)
            if dt_init == "random":
                nn.init.uniform_(dt_proj.weight, -deviation, deviation)
            dt_proj.bias.data = _inverse_softplus_dt(inner, dt_min, dt_max, dt_init_floor, **kind)
            self.add_module(f"conv1d{suffix}", conv)
            self.add_module(f"x_proj{suffix}", nn.Linear(inner, rank + 2 * d_state, bias=False, **kind))
            self.add_module(f"dt_proj{suffix}", dt_proj)
            self.register_parameter(f"D{suffix}", nn.Parameter(torch.ones(inner, device=device)))
        A_log = torch.arange(1, d_state + 1, dtype=torch.float32, device=device).log().repeat(inner, 1)
        for suffix in ("", "_b") if bimamba_type == "v1" else _SETS[bimamba_type]:
            self.register_parameter(f"A{suffix}_log", nn.Parameter(A_log.clone()))
        self.out_proj = nn.Linear(inner, d_model, bias=bias, **kind)

    def forward(self, hidden_states: Tensor, inference_params: Any = None, **others: Any) -> Tensor:
        """Mix tokens (B, L, d_model); what forks pass besides (such as T) only matters to their training."""
        del others
        if inference_params is not None:
            raise refuse("Mamba.forward", "inference_params (step caches)")
        xz = self.in_proj(hidden_states).transpose(1, 2)
        if self.bimamba_type == "v1":
            out = bimamba_inner_fn(
                xz, *self._weights(""), self.out_proj.weight, self.out_proj.bias, self._decay(""), self._decay("_b"),
                **self._rest(""),
            )  # fmt: skip
            return out if self.gamma is None else out * self.gamma
        y = self._branch(xz, "")
        if self.bimamba_type in ("v2", "v3"):
            y = y + self._branch(xz.flip([-1]), "_b").flip([-1])
        if self.bimamba_type == "v3":
            y = y + self._interleaved(xz)
        if self.if_divide_out and self.bimamba_type != "none":
            y = y / 2
        mixed: Tensor = self.out_proj(y.transpose(1, 2))
        return mixed if self.gamma is None else mixed * self.gamma

    def _interleaved(self, xz: Tensor) -> Tensor:
        """Scan the first token of every slice, then the second of every slice, and so on."""
        slices = self.nslices
        length = xz.shape[-1] // slices
        turned = xz.unflatten(-1, (slices, length)).transpose(-1, -2).flatten(-2)  # type: ignore[no-untyped-call]
        y = self._branch(turned, "_s")
        result: Tensor = y.unflatten(-1, (length, slices)).transpose(-1, -2).flatten(-2)  # type: ignore[no-untyped-call]
        return result

    def _branch(self, xz: Tensor, suffix: str) -> Tensor:
        return mamba_inner_fn_no_out_proj(xz, *self._weights(suffix), self._decay(suffix), **self._rest(suffix))

    def _weights(self, suffix: str) -> tuple[Any, Any, Any, Any]:
        conv = getattr(self, f"conv1d{suffix}")
        return (
            conv.weight,
            conv.bias,
            getattr(self, f"x_proj{suffix}").weight,
            getattr(self, f"dt_proj{suffix}").weight,
        )

    def _decay(self, suffix: str) -> Tensor:
        return -torch.exp(getattr(self, f"A{suffix}_log").float())

    def _rest(self, suffix: str) -> dict[str, Any]:
        return {
            "D": getattr(self, f"D{suffix}").float(),
            "delta_bias": getattr(self, f"dt_proj{suffix}").bias.float(),
            "delta_softplus": True,
        }


class Mamba2(nn.Module):
    """The Mamba-2 mixer: tokens (B, L, d_model) to the same shape."""

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: int = 2,
        headdim: int = 64,
        d_ssm: int | None = None,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        process_group: Any = None,
        sequence_parallel: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        del use_mem_eff_path, sequence_parallel
        if process_group is not None:
            raise refuse("Mamba2", "process_group (training over several GPUs)", "Leave process_group out.")
        kind = {"device": device, "dtype": dtype}
        self.d_model, self.d_state, self.d_conv, self.headdim, self.ngroups = d_model, d_state, d_conv, headdim, ngroups
        self.d_inner = expand * d_model
        self.d_ssm = self.d_inner if d_ssm is None else d_ssm
        self.nheads = heads = self.d_ssm // headdim
        self.D_has_hdim, self.rmsnorm, self.norm_before_gate = D_has_hdim, rmsnorm, norm_before_gate
        self.dt_limit, self.chunk_size, self.layer_idx, self.activation = dt_limit, chunk_size, layer_idx, "silu"
        pairs = 2 * ngroups * d_state
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner + pairs + heads, bias=bias, **kind)
        convolved = self.d_ssm + pairs
        self.conv1d = nn.Conv1d(
            convolved, convolved, d_conv, groups=convolved, padding=d_conv - 1, bias=conv_bias, **kind
        )
        if conv_init is not None:
            nn.init.uniform_(self.conv1d.weight, -conv_init, conv_init)
        self.act = nn.SiLU()
        self.dt_bias = nn.Parameter(_inverse_softplus_dt(heads, dt_min, dt_max, dt_init_floor, **kind))
        self.A_log = nn.Parameter(torch.empty(heads, device=device).uniform_(*A_init_range).log().to(dtype))
        self.D = nn.Parameter(torch.ones(self.d_ssm if D_has_hdim else heads, device=device))
        if rmsnorm:
            self.norm = RMSNormGated(self.d_ssm, 1e-5, self.d_ssm // ngroups, norm_before_gate, **kind)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **kind)

    def forward(
        self,
        u: Tensor,
        seqlen: int | None = None,
        seq_idx: Any = None,
        cu_seqlens: Any = None,
        inference_params: Any = None,
    ) -> Tensor:
        """Mix tokens (B, L, d_model), or (B * L, d_model) with ``seqlen`` L."""
        if inference_params is not None or cu_seqlens is not None:
            raise refuse("Mamba2.forward", "step caches and packed sequences (inference_params, cu_seqlens)")
        zxbcdt = self.in_proj(u)
        if seqlen is not None:
            zxbcdt = zxbcdt.unflatten(0, (-1, seqlen))
        out: Tensor = mamba_split_conv1d_scan_combined(
            zxbcdt,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            self.dt_bias,
            -torch.exp(self.A_log.float()),
            self.D.unflatten(0, (-1, self.headdim)) if self.D_has_hdim else self.D,  # type: ignore[no-untyped-call]
            self.chunk_size,
            seq_idx=seq_idx,
            dt_limit=self.dt_limit,
            rmsnorm_weight=self.norm.weight if self.rmsnorm else None,
            rmsnorm_eps=1e-5,
            outproj_weight=self.out_proj.weight,
            outproj_bias=self.out_proj.bias,
            headdim=self.headdim,
            ngroups=self.ngroups,
            norm_before_gate=self.norm_before_gate,
        )
        return out if seqlen is None else out.flatten(0, 1)


class Block(nn.Module):
    """mamba_ssm's block: add, norm, mix; returns (mixed, residual). Takes both generations' arguments."""

    def __init__(
        self,
        dim: int,
        mixer_cls: Callable[[int], nn.Module],
        mlp_cls: Any = nn.Identity,
        norm_cls: Callable[[int], nn.Module] = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(mlp_cls, type) and issubclass(mlp_cls, (nn.LayerNorm, RMSNorm)):
            norm_cls, mlp_cls = mlp_cls, nn.Identity  # before 2.0 the third position was the norm
        self.residual_in_fp32, self.fused_add_norm = residual_in_fp32, fused_add_norm
        self.mixer, self.norm = mixer_cls(dim), norm_cls(dim)
        self.mlp = None
        if mlp_cls is not nn.Identity:
            self.norm2, self.mlp = norm_cls(dim), mlp_cls(dim)

    def forward(
        self, hidden_states: Tensor, residual: Tensor | None = None, inference_params: Any = None, **mixer: Any
    ) -> tuple[Tensor, Tensor]:
        """Mix (B, L, D) after adding it to the residual."""
        if inference_params is not None:
            raise refuse("Block.forward", "inference_params (step caches)")
        hidden_states, residual = self._add_norm(hidden_states, residual, self.norm)
        hidden_states = self.mixer(hidden_states, **mixer)
        if self.mlp is not None:
            hidden_states, residual = self._add_norm(hidden_states, residual, self.norm2)
            hidden_states = self.mlp(hidden_states)
        return hidden_states, residual

    def _add_norm(self, hidden: Tensor, residual: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
        if self.fused_add_norm:
            y, total = layer_norm_fn(
                hidden, norm.weight, norm.bias, residual, eps=norm.eps, prenorm=True,
                residual_in_fp32=self.residual_in_fp32, is_rms_norm=isinstance(norm, RMSNorm),
            )  # fmt: skip
            return y, total
        total = hidden if residual is None else hidden + residual
        y = norm(total.to(norm.weight.dtype))
        return y, total.float() if self.residual_in_fp32 else total


class GatedMLP(nn.Module):
    """mamba_ssm's gated MLP, keys ``fc1`` and ``fc2``."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        activation: Callable[[Tensor], Tensor] = F.silu,
        bias: bool = False,
        multiple_of: int = 128,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        kind = {"device": device, "dtype": dtype}
        hidden = int(8 * in_features / 3) if hidden_features is None else hidden_features
        hidden = -(-hidden // multiple_of) * multiple_of
        self.fc1 = nn.Linear(in_features, 2 * hidden, bias=bias, **kind)
        self.activation = activation
        self.fc2 = nn.Linear(hidden, in_features if out_features is None else out_features, bias=bias, **kind)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D)."""
        y, gate = self.fc1(x).chunk(2, dim=-1)
        result: Tensor = self.fc2(y * self.activation(gate))
        return result
