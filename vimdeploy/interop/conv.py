"""The causal depthwise convolution as the package ``causal_conv1d`` offers it: x (B, E, L), weight (E, K), bias (E).

Source: causal_conv1d, ``causal_conv1d_interface.py`` and ``cpp_functions.py``, releases 1.0 to 1.5.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vimdeploy.interop import calls
from vimdeploy.interop.refusal import refuse
from vimdeploy.interop.scan import gradients_of
from vimdeploy.ops.conv import causal_conv1d, causal_conv1d_differentiable
from vimdeploy.ops.dispatch import autograd_follows


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Any = None,
    initial_states: Any = None,
    return_final_states: bool = False,
    final_states_out: Any = None,
    activation: Any = None,
) -> Tensor:
    """Convolve (B, E, L) causally; ``activation`` is None, ``"silu"`` or ``"swish"``. Returns x's shape and dtype.

    Release 1.0 had the activation in the place of ``seq_idx``.
    """
    if isinstance(seq_idx, str):
        seq_idx, activation = None, seq_idx
    name = "causal_conv1d_fn"
    if seq_idx is not None:
        raise refuse(name, "seq_idx (packed sequences)")
    if initial_states is not None or return_final_states or final_states_out is not None:
        raise refuse(name, "carrying states (initial_states, return_final_states)")
    if activation not in (None, False, True, "silu", "swish"):
        raise refuse(name, f"activation {activation!r}", "Use None, 'silu' or 'swish'.")
    calls.count(name)
    if weight.dim() == 3:
        weight = weight.squeeze(1)
    kernel = weight.to(x.dtype)[None]
    offset = (x.new_zeros(weight.shape[0]) if bias is None else bias.to(x.dtype))[None]
    followed = autograd_follows(x, kernel, offset)
    conv = causal_conv1d_differentiable if followed and not torch.compiler.is_compiling() else causal_conv1d
    u: Tensor = conv(x.transpose(1, 2), kernel, offset, [1], "silu" if activation else "none")
    return u[0].transpose(1, 2)


def causal_conv1d_fwd(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    """Stand in for the compiled forward in all its argument orders.

    ``(silu)``, ``(seq_idx, silu)``, ``(seq_idx, initial_states, final_states_out, silu)``, and since 1.5 in the
    extension itself ``(seq_idx, initial_states, out, final_states_out, silu)``, which writes into ``out``.
    """
    *carried, silu = rest or (False,)
    out = carried.pop(2) if len(carried) == 4 else None
    if any(v is not None for v in carried):
        raise refuse("causal_conv1d_fwd", "seq_idx or carrying states")
    y = causal_conv1d_fn(x, weight, bias, activation="silu" if silu else None)
    return y if out is None else out.copy_(y)


def causal_conv1d_bwd(x: Tensor, weight: Tensor, bias: Tensor | None, dout: Tensor, *rest: Any) -> tuple[Any, ...]:
    """Stand in for the compiled backward: dx, dweight, dbias, and the gradient of initial states, which is None.

    ``rest`` ends in the flags: ``(dx, silu)``, ``(seq_idx, dx, silu)`` or ``(seq_idx, initial_states, dfinal_states,
    dx, return_dinitial_states, silu)``; a ``dx`` given is written into.
    """
    flags = [v for v in rest if isinstance(v, (bool, int))]
    given = [v for v in rest if isinstance(v, Tensor) and v.shape == x.shape and v.dtype == x.dtype]
    silu = "silu" if flags and flags[-1] else None
    dx, dweight, dbias = gradients_of(
        lambda x, weight, bias: causal_conv1d_fn(x, weight, bias, activation=silu), [x, weight, bias], dout
    )
    if given:
        dx = given[-1].copy_(dx)
    return (dx, dweight, dbias) if len(rest) < 4 else (dx, dweight, dbias, None)


def causal_conv1d_update(*arguments: Any, **named: Any) -> Any:
    """Refuse: one token at a time is not exported."""
    del arguments, named
    raise refuse("causal_conv1d_update", "inference one token at a time")
