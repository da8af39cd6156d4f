"""SS2D, the mixer of VMamba (arXiv 2401.10166, section 4.2; official: ``classification/models/vmamba.py``).

Four selective scans walk the same image: along its rows, along its columns, and both reversed. ``x_proj`` and
``dt_proj`` act per pixel, so they commute with the walk: here they run once on the image as it is stored, and the
walking is left to the scan op. The gate, where there is one, follows the output norm and so stays outside the op.

Everything is channels-last, (B, H, W, C); only the depthwise convolution sees (B, C, H, W).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vimdeploy.models.family import FoldedMixer
from vimdeploy.models.initial import computed, initial_dt_bias, initial_log_a
from vimdeploy.models.vmamba.config import VmambaConfig
from vimdeploy.models.vmamba.layers2d import ACTIVATIONS, Permute
from vimdeploy.ops.dispatch import autograd_follows
from vimdeploy.ops.scan import selective_scan, selective_scan_differentiable

DIRECTIONS = 4
"""Scans per block; the official code has no other number, also where two of them walk the same way."""


@dataclass(frozen=True)
class ScanWeights:
    """Weights of one SS2D as the scan op takes them. Matrices are stored (inputs, outputs)."""

    in_x: Tensor
    """(C, E): the half of in_proj that is convolved and scanned."""
    in_z: Tensor | None
    """(C, E): the half that gates; None without a gate."""
    x_proj: Tensor
    """(4, 1, E, R+2N)"""
    dt_weight: Tensor
    """(4, E, R)"""
    dt_bias: Tensor
    """(4, E)"""
    A: Tensor
    """(4, E, N), -exp(A_logs)"""
    D: Tensor
    """(4, E)"""
    out: Tensor
    """(E, C)"""


class SpatialSoftmax(nn.Module):
    """Softmax over the pixels of (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalised over H and W, per channel."""
        return x.flatten(1, 2).softmax(dim=1).view_as(x)


class SS2D(nn.Module):
    """Mix the pixels of an image by four selective scans; holds the official parameters.

    Args:
        config: of the model.
        channels: of the input and the output (C); the block has E = int(ssm_ratio * C) inside.
    """

    def __init__(self, config: VmambaConfig, channels: int) -> None:
        super().__init__()
        self.kind = kind = config.kind
        original = kind.original  # which ignores these four options, see VmambaConfig.notes
        act = "silu" if original else config.ssm_act_layer
        d_conv = 3 if original else config.ssm_conv
        init = "v0" if original else config.ssm_init
        E, N, R = int(config.ssm_ratio * channels), config.ssm_d_state, config.dt_rank(channels)

        self.in_proj = nn.Linear(channels, 2 * E if kind.gated else E, bias=False)
        self.act = ACTIVATIONS[act]()
        self.conv2d = (
            nn.Conv2d(E, E, d_conv, padding=d_conv // 2, groups=E, bias=original or config.ssm_conv_bias)
            if d_conv > 1
            else None
        )
        self.x_proj_weight = nn.Parameter(torch.empty(DIRECTIONS, R + 2 * N, E).uniform_(-(E**-0.5), E**-0.5))
        A_logs, dt_weight, dt_bias = _initial_state(init, N, R, E)
        self.A_logs, self.Ds = nn.Parameter(A_logs), nn.Parameter(torch.ones(DIRECTIONS * E))
        self.dt_projs_weight, self.dt_projs_bias = nn.Parameter(dt_weight), nn.Parameter(dt_bias)
        self.out_norm = _make_out_norm(kind.out_norm, E)
        self.out_act = nn.GELU() if kind.out_activated else nn.Identity()
        self.out_proj = nn.Linear(E, channels, bias=False)
        self.dropout = nn.Dropout(config.ssm_drop_rate)

    def fold(self) -> ScanWeights:
        """Return the weights in the form of the scan op."""
        E = self.out_proj.in_features
        in_x, in_z = self.in_proj.weight.chunk(2) if self.kind.gated else (self.in_proj.weight, None)
        return ScanWeights(
            in_x=in_x.T,
            in_z=None if in_z is None else in_z.T,
            x_proj=self.x_proj_weight.transpose(1, 2)[:, None],
            dt_weight=self.dt_projs_weight,
            dt_bias=self.dt_projs_bias.float(),
            A=-torch.exp(self.A_logs.float()).view(DIRECTIONS, E, -1),
            D=self.Ds.float().view(DIRECTIONS, E),
            out=self.out_proj.weight.T,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed image, (B, H, W, C) as the input."""
        return _mix(x, self.fold(), self)


class FoldedSS2D(FoldedMixer):
    """An SS2D for inference: :class:`ScanWeights` as buffers. This is what is exported.

    It stays float32 as a whole under the half-precision policy: the norm after the scan does.
    """

    def __init__(self, source: SS2D) -> None:
        super().__init__(source.fold())
        self.kind, self.act, self.conv2d = source.kind, source.act, source.conv2d
        self.out_norm, self.out_act, self.dropout = source.out_norm, source.out_act, source.dropout

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed image, (B, H, W, C) as the input."""
        return _mix(x, ScanWeights(**self.held()), self)


def _mix(x: Tensor, w: ScanWeights, parts: SS2D | FoldedSS2D) -> Tensor:
    """Apply one SS2D to (B, H, W, C): the custom op, or plain torch functions where autograd has to follow."""
    kind = parts.kind
    scan = selective_scan_differentiable if autograd_follows(x, w.A) else selective_scan
    # Two products instead of one and a split: the split would be a copy in every runtime.
    value = x @ w.in_x
    gate = None if w.in_z is None else x @ w.in_z
    if parts.conv2d is not None:
        value = parts.conv2d(value.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    value = parts.act(value)
    _, height, width, inner = value.shape
    u = value.reshape(1, -1, height * width, inner)
    rows = height if any(kind.column_major) else 1
    y = scan(
        u, u @ w.x_proj, w.A, w.D, w.dt_weight, w.dt_bias, None, kind.directions, kind.column_major, rows, 1.0
    ).reshape(-1, height, width, inner)
    y = parts.out_act(parts.out_norm(y).to(x.dtype))
    if gate is not None:
        y = y * (parts.act(gate) if kind.gate_activated else gate)
    mixed: Tensor = parts.dropout(y @ w.out)
    return mixed


def _make_out_norm(kind: str, channels: int) -> nn.Module:
    """Return the norm between the scan and out_proj; the official keys set the positions inside the Sequentials."""
    to_nchw, to_nhwc = Permute(0, 3, 1, 2), Permute(0, 2, 3, 1)
    conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    if kind == "cnorm":
        return nn.Sequential(nn.LayerNorm(channels), to_nchw, conv, to_nhwc)
    if kind == "dwconv3":
        return nn.Sequential(to_nchw, conv, to_nhwc)
    if kind == "softmax":
        return SpatialSoftmax()
    return {"none": nn.Identity, "sigmoid": nn.Sigmoid}.get(kind, lambda: nn.LayerNorm(channels))()


def _initial_state(init: str, N: int, R: int, E: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return A_logs (4E, N), dt weight (4, E, R) and dt bias (4, E) of an untrained block; ``init`` is v0, v1 or v2."""
    if init == "v0":  # Mamba's: A = -1..-N, and dt log-uniform between 0.001 and 0.1
        dt_bias = initial_dt_bias(DIRECTIONS, E)
        weight = torch.empty(DIRECTIONS, E, R).uniform_(-math.sqrt(1 / R), math.sqrt(1 / R))
        return initial_log_a(DIRECTIONS * E, N), weight, dt_bias
    draw = torch.randn if init == "v1" else torch.rand

    def small(*shape: int) -> Tensor:
        return computed(lambda: 0.1 * draw(*shape))

    weight, dt_bias = small(DIRECTIONS, E, R), small(DIRECTIONS, E)
    if init == "v1":
        return computed(lambda: torch.randn(DIRECTIONS * E, N)), weight, dt_bias
    return torch.zeros(DIRECTIONS * E, N), weight, dt_bias
