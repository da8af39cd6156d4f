"""Vision Mamba as a backbone for segmentation and detection, with the official keys.

Official code: hustvl/Vim, ``seg/backbone/vim.py`` (``VisionMambaSeg``) and ``det/detectron2/modeling/backbone/vim.py``
(``VisionMambaDet``).
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from vimdeploy.models.family import Task
from vimdeploy.models.vim.dense_config import VimDenseConfig
from vimdeploy.models.vim.model import VisionMamba


class VisionMambaDense(VisionMamba):
    """Images (B, C, H, W) -> feature maps (B, D, h, w), one per name of ``config.feature_names``.

    The features of a segmentation backbone are the mixers' outputs, not the residual stream, unless
    ``use_residual_as_feature``: then feature i is the residual that enters layer i + 1 (after its rotation, with rope),
    and that of the last layer is what ``last_layer_process`` makes of output and residual.
    """

    config: VimDenseConfig

    def __init__(self, config: VimDenseConfig) -> None:
        super().__init__(config)
        del self.head
        if config.kind == "det":
            del self.norm_f
        elif config.if_fpn:
            for name, level in zip(("fpn1", "fpn2", "fpn3", "fpn4"), _make_pyramid(config), strict=True):
                self.add_module(name, level)

    def tasks(self) -> dict[str, Task]:
        """Return the one task ``dense``."""
        return {"dense": Task(self.config.feature_names, self.forward)}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return the feature maps of images (B, C, H, W); with a pyramid, finest first."""
        tokens = self.patch_embed(images) + self.pos_embed
        wanted = self.config.layers_out
        if self.config.if_bidirectional:
            hidden, residual = self._run_pairs(tokens)
            features: list[Tensor] = []
        else:
            hidden, residual, features = self._collect(tokens, wanted)
        closing = self.config.use_residual_as_feature and wanted[-1:] == (self.config.depth - 1,)
        if self.config.kind == "det" or closing:
            features.append(self._process_last(hidden, residual))
        maps = [self._to_map(feature) for feature in features]
        if self.config.kind == "det" or not self.config.if_fpn:
            return tuple(maps)
        levels = [self.get_submodule(f"fpn{i + 1}") for i in range(4)]
        if len(maps) == 1:
            maps = maps * 4
        return tuple(level(feature) for level, feature in zip(levels, maps, strict=False))

    def _collect(self, hidden: Tensor, wanted: tuple[int, ...]) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Run the layers; return the last output, the residual and the features of the ``wanted`` layers."""
        residual: Tensor | None = None
        features = []
        for i, layer in enumerate(self.layers):
            if self.config.if_rope:
                hidden = self.rope(hidden)
                if residual is not None and self.config.if_rope_residual:
                    residual = self.rope(residual)
            hidden, residual = layer(hidden, residual)
            if self.config.use_residual_as_feature:
                if i - 1 in wanted:
                    features.append(cast(Tensor, residual))
            elif i in wanted:
                features.append(hidden)
        return hidden, residual, features

    def _process_last(self, hidden: Tensor, residual: Tensor | None) -> Tensor:
        if self.config.last_layer_process == "none":
            return hidden
        total = hidden if residual is None else hidden + residual
        return cast(Tensor, self.norm_f(total)) if self.config.last_layer_process == "add & norm" else total

    def _to_map(self, tokens: Tensor) -> Tensor:
        """Lay tokens (B, h * w, D) out as (B, D, h, w)."""
        height, width = self.config.grid
        return tokens.transpose(1, 2).reshape(-1, self.config.embed_dim, height, width)


def _make_pyramid(config: VimDenseConfig) -> list[nn.Module]:
    """Return the four levels, strides 4 to 32 for patches of 16 or 8 pixels that do not overlap."""

    def double() -> nn.Module:
        return nn.ConvTranspose2d(config.embed_dim, config.embed_dim, kernel_size=2, stride=2)

    if config.patch_size[0] == 16:
        # The official norm is a SyncBatchNorm: the same numbers on one device.
        finest = nn.Sequential(double(), nn.BatchNorm2d(config.embed_dim), nn.GELU(), double())
        return [finest, nn.Sequential(double()), nn.Identity(), nn.MaxPool2d(2)]
    return [nn.Sequential(double()), nn.Identity(), nn.Sequential(nn.MaxPool2d(2)), nn.Sequential(nn.MaxPool2d(4))]
