"""Models with the golden weights, for the tests of VMamba."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from trained_like import Array, image
from trained_like import trained_like as trained_like_arrays

from vimdeploy.models.vmamba.config import VmambaConfig, read_vmamba_arguments
from vimdeploy.models.vmamba.model import VSSM, make_vmamba

DATA = Path(__file__).parents[1] / "data"
GOLDENS = ("vmamba_v0", "vmamba_v05")
_WORDS = ("arch", "note")
"""Entries of a golden's config that are no arguments of the constructor."""


def trained_like(model: nn.Module) -> dict[str, Tensor]:
    """Return weights for ``model`` that are spread like trained ones, the same on every machine."""
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    return {key: torch.from_numpy(np.array(value)) for key, value in trained_like_arrays(shapes).items()}


def make(**arguments: Any) -> VSSM:
    """Return the model that the official arguments ask for, with trained-like weights."""
    model = make_vmamba(VmambaConfig(**read_vmamba_arguments(arguments, "test").values)).eval()
    model.load_state_dict(trained_like(model))
    return model


def golden(name: str) -> tuple[VSSM, dict[str, Array]]:
    """Return a golden's model and its arrays."""
    arrays = dict(np.load(DATA / f"{name}.npz"))
    config = json.loads(str(arrays.pop("config")))
    model = make(**{key: value for key, value in config.items() if key not in _WORDS})
    return model, arrays


def options() -> dict[str, tuple[dict[str, Any], Tensor, int, list[Array]]]:
    """Return {case: (official arguments, images, parameters, official outputs)} over the options of the constructor."""
    arrays = np.load(DATA / "vmamba_options.npz")
    cases = {}
    for name, case in json.loads(str(arrays["meta"])).items():
        outputs = [arrays[key] for key in sorted(arrays.files) if key.startswith(name + ".")]
        images = torch.from_numpy(image("vmamba", (2, 3, *case["size"])))
        cases[name] = (case["config"], images, case["parameters"], outputs)
    return cases
