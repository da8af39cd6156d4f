"""The selective scan as mamba_ssm, VMamba and their descendants call it, in every argument order seen in public code.

All forms come down to the op contract's ``SelectiveScanDelta`` (:mod:`vimdeploy.ops.scan_delta`), whose
layout is channels-last; callers here are channels-first: u, delta, z (B, E, L), B and C (B, G, N, L), (B, N, L) or
constant (E, N), A (E, N). Outputs have the dtype of u unless the caller asks for float32. Source: mamba_ssm,
``ops/selective_scan_interface.py``; VMamba, ``kernels/selective_scan``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vimdeploy.interop import calls
from vimdeploy.interop.refusal import refuse
from vimdeploy.ops.dispatch import autograd_follows
from vimdeploy.ops.scan_delta import scan_with_state, selective_scan_delta


@torch.library.custom_op("vimdeploy::selective_scan_last_state", mutates_args=())
def last_state(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor, delta_softplus: bool
) -> Tensor:
    """Return the state after the last token, (B, E, N) float32; arguments as ``selective_scan_delta``.

    While a model is traced it stands for the state that callers receive and mostly drop. It has no form in ONNX: an
    export in which it is used is refused by name.
    """
    return scan_with_state(u, delta, A, B, C, D, delta_bias, None, delta_softplus, False, in_place=True)[1]


@last_state.register_fake
def _(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor, delta_softplus: bool
) -> Tensor:
    del delta, B, C, D, delta_bias, delta_softplus
    return u.new_empty((u.shape[0], *A.shape), dtype=torch.promote_types(u.dtype, torch.float32))


@dataclass(frozen=True)
class Scanned:
    """What a scan gives, channels-first."""

    out: Tensor
    """(B, E, L), before the gate."""
    gated: Tensor | None
    """(B, E, L), after the gate, where there is one."""
    last: Tensor | None
    """(B, E, N) float32, where it was asked for."""


def scan(
    name: str,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    out_float: bool = False,
    want_ungated: bool = False,
    want_last: bool = False,
) -> Scanned:
    """Scan as the caller named ``name`` does.

    Raises:
        UnsupportedCallError: complex A; shapes that do not fit raise ValueError, with the tensor's name.

    """
    if any(v is not None and v.is_complex() for v in (A, B, C)):
        raise refuse(name, "a complex A", "Train with a real A, as all released Mamba models do.")
    calls.count(name)
    typed = [v for v in (u, delta, B, C, z) if v is not None]
    dtype = reduce(torch.promote_types, (v.dtype for v in typed))
    exact = torch.promote_types(dtype, torch.float32)
    channels = A.shape[0]
    u_t, delta_t = (v.transpose(1, 2).to(dtype) for v in (u, delta))
    B_t, C_t = _same_groups(_by_token(B, u).to(dtype), _by_token(C, u).to(dtype), channels)
    D_t, bias = (u.new_zeros(channels, dtype=exact) if v is None else v.to(exact).reshape(-1) for v in (D, delta_bias))
    arguments = (u_t, delta_t, A.to(exact), B_t, C_t, D_t, bias)
    softplus = bool(delta_softplus)
    result = exact if out_float else u.dtype

    def first(y: Tensor) -> Tensor:
        return y.transpose(1, 2).to(result)

    followed = autograd_follows(*arguments, *typed)
    if torch.compiler.is_compiling() or (followed and not want_last):
        gate = None if z is None else z.transpose(1, 2).to(dtype)
        gated = None if gate is None else first(selective_scan_delta(*arguments, gate, softplus, False))
        out = gated
        if gated is None or want_ungated:
            out = first(selective_scan_delta(*arguments, None, softplus, False))
        assert out is not None
        return Scanned(out, gated, last_state(*arguments, softplus) if want_last else None)
    y, last = scan_with_state(*arguments, None, softplus, False, in_place=not followed)
    gated = None if z is None else first(y * F.silu(z.transpose(1, 2).to(exact)))
    return Scanned(first(y), gated, last)


def _by_token(values: Tensor, u: Tensor) -> Tensor:
    """Return B or C as (B, L, G, N). Constants (E, N) become one group per channel."""
    if values.dim() == 2:
        return values[None, None].expand(u.shape[0], u.shape[2], -1, -1)
    if values.dim() == 3:
        values = values.unsqueeze(1)
    return values.permute(0, 3, 1, 2)


def _same_groups(B: Tensor, C: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    groups = max(B.shape[2], C.shape[2])
    if B.shape[2] != C.shape[2] and groups % min(B.shape[2], C.shape[2]):
        groups = channels
    return tuple(v.repeat_interleave(groups // v.shape[2], 2) if v.shape[2] < groups else v for v in (B, C))  # type: ignore[return-value]


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Any:
    """Stand in for ``mamba_ssm``'s function of that name: (B, E, L), and the last state if asked for."""
    scanned = scan(
        "selective_scan_fn", u, delta, A, B, C, D, z, delta_bias, delta_softplus, want_last=return_last_state
    )
    y = scanned.out if scanned.gated is None else scanned.gated
    return (y, scanned.last) if return_last_state else y


def selective_scan_ungated(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    nrows: int = 1,
    return_last_state: bool = False,
) -> Any:
    """Stand in for ``selective_scan.selective_scan_fn`` of VMamba's first releases, which knows no gate."""
    del nrows
    return selective_scan_fn(u, delta, A, B, C, D, None, delta_bias, delta_softplus, return_last_state)


