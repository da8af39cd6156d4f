"""DeiT (arXiv 2012.12877), what Vision Mamba is measured against: the ViT of the transformers library."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from vimdeploy.errors import MissingDependencyError
from vimdeploy.models.deit.config import DeitConfig
from vimdeploy.models.deit.keys import adapt_state, common_name
from vimdeploy.models.family import FamilyModel, Tap


class Deit(FamilyModel):
    """Images (B, C, H, W) -> logits (B, classes), by transformers' ViT."""

    config: DeitConfig

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

    def taps(self) -> list[Tap]:
        """Return the blocks with ``block.i.output`` (B, 1 + patches, D)."""
        return [Tap(block, (f"block.{i}.output",), _hidden) for i, block in enumerate(self.blocks)]

    def weights(self) -> dict[str, Tensor]:
        """Return the weights under common names; see :func:`vimdeploy.models.deit.keys.adapt_state`."""
        return adapt_state(self.net.state_dict(), "the model")

    def fill(self, state: Mapping[str, Tensor]) -> None:
        """Take over weights under common names."""
        own = {common_name(key): f"net.{key}" for key in self.net.state_dict()}
        super().fill({own[name]: value for name, value in state.items()})


def _hidden(output: Any) -> tuple[Tensor, ...]:
    """Return a block's hidden states, alone or in front of others (transformers 4)."""
    return (output if isinstance(output, Tensor) else output[0],)


def _make_net(config: DeitConfig) -> Any:
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise MissingDependencyError(
            "DeiT needs the transformers library, which is not installed.", hint="pip install transformers"
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
