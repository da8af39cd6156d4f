"""VMamba: VSSM, the classifier, and its feature maps as a backbone (arXiv 2401.10166).

Parameters carry the official keys (``classification/models/vmamba.py`` of MzeroMiko/VMamba); every activation is
channels-last, (B, H, W, C). The modules compute what the official ones compute in evaluation mode, and can be trained.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vimdeploy.models.family import FamilyModel, Tap, Task
from vimdeploy.models.vmamba.config import VmambaConfig
from vimdeploy.models.vmamba.layers2d import DropPath, Mlp, make_downsample, make_norm, make_patch_embed
from vimdeploy.models.vmamba.ss2d import SS2D, FoldedSS2D


class VSSBlock(nn.Module):
    """x + SS2D(norm(x)), then x + MLP(norm2(x)); either branch may be missing."""

    def __init__(self, config: VmambaConfig, channels: int, drop_path: float) -> None:
        super().__init__()
        self.use_checkpoint = config.use_checkpoint
        self.has_ssm, self.has_mlp = config.ssm_ratio > 0, config.mlp_ratio > 0
        if self.has_ssm:
            self.norm = make_norm(config.norm_layer, channels)
            self.op: nn.Module = SS2D(config, channels)
        self.drop_path = DropPath(drop_path)
        if self.has_mlp:
            self.norm2 = make_norm(config.norm_layer, channels)
            self.mlp = Mlp(
                channels,
                int(channels * config.mlp_ratio),
                act=config.mlp_act_layer,
                drop=config.mlp_drop_rate,
                gated=config.gmlp,
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, C) for (B, H, W, C)."""
        if self.use_checkpoint and self.training:
            return cast(Tensor, checkpoint(self._forward, x, use_reentrant=False))
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        if self.has_ssm:
            x = x + self.drop_path(self.op(self.norm(x)))
        if self.has_mlp:
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class Stage(nn.Module):
    """The blocks of one resolution and the layer that leads to the next."""

    def __init__(self, blocks: list[VSSBlock], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Return the input of the next stage, (B, ~H/2, ~W/2, C')."""
        return cast(Tensor, self.downsample(self.blocks(x)))


class Classifier(nn.Module):
    """Norm, mean over the pixels, and the head."""

    def __init__(self, config: VmambaConfig) -> None:
        super().__init__()
        self.norm = make_norm(config.norm_layer, config.dims[-1])
        self.head = nn.Linear(config.dims[-1], config.num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return (B, C) for (B, H, W, C)."""
        return cast(Tensor, self.norm(x).mean((1, 2)))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, num_classes) for (B, H, W, C)."""
        return cast(Tensor, self.head(self.features(x)))


class VSSM(FamilyModel):
    """The VMamba classifier: images (B, in_chans, H, W) -> logits (B, num_classes)."""

    config: VmambaConfig

    def __init__(self, config: VmambaConfig) -> None:
        super().__init__()
        self.config = config
        norm = config.norm_layer
        self.patch_embed = make_patch_embed(
            config.patchembed_version,
            config.in_chans,
            config.dims[0],
            config.patch_size,
            norm if config.patch_norm else None,
        )
        if config.posembed:
            grid = (config.imgsize[0] // config.patch_size, config.imgsize[1] // config.patch_size)
            self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.zeros(1, config.dims[0], *grid), std=0.02))
        steps = max(sum(config.depths) - 1, 1)
        rates = (config.drop_path_rate * i / steps for i in itertools.count())
        self.layers = nn.ModuleList()
        for i, (depth, channels) in enumerate(zip(config.depths, config.dims, strict=True)):
            blocks = [VSSBlock(config, channels, next(rates)) for _ in range(depth)]
            last = i == len(config.depths) - 1
            down = (
                nn.Identity()
                if last
                else make_downsample(config.downsample_version, channels, config.dims[i + 1], norm)
            )
            self.layers.append(Stage(blocks, down))
        self._make_head()
        self.apply(_init_weights)

    def _make_head(self) -> None:
        self.classifier = Classifier(self.config)

    def embed(self, images: Tensor) -> Tensor:
        """Return the patches of images (B, in_chans, H, W) as (B, h, w, dims[0]), position embedding added.

        Raises:
            ValueError: the model has position embeddings for another image size.
        """
        x: Tensor = self.patch_embed(images)
        if not self.config.posembed:
            return x
        if x.shape[1:3] != self.pos_embed.shape[2:]:
            raise ValueError(
                f"images of {tuple(images.shape[2:])} pixels make {tuple(x.shape[1:3])} patches, the model has "
                f"position embeddings for {tuple(self.pos_embed.shape[2:])}"
            )
        return x + self.pos_embed.permute(0, 2, 3, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Return the output of the last stage, (B, ~H/32, ~W/32, dims[-1]), before the final norm."""
        x = self.embed(images)
        for layer in self.layers:
            x = layer(x)
        return x

    def forward_features(self, images: Tensor) -> Tensor:
        """Return what the head sees, (B, dims[-1])."""
        return self.classifier.features(self.encode(images))

    def forward_tokens(self, images: Tensor) -> Tensor:
        """Return the normed pixels of the last stage, (B, h * w, dims[-1]), row by row."""
        return cast(Tensor, self.classifier.norm(self.encode(images))).flatten(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, num_classes) for images (B, in_chans, H, W)."""
        return cast(Tensor, self.classifier(self.encode(images)))

    def taps(self) -> list[Tap]:
        """Return the blocks that run, with ``block.i.output`` (B, h, w, dims[stage])."""
        last = max(self.config.out_indices, default=len(self.layers) - 1)
        stages = cast("list[Stage]", list(self.layers)[: last + 1])
        blocks = [block for stage in stages for block in stage.blocks]
        return [Tap(block, (f"block.{i}.output",), lambda output: (output,)) for i, block in enumerate(blocks)]

    def fold_mixers(self) -> None:
        """Replace every SS2D by its folded form."""
        for parent in list(self.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, SS2D):
                    setattr(parent, name, FoldedSS2D(child))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Read older key names, and resize the position embedding, as the official model does."""
        own = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        for key in own:
            del state_dict[prefix + key]
        own = adapt_state(own)
        if self.config.posembed and "pos_embed" in own:
            own["pos_embed"] = resize_pos_embed(own["pos_embed"], self.pos_embed.shape[2], self.pos_embed.shape[3])
        state_dict.update({prefix + key: value for key, value in own.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)


class VSSMBackbone(VSSM):
    """The feature maps of VMamba for detectors and segmentors (official ``Backbone_VSSM`` and ``MM_VSSM``).

    Returns the normed output of the stages ``config.out_indices``, in the order of the stages. The official backbone
    never adds its position embeddings; neither does this one.
    """

    def _make_head(self) -> None:
        for i in sorted(set(self.config.out_indices)):
            self.add_module(f"outnorm{i}", make_norm(self.config.norm_layer, self.config.dims[i]))

    def tasks(self) -> dict[str, Task]:
        """Return the one task ``dense``."""
        return {"dense": Task(self.config.feature_names, self.forward)}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return feature maps (B, dims[i], ~H/stride, ~W/stride) for images (B, in_chans, H, W)."""
        x = self.patch_embed(images)
        features = []
        last = max(self.config.out_indices)
        for i, layer in enumerate(self.layers):
            stage = cast(Stage, layer)
            x = stage.blocks(x)
            if i in self.config.out_indices:
                features.append(self.get_submodule(f"outnorm{i}")(x).permute(0, 3, 1, 2).contiguous())
            if i == last:
                break
            x = stage.downsample(x)
        return tuple(features)


def make_vmamba(config: VmambaConfig) -> VSSM:
    """Return the classifier, or the backbone where ``out_indices`` asks for feature maps."""
    return VSSMBackbone(config) if config.out_indices else VSSM(config)


def adapt_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a VMamba state dict under today's keys and shapes.

    Renames what the first release called otherwise (``ln_1``, ``self_attention``, ``patch_embed.proj``, ``norm``,
    ``head``) and flattens 1x1 convolutions to linear layers, as the official ``VSSM._load_from_state_dict`` and
    ``Linear2d`` do.
    """
    adapted = {}
    for key, value in state.items():
        name = _rename(key)
        adapted[name] = value.flatten(1) if name.endswith(_LINEAR) and value.dim() == 4 else value
    return adapted


def resize_pos_embed(pos_embed: Tensor, height: int, width: int) -> Tensor:
    """Return position embeddings (1, C, h, w) for another grid, as the official model loads them."""
    if tuple(pos_embed.shape[2:]) == (height, width):
        return pos_embed
    return F.interpolate(pos_embed.float(), size=(height, width), mode="bicubic", align_corners=False)


_LINEAR = (".in_proj.weight", ".out_proj.weight", ".fc1.weight", ".fc2.weight", ".reduction.weight")
_OLD_PREFIXES = {
    "patch_embed.proj.": "patch_embed.0.",
    "patch_embed.norm.": "patch_embed.2.",
    "norm.": "classifier.norm.",
    "head.": "classifier.head.",
}


def _rename(key: str) -> str:
    for old, new in _OLD_PREFIXES.items():
        if key.startswith(old):
            return new + key[len(old) :]
    if key.startswith("layers."):
        return key.replace(".ln_1.", ".norm.").replace(".self_attention.", ".op.")
    return key


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
