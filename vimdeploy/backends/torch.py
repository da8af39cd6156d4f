"""The PyTorch model as a backend."""

from __future__ import annotations

import copy

import numpy as np
import torch

from vimdeploy.backends.base import Array, Inputs
from vimdeploy.models.family import FamilyModel, fold
from vimdeploy.models.tapped import TappedModel


class TorchBackend:
    """The PyTorch model, float32, with the custom ops of this package, on a GPU where there is one.

    Args:
        model: with the official parameters, in eval mode.
        task: one of :data:`vimdeploy.models.family.TASKS`.
        taps: also return the inner values of every block.

    """

    name = "torch"
    fixed_batch = None

    def __init__(self, model: FamilyModel, task: str, *, taps: bool = False) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        if self._device == "cuda":
            model = copy.deepcopy(model).to(self._device)  # the caller's model stays where it is
        # Inner values are those of the folded form, which is what is exported; the plain form is the better reference.
        self._model = TappedModel(fold(model) if taps else model, task)
        self._names = [*self._model.outputs, *(self._model.taps if taps else [])]

    def run(self, images: Inputs) -> dict[str, Array]:
        """Compute the outputs; see :class:`vimdeploy.backends.base.Backend`."""
        assert isinstance(images, np.ndarray)  # models of a family take images
        batch = torch.from_numpy(np.ascontiguousarray(images)).to(self._device)
        # A reference in TF32, cuDNN's default for convolutions, would be no reference.
        with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
            outputs = self._model(batch)
        return {name: output.float().cpu().numpy() for name, output in zip(self._names, outputs, strict=False)}
