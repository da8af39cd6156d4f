"""The official functions' mathematics, derived from the papers and written to be read: float64, one token at a time.

Selective scan: Mamba, arXiv 2312.00752, equation 2 with zero-order hold for A and Euler's rule for B. Mamba-2: arXiv
2405.21060, where the same recurrence is one masked product: y = (L * (C B^T)) (dt x), L[i, j] the decay from j to i.
"""

import torch
import torch.nn.functional as F


def scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, softplus=False):
    """Return y (B, E, L), before the gate and after it, and the last state (B, E, N), for one order of the tokens."""
    u, delta, A, B, C = (v.double() for v in (u, delta, A, B, C))
    batch, channels, length = u.shape
    if delta_bias is not None:
        delta = delta + delta_bias.double()[None, :, None]
    if softplus:
        delta = F.softplus(delta)

    def at(values, t):
        """Return B or C of token t for every channel: (B, E, N)."""
        if values.dim() == 2:
            return values[None].expand(batch, -1, -1)
        grouped = values if values.dim() == 4 else values[:, None]
        return grouped[..., t].repeat_interleave(channels // grouped.shape[1], dim=1)

    state = torch.zeros(batch, channels, A.shape[1], dtype=torch.float64)
    outputs = []
    for t in range(length):
        state = torch.exp(delta[:, :, t, None] * A) * state
        state = state + delta[:, :, t, None] * at(B, t) * u[:, :, t, None]
        outputs.append((state * at(C, t)).sum(-1))
    y = torch.stack(outputs, dim=-1)
    if D is not None:
        y = y + D.double()[None, :, None] * u
    gated = None if z is None else y * z.double() * torch.sigmoid(z.double())
    return y, gated, state


def duality(x, dt, A, B, C, D=None, z=None, dt_bias=None, softplus=False, limit=None):
    """Return y (B, L, H, P) of Mamba-2 as one masked product, and the final state (B, H, P, N)."""
    x, dt, A, B, C = (v.double() for v in (x, dt, A, B, C))
    length, heads = x.shape[1:3]
    if dt_bias is not None:
        dt = dt + dt_bias.double()
    if softplus:
        dt = F.softplus(dt)
    if limit is not None:
        dt = dt.clamp(*limit)
    B, C = (v.repeat_interleave(heads // v.shape[2], dim=2) for v in (B, C))
    summed = (dt * A).cumsum(1)  # (B, L, H)
    decay = torch.exp((summed[:, :, None] - summed[:, None]).permute(0, 3, 1, 2))  # (B, H, i, j)
    decay = decay * torch.ones(length, length, dtype=torch.float64).tril()
    products = torch.einsum("bihn,bjhn->bhij", C, B)
    y = torch.einsum("bhij,bjh,bjhp->bihp", decay * products, dt, x)
    final = torch.einsum("bhj,bjh,bjhp,bjhn->bhpn", decay[:, :, -1], dt, x, B)
    if D is not None:
        y = y + (D.double() if D.dim() == 2 else D.double()[:, None]) * x
    return (y if z is None else y * F.silu(z.double())), final


def convolution(x, weight, bias=None, silu=False):
    """Return the causal depthwise convolution of (B, E, L)."""
    x, weight = x.double(), weight.double().reshape(len(weight), -1)
    width = weight.shape[1]
    y = torch.zeros_like(x)
    for t in range(x.shape[-1]):
        for k in range(width):
            source = t - width + 1 + k
            if source >= 0:
                y[..., t] += weight[:, k] * x[..., source]
    if bias is not None:
        y = y + bias.double()[:, None]
    return y * torch.sigmoid(y) if silu else y


def norm(x, weight, bias=None, eps=1e-6, *, rms):
    """Return a layer or RMS norm over the last dimension."""
    x = x.double()
    if not rms:
        x = x - x.mean(-1, keepdim=True)
    y = x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps) * weight.double()
    return y if bias is None else y + bias.double()


def mixer(xz, conv_w, conv_b, x_proj, dt_proj, A, D, bias):
    """Return the Mamba mixer between in_proj and out_proj, (B, E, L)."""
    x, z = (v.double() for v in xz.chunk(2, dim=1))
    x = convolution(x, conv_w, conv_b, silu=True)
    rank, states = dt_proj.shape[1], A.shape[1]
    projected = torch.einsum("ke,bel->bkl", x_proj.double(), x)
    dt, B, C = projected.split([rank, states, states], dim=1)
    delta = torch.einsum("er,brl->bel", dt_proj.double(), dt)
    return scan(x, delta, A, B, C, D, z, bias, softplus=True)[1]
