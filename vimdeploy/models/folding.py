"""From the form that trains to the form that is exported: see "How a model is held" in the architecture notes."""

from __future__ import annotations

import copy
from typing import TypeVar, cast

from torch import nn

from vimdeploy.models.vim import model as vim
from vimdeploy.models.vmamba.ss2d import SS2D

Model = TypeVar("Model", bound=nn.Module)


def fold(model: Model) -> Model:
    """Return a copy of ``model`` for inference: mixers folded into the ops' form, eval mode, no gradients."""
    if isinstance(model, vim.VisionMamba):
        return cast(Model, vim.fold(model))
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    for parent in list(folded.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SS2D):
                setattr(parent, name, child.folded())
    return folded
