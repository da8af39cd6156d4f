"""VMamba: VSSM, the classifier, and its four feature maps as a backbone (arXiv 2401.10166).

Parameters carry the official keys (``classification/models/vmamba.py`` of MzeroMiko/VMamba); every activation is
channels-last, (B, H, W, C). The modules compute what the official ones compute in evaluation mode, and can be trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vimdeploy.errors import ModelError, nearest
from vimdeploy.models.layers2d import ACTIVATIONS, NORMS, DropPath, Mlp, make_downsample, make_norm, make_patch_embed
from vimdeploy.models.ss2d import SS2D, ForwardType


class VSSBlock(nn.Module):
    """x + SS2D(norm(x)), then x + MLP(norm2(x)); either branch may be missing."""

    def __init__(
        self,
        channels: int,
        *,
        norm: str,
        drop_path: float,
        ssm_ratio: float,
        mlp_ratio: float,
        gmlp: bool,
        mlp_act: str,
        mlp_drop: float,
        use_checkpoint: bool,
        ss2d: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.has_ssm, self.has_mlp = ssm_ratio > 0, mlp_ratio > 0
        if self.has_ssm:
            self.norm = make_norm(norm, channels)
            self.op = SS2D(channels, ssm_ratio=ssm_ratio, **ss2d)
        self.drop_path = DropPath(drop_path)
        if self.has_mlp:
            self.norm2 = make_norm(norm, channels)
            self.mlp = Mlp(channels, int(channels * mlp_ratio), act=mlp_act, drop=mlp_drop, gated=gmlp)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, C) for (B, H, W, C)."""
        if self.use_checkpoint and self.training:
            result: Tensor = checkpoint(self._forward, x, use_reentrant=False)
            return result
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        if self.has_ssm:
            x = x + self.drop_path(self.op(self.norm(x)))
        if self.has_mlp:
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class Stage(nn.Module):
    """The blocks of one resolution and the layer that leads to the next."""

    def __init__(self, blocks: Sequence[VSSBlock], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Return the input of the next stage, (B, ~H/2, ~W/2, C')."""
        result: Tensor = self.downsample(self.blocks(x))
        return result


class Classifier(nn.Module):
    """Norm, mean over the pixels, and the head."""

    def __init__(self, channels: int, num_classes: int, norm: str) -> None:
        super().__init__()
        self.norm = make_norm(norm, channels)
        self.head = nn.Linear(channels, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return (B, C) for (B, H, W, C)."""
        pooled: Tensor = self.norm(x).mean((1, 2))
        return pooled

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, num_classes) for (B, H, W, C)."""
        logits: Tensor = self.head(self.features(x))
        return logits


class VSSM(nn.Module):
    """The VMamba classifier: images (B, in_chans, H, W) -> logits (B, num_classes).

    Arguments carry the official names and defaults (but ``forward_type``, whose official default crashes). ``imgsize``
    matters to ``posembed`` only and may be (height, width).

    Attributes:
        notes: what the official code ignores in these options, for the user to know.

    Raises:
        ModelError: an option that does not exist, or on which the official code crashes.
    """

    def __init__(
        self,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (2, 2, 9, 2),
        dims: int | Sequence[int] = (96, 192, 384, 768),
        ssm_d_state: int = 16,
        ssm_ratio: float = 2.0,
        ssm_dt_rank: int | str = "auto",
        ssm_act_layer: str = "silu",
        ssm_conv: int = 3,
        ssm_conv_bias: bool = True,
        ssm_drop_rate: float = 0.0,
        ssm_init: str = "v0",
        forward_type: str = "v05",
        mlp_ratio: float = 4.0,
        mlp_act_layer: str = "gelu",
        mlp_drop_rate: float = 0.0,
        gmlp: bool = False,
        drop_path_rate: float = 0.1,
        patch_norm: bool = True,
        norm_layer: str = "LN",
        downsample_version: str = "v2",
        patchembed_version: str = "v1",
        use_checkpoint: bool = False,
        posembed: bool = False,
        imgsize: int | Sequence[int] = 224,
    ) -> None:
        super().__init__()
        norm = _choice("norm_layer", norm_layer.lower(), NORMS)
        acts = [
            _choice(key, name.lower(), ACTIVATIONS)
            for key, name in (("ssm_act_layer", ssm_act_layer), ("mlp_act_layer", mlp_act_layer))
        ]
        _choice("ssm_init", ssm_init, ("v0", "v1", "v2"))
        _choice("patchembed_version", patchembed_version, ("v1", "v2"))
        if downsample_version == "none":
            raise ModelError("downsample_version='none': the official model then holds no layer there and crashes.")
        _choice("downsample_version", downsample_version, ("v1", "v2", "v3"))
        kind = ForwardType.parse(forward_type)
        if kind.original and norm != "ln":
            raise ModelError(f"forward_type={forward_type!r} needs norm_layer='ln': the official code asserts it.")
        self.notes = _ignored(kind, acts[0], ssm_conv, ssm_conv_bias)
        self.patch_size, self.patchembed_version = patch_size, patchembed_version
        self.num_classes, self.in_chans = num_classes, in_chans
        self.dims = [dims * 2**i for i in range(len(depths))] if isinstance(dims, int) else list(dims)
        if len(self.dims) != len(depths):
            raise ModelError(f"depths={list(depths)} and dims={self.dims} must have one entry per stage each.")

        self.patch_embed = make_patch_embed(
            patchembed_version, in_chans, self.dims[0], patch_size, norm if patch_norm else None
        )
        self.pos_embed = nn.Parameter(self._make_pos_embed(imgsize)) if posembed else None
        ss2d = {
            "d_state": ssm_d_state,
            "dt_rank": None if ssm_dt_rank == "auto" else int(ssm_dt_rank),
            "act": acts[0],
            "d_conv": ssm_conv,
            "conv_bias": ssm_conv_bias,
            "dropout": ssm_drop_rate,
            "forward_type": forward_type,
            "init": ssm_init,
        }
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths)).tolist())
        self.layers = nn.ModuleList()
        for i, depth in enumerate(depths):
            blocks = [
                VSSBlock(
                    self.dims[i],
                    norm=norm,
                    drop_path=next(rates),
                    ssm_ratio=ssm_ratio,
                    mlp_ratio=mlp_ratio,
                    gmlp=gmlp,
                    mlp_act=acts[1],
                    mlp_drop=mlp_drop_rate,
                    use_checkpoint=use_checkpoint,
                    ss2d=ss2d,
                )
                for _ in range(depth)
            ]
            last = i == len(depths) - 1
            down = nn.Identity() if last else make_downsample(downsample_version, self.dims[i], self.dims[i + 1], norm)
            self.layers.append(Stage(blocks, down))
        self.norm_name = norm
        self._make_head()
        self.apply(_init_weights)

    def _make_head(self) -> None:
        self.classifier = Classifier(self.dims[-1], self.num_classes, self.norm_name)

    def embed(self, images: Tensor) -> Tensor:
        """Return the patches of images (B, in_chans, H, W) as (B, h, w, dims[0]), position embedding added."""
        x: Tensor = self.patch_embed(images)
        if self.pos_embed is not None:
            if x.shape[1:3] != self.pos_embed.shape[2:]:
                raise ModelError(
                    f"position embeddings are for {tuple(self.pos_embed.shape[2:])} patches, but these images "
                    f"make {tuple(x.shape[1:3])}.",
                    hint="Build the model with imgsize set to the size of the images.",
                )
            x = x + self.pos_embed.permute(0, 2, 3, 1)
        return x

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, num_classes) for images (B, in_chans, H, W)."""
        x = self.embed(images)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.classifier(x)
        return logits

    def _make_pos_embed(self, imgsize: int | Sequence[int]) -> Tensor:
        height, width = (imgsize, imgsize) if isinstance(imgsize, int) else imgsize
        grid = (height // self.patch_size, width // self.patch_size)
        if grid != (real := self._grid(height, width)):
            raise ModelError(
                f"imgsize {height} x {width} makes {real} patches, but the official position embedding is {grid}: it "
                f"crashes. Choose a multiple of {self.patch_size}."
            )
        return nn.init.trunc_normal_(torch.zeros(1, self.dims[0], *grid), std=0.02)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of patches that the stem makes of an image."""
        sizes = [height, width]
        for module in self.patch_embed:
            if isinstance(module, nn.Conv2d):
                kernel, stride, padding = module.kernel_size[0], module.stride[0], int(module.padding[0])
                sizes = [(size + 2 * padding - kernel) // stride + 1 for size in sizes]
        return sizes[0], sizes[1]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Read older key names, and resize the position embedding, as the official model does."""
        own = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        for key in own:
            del state_dict[prefix + key]
        own = adapt_state(own, None if self.pos_embed is None else (self.pos_embed.shape[2], self.pos_embed.shape[3]))
        state_dict.update({prefix + key: value for key, value in own.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)


class VSSMBackbone(VSSM):
    """The feature maps of VMamba for detectors and segmentors (official ``Backbone_VSSM``, ``MM_VSSM``).

    Args:
        out_indices: stages whose normed output is returned, in the order of the stages.
        **options: those of :class:`VSSM`; ``norm_layer`` defaults to ``"ln"``.

    Raises:
        ModelError: a stage that does not exist, or what :class:`VSSM` refuses.
    """

    def __init__(self, out_indices: Sequence[int] = (0, 1, 2, 3), **options: Any) -> None:
        self.out_indices = tuple(sorted(set(out_indices)))
        super().__init__(**options)
        if self.pos_embed is not None:
            self.notes = (*self.notes, "the official backbone holds position embeddings but never adds them: ignored")

    def _make_head(self) -> None:
        wrong = [i for i in self.out_indices if not 0 <= i < len(self.dims)]
        if wrong or not self.out_indices:
            raise ModelError(f"out_indices={list(self.out_indices)}: choose among stages 0 to {len(self.dims) - 1}.")
        for i in self.out_indices:
            self.add_module(f"outnorm{i}", make_norm(self.norm_name, self.dims[i]))

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs: p2 for stride 4, p3 for stride 8, ..."""
        first = self.patch_size.bit_length() - 1
        return tuple(f"p{first + i}" for i in self.out_indices)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return feature maps (B, dims[i], ~H/stride, ~W/stride) for images (B, in_chans, H, W)."""
        x = self.patch_embed(images)
        features = []
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, Stage)
            x = layer.blocks(x)
            if i in self.out_indices:
                features.append(self.get_submodule(f"outnorm{i}")(x).permute(0, 3, 1, 2).contiguous())
            if i < max(self.out_indices):
                x = layer.downsample(x)
        return tuple(features)


def adapt_state(state: Mapping[str, Tensor], grid: tuple[int, int] | None) -> dict[str, Tensor]:
    """Return a VMamba state dict under today's keys and shapes.

    Renames what the first release called otherwise (``ln_1``, ``self_attention``, ``patch_embed.proj``, ``norm``,
    ``head``), flattens 1x1 convolutions to linear layers, and resizes ``pos_embed`` (1, C, h, w) to ``grid``, as the
    official ``VSSM._load_from_state_dict`` and ``Linear2d`` do.
    """
    adapted = {}
    for key, value in state.items():
        name = _rename(key)
        if name.endswith(_LINEAR) and value.dim() == 4:
            adapted[name] = value.flatten(1)
        elif name == "pos_embed" and grid is not None and tuple(value.shape[2:]) != grid:
            adapted[name] = F.interpolate(value.float(), size=grid, mode="bicubic", align_corners=False)
        else:
            adapted[name] = value
    return adapted


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


def _choice(option: str, value: str, known: Mapping[str, object] | Sequence[str]) -> str:
    if value not in known:
        raise ModelError(f"{option}={value!r} does not exist. {nearest(value, known)}")
    return value


def _ignored(kind: ForwardType, act: str, conv: int, conv_bias: bool) -> tuple[str, ...]:
    """Say which options the official v0 block ignores."""
    given = {"ssm_act_layer": (act, "silu"), "ssm_conv": (conv, 3), "ssm_conv_bias": (conv_bias, True)}
    return tuple(
        f"{option}={value!r} is ignored by forward_type={kind.name!r}, which always uses {fixed!r}"
        for option, (value, fixed) in given.items()
        if kind.original and value != fixed
    )


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
