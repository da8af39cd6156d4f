"""Configuration of a DeiT, in the argument names of timm's VisionTransformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from vimdeploy.errors import ModelError, UsageError, nearest
from vimdeploy.models.config import ModelConfig, OfficialArguments


@dataclass(frozen=True)
class DeitConfig(ModelConfig):
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
    def family(self) -> str:
        """``deit``."""
        return "deit"

    def at_size(self, img_size: tuple[int, int]) -> DeitConfig:
        """Return the same model for images of (height, width) pixels."""
        return replace(self, img_size=img_size)

    def official(self) -> dict[str, Any]:
        """Return the configuration as arguments."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, "img_size": list(self.img_size)}


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