def _parse(arguments: Sequence[Any]) -> tuple[list[Any], bool]:
    """Return (D, z, delta_bias, delta_softplus) and whether float32 is asked for.

    What follows C differs: (D, z, delta_bias, softplus[, nrows]) in mamba_ssm's kernel, (D, delta_bias, softplus,
    nrows[, out_float]) in VMamba's. The third is a flag in the latter, and the same name is bound to either.
    """
    D, second, third, *rest = arguments
    if isinstance(third, (bool, int)):
        return [D, None, second, bool(third)], len(rest) > 1 and bool(rest[1])
    return [D, second, third, bool(rest[0])], False


def kernel_fwd(name: str) -> Callable[..., list[Tensor]]:
    """Return the ``fwd`` of an extension: gives [out, x, out_z where there is a gate].

    ``x`` holds the chunks' states in the kernels' own layout; all that callers read is ``x[:, :, -1, 1::2]``, the last.
    """

    def fwd(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Any) -> list[Tensor]:
        (D, z, delta_bias, softplus), out_float = _parse(rest)
        scanned = scan(
            f"{name}.fwd", u, delta, A, B, C, D, z, delta_bias, softplus, out_float=out_float, want_ungated=True,
            want_last=True,
        )  # fmt: skip
        assert scanned.last is not None
        outputs = [scanned.out, _as_chunk_states(scanned.last)]
        return outputs if scanned.gated is None else [*outputs, scanned.gated]

    return fwd


def _as_chunk_states(last: Tensor) -> Tensor:
    return torch.stack((torch.ones_like(last), last), -1).flatten(-2).unsqueeze(2)


def kernel_bwd(name: str) -> Callable[..., tuple[Tensor, ...]]:
    """Return the ``bwd`` of an extension: the gradients of ``fwd``, by computing the scan again.

    Order: du, ddelta, dA, dB, dC, dD, ddelta_bias, and with a gate dz and, where asked for, out_z.
    """

    def bwd(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        z = given_dz = None
        if isinstance(rest[4], (bool, int)):  # VMamba: D, delta_bias, dout, x, softplus, nrows
            D, bias, dout, _, softplus = rest[:5]
        else:  # mamba_ssm: D, z, delta_bias, dout, x, out, dz, softplus, recompute_out_z
            D, z, bias, dout, _, _, given_dz, softplus = rest[:8]

        def forward(u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, bias: Any, z: Any) -> Tensor:
            scanned = scan(f"{name}.bwd", u, delta, A, B, C, D, z, bias, bool(softplus))
            return scanned.out if scanned.gated is None else scanned.gated

        *first, dz = gradients_of(forward, [u, delta, A, B, C, D, bias, z], dout)
        if z is None:
            return tuple(first)
        if given_dz is not None:
            dz = given_dz.copy_(dz)
        recomputed = [forward(u, delta, A, B, C, D, bias, z)] if len(rest) > 8 and rest[8] else []
        return (*first, dz, *recomputed)

    return bwd


def gradients_of(function: Callable[..., Tensor], tensors: Sequence[Tensor | None], dout: Tensor) -> list[Any]:
    """Return the gradients of ``function`` at ``tensors``, None where there is no tensor."""
    inputs = [None if v is None else v.detach().requires_grad_() for v in tensors]
    with torch.enable_grad():
        y = function(*inputs)
    found = iter(torch.autograd.grad(y, [v for v in inputs if v is not None], dout.to(y.dtype)))
    return [None if v is None else next(found) for v in inputs]


def one_state_fwd(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None,
    delta_softplus: bool, nrows: int = 1,
) -> list[Tensor]:  # fmt: skip
    """Stand in for ``selective_scan_cuda_ndstate.fwd``: one state, A (E), B and C (B, G, L)."""
    del nrows
    name = "selective_scan_cuda_ndstate"
    return kernel_fwd(name)(
        u, delta, A.reshape(-1, 1), B.unsqueeze(2), C.unsqueeze(2), D, delta_bias, bool(delta_softplus), 1
    )


def state_fwd(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, D: Tensor | None, delta_bias: Tensor | None, delta_softplus: bool,
    nrows: int = 1, out_float: bool = True,
) -> list[Tensor]:  # fmt: skip
    """Stand in for ``selective_scan_cuda_oflex_rh.fwd`` (Spatial-Mamba): no C, it gives the states (B, E, N = 1, L)."""
    del nrows
    name = "selective_scan_cuda_oflex_rh.fwd"
    if A.shape[1] != 1:
        raise refuse(name, f"a state of {A.shape[1]} values", "Spatial-Mamba has one per channel.")
    scanned = scan(
        name, u, delta, A, B, torch.ones_like(B), D, None, delta_bias, delta_softplus, out_float=out_float,
        want_last=True,
    )  # fmt: skip
    assert scanned.last is not None
    return [scanned.out.unsqueeze(2), _as_chunk_states(scanned.last)]


def state_bwd(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, D: Tensor | None, delta_bias: Tensor | None, dout: Tensor,
    x: Tensor, delta_softplus: bool, nrows: int = 1,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Stand in for ``selective_scan_cuda_oflex_rh.bwd``: du, ddelta, dA, dB, dD, ddelta_bias."""
    del x

    def forward(u: Any, delta: Any, A: Any, B: Any, D: Any, delta_bias: Any) -> Tensor:
        return state_fwd(u, delta, A, B, D, delta_bias, delta_softplus, nrows)[0]

    return tuple(gradients_of(forward, [u, delta, A, B, D, delta_bias], dout))
