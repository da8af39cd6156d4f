"""A small classifier that scans images in four directions, as VMamba and its descendants do."""

import torch
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from torch import Tensor, nn


class SS2D(nn.Module):
    """Four selective scans over the pixels of (B, H, W, C): by rows, by columns, and both reversed."""

    def __init__(self, channels: int, states: int = 4, rank: int = 2) -> None:
        super().__init__()
        self.states, self.rank = states, rank
        self.x_proj_weight = nn.Parameter(torch.randn(4, rank + 2 * states, channels) * channels**-0.5)
        self.dt_projs_weight = nn.Parameter(torch.randn(4, channels, rank) * 0.1)
        self.dt_projs_bias = nn.Parameter(torch.rand(4, channels) - 4)
        self.A_logs = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(4 * channels, 1))
        self.Ds = nn.Parameter(torch.ones(4 * channels))
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        image = x.permute(0, 3, 1, 2)
        two = torch.stack([image.flatten(2), image.transpose(2, 3).flatten(2)], dim=1)
        xs = torch.cat([two, two.flip(-1)], dim=1)
        x_dbl = torch.einsum("bkdl,kcd->bkcl", xs, self.x_proj_weight)
        dts, b, c = torch.split(x_dbl, [self.rank, self.states, self.states], dim=2)
        dts = torch.einsum("bkrl,kdr->bkdl", dts, self.dt_projs_weight)
        ys = selective_scan_fn(
            xs.flatten(1, 2), dts.flatten(1, 2), -self.A_logs.exp(), b, c, self.Ds,
            delta_bias=self.dt_projs_bias.flatten(), delta_softplus=True,
        ).view(batch, 4, channels, -1)  # fmt: skip
        both = ys[:, :2] + ys[:, 2:].flip(-1)
        columns = both[:, 1].view(batch, channels, width, height).transpose(2, 3).flatten(2)
        return self.norm((both[:, 0] + columns).transpose(1, 2)).view(batch, height, width, channels)


class Classifier(nn.Module):
    """Classify images (B, 3, H, W), H and W multiples of 8."""

    def __init__(self, classes: int = 10, width: int = 16, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, stride=8)
        self.layers = nn.ModuleList(SS2D(width) for _ in range(depth))
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).permute(0, 2, 3, 1)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x.mean((1, 2)))


def build(classes: int = 10) -> Classifier:
    torch.manual_seed(0)
    return Classifier(classes)
