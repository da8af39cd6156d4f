"""SS2D, the mixer of VMamba (arXiv 2401.10166, section 4.2; official: ``classification/models/vmamba.py``).

Four selective scans walk the same image: along its rows, along its columns, and both reversed. ``x_proj`` and
``dt_proj`` act per pixel, so they commute with the walk: here they run once on the image as it is stored, and the
walking is left to the scan op. The gate, where there is one, follows the output norm and so stays outside the op.

Everything is channels-last, (B, H, W, C); only the depthwise convolution sees (B, C, H, W).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vimdeploy.errors import ModelError, nearest
from vimdeploy.models.layers2d import ACTIVATIONS, Permute
from vimdeploy.ops import selective_scan
from vimdeploy.ops.selective_scan import selective_scan_differentiable

DIRECTIONS = 4
"""Scans per block; the official code has no other number, also where two of them walk the same way."""

_WALKS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "cross2d": ((1, 1, -1, -1), (0, 1, 0, 1)),
    "unidi": ((1, 1, 1, 1), (0, 0, 0, 0)),
    "bidi": ((1, 1, -1, -1), (0, 0, 0, 0)),
}
_SCAN_MODES = {
    # These differ in the kernel that computes them and in where half precision is widened, not in what is computed.
    **dict.fromkeys(("v0", "v0seq", "v01", "v02", "v03", "v04", "v05", "v3"), "cross2d"),
    "v051d": "unidi",
    "v052d": "bidi",
}
_REFUSED = {
    "v2": "the official code asserts on it (its scan backend 'core' is gone); checkpoints of its time are 'v05'",
    "v052dc": "the official code adds the reversed scans without turning them back",
    "v052d3": "it is a debugging aid of the official code",
}
_NORMS = ("none", "dwconv3", "cnorm", "softmax", "sigmoid")


@dataclass(frozen=True)
class ForwardType:
    """What the official ``forward_type`` string says, e.g. ``v05_onsoftmax_noz``.

    Attributes:
        name: the string itself.
        base: ``v0``, ``v05``, ``v052d``, ...
        walks: per direction 1 or -1, and per direction whether it goes down the columns.
        gated: False for ``_noz``.
        gate_activated: False for ``_nozact``.
        out_norm: ``layernorm``, ``none``, ``dwconv3``, ``cnorm``, ``softmax`` or ``sigmoid``.
        out_activated: True for ``_oact``: a GELU after the output norm.
    """

    name: str
    base: str
    walks: tuple[tuple[int, ...], tuple[int, ...]]
    gated: bool
    gate_activated: bool
    out_norm: str
    out_activated: bool

    @property
    def original(self) -> bool:
        """True for the first release's block, which ignores most options (official ``SS2Dv0``)."""
        return self.base in ("v0", "v0seq")

    @classmethod
    def parse(cls, name: str) -> ForwardType:
        """Read a ``forward_type``.

        Raises:
            ModelError: the type is unknown, crashes in the official code, or is not served.
        """
        base = name
        flags = {}
        for tag in ("_no32", "_oact", "_noz", "_nozact"):  # the order in which the official code peels them off
            flags[tag] = base.endswith(tag)
            base = base.removesuffix(tag)
        out_norm = next((norm for norm in _NORMS if base.endswith("_on" + norm)), "layernorm")
        base = base.removesuffix("_on" + out_norm)
        if base.startswith("xv"):
            raise ModelError(f"forward_type {name!r}: the xv blocks (another projection) are not served.")
        if base.startswith("m"):
            raise ModelError(f"forward_type {name!r}: the mamba2 blocks are another scan (SSD) and are not served.")
        if base in _REFUSED:
            raise ModelError(f"forward_type {name!r} is not served: {_REFUSED[base]}.")
        if base not in _SCAN_MODES:
            raise ModelError(
                f"forward_type {name!r} does not exist: the official model has no forward for {base!r}. "
                + nearest(base, _SCAN_MODES),
                hint="Suffixes come in this order: _on<norm>, _nozact, _noz, _oact, _no32.",
            )
        if base in ("v0", "v0seq") and name != base:
            raise ModelError(f"forward_type {name!r}: v0 takes no suffix; the official code crashes on it. Use v05.")
        walks = _WALKS[_SCAN_MODES[base]]
        return cls(name, base, walks, not flags["_noz"], not flags["_nozact"], out_norm, flags["_oact"])


class SpatialSoftmax(nn.Module):
    """Softmax over the pixels of (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalised over H and W, per channel."""
        return x.flatten(1, 2).softmax(dim=1).view_as(x)


