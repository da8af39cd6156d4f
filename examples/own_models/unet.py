"""A small U-Net whose bottleneck mixes the pixels with Mamba, as U-Mamba and its kin do."""

import torch
from mamba_ssm import Mamba
from torch import Tensor, nn


class MambaLayer(nn.Module):
    """Mix the pixels of (B, C, H, W) as a sequence."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.mamba = nn.LayerNorm(channels), Mamba(d_model=channels, d_state=8)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return x + self.mamba(self.norm(tokens)).transpose(1, 2).reshape(x.shape)


class UNet(nn.Module):
    """Segment images (B, 3, H, W), H and W multiples of 4, into (B, classes, H, W)."""

    def __init__(self, classes: int = 2, width: int = 8) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.down2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.bottleneck = nn.Sequential(MambaLayer(2 * width), MambaLayer(2 * width))
        self.up1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.up2 = nn.ConvTranspose2d(2 * width, classes, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.down1(x))
        deep = self.bottleneck(torch.relu(self.down2(first)))
        return self.up2(torch.cat([torch.relu(self.up1(deep)), first], dim=1))


def build(classes: int = 2) -> UNet:
    torch.manual_seed(0)
    return UNet(classes)
