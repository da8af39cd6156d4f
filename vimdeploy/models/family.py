"""What a family of models is: one record, one base class of its models. Nothing outside asks which family it has.

A new family is a folder beside this file and a line in :mod:`.registry`; see "A model family" in CONTRIBUTING.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar, cast

from torch import Tensor, nn

from vimdeploy.errors import UsageError, nearest
from vimdeploy.models.checkpoint.reading import Checkpoint
from vimdeploy.models.config import ModelConfig

if TYPE_CHECKING:
    from vimdeploy.artifacts.recipe import Recipe

TASKS: dict[str, str] = {
    "classify": "logits (B, classes)",
    "features": "what the head sees (B, D)",
    "tokens": "the normed sequence (B, L, D)",
    "dense": "the feature maps of a backbone (B, D, h, w), several outputs",
}


@dataclass(frozen=True)
class Task:
    """One way to run a model."""

    outputs: tuple[str, ...]
    run: Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Tap:
    """Inner values of one block, at which two forms of a model can be compared."""

    module: nn.Module
    names: tuple[str, ...]
    read: Callable[[Any], tuple[Tensor, ...]]
    """From the module's output to the values, in the order of ``names``."""


class FamilyModel(nn.Module):
    """A model of any family, from images (B, C, H, W) float32 to the outputs of a task.

    It holds the official parameters under the official keys. A classifier has ``forward``, ``forward_features`` and
    ``forward_tokens``, which return what :data:`TASKS` says; a backbone overrides :meth:`tasks`.
    """

    config: ModelConfig

    def tasks(self) -> dict[str, Task]:
        """Return what the model can compute, by names of :data:`TASKS`; the first is what it was trained for."""

        def run(name: str) -> Callable[[Tensor], tuple[Tensor, ...]]:
            method = cast(Callable[[Tensor], Tensor], getattr(self, name))
            return lambda images: (method(images),)

        return {
            "classify": Task(("logits",), run("forward")),
            "features": Task(("features",), run("forward_features")),
            "tokens": Task(("tokens",), run("forward_tokens")),
        }

    def taps(self) -> list[Tap]:
        """Return the blocks in the order in which they run, with names ``block.i.<value>`` for their values."""
        return []

    def weights(self) -> dict[str, Tensor]:
        """Return the weights under the keys that recognition leaves in a checkpoint."""
        return self.state_dict()

    def fill(self, state: Mapping[str, Tensor]) -> None:
        """Take over ``state``, which has exactly the keys of :meth:`weights`; the tensors are shared, not copied.

        The model may have been built on the meta device, where it has shapes and no values.
        """
        own = self.state_dict()
        # A checkpoint may hold any layout and number type; a parameter that was filled by copying never would.
        self.load_state_dict({key: value.to(own[key].dtype).contiguous() for key, value in state.items()}, assign=True)

    def fold_mixers(self) -> None:
        """Replace every mixer by its folded form, in place; see :func:`fold`."""


Model = TypeVar("Model", bound=FamilyModel)


def fold(model: Model) -> Model:
    """Return a copy of ``model`` for inference: mixers folded into the ops' form, eval mode, no gradients.

    This is the form that is exported.
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    folded.fold_mixers()
    return folded


class FoldedMixer(nn.Module):
    """A mixer for inference: the fields of a dataclass of weights, its tensors as buffers. This is what is exported."""

    half_as_one = False
    """Whether the mixer as a whole computes in half precision under the policy, not only the modules inside it."""

    def __init__(self, weights: Any) -> None:
        super().__init__()
        self._static: dict[str, Any] = {}
        for part in fields(weights):
            value = getattr(weights, part.name)
            if value is None or isinstance(value, Tensor):
                self.register_buffer(part.name, None if value is None else value.detach().contiguous())
            else:
                self._static[part.name] = value

    def held(self) -> dict[str, Any]:
        """Return the fields, to make the dataclass again."""
        return {**self._buffers, **self._static}


def find_task(model: FamilyModel, name: str) -> Task:
    """Return how ``model`` computes a task.

    Raises:
        UsageError: there is no such task, or this model has no such output.

    """
    if name not in TASKS:
        raise UsageError(f"There is no task '{name}'.", hint=nearest(name, TASKS))
    tasks = model.tasks()
    if name not in tasks:
        what = "a backbone without a head" if model.config.is_backbone else "a classifier"
        raise UsageError(f"Task '{name}' does not fit {what}.", hint=f"Use --task {' or '.join(tasks)}.")
    return tasks[name]


@dataclass(frozen=True)
class Given:
    """What is known about a model beside its checkpoint's weights."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the official constructor, from the user."""
    recipe: Recipe | None = None
    """Named by the user."""
    dense: bool = False
    """Whether the user wants a classifier's layers as a backbone."""
    inside: bool = False
    """Whether the weights were found inside a detector or segmentor."""

    @property
    def as_backbone(self) -> bool:
        """Whether the model has to be a backbone, for either reason."""
        return self.dense or self.inside


@dataclass(frozen=True)
class Recognised:
    """A configuration, where each value came from, the recipe that fits, and notes for the user."""

    config: ModelConfig
    sources: dict[str, str]
    recipe: Recipe | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Resized:
    """Weights for another image size, and what was done to them in words for the user."""

    state: dict[str, Tensor]
    note: str


def change_of_size(old: ModelConfig, new: ModelConfig) -> str:
    """Return ``from 224 x 224 to 384 x 384 pixels``, for a note."""
    sizes = " to ".join(f"{height} x {width}" for height, width in (old.img_size, new.img_size))
    return f"from {sizes} pixels"


ReadConfig = Callable[[Mapping[str, Any], str], ModelConfig]


@dataclass(frozen=True)
class Family:
    """One family of models: everything that the rest has to know about it.

    Functions that take a configuration get one of this family; it is typed as Any, as their own types are narrower.
    """

    title: str
    """For messages: ``Vision Mamba``."""
    keys: re.Pattern[str]
    """Matches some key of every checkpoint of the family, and none of another family's."""
    configs: Mapping[str, ReadConfig]
    """Reads the official constructor's arguments, by the family name that recipes use. The second argument says where
    they come from, for messages."""
    recognise: Callable[[Checkpoint, Given], tuple[Checkpoint, Recognised]]
    """Finds the configuration of a checkpoint, and leaves that model's weights in it, under the keys of
    :meth:`FamilyModel.weights`."""
    build: Callable[[Any], FamilyModel]
    """Makes the model of a configuration, with random weights; also on the meta device."""
    resize: Callable[[Mapping[str, Tensor], Any, Any, bool], Resized]
    """Adapts weights from one configuration to the same at another image size; the last argument asks for what the
    official code does where that is known to be wrong."""
