"""Dense Vision Mamba backbones with the golden weights, for the tests."""

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor
from trained_like import Array, image
from trained_like import trained_like as trained_like_arrays
from vmamba_cases import DATA

from vimdeploy.models.vim.dense import VisionMambaDense
from vimdeploy.models.vim.dense_config import VimDenseConfig, read_dense_arguments

KINDS = {"VisionMambaSeg": "seg", "VisionMambaDet": "det"}


def make(**arguments: Any) -> VisionMambaDense:
    """Return the backbone that the official arguments ask for, with trained-like weights."""
    model = VisionMambaDense(VimDenseConfig(**read_dense_arguments(arguments, "test").values)).eval()
    state = model.state_dict()
    weights = trained_like_arrays({key: tuple(value.shape) for key, value in state.items()})
    model.load_state_dict({**state, **{key: torch.from_numpy(np.array(value)) for key, value in weights.items()}})
    return model


def golden(name: str) -> tuple[VisionMambaDense, Tensor, list[Array]]:
    """Return a golden's model, its images and its feature maps."""
    arrays = dict(np.load(DATA / f"{name}.npz"))
    config = json.loads(str(arrays["config"]))
    kind = KINDS[config.pop("arch")]
    config.pop("note")
    keys = ["last_feat"] if kind == "det" else [f"feature{i}" for i in range(4)]
    return make(**config, kind=kind), torch.from_numpy(arrays["images"]), [arrays[key] for key in keys]


def options() -> dict[str, tuple[dict[str, Any], Tensor, list[Array]]]:
    """Return {case: (official arguments, images, official feature maps)} over the options of the backbones."""
    arrays = np.load(DATA / "vim_dense_options.npz")
    cases = {}
    for name, arguments in json.loads(str(arrays["meta"])).items():
        outputs = [arrays[key] for key in sorted(arrays.files) if key.startswith(name + ".")]
        size = arguments["img_size"]
        cases[name] = (arguments, torch.from_numpy(image("dense", (1, 3, size, size))), outputs)
    return cases
