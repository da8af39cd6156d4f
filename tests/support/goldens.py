"""Goldens of the official Vim code: constructor arguments, inputs, outputs, and weights made again from their keys."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from trained_like import trained_like

from vimdeploy.models.vim.config import VimConfig, read_official_arguments
from vimdeploy.models.vim.model import VisionMamba

DATA = Path(__file__).parents[1] / "data"
NAMES = (
    *("bidirectional_v2", "bimamba_none", "bimamba_v1", "cls_double", "cls_head", "cls_rect", "cls_stride8"),
    *("cls_tiny", "d_state8", "eps_sensitive", "layer_scale", "layernorm", "mean_pool", "no_divide", "rope_midcls"),
)
FULL = "full_tiny224"
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}

_WORDS = ("arch", "note", "source", "weights", "weights_seed")
"""Entries of a golden's config that are no arguments of the constructor."""


@dataclass(frozen=True)
class Golden:
    """One run of the official code."""

    name: str
    arguments: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def config(self) -> VimConfig:
        return VimConfig(**read_official_arguments(self.arguments, self.name).values)

    @property
    def images(self) -> torch.Tensor:
        return torch.from_numpy(self.arrays["images"])

    def state(self) -> dict[str, torch.Tensor]:
        """Return the weights of the run: spread like trained ones, bit for bit what the official code had."""
        wanted = VisionMamba(self.config).state_dict()
        state = {k: torch.from_numpy(v) for k, v in trained_like({k: v.shape for k, v in wanted.items()}).items()}
        state |= {k: v for k, v in wanted.items() if k.startswith("rope.")}
        if self.name == "mean_pool":
            state["head.weight"] *= 3
        if self.name == "eps_sensitive":  # a residual stream so small that the epsilon of its norms is visible
            for key in state:
                if key.endswith("out_proj.weight") or key.split(".")[0] in ("cls_token", "pos_embed", "patch_embed"):
                    state[key] *= 0.004
        return state

    def model(self) -> VisionMamba:
        model = VisionMamba(self.config)
        model.load_state_dict(self.state())
        return model.eval()


def golden(name: str) -> Golden:
    with np.load(DATA / f"{name}.npz") as file:
        arrays = dict(file)
    arguments = json.loads(str(arrays.pop("config")))
    return Golden(name, {k: v for k, v in arguments.items() if k not in _WORDS}, arrays)


def write_checkpoint(folder: Path, name: str) -> Path:
    """Write the weights of a golden as ``{"model": ...}``, the layout in which models are published."""
    path = folder / f"{name}.pth"
    torch.save({"model": golden(name).state()}, path)
    return path
