"""Small channels-last layers of VMamba; their keys and numbers are those of the official ``vmamba.py``.

The official model keeps (B, H, W, C) for ``norm_layer="ln"`` and (B, C, H, W) for ``"ln2d"`` and ``"bn"``. All three
are (B, H, W, C) here: the values are the same, and only the convolutions need a transposition.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimdeploy.errors import ModelError

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
}


class ChannelsLastBatchNorm(nn.BatchNorm1d):
    """BatchNorm2d on (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalised over everything but its last axis."""
        if self.training or self.running_mean is None or self.running_var is None:
            return super().forward(x.flatten(0, -2)).view_as(x)
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return x * scale + (self.bias - self.running_mean * scale)


NORMS: dict[str, type[nn.Module]] = {"ln": nn.LayerNorm, "ln2d": nn.LayerNorm, "bn": ChannelsLastBatchNorm}
"""``norm_layer`` of the official constructor -> the layer on channels-last data."""


def make_norm(name: str, channels: int) -> nn.Module:
    """Return ``NORMS[name]`` over ``channels``."""
    return NORMS[name](channels)


class Permute(nn.Module):
    """``x.permute(*order)`` as a module, so that positions in a Sequential are the official ones."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        """Return x with its axes in the given order."""
        return x.permute(self.order)


class DropPath(nn.Module):
    """Leave out a residual branch for whole samples while training (stochastic depth, arXiv 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return x, or x scaled by 1 / (1 - rate) with a share of its samples zeroed."""
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep)
        return x * mask / keep


class Mlp(nn.Module):
    """fc2(act(fc1(x))), or with ``gated`` fc2(a * act(b)) for a, b the halves of fc1(x)."""

    def __init__(
        self, channels: int, hidden: int, *, act: str = "gelu", drop: float = 0.0, gated: bool = False
    ) -> None:
        super().__init__()
        self.gated = gated
        self.fc1 = nn.Linear(channels, hidden * (2 if gated else 1))
        self.act = ACTIVATIONS[act]()
        self.fc2 = nn.Linear(hidden, channels)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., channels) for (..., channels)."""
        x = self.fc1(x)
        if self.gated:
            value, gate = x.chunk(2, dim=-1)
            x = value * self.act(gate)
        else:
            x = self.drop(self.act(x))
        out: Tensor = self.drop(self.fc2(x))
        return out


class PatchMerging(nn.Module):
    """Downsample v1: the four pixels of a 2x2 cell become channels, then norm and a projection.

    Args:
        channels: C of the input.
        out_channels: C of the output.
        norm: ``norm_layer`` of the model.
    """

    def __init__(self, channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.norm_name = norm
        self.reduction = nn.Linear(4 * channels, out_channels, bias=False)
        self.norm = make_norm(norm, 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, ceil(H/2), ceil(W/2), out) for (B, H, W, C).

        Raises:
            ModelError: H or W is odd and the norm is not ``ln``: the official padding then hits the wrong axes.
        """
        height, width = x.shape[1:3]
        if height % 2 or width % 2:
            if self.norm_name != "ln":
                raise ModelError(
                    f"downsample v1 with norm_layer={self.norm_name!r} meets a {height} x {width} feature map: the "
                    "official code pads the wrong axes of an odd map and crashes.",
                    hint="Choose an image size whose feature maps stay even, or norm_layer='ln', which pads rightly.",
                )
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        cells = [x[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
        merged: Tensor = self.reduction(self.norm(torch.cat(cells, -1)))
        return merged


def make_downsample(version: str, channels: int, out_channels: int, norm: str) -> nn.Module:
    """Return the layer between two stages, (B, H, W, C) -> (B, ~H/2, ~W/2, out); ``version`` is v1, v2 or v3."""
    if version == "v1":
        return PatchMerging(channels, out_channels, norm)
    kernel, padding = (2, 0) if version == "v2" else (3, 1)
    conv = nn.Conv2d(channels, out_channels, kernel, stride=2, padding=padding)
    return nn.Sequential(Permute(0, 3, 1, 2), conv, Permute(0, 2, 3, 1), make_norm(norm, out_channels))


def make_patch_embed(version: str, in_chans: int, channels: int, patch: int, norm: str | None) -> nn.Sequential:
    """Return the stem, (B, in, H, W) -> (B, ~H/patch, ~W/patch, C); ``version`` is v1 or v2, ``norm`` None for none."""
    if version == "v1":
        return nn.Sequential(
            nn.Conv2d(in_chans, channels, patch, stride=patch),
            Permute(0, 2, 3, 1),
            make_norm(norm, channels) if norm else nn.Identity(),
        )
    stride = patch // 2
    first = nn.Conv2d(in_chans, channels // 2, stride + 1, stride=stride, padding=1)
    second = nn.Conv2d(channels // 2, channels, stride + 1, stride=stride, padding=1)
    inner: list[nn.Module] = [nn.Identity()] * 3
    if norm:
        inner = [Permute(0, 2, 3, 1), make_norm(norm, channels // 2), Permute(0, 3, 1, 2)]
    last = make_norm(norm, channels) if norm else nn.Identity()
    return nn.Sequential(first, *inner, nn.GELU(), second, Permute(0, 2, 3, 1), last)
