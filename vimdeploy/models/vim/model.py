"""Vision Mamba for classification, with the official state-dict keys (hustvl/Vim, ``vim/models_mamba.py``).

Paper: "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model", arXiv 2401.09417.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from vimdeploy.models.family import FamilyModel, Tap
from vimdeploy.models.initial import computed
from vimdeploy.models.vim.config import VimConfig
from vimdeploy.models.vim.mamba import FoldedMamba, Mamba


class PatchEmbed(nn.Module):
    """Cut (B, C, H, W) images into M patches and project each: (B, M, D)."""

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        self.img_size = config.img_size
        self.proj = nn.Conv2d(config.channels, config.embed_dim, config.patch_size, config.stride)

    def forward(self, images: Tensor) -> Tensor:
        """Embed (B, C, H, W) images; raises ValueError for another image size than the model's."""
        if tuple(images.shape[2:]) != self.img_size:
            raise ValueError(f"images are {tuple(images.shape[2:])} pixels, the model takes {self.img_size}")
        return cast(Tensor, self.proj(images)).flatten(2).transpose(1, 2)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32, returned in the input's dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., D)."""
        values = x.float()
        variance = (values * values).mean(-1, keepdim=True)
        return (values * torch.rsqrt(variance + self.eps) * self.weight.float()).to(x.dtype)


