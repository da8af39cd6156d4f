"""The smallest family: all that CONTRIBUTING's "A model family" asks for. One Mamba-like scan over 4 x 4 patches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from vimdeploy.errors import UsageError, nearest
from vimdeploy.models.checkpoint.reading import Checkpoint
from vimdeploy.models.config import ModelConfig
from vimdeploy.models.evidence import MODEL_ARGS, SHAPES, merge_layers, refuse_contradictions, require_keys
from vimdeploy.models.family import Family, FamilyModel, FoldedMixer, Given, Recognised, Resized, Tap, change_of_size
from vimdeploy.ops.scan import selective_scan


@dataclass(frozen=True)
class ToyConfig(ModelConfig):
    """A toy of ``dim`` channels."""

    img_size: tuple[int, int] = (16, 16)
    channels: int = 3
    num_classes: int = 5
    dim: int = 8

    @property
    def family(self) -> str:
        return "toy"

    def official(self) -> dict[str, Any]:
        return {**asdict(self), "img_size": list(self.img_size)}

    def at_size(self, img_size: tuple[int, int]) -> ToyConfig:
        return replace(self, img_size=img_size)


@dataclass(frozen=True)
class ToyWeights:
    """Weights of the mixer as the op takes them, one group."""

    x_proj: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor


class Mixer(nn.Module):
    """The mixer as it is trained: one state and one rank."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.x_proj = nn.Linear(dim, 3, bias=False)
        self.dt_proj = nn.Linear(1, dim)
        self.A_log, self.D = nn.Parameter(torch.randn(dim, 1)), nn.Parameter(torch.ones(dim))

    def fold(self) -> ToyWeights:
        return ToyWeights(
            x_proj=self.x_proj.weight.T,
            dt_weight=self.dt_proj.weight[None],
            dt_bias=self.dt_proj.bias[None],
            A=-torch.exp(self.A_log)[None],
            D=self.D[None],
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return mix(tokens, self.fold())


class FoldedToy(FoldedMixer):
    """The mixer as it is exported."""

    half_as_one = True

    def forward(self, tokens: Tensor) -> Tensor:
        return mix(tokens, ToyWeights(**self.held()))


def mix(tokens: Tensor, w: ToyWeights) -> Tensor:
    u = tokens[None]
    y: Tensor = selective_scan(u, u @ w.x_proj, w.A, w.D, w.dt_weight, w.dt_bias, tokens, [1], [0], 1, 1.0)
    return y


class Toy(FamilyModel):
    """Images (B, C, H, W) -> logits (B, classes)."""

    config: ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.toy_stem = nn.Conv2d(config.channels, config.dim, 4, 4)
        self.mixer: nn.Module = Mixer(config.dim)
        self.head = nn.Linear(config.dim, config.num_classes)

    def forward_tokens(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.mixer(self.toy_stem(images).flatten(2).mT))

    def forward_features(self, images: Tensor) -> Tensor:
        return self.forward_tokens(images).mean(1)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.forward_features(images)))

    def taps(self) -> list[Tap]:
        return [Tap(self.mixer, ("block.0.output",), lambda output: (output,))]

    def fold_mixers(self) -> None:
        if isinstance(self.mixer, Mixer):
            self.mixer = FoldedToy(self.mixer.fold())


def read_config(arguments: Mapping[str, Any], source: str) -> ToyConfig:
    known = [f.name for f in fields(ToyConfig)]
    for name in arguments:
        if name not in known:
            raise UsageError(f"{source}: unknown model argument '{name}'.", hint=nearest(name, known))
    values: dict[str, Any] = {name: tuple(v) if name == "img_size" else v for name, v in arguments.items()}
    return ToyConfig(**values)


def recognise(checkpoint: Checkpoint, given: Given) -> tuple[Checkpoint, Recognised]:
    require_keys(checkpoint, ("toy_stem.weight", "head.weight"), "toy")
    dim, channels, *_ = checkpoint.state["toy_stem.weight"].shape
    facts = {"dim": dim, "channels": channels, "num_classes": len(checkpoint.state["head.weight"])}
    refuse_contradictions(checkpoint, facts, given.arguments, MODEL_ARGS)
    values, sources = merge_layers([(SHAPES, facts), (MODEL_ARGS, given.arguments)])
    return checkpoint, Recognised(read_config(values, str(checkpoint.path)), sources, given.recipe)


def resize(state: Mapping[str, Tensor], old: ToyConfig, new: ToyConfig, official: bool) -> Resized:
    del official
    return Resized(dict(state), f"image size changed {change_of_size(old, new)}")


TOY = Family(
    title="toy",
    keys=re.compile(r"toy_stem\."),
    configs={"toy": read_config},
    recognise=recognise,
    build=Toy,
    resize=resize,
)
