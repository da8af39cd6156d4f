"""The Mamba mixer of Vision Mamba (hustvl/Vim, ``mamba_ssm/modules/mamba_simple.py``; paper, algorithm 1).

:class:`Mamba` holds the official parameters under the official keys. :class:`MixerWeights` holds the same numbers in
the form that the custom ops want; :meth:`Mamba.fold` is the one place that knows how to get from one to the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vimdeploy.models.family import FoldedMixer
from vimdeploy.models.initial import initial_dt_bias, initial_log_a
from vimdeploy.models.vim.config import VimConfig
from vimdeploy.ops.conv import causal_conv1d, causal_conv1d_differentiable
from vimdeploy.ops.dispatch import autograd_follows
from vimdeploy.ops.scan import selective_scan, selective_scan_differentiable


@dataclass(frozen=True)
class MixerWeights:
    """Weights of one mixer as the ops take them: G scans over the output of G or 1 convolutions.

    Matrices are stored (inputs, outputs). A shared convolution (bimamba v1) has one group where the scan has two.
    """

    in_x: Tensor
    """(D, E): the half of in_proj that feeds the convolution."""
    in_z: Tensor
    """(D, E): the half that gates."""
    in_x_bias: Tensor | None
    in_z_bias: Tensor | None
    conv_weight: Tensor
    """(G or 1, E, K), the backward kernel flipped."""
    conv_bias: Tensor
    """(G or 1, E), zeros where the model has none."""
    x_proj: Tensor
    """(G or 1, 1, E, R+2N)"""
    dt_weight: Tensor
    """(G, E, R)"""
    dt_bias: Tensor
    """(G, E)"""
    A: Tensor
    """(G, E, N), -exp(A_log)"""
    D: Tensor
    """(G, E)"""
    out: Tensor
    """(E, D), times the layer scale gamma."""
    out_bias: Tensor | None
    conv_directions: tuple[int, ...]
    directions: tuple[int, ...]
    scale: float

    def reversed(self) -> MixerWeights:
        """Return the mixer that does to a sequence what this one does to the reversed sequence, reversed back."""
        return replace(
            self,
            conv_weight=self.conv_weight.flip(-1),
            conv_directions=tuple(-d for d in self.conv_directions),
            directions=tuple(-d for d in self.directions),
        )


def mix(hidden: Tensor, w: MixerWeights) -> Tensor:
    """Apply one mixer to the tokens ``hidden`` (B, L, D); returns (B, L, D).

    Runs the custom ops, or the plain torch functions where autograd has to follow.
    """
    if autograd_follows(hidden, w.A):
        conv, scan = causal_conv1d_differentiable, selective_scan_differentiable
    else:
        conv, scan = causal_conv1d, selective_scan
    x, z = hidden @ w.in_x, hidden @ w.in_z
    if w.in_x_bias is not None and w.in_z_bias is not None:
        x, z = x + w.in_x_bias, z + w.in_z_bias
    u = conv(x, w.conv_weight, w.conv_bias, w.conv_directions, "silu")
    x_dbl = u @ w.x_proj
    y = scan(u, x_dbl, w.A, w.D, w.dt_weight, w.dt_bias, z, w.directions, [0] * len(w.directions), 1, w.scale)
    out = y @ w.out
    return out if w.out_bias is None else out + w.out_bias


class FoldedMamba(FoldedMixer):
    """A mixer for inference: :class:`MixerWeights` as buffers. This is what is exported."""

    half_as_one = True

    def forward(self, hidden: Tensor) -> Tensor:
        """Mix tokens (B, L, D)."""
        return mix(hidden, MixerWeights(**self.held()))


class Mamba(nn.Module):
    """The mixer with the official parameters: ``none`` (causal), ``v1`` (shared weights) and ``v2`` (two branches)."""

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        self.bimamba_type = config.bimamba_type
        self.divides = config.if_divide_out
        self.forward_only = config.bimamba_type == "none" or not config.use_fast_path
        D, E, N, R, K = config.embed_dim, config.d_inner, config.d_state, config.dt_rank, config.d_conv

        def conv() -> nn.Conv1d:
            return nn.Conv1d(E, E, K, groups=E, padding=K - 1, bias=config.conv_bias)

        if config.init_layer_scale is not None:
            self.gamma = nn.Parameter(torch.full((D,), float(config.init_layer_scale)))
        self.in_proj = nn.Linear(D, 2 * E, bias=config.bias)
        self.conv1d = conv()
        self.x_proj = nn.Linear(E, R + 2 * N, bias=False)
        self.dt_proj = nn.Linear(R, E)
        self.A_log = nn.Parameter(initial_log_a(E, N))
        self.D = nn.Parameter(torch.ones(E))
        if config.bimamba_type in ("v1", "v2"):
            self.A_b_log = nn.Parameter(initial_log_a(E, N))
        if config.bimamba_type == "v2":
            self.conv1d_b = conv()
            self.x_proj_b = nn.Linear(E, R + 2 * N, bias=False)
            self.dt_proj_b = nn.Linear(R, E)
            self.D_b = nn.Parameter(torch.ones(E))
        self.out_proj = nn.Linear(E, D, bias=config.bias)
        self._init_dt()

    def _init_dt(self) -> None:
        """Draw dt between 0.001 and 0.1 and store its inverse softplus, as the official constructor does."""
        for name, module in self.named_children():
            if name.startswith("dt_proj"):
                assert isinstance(module, nn.Linear)
                bound = module.in_features**-0.5
                nn.init.uniform_(module.weight, -bound, bound)
                module.bias = nn.Parameter(initial_dt_bias(module.out_features))

    def fold(self) -> MixerWeights:
        """Return the weights in the form of the custom ops.

        v1 shares convolution, projections, D and dt between the directions, scans the same convolved tokens backward
        and is never halved; v2 has a second set of all of them and sees the sequence reversed, which the flipped kernel
        and the direction -1 express. ``use_fast_path=False`` leaves the backward branch out, as the official code does.
        """
        conv_weight, conv_bias = [self.conv1d.weight[:, 0]], [self.conv1d.bias]
        x_proj: list[Tensor] = [self.x_proj.weight]
        dt_proj = [self.dt_proj]
        A_log: list[Tensor] = [self.A_log]
        D: list[Tensor] = [self.D]
        directions: tuple[int, ...] = (1,)
        conv_directions: tuple[int, ...] = (1,)
        scale = 1.0
        if not self.forward_only:
            directions = (1, -1)
            A_log.append(self.A_b_log)
            if self.bimamba_type == "v1":
                dt_proj, D = dt_proj * 2, D * 2
            else:
                conv_directions, scale = (1, -1), 0.5 if self.divides else 1.0
                conv_weight.append(self.conv1d_b.weight[:, 0].flip(-1))
                conv_bias.append(self.conv1d_b.bias)
                x_proj.append(self.x_proj_b.weight)
                dt_proj.append(self.dt_proj_b)
                D.append(self.D_b)
        in_x, in_z = self.in_proj.weight.chunk(2)
        in_bias = None if self.in_proj.bias is None else self.in_proj.bias.chunk(2)
        out: Tensor = self.out_proj.weight.T
        out_bias: Tensor | None = self.out_proj.bias
        if hasattr(self, "gamma"):
            out = out * self.gamma
            out_bias = None if out_bias is None else out_bias * self.gamma
        return MixerWeights(
            in_x=in_x.T,
            in_z=in_z.T,
            in_x_bias=None if in_bias is None else in_bias[0],
            in_z_bias=None if in_bias is None else in_bias[1],
            conv_weight=torch.stack(conv_weight),
            conv_bias=torch.stack([torch.zeros_like(self.D) if b is None else b for b in conv_bias]),
            x_proj=torch.stack(x_proj).transpose(1, 2)[:, None],
            dt_weight=torch.stack([p.weight for p in dt_proj]),
            dt_bias=torch.stack([p.bias for p in dt_proj]).float(),
            A=-torch.exp(torch.stack(A_log).float()),
            D=torch.stack(D).float(),
            out=out,
            out_bias=out_bias,
            conv_directions=conv_directions,
            directions=directions,
            scale=scale,
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Mix tokens (B, L, D)."""
        return mix(hidden, self.fold())
