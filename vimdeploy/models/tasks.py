"""What each model of the family can compute, and the inner values at which two forms of it can be compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from vimdeploy.errors import UsageError, nearest
from vimdeploy.models.deit.model import Deit
from vimdeploy.models.vim.dense import VisionMambaDense
from vimdeploy.models.vim.model import VisionMamba
from vimdeploy.models.vmamba.model import VSSM, VSSMBackbone

TASKS: dict[str, str] = {
    "classify": "logits (B, classes)",
    "features": "what the head sees (B, D)",
    "tokens": "the normed sequence (B, L, D)",
    "dense": "the feature maps of a backbone (B, D, h, w), several outputs",
}
_OUTPUTS = {"classify": "logits", "features": "features", "tokens": "tokens"}


@dataclass(frozen=True)
class Tap:
    """Inner values of one block."""

    module: nn.Module
    names: tuple[str, ...]
    read: Callable[[Any], tuple[Tensor, ...]]
    """From the module's output to the values, in the order of ``names``."""


@dataclass(frozen=True)
class Task:
    """One way to run a model."""

    outputs: tuple[str, ...]
    run: Callable[[Tensor], tuple[Tensor, ...]]


def find_task(model: nn.Module, name: str) -> Task:
    """Return how ``model`` computes a task.

    Raises:
        UsageError: there is no such task, or this model has no such output.

    """
    if name not in TASKS:
        raise UsageError(f"There is no task '{name}'.", hint=nearest(name, TASKS))
    backbone = isinstance(model, (VisionMambaDense, VSSMBackbone))
    if backbone != (name == "dense"):
        what = "a backbone without a head" if backbone else "a classifier"
        possible = ["dense"] if backbone else list(_OUTPUTS)
        raise UsageError(f"Task '{name}' does not fit {what}.", hint=f"Use --task {' or '.join(possible)}.")
    if isinstance(model, (VisionMambaDense, VSSMBackbone)):
        return Task(model.config.feature_names, model.forward)
    methods = {"classify": "forward", "features": "forward_features", "tokens": "forward_tokens"}
    run = cast(Callable[[Tensor], Tensor], getattr(model, methods[name]))
    return Task((_OUTPUTS[name],), lambda images: (run(images),))


def find_taps(model: nn.Module) -> list[Tap]:
    """Return the blocks of ``model`` in the order in which they run, with names for their values.

    A Vim block has ``block.i.residual`` and ``block.i.hidden``, a block of the others ``block.i.output``.
    """
    if isinstance(model, VisionMamba):
        # An odd last layer of if_bidirectional never runs.
        count = len(model.layers) // 2 * 2 if model.config.if_bidirectional else len(model.layers)
        return [
            Tap(layer, (f"block.{i}.residual", f"block.{i}.hidden"), lambda output: (output[1], output[0]))
            for i, layer in enumerate(list(model.layers)[:count])
        ]
    if isinstance(model, Deit):
        return [Tap(block, (f"block.{i}.output",), _first) for i, block in enumerate(model.blocks)]
    if isinstance(model, VSSM):
        last = max(model.config.out_indices, default=len(model.layers) - 1)
        stages = cast("list[Any]", list(model.layers)[: last + 1])
        blocks = [block for stage in stages for block in stage.blocks]
        return [Tap(block, (f"block.{i}.output",), _first) for i, block in enumerate(blocks)]
    return []


def _first(output: Any) -> tuple[Tensor, ...]:
    """Return a block's hidden states, alone or in front of others (transformers 4)."""
    return (output if isinstance(output, Tensor) else output[0],)
