"""The portable body of ``SelectiveScanDelta`` and ``SelectiveScanDeltaNoGate``; see :mod:`vimdeploy.graph.body`.

Its Scan walks axis 0 and takes nothing from outside: A passes through it as a state. OpenVINO and onnx's reference
evaluator run no other form.
"""

from __future__ import annotations

from dataclasses import dataclass

from vimdeploy import contract
from vimdeploy.graph.body import INT_MIN, Attributes, gate, ints


@dataclass(frozen=True)
class DeltaBody:
    """What a body depends on."""

    delta_softplus: bool
    reverse: bool
    gated: bool

    @classmethod
    def of(cls, values: Attributes, *, gated: bool) -> DeltaBody:
        """Return the body that a node's attributes ask for."""
        return cls(bool(values["delta_softplus"]), bool(values["reverse"]), gated)

    @property
    def op(self) -> contract.CustomOp:
        """The op with or without a gate."""
        return contract.SELECTIVE_SCAN_DELTA if self.gated else contract.SELECTIVE_SCAN_DELTA_NO_GATE

    def lines(self) -> list[str]:
        """Return its nodes."""
        lines = [
            "u_f = Cast <to = 1> (u)",
            "delta_f = Cast <to = 1> (delta)",
            "B_f = Cast <to = 1> (B)",
            "C_f = Cast <to = 1> (C)",
            ints("zero", 0),
            ints("three", 3),
            ints("last", -1),
            ints("one", 1),
            "batch = Shape <start = 0, end = 1> (u)",
            "length = Shape <start = 1, end = 2> (u)",
            "groups = Shape <start = 2, end = 3> (B)",
            "states = Shape <start = 3, end = 4> (B)",
            "channels = Shape <start = 0, end = 1> (A)",
            "size = Div (channels, groups)",
            "biased = Add (delta_f, delta_bias)",
            f"step_size = {'Softplus' if self.delta_softplus else 'Identity'} (biased)",
            "drive = Mul (step_size, u_f)",
            # (L, B, G, 1, E / G) for channels, (L, B, G, N, 1) for B and (L, B, G, 1, N) for C.
            "by_group = Concat <axis = 0> (length, batch, groups, one, size)",
            "A_shape = Concat <axis = 0> (one, groups, size, states)",
            "A_groups = Reshape (A, A_shape)",
            "A_0 = Transpose <perm = [0, 1, 3, 2]> (A_groups)",
        ]
        for name, source in (("delta", "step_size"), ("drive", "drive")):
            lines += [
                f"{name}_first = Transpose <perm = [1, 0, 2]> ({source})",
                *_walk(f"{name}_first", f"{name}_walk", self),
                f"{name}_s = Reshape ({name}_walk, by_group)",
            ]
        for name, axis in (("B", "last"), ("C", "three")):
            lines += [
                f"{name}_first = Transpose <perm = [1, 0, 2, 3]> ({name}_f)",
                *_walk(f"{name}_first", f"{name}_walk", self),
                f"{name}_s = Unsqueeze ({name}_walk, {axis})",
            ]
        lines += [
            "state_shape = Concat <axis = 0> (batch, groups, states, size)",
            "state_0 = ConstantOfShape (state_shape)",
            _SCAN,
            "flat = Concat <axis = 0> (length, batch, channels)",
            "y_flat = Reshape (y_s, flat)",
            *_walk("y_flat", "y_first", self),
            "y_scan = Transpose <perm = [1, 0, 2]> (y_first)",
            "skip = Mul (u_f, D)",
        ]
        if not self.gated:
            return [*lines, "y = Add (y_scan, skip)"]
        return [*lines, "summed = Add (y_scan, skip)", *gate("summed")]


_SCAN = (
    "state_end, A_end, y_s = Scan <num_scan_inputs = 4, body = token (float[b, g, n, e] state, "
    "float[o, g, n, e] A_t, float[b, g, one1, e] delta_t, float[b, g, one2, e] drive_t, float[b, g, n, one3] B_t, "
    "float[b, g, one4, n] C_t) => (float[b, g, n, e] next, float[o, g, n, e] A_next, float[b, g, one5, e] y_t) {\n"
    "    rate = Mul (delta_t, A_t)\n"
    "    decay = Exp (rate)\n"
    "    kept = Mul (decay, state)\n"
    "    added = Mul (drive_t, B_t)\n"
    "    next = Add (kept, added)\n"
    "    y_t = MatMul (C_t, next)\n"
    "    A_next = Identity (A_t)\n"
    "  }> (state_0, A_0, delta_s, drive_s, B_s, C_s)"
)


def _walk(source: str, target: str, body: DeltaBody) -> list[str]:
    """Reverse the tokens, which lie on axis 0, where the op walks them backward. It is its own inverse."""
    if not body.reverse:
        return [f"{target} = Identity ({source})"]
    return [
        ints(f"{target}_step", -1),
        ints(f"{target}_end", INT_MIN),
        f"{target} = Slice ({source}, {target}_step, {target}_end, zero, {target}_step)",
    ]
