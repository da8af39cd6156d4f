"""The keys of a DeiT's weights: timm's, and those of transformers since version 4."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from vimdeploy.errors import CheckpointError, ModelError

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


def adapt_state(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
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
