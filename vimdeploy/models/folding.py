"""From the form that trains to the form that is exported: see "How a model is held" in the architecture notes."""

from __future__ import annotations

import copy
from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Foldable(Protocol):
    """A module with official parameters that knows its form for inference."""

    def folded(self) -> nn.Module:
        """Return a module that computes the same from weights in the form of the custom ops."""


def fold(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` for inference: mixers folded into the ops' form, eval mode, no gradients."""
    result = copy.deepcopy(model).eval().requires_grad_(False)
    for parent in list(result.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Foldable):
                setattr(parent, name, child.folded())
    return result
