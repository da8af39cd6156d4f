"""The linear recurrence that every selective scan comes down to, vectorised over everything but the tokens.

``h[t] = exp(delta[t] * A) * h[t-1] + drive[t] * B[t]`` and ``y[t] = h[t] . C[t]`` (Mamba, arXiv 2312.00752, eq. 2).
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_TOKENS = 8
"""A batch is scanned in parts of so few samples that a chunk holds at least this many tokens."""
CHUNK_BYTES = 512 << 10
"""Bytes of state that one chunk of the vectorised scan holds: small enough that decay and state stay in the
second-level cache, large enough that the per-call cost of the vectorised operations disappears."""


def samples_at_once(state_values: int) -> int:
    """Return how many samples to scan together, each with a state of ``state_values`` float32 numbers."""
    return max(1, CHUNK_BYTES // (CHUNK_TOKENS * state_values * 4))


def scan_tokens(
    delta: Tensor, drive: Tensor, A: Tensor, B: Tensor, C: Tensor, *, in_place: bool
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over L tokens from a state of zeros.

    Time comes first and channels last: every step is then one contiguous slice, and N-by-E products are vectorised
    along E. X and Y are any two dimensions, such as groups and samples.

    Args:
        delta: (L, X, Y, E), after the softplus.
        drive: (L, X, Y, E), delta * u.
        A: broadcasts to (X, Y, N, E).
        B: (L, X, Y, N).
        C: (L, X, Y, N).
        in_place: allocate nothing per chunk (fresh pages cost more than the arithmetic) and let each state overwrite
            its input, which autograd could not follow.

    Returns:
        (L, X, Y, E) h . C, and the last state (X, Y, N, E).

    """
    length, *outer, channels = delta.shape
    state = delta.new_zeros(*outer, B.shape[-1], channels)
    chunk = max(1, CHUNK_BYTES // max(1, state.numel() * state.element_size()))
    buffers = delta.new_empty(2, min(chunk, length), *state.shape) if in_place else None
    outputs = []
    for start in range(0, length, chunk):
        part = slice(start, min(start + chunk, length))
        y, state = _scan_chunk(delta[part], drive[part], A, B[part], C[part], state, buffers)
        outputs.append(y)
    return torch.cat(outputs), state


def _scan_chunk(
    delta: Tensor, drive: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, buffers: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Scan T tokens from ``state`` (X, Y, N, E), with ``buffers`` (2, >= T, X, Y, N, E) in place."""
    if buffers is None:
        decay = torch.exp(delta.unsqueeze(-2) * A)
        inputs = drive.unsqueeze(-2) * B.unsqueeze(-1)
        steps = []
        for d, i in zip(decay.unbind(), inputs.unbind(), strict=True):
            state = torch.addcmul(i, d, state)
            steps.append(state)
        return (C.unsqueeze(-2) @ torch.stack(steps)).squeeze(-2), state
    decay, states = buffers[:, : len(delta)].unbind()
    torch.mul(delta.unsqueeze(-2), A, out=decay).exp_()
    torch.mul(drive.unsqueeze(-2), B.unsqueeze(-1), out=states)
    for d, s in zip(decay.unbind(), states.unbind(), strict=True):
        s.addcmul_(d, state)
        state = s
    return (C.unsqueeze(-2) @ states).squeeze(-2), state.clone()
