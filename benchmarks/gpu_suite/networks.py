"""Whole classifiers in half precision: Vim with our ops, Vim with the peer's, DeiT. The same weights in both Vims.

Both Vims run the same code outside the mixer: residual stream in float32, add and norm in one pass (as Vim's fused
add-norm does), everything else in the images' type. Inside, ours is channels-last with fused ops; the peer's is the
order of calls of the official fast path (hustvl/Vim, ``mamba_simple.py``, bimamba v2).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu_suite.peers import Peer
from vimdeploy.models.vim.config import VimConfig
from vimdeploy.models.vim.mamba import FoldedMamba, Mamba
from vimdeploy.models.vim.model import Block, VisionMamba

SIZES = {"tiny": 192, "small": 384, "base": 768}
"""Width of Vim and of DeiT alike."""
Conv = Callable[[Tensor, Tensor, Tensor], Tensor]


def vim_config(size: str, pixels: int, *, small: bool = False) -> VimConfig:
    """Return the configuration of Vim-Ti/S/B; ``small`` is a stand-in for the host."""
    if small:
        return VimConfig(img_size=(pixels, pixels), embed_dim=32, depth=2, num_classes=10)
    return VimConfig(img_size=(pixels, pixels), embed_dim=SIZES[size])


def fused_mixer(mamba: Mamba, dtype: torch.dtype) -> FoldedMamba:
    """Return the project's mixer for inference; what the op contract wants in float32 stays so."""
    folded = FoldedMamba(mamba.fold())
    for name, value in folded.named_buffers():
        if name not in ("A", "D", "dt_bias"):
            folded.register_buffer(name, value.to(dtype).contiguous())
    return folded


class Float32Mixer(nn.Module):
    """The project's mixer in float32 between half-precision neighbours, as a block that a tight contract keeps."""

    def __init__(self, mamba: Mamba) -> None:
        super().__init__()
        self.mixer = fused_mixer(mamba, torch.float32)

    def forward(self, hidden: Tensor) -> Tensor:
        """Mix tokens (B, L, D)."""
        return cast(Tensor, self.mixer(hidden.float())).to(hidden.dtype)


class PeerMixer(nn.Module):
    """The same mixer as the official fast path runs it: (B, E, L), a flip, two branches, a flip back, add, halve."""

    def __init__(self, mamba: Mamba, peer: Peer, conv: Conv, dtype: torch.dtype) -> None:
        super().__init__()
        self.peer, self.conv, self.divides = peer, conv, mamba.divides
        self.in_proj, self.out_proj = (
            nn.Parameter(m.weight.detach().to(dtype)) for m in (mamba.in_proj, mamba.out_proj)
        )
        for suffix in ("", "_b"):
            conv1d = getattr(mamba, f"conv1d{suffix}")
            halves = {"conv_weight": conv1d.weight[:, 0], "conv_bias": conv1d.bias}
            halves["x_proj"] = getattr(mamba, f"x_proj{suffix}").weight
            halves["dt_weight"] = getattr(mamba, f"dt_proj{suffix}").weight
            for name, value in halves.items():
                self.register_buffer(name + suffix, value.detach().to(dtype).contiguous())
            self.register_buffer(f"dt_bias{suffix}", getattr(mamba, f"dt_proj{suffix}").bias.detach().float())
            self.register_buffer(f"A{suffix}", -torch.exp(getattr(mamba, f"A{suffix}_log").detach().float()))
            self.register_buffer(f"D{suffix}", getattr(mamba, f"D{suffix}").detach().float())

    def forward(self, hidden: Tensor) -> Tensor:
        """Mix tokens (B, L, D)."""
        batch, length, _ = hidden.shape
        xz = (self.in_proj @ hidden.flatten(0, 1).t()).view(-1, batch, length).transpose(0, 1)
        out = self._branch(xz, "") + self._branch(xz.flip(-1), "_b").flip(-1)
        mixed = out.transpose(1, 2)
        return F.linear(mixed / 2 if self.divides else mixed, self.out_proj)

    def _branch(self, xz: Tensor, suffix: str) -> Tensor:
        w = {name: cast(Tensor, self._buffers[name + suffix]) for name in (
            "conv_weight", "conv_bias", "x_proj", "dt_weight", "dt_bias", "A", "D")}  # fmt: skip
        x, z = xz.chunk(2, dim=1)
        batch, _, length = x.shape
        u = self.conv(x, w["conv_weight"], w["conv_bias"])
        rank, states = w["dt_weight"].shape[1], w["A"].shape[1]
        x_dbl = F.linear(u.transpose(1, 2).flatten(0, 1), w["x_proj"])
        delta = (w["dt_weight"] @ x_dbl[:, :rank].t()).view(-1, batch, length).transpose(0, 1)
        B, C = (
            part.view(batch, length, states).transpose(1, 2)[:, None].contiguous()
            for part in (x_dbl[:, rank : rank + states], x_dbl[:, rank + states :])
        )
        return self.peer.scan(u, delta, w["A"], B, C, w["D"], z, w["dt_bias"])