class SS2D(nn.Module):
    """Mix the pixels of (B, H, W, d_model) by four selective scans.

    Args:
        d_model: channels of the input and output, C.
        d_state: N.
        ssm_ratio: inner channels per channel: E = int(ssm_ratio * C).
        dt_rank: R; None is ceil(C / 16).
        act: activation after the convolution and of the gate.
        d_conv: size of the depthwise convolution; below 2 leaves it out.
        conv_bias: whether the convolution has a bias.
        dropout: rate after out_proj, training only.
        forward_type: which of the official forwards, see :class:`ForwardType`.
        init: ``v0`` (Mamba's), ``v1`` or ``v2``: random initialisation of A, D and dt.

    Raises:
        ModelError: an option on which the official code crashes.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        dt_rank: int | None = None,
        act: str = "silu",
        d_conv: int = 3,
        conv_bias: bool = True,
        dropout: float = 0.0,
        forward_type: str = "v05",
        init: str = "v0",
    ) -> None:
        super().__init__()
        self.kind = ForwardType.parse(forward_type)
        if self.kind.original:  # whatever else was asked for, see VSSM.notes
            act, d_conv, conv_bias, init = "silu", 3, True, "v0"
        if d_conv > 1 and d_conv % 2 == 0:
            raise ModelError(f"ssm_conv={d_conv}: an even convolution shrinks the image and the official code crashes.")
        inner = int(ssm_ratio * d_model)
        rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        self.d_inner, self.d_state, self.dt_rank = inner, d_state, rank

        self.in_proj = nn.Linear(d_model, inner * (2 if self.kind.gated else 1), bias=False)
        self.act = ACTIVATIONS[act]()
        self.conv2d = (
            nn.Conv2d(inner, inner, d_conv, padding=d_conv // 2, groups=inner, bias=conv_bias) if d_conv > 1 else None
        )
        bound = inner**-0.5
        self.x_proj_weight = nn.Parameter(torch.empty(DIRECTIONS, rank + 2 * d_state, inner).uniform_(-bound, bound))
        A_logs, Ds, dt_weight, dt_bias = _INITIALISERS[init](d_state, rank, inner)
        self.A_logs, self.Ds = nn.Parameter(A_logs), nn.Parameter(Ds)
        self.dt_projs_weight, self.dt_projs_bias = nn.Parameter(dt_weight), nn.Parameter(dt_bias)
        self.out_norm = _make_out_norm(self.kind.out_norm, inner)
        self.out_act = nn.GELU() if self.kind.out_activated else nn.Identity()
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed image, (B, H, W, C) as the input."""
        z = None
        if self.kind.gated:
            # Two products instead of one and a split: the split would be a copy in every runtime.
            w_x, w_z = self.in_proj.weight.chunk(2)
            x, z = nn.functional.linear(x, w_x), nn.functional.linear(x, w_z)
        else:
            x = self.in_proj(x)
        if self.conv2d is not None:
            x = self.conv2d(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = self.act(x)
        y = self.out_act(self.out_norm(self._scan(x)).to(x.dtype))
        if z is not None:
            y = y * (self.act(z) if self.kind.gate_activated else z)
        out: Tensor = self.dropout(self.out_proj(y))
        return out

    def _scan(self, x: Tensor) -> Tensor:
        """Scan (B, H, W, E) in four directions and add them up, in float32."""
        _, height, width, inner = x.shape
        directions, column_major = self.kind.walks
        u = x.reshape(1, -1, height * width, inner)
        x_dbl = u @ self.x_proj_weight.transpose(1, 2).unsqueeze(1)
        scan = selective_scan_differentiable if torch.is_grad_enabled() else selective_scan
        y = scan(
            u,
            x_dbl,
            -torch.exp(self.A_logs.float()).view(DIRECTIONS, inner, self.d_state),
            self.Ds.float().view(DIRECTIONS, inner),
            self.dt_projs_weight,
            self.dt_projs_bias.float(),
            None,
            directions,
            column_major,
            height if any(column_major) else 1,
            1.0,
        )
        return y.reshape(-1, height, width, inner)


def _make_out_norm(kind: str, channels: int) -> nn.Module:
    """Return the norm between the scan and out_proj; the official keys set the positions inside the Sequentials."""
    to_nchw, to_nhwc = Permute(0, 3, 1, 2), Permute(0, 2, 3, 1)
    conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    if kind == "cnorm":
        return nn.Sequential(nn.LayerNorm(channels), to_nchw, conv, to_nhwc)
    if kind == "dwconv3":
        return nn.Sequential(to_nchw, conv, to_nhwc)
    if kind == "softmax":
        return SpatialSoftmax()
    return {"none": nn.Identity, "sigmoid": nn.Sigmoid}.get(kind, lambda: nn.LayerNorm(channels))()


_State = tuple[Tensor, Tensor, Tensor, Tensor]


def _init_v0(d_state: int, rank: int, inner: int) -> _State:
    """Mamba's: A = -1..-N, D = 1, softplus(dt_bias) log-uniform in 0.001..0.1."""
    A_logs = torch.log(torch.arange(1, d_state + 1, dtype=torch.float32)).repeat(DIRECTIONS * inner, 1)
    low, high = math.log(0.001), math.log(0.1)
    dt = torch.exp(torch.rand(DIRECTIONS, inner) * (high - low) + low).clamp(min=1e-4)
    inverse_softplus = dt + torch.log(-torch.expm1(-dt))
    dt_weight = torch.empty(DIRECTIONS, inner, rank).uniform_(-(rank**-0.5), rank**-0.5)
    return A_logs, torch.ones(DIRECTIONS * inner), dt_weight, inverse_softplus


def _init_v1(d_state: int, rank: int, inner: int) -> _State:
    return (
        torch.randn(DIRECTIONS * inner, d_state),
        torch.ones(DIRECTIONS * inner),
        0.1 * torch.randn(DIRECTIONS, inner, rank),
        0.1 * torch.randn(DIRECTIONS, inner),
    )


def _init_v2(d_state: int, rank: int, inner: int) -> _State:
    return (
        torch.zeros(DIRECTIONS * inner, d_state),
        torch.ones(DIRECTIONS * inner),
        0.1 * torch.rand(DIRECTIONS, inner, rank),
        0.1 * torch.rand(DIRECTIONS, inner),
    )


_INITIALISERS = {"v0": _init_v0, "v1": _init_v1, "v2": _init_v2}
