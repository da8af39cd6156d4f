"""What untrained Mamba blocks start from (arXiv 2312.00752, section 3.6), and where such values are computed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def computed(value: Callable[[], Tensor]) -> Tensor:
    """Return a value computed on the CPU, on the device on which modules are being built; on meta its shape alone.

    The first arithmetic on the meta device imports 800 modules: a second, for values that a checkpoint overwrites.
    """
    with torch.device("cpu"):
        result = value()
    device = torch.empty(0).device
    return torch.empty(result.shape) if device.type == "meta" else result.to(device)


def initial_log_a(rows: int, d_state: int) -> Tensor:
    """Return log(1), ..., log(N) in every row, (rows, N): A starts as -1, ..., -N."""
    return computed(lambda: torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(rows, 1))


def initial_dt_bias(*shape: int) -> Tensor:
    """Return the inverse softplus of steps that are log-uniform between 0.001 and 0.1."""

    def draw() -> Tensor:
        dt = 0.001 * 100 ** torch.rand(*shape)
        return dt + torch.log(-torch.expm1(-dt))

    return computed(draw)