class RotaryEmbedding(nn.Module):
    """Two-dimensional rotary embedding of the hidden states (``VisionRotaryEmbeddingFast`` of the official code).

    The rotations are part of the official state dict. With an odd number of tokens the official code leaves token 0
    alone, wherever the class token really is.
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, dim: int, pt_seq_len: int, ft_seq_len: int) -> None:
        super().__init__()
        self.register_buffer("freqs_cos", computed(lambda: _angles(dim, pt_seq_len, ft_seq_len).cos()))
        self.register_buffer("freqs_sin", computed(lambda: _angles(dim, pt_seq_len, ft_seq_len).sin()))

    def forward(self, tokens: Tensor) -> Tensor:
        """Rotate tokens (B, L, D)."""
        skipped = tokens.shape[1] % 2
        rest = tokens[:, skipped:]
        pairs = rest.reshape(*rest.shape[:-1], rest.shape[-1] // 2, 2)
        quarter_turn = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).reshape(rest.shape)
        rotated = rest * self.freqs_cos + quarter_turn * self.freqs_sin
        return torch.cat([tokens[:, :1], rotated], dim=1) if skipped else rotated


def _angles(dim: int, pt_seq_len: int, ft_seq_len: int) -> Tensor:
    """Return the angle of every channel of every patch, (ft_seq_len^2, dim): half of them by row, half by column."""
    half = dim // 2
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, half, 2).float() / half)
    positions = torch.arange(ft_seq_len) / ft_seq_len * pt_seq_len
    angles = torch.outer(positions, frequencies).repeat_interleave(2, dim=-1)
    rows = angles[:, None].expand(-1, ft_seq_len, -1)
    columns = angles[None].expand(ft_seq_len, -1, -1)
    return torch.cat([rows, columns], dim=-1).reshape(ft_seq_len * ft_seq_len, dim)


def make_norm(config: VimConfig) -> nn.Module:
    """Return the RMSNorm or LayerNorm over the D channels that ``config`` asks for."""
    norm = RMSNorm if config.rms_norm else nn.LayerNorm
    return norm(config.embed_dim, eps=config.norm_epsilon)


def make_rope(config: VimConfig) -> RotaryEmbedding:
    """Return the rotations for the patches of the model's images."""
    return RotaryEmbedding(config.embed_dim, config.pt_hw_seq_len, config.img_size[0] // config.patch_size[0])


class Block(nn.Module):
    """Add, norm, mix. The mixer's output joins the residual stream at the next block, as in the official code."""

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        self.mixer: nn.Module = Mamba(config)
        self.norm = make_norm(config)

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map the previous mixer's output and the residual, (B, L, D) each, to the next pair."""
        residual = hidden if residual is None else residual + hidden
        return self.mixer(self.norm(residual)), residual


class VisionMamba(FamilyModel):
    """The classifier. ``forward`` returns logits; :meth:`forward_features` and :meth:`forward_tokens` what precedes.

    Fused and unfused add-norm, and a residual in float32 or not, are the same function in float32 and so here.
    """

    config: VimConfig
    cls_token: nn.Parameter
    cls_token_head: nn.Parameter
    cls_token_tail: nn.Parameter

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        for name in self._class_token_names():
            self.register_parameter(name, _small_random(1, 1, config.embed_dim))
        if config.if_abs_pos_embed:
            self.pos_embed = _small_random(1, config.num_tokens, config.embed_dim)
        if config.if_rope:
            self.rope = make_rope(config)
        self.head = nn.Linear(config.embed_dim, config.num_classes) if config.num_classes else nn.Identity()
        self.layers = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm_f = make_norm(config)
        self.folded = False

    def forward(self, images: Tensor) -> Tensor:
        """Classify (B, C, H, W) images: logits (B, classes), or (B, L, classes) with final_pool_type ``all``."""
        logits: Tensor = self.head(self.forward_features(images))
        if self.config.final_pool_type == "max":
            return logits.amax(dim=1)
        return logits

    def forward_features(self, images: Tensor) -> Tensor:
        """Return what the head sees: (B, D), or (B, L, D) with final_pool_type ``max`` or ``all``."""
        tokens = self.encode(images)
        config = self.config
        # The norm acts on each token alone, so only the tokens that are read need it.
        if config.if_cls_token:
            chosen = [self.norm_f(tokens[:, position]) for position in config.class_tokens]
            return cast(Tensor, chosen[0] if len(chosen) == 1 else (chosen[0] + chosen[1]) / 2)
        if config.final_pool_type == "none":
            return cast(Tensor, self.norm_f(tokens[:, -1]))
        normed: Tensor = self.norm_f(tokens)
        return normed.mean(dim=1) if config.final_pool_type == "mean" else normed

    def forward_tokens(self, images: Tensor) -> Tensor:
        """Return the normed sequence (B, L, D), in the order of the sequence."""
        return cast(Tensor, self.norm_f(self.encode(images)))

    def encode(self, images: Tensor) -> Tensor:
        """Return the residual stream after the last block, (B, L, D), before the final norm."""
        tokens = self._insert_class_tokens(self.patch_embed(images))
        if self.config.if_abs_pos_embed:
            tokens = tokens + self.pos_embed
        if self.config.flips_sequence:
            tokens = tokens.flip(1)  # the official code does not mirror the class token's index
        hidden, residual = self._run_pairs(tokens) if self.config.if_bidirectional else self._run_layers(tokens)
        return hidden if residual is None else residual + hidden

    def taps(self) -> list[Tap]:
        """Return the blocks with ``block.i.residual`` and ``block.i.hidden``, (B, L, D) each."""
        # An odd last layer of if_bidirectional never runs.
        count = len(self.layers) // 2 * 2 if self.config.if_bidirectional else len(self.layers)
        return [
            Tap(layer, (f"block.{i}.residual", f"block.{i}.hidden"), lambda output: (output[1], output[0]))
            for i, layer in enumerate(list(self.layers)[:count])
        ]

    def fold_mixers(self) -> None:
        """Replace every mixer by its folded form; those of ``if_bidirectional`` then walk backward themselves."""
        for index, layer in enumerate(cast("list[Block]", self.layers)):
            if isinstance(layer.mixer, Mamba):
                weights = layer.mixer.fold()
                walks_backward = self.config.if_bidirectional and index % 2 == 1
                layer.mixer = FoldedMamba(weights.reversed() if walks_backward else weights)
        self.folded = True

    def _class_token_names(self) -> tuple[str, ...]:
        if not self.config.if_cls_token:
            return ()
        return ("cls_token_head", "cls_token_tail") if self.config.use_double_cls_token else ("cls_token",)

    def _insert_class_tokens(self, patches: Tensor) -> Tensor:
        batch = patches.shape[0]
        for name, position in zip(self._class_token_names(), self.config.class_tokens, strict=True):
            token = getattr(self, name).expand(batch, -1, -1)
            patches = torch.cat([patches[:, :position], token, patches[:, position:]], dim=1)
        return patches

    def _rotate(self, tokens: Tensor, *, flipped: bool) -> Tensor:
        if not flipped:
            return cast(Tensor, self.rope(tokens))
        return cast(Tensor, self.rope(tokens.flip(1))).flip(1)

    def _run_layers(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        residual: Tensor | None = None
        for layer in self.layers:
            if self.config.if_rope:
                hidden = self._rotate(hidden, flipped=self.config.flips_sequence)
                if residual is not None and self.config.if_rope_residual:
                    residual = self._rotate(residual, flipped=self.config.flips_sequence)
            hidden, residual = layer(hidden, residual)
        return hidden, residual

    def _run_pairs(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run layers two by two, the second on the reversed sequence; the residuals of a pair add up (official).

        Once folded, the second layer's mixer walks backward itself and nothing is reversed.
        """

        def reverse(tokens: Tensor) -> Tensor:
            return tokens if self.folded else tokens.flip(1)

        residual: Tensor | None = None
        for forward, backward in zip(self.layers[::2], self.layers[1::2], strict=False):
            if self.config.if_rope:
                # Here the official code does not undo the flip of flip_img_sequences_ratio around the rotation.
                hidden = self._rotate(hidden, flipped=False)
                if residual is not None and self.config.if_rope_residual:
                    residual = self._rotate(residual, flipped=False)
            hidden_f, residual_f = forward(hidden, residual)
            hidden_b, residual_b = backward(reverse(hidden), None if residual is None else reverse(residual))
            hidden = hidden_f + reverse(hidden_b)
            residual = residual_f + reverse(residual_b)
        return hidden, residual


def _small_random(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))