def find_conv() -> tuple[str, Conv]:
    """Return the peer's convolution, by name: causal-conv1d's where it is installed, else torch's."""
    if importlib.util.find_spec("causal_conv1d") is not None:
        from causal_conv1d import causal_conv1d_fn

        return "causal-conv1d", lambda x, weight, bias: causal_conv1d_fn(x, weight, bias, activation="silu")

    def conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        length, width = x.shape[-1], weight.shape[-1]
        padded = F.conv1d(x, weight[:, None], bias, padding=width - 1, groups=weight.shape[0])
        return F.silu(padded[..., :length]).contiguous()

    return "torch conv1d + silu", conv


class HalfVim(nn.Module):
    """A Vim classifier around mixers of either kind."""

    def __init__(self, model: VisionMamba, mixer: Callable[[Mamba], nn.Module], dtype: torch.dtype) -> None:
        super().__init__()
        self.config = model.config
        blocks = cast("list[Block]", model.layers)
        self.mixers = nn.ModuleList(mixer(cast(Mamba, block.mixer)) for block in blocks)
        norms = [block.norm.weight for block in blocks] + [model.norm_f.weight]
        self.norms = nn.ParameterList(nn.Parameter(cast(Tensor, weight).detach().float()) for weight in norms)
        halves = (model.patch_embed.proj.weight, model.patch_embed.proj.bias, model.cls_token, model.pos_embed)
        halves += (model.head.weight, model.head.bias)  # type: ignore[assignment]
        self.rest = nn.ParameterList(nn.Parameter(cast(Tensor, value).detach().to(dtype)) for value in halves)

    def forward(self, images: Tensor) -> Tensor:
        """Classify (B, 3, H, W)."""
        weight, bias, class_token, positions, head, head_bias = self.rest
        patches = F.conv2d(images, weight, bias, self.config.stride).flatten(2).transpose(1, 2)
        middle = self.config.class_tokens[0]
        tokens = [patches[:, :middle], class_token.expand(len(images), -1, -1), patches[:, middle:]]
        hidden = torch.cat(tokens, dim=1) + positions
        residual: Tensor | None = None
        for norm, mixer in zip(self.norms, self.mixers, strict=False):
            normed, residual = add_norm(hidden, residual, norm, self.config.norm_epsilon)
            hidden = mixer(normed)
        assert residual is not None
        last = hidden[:, middle]
        pooled, _ = add_norm(last, residual[:, middle].contiguous(), self.norms[-1], self.config.norm_epsilon)
        return F.linear(pooled, head, head_bias)


def add_norm(hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return (RMSNorm(residual + hidden) in the type of ``hidden``, the sum in float32)."""
    if hidden.is_cuda:
        from benchmarks.gpu_suite import triton_kernels

        return triton_kernels.add_norm(hidden, residual, weight, eps)
    total = hidden.float() if residual is None else residual + hidden
    normed = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + eps) * weight
    return normed.to(hidden.dtype), total


def deit(size: str, pixels: int, *, fused_attention: bool) -> nn.Module:
    """Return timm's DeiT of that size with random weights.

    Args:
        size: a key of :data:`SIZES`.
        pixels: sides of the image.
        fused_attention: torch's fused attention (flash); False: the plain one that DeiT's authors and the paper had.
    """
    import timm
    from timm.layers import set_fused_attn

    set_fused_attn(enable=fused_attention)
    try:
        model: nn.Module = timm.create_model(f"deit_{size}_patch16_224", pretrained=False, img_size=pixels)
    finally:
        set_fused_attn(enable=True)
    return model.eval().requires_grad_(False)
