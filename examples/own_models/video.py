"""A small model of clips that reads their tokens forward and backward, as VideoMamba does."""

import torch
from mamba_ssm.modules.mamba_simple import Mamba
from mamba_ssm.ops.triton.layernorm import RMSNorm, rms_norm_fn
from torch import Tensor, nn


class Block(nn.Module):
    """Add to the residual, norm, mix in both directions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mixer = RMSNorm(width), Mamba(width, d_state=4, bimamba=True)

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        hidden, residual = rms_norm_fn(
            hidden, self.norm.weight, None, residual=residual, prenorm=True, residual_in_fp32=True, eps=self.norm.eps
        )
        return self.mixer(hidden), residual


class VideoModel(nn.Module):
    """Classify clips (B, 3, T, H, W) of any number of frames."""

    def __init__(self, classes: int = 5, width: int = 16, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv3d(3, width, (1, 8, 8), stride=(1, 8, 8))
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, classes)

    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        hidden, residual = self.patches(clip).flatten(2).transpose(1, 2), None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        features = (hidden + residual).mean(1)
        return {"scores": self.head(features), "features": features}


def build(classes: int = 5) -> VideoModel:
    torch.manual_seed(0)
    return VideoModel(classes)
