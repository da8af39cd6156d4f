"""The equations of the op contract in float64, written plainly. Slow, and without a line of the ops' code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_suite.cases import ConvCase, ScanCase, ScanInputs


def scan_reference(case: ScanCase, inputs: ScanInputs) -> Tensor:
    """Return y (B, L, E) float64 of the inputs as they are (already rounded to their type)."""
    wide = inputs.map(lambda values: values.double())
    total = torch.zeros_like(wide.u[0])
    for g in range(case.groups):
        u = wide.u[0 if case.shared_u else g]
        x_dbl = wide.x_dbl[0 if case.shared_x else g]
        low, B, C = torch.split_with_sizes(x_dbl, [case.rank, case.states, case.states], dim=-1)
        delta = _softplus(low @ wide.dt_weight[g].T + wide.dt_bias[g])
        h = u.new_zeros(case.batch, case.channels, case.states)
        for t in token_order(case, g):
            decay = torch.exp(delta[:, t, :, None] * wide.A[g])
            h = decay * h + (delta[:, t] * u[:, t])[..., None] * B[:, t, None, :]
            total[:, t] += (h * C[:, t, None, :]).sum(-1) + wide.D[g] * u[:, t]
    total *= case.scale
    return total if wide.z is None else total * wide.z * torch.sigmoid(wide.z)


def token_order(case: ScanCase, group: int) -> list[int]:
    """Return the indices of the tokens in the order in which a group visits them."""
    order = list(range(case.length))
    if case.column_major[group]:
        width = case.length // case.height
        order = [row * width + column for column in range(width) for row in range(case.height)]
    return order if case.directions[group] == 1 else order[::-1]


def conv_reference(case: ConvCase, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return u (G, B, L, E) float64."""
    outputs = []
    for g, direction in enumerate(case.directions):
        kernel = weight[g].double()[:, None]
        padding = (case.width - 1, 0) if direction == 1 else (0, case.width - 1)
        tokens = F.pad(x.double().transpose(1, 2), padding)
        outputs.append(F.conv1d(tokens, kernel, bias[g].double(), groups=case.channels).transpose(1, 2))
    u = torch.stack(outputs)
    return u * torch.sigmoid(u) if case.silu else u


def _softplus(v: Tensor) -> Tensor:
    return torch.where(v > 20, v, torch.log1p(torch.exp(v.clamp(max=20))))
