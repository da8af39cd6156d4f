"""DeiT (arXiv 2012.12877), what Vision Mamba is measured against: the transformers library's ViT, not one of our own.

Checkpoints of the official code (``facebookresearch/deit``, timm's keys) and of transformers (since version 4) load.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor, nn

from vimdeploy.errors import CheckpointError, MissingDependencyError, ModelError, UsageError, nearest
from vimdeploy.models.vim.config import OfficialArguments


@dataclass(frozen=True)
class DeitConfig:
    """Arguments of timm's VisionTransformer, as the official DeiT models pass them."""

    img_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    channels: int = 3
    num_classes: int = 1000
    embed_dim: int = 192
    depth: int = 12
    num_heads: int = 3
    mlp_ratio: float = 4.0
    norm_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("patch_size", "channels", "embed_dim", "num_heads"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if min(self.grid) < 1:
            height, width = self.img_size
            raise ModelError(
                f"An image of {height} x {width} pixels is smaller than one patch of {self.patch_size}.",
                hint="Choose a larger image size.",
            )
        if self.embed_dim % self.num_heads:
            raise UsageError(f"embed_dim {self.embed_dim} is no multiple of num_heads {self.num_heads}.")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    @property
    def flips_sequence(self) -> bool:
        """False: nothing is reversed."""
        return False

    def official(self) -> dict[str, Any]:
        """Return the configuration as arguments."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, "img_size": list(self.img_size)}


class Deit(nn.Module):
    """Images (B, C, H, W) -> logits (B, classes), by transformers' ViT."""

    def __init__(self, config: DeitConfig) -> None:
        super().__init__()
        self.config = config
        self.net = _make_net(config)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer layers in order."""
        return [module for module in self.net.modules() if type(module).__name__ == "ViTLayer"]

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        return cast(Tensor, self.net(images).logits)

    def forward_tokens(self, images: Tensor) -> Tensor:
        """Return the normed sequence (B, 1 + patches, D), the class token first."""
        return cast(Tensor, self.net.vit(images).last_hidden_state)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the normed class token (B, D), what the head sees."""
        return self.forward_tokens(images)[:, 0]


def read_deit_arguments(arguments: Mapping[str, Any], source: str) -> OfficialArguments:
    """Translate a table of arguments into fields of :class:`DeitConfig`; raises UsageError on what does not exist."""
    known = {f.name: f.default for f in fields(DeitConfig)}
    values: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in known:
            raise UsageError(f"{source}: unknown model argument '{name}'.", hint=nearest(name, known))
        if name == "img_size":
            pair = (value, value) if type(value) is int else tuple(value)
            values[name] = pair
        elif type(value) not in (int, float):
            raise UsageError(f"{source}: {name} must be a number, not {value!r}.")
        else:
            values[name] = value
    return OfficialArguments(values, ())


def adapt_deit_state(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the weights under common names, whichever library's keys they have.

    The common names are timm's, with q, k and v apart.

    Raises:
        CheckpointError: a key that none of them has.
        ModelError: a distilled DeiT, which has two heads.

    """
    if any(key.startswith(("head_dist", "dist_token")) for key in state):
        raise ModelError(f"{source}: is a distilled DeiT, with a second token and head; only the plain one is served.")
    adapted = {}
    for key, value in state.items():
        name = common_name(key)
        if name is None:
            raise CheckpointError(f"{source}: '{key}' is no weight of a DeiT.")
        if ".attn.qkv." in name:
            if len(value) % 3:
                raise CheckpointError(f"{source}: '{key}' has {len(value)} rows, which are no q, k and v.")
            for part, chunk in zip("qkv", value.chunk(3), strict=True):
                adapted[name.replace("qkv", part)] = chunk
        else:
            adapted[name] = value
    return adapted


def facts_from_shapes(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Return the fields of :class:`DeitConfig` that weights under common names decide; heads of 64 channels each."""
    embed_dim, channels, patch, _ = state["patch_embed.proj.weight"].shape
    side = int((state["pos_embed"].shape[1] - 1) ** 0.5)
    if side * side != state["pos_embed"].shape[1] - 1:
        raise CheckpointError(f"{source}: its {state['pos_embed'].shape[1] - 1} patches do not form a square image.")
    return {
        "img_size": (side * patch, side * patch),
        "patch_size": patch,
        "channels": channels,
        "num_classes": state["head.weight"].shape[0],
        "embed_dim": embed_dim,
        "depth": 1 + max(int(m[1]) for key in state if (m := re.match(r"blocks\.(\d+)\.", key))),
        "num_heads": max(embed_dim // 64, 1),
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / embed_dim,
    }


def load_deit(model: Deit, state: Mapping[str, Tensor]) -> None:
    """Load weights under common names into ``model``; the position embeddings are resized to its image.

    Row 0 is the class token's, always, in a DeiT: there the bicubic resize of the official code is right.
    """
    keys = {common_name(key): key for key in model.net.state_dict()}
    weights = {keys[name]: value for name, value in state.items()}
    position = keys["pos_embed"]
    rows, wanted = weights[position], model.config.grid
    side = int((rows.shape[1] - 1) ** 0.5)
    if (side, side) != wanted:
        image = rows[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        image = nn.functional.interpolate(image, size=wanted, mode="bicubic", align_corners=False)
        weights[position] = torch.cat([rows[:, :1], image.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    model.net.load_state_dict(weights)


_PLAIN = {
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "vit.layernorm.": "norm.",
    "classifier.": "head.",
}
_LAYER = re.compile(r"vit\.(?:layers|encoder\.layer)\.(\d+)\.(.+)\.(weight|bias)$")
_PARTS = {
    # transformers 5, and 4 where it differs
    **dict.fromkeys(("attention.q_proj", "attention.attention.query"), "attn.q"),
    **dict.fromkeys(("attention.k_proj", "attention.attention.key"), "attn.k"),
    **dict.fromkeys(("attention.v_proj", "attention.attention.value"), "attn.v"),
    **dict.fromkeys(("attention.o_proj", "attention.output.dense"), "attn.proj"),
    **dict.fromkeys(("mlp.fc1", "intermediate.dense"), "mlp.fc1"),
    **dict.fromkeys(("mlp.fc2", "output.dense"), "mlp.fc2"),
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}
_TIMM = re.compile(
    r"(cls_token|pos_embed|(patch_embed\.proj|norm|head|blocks\.\d+\.(norm[12]|attn\.(qkv|[qkv]|proj)|mlp\.fc[12]))"
    r"\.(weight|bias))$"
)


def common_name(key: str) -> str | None:
    """Return timm's name for a key of timm or transformers, or None."""
    if _TIMM.match(key):
        return key
    if match := _LAYER.match(key):
        part = _PARTS.get(match[2])
        return part and f"blocks.{match[1]}.{part}.{match[3]}"
    return next((new + key[len(old) :] for old, new in _PLAIN.items() if key.startswith(old)), None)


def _make_net(config: DeitConfig) -> Any:
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise MissingDependencyError(
            "DeiT needs the transformers library, which is not installed.", hint="pip install 'vimdeploy[deit]'"
        ) from error
    transformers.AttentionInterface.register(_ATTENTION, _attention)
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            image_size=list(config.img_size),
            patch_size=config.patch_size,
            num_channels=config.channels,
            hidden_size=config.embed_dim,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            intermediate_size=int(config.embed_dim * config.mlp_ratio),
            layer_norm_eps=config.norm_epsilon,
            num_labels=config.num_classes,
            attn_implementation=_ATTENTION,
        )
    )


_ATTENTION = "vimdeploy"


def _attention(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: None, *, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attend from queries to keys and values, (B, heads, L, 64) each; returns (B, L, heads, 64).

    Exported, it is two products around a softmax, which every runtime recognises and fuses. The exporter's own form of
    scaled_dot_product_attention adds a mask of L x L ones and a guard against NaN, which none does.
    """
    if torch.onnx.is_in_onnx_export():
        output = torch.softmax((query * scaling) @ key.mT, dim=-1) @ value
    else:
        output = nn.functional.scaled_dot_product_attention(query, key, value, scale=scaling)
    return output.transpose(1, 2).contiguous(), None
