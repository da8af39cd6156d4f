"""What every family says about a model before there is one: its configuration, in the official argument names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


class ModelConfig(Protocol):
    """What decides the graph of a model. Families make it a frozen dataclass, with the official constructor's names."""

    @property
    def family(self) -> str:
        """Name of the family in recipes and manifests."""
        ...

    @property
    def img_size(self) -> tuple[int, int]:
        """(height, width) of the images, in pixels."""
        ...

    @property
    def channels(self) -> int:
        """Channels of an image."""
        ...

    @property
    def num_classes(self) -> int:
        """Classes of the head; 0 without one."""
        ...

    @property
    def is_backbone(self) -> bool:
        """Whether the model gives feature maps, not logits."""
        return False

    @property
    def flips_sequence(self) -> bool:
        """Whether the graph reverses sequences; the custom ops walk backward without that."""
        return False

    def official(self) -> dict[str, Any]:
        """Return the configuration as arguments of the official constructor, in plain JSON types."""
        ...

    def at_size(self, img_size: tuple[int, int]) -> ModelConfig:
        """Return the same model for another image size; raises ModelError where it cannot take that size."""
        ...

    def check_image(self) -> None:
        """Raise ModelError where the model cannot compute an image of ``img_size``, if that was not asked before."""
        return


@dataclass(frozen=True)
class OfficialArguments:
    """Arguments of an official constructor as fields of a family's configuration, and what there is to say of them."""

    values: dict[str, Any]
    notes: tuple[str, ...] = ()
