"""The portable body of ``SelectiveScan`` and ``SelectiveScanNoGate``; see :mod:`vimdeploy.graph.body`.

The state lies as (G, B, N, E), so that every product is vectorised along the channels, and one Scan walks all groups
together: groups that walk backward or column by column are reordered before it and put back after it.
"""

from __future__ import annotations

from dataclasses import dataclass

from vimdeploy import contract
from vimdeploy.graph.body import INT_MAX, INT_MIN, Attributes, gate, ints


@dataclass(frozen=True)
class ScanBody:
    """What a body of ``SelectiveScan`` and ``SelectiveScanNoGate`` depends on."""

    directions: tuple[int, ...]
    column_major: tuple[int, ...]
    gated: bool
    portable: bool = False
    """The Scan captures nothing and walks axis 0, as OpenVINO and onnx's reference evaluator want it; ONNX Runtime
    takes up to 1.07 times as long for that."""

    @classmethod
    def of(cls, values: Attributes, *, gated: bool) -> ScanBody:
        """Return the body that a node's attributes ask for."""
        return cls(tuple(values["directions"]), tuple(values["column_major"]), gated)

    @property
    def op(self) -> contract.CustomOp:
        """The op with or without a gate."""
        return contract.SELECTIVE_SCAN if self.gated else contract.SELECTIVE_SCAN_NO_GATE

    def lines(self) -> list[str]:
        """Return its nodes."""
        lines = [*_PROJECTION]
        for name in ("delta", "drive", "B_g", "C_g"):
            lines += _reorder(name, self)
        lines += [*(_PORTABLE_SCAN if self.portable else _SCAN), *_restore("y", self), *_SUM]
        return lines + (gate("scaled") if self.gated else ["y = Identity (scaled)"])


_PROJECTION = (
    "u_f = Cast <to = 1> (u)",
    "x_f = Cast <to = 1> (x_dbl)",
    "dtw_f = Cast <to = 1> (dt_weight)",
    ints("zero", 0),
    ints("one", 1),
    ints("two", 2),
    ints("three", 3),
    ints("one_two", 1, 2),
    "groups = Shape <start = 0, end = 1> (A)",
    "channels = Shape <start = 1, end = 2> (A)",
    "states = Shape <start = 2, end = 3> (A)",
    "batch = Shape <start = 1, end = 2> (u)",
    "rank = Shape <start = 2, end = 3> (dt_weight)",
    "parts = Concat <axis = 0> (rank, states, states)",
    "dt, B, C = Split <axis = -1> (x_f, parts)",
    "dtw_t = Transpose <perm = [0, 2, 1]> (dtw_f)",
    "dtw_g = Unsqueeze (dtw_t, one)",
    "bias_g = Unsqueeze (dt_bias, one_two)",
    "D_g = Unsqueeze (D, one_two)",
    "A_t = Transpose <perm = [0, 2, 1]> (A)",
    "A_g = Unsqueeze (A_t, one)",
    "dt_proj = MatMul (dt, dtw_g)",
    "dt_sum = Add (dt_proj, bias_g)",
    "delta = Softplus (dt_sum)",
    "drive = Mul (delta, u_f)",
    "skip = Mul (u_f, D_g)",
    # B and C may be shared by the groups; each group still walks them in its own order.
    ints("ones", 1, 1, 1),
    "spread = Concat <axis = 0> (groups, ones)",
    "B_g = Expand (B, spread)",
    "C_g = Expand (C, spread)",
    "height = Constant <value_int: int = @height> ()",
    "rows = Reshape (height, one)",
)
"""delta, drive = delta * u, and the skip; B and C of every group."""

_SCAN = (
    "delta_s = Unsqueeze (delta_walk, three)",
    "drive_s = Unsqueeze (drive_walk, three)",
    ints("last", -1),
    "B_s = Unsqueeze (B_g_walk, last)",
    "C_s = Unsqueeze (C_g_walk, three)",
    "state_shape = Concat <axis = 0> (groups, batch, states, channels)",
    "state0 = ConstantOfShape (state_shape)",
    "state_end, y_s = Scan <num_scan_inputs = 4, scan_input_axes = [2, 2, 2, 2], scan_output_axes = [2], "
    "body = step (float[g, b, n, e] state, float[g, b, one1, e] delta_t, float[g, b, one2, e] drive_t, "
    "float[g, b, n, one3] B_t, float[g, b, one4, n] C_t) => (float[g, b, n, e] next, float[g, b, one5, e] y_t) {\n"
    "    rate = Mul (delta_t, A_g)\n"
    "    decay = Exp (rate)\n"
    "    kept = Mul (decay, state)\n"
    "    added = Mul (drive_t, B_t)\n"
    "    next = Add (kept, added)\n"
    "    y_t = MatMul (C_t, next)\n"
    "  }> (state0, delta_s, drive_s, B_s, C_s)",
    "y_walk = Squeeze (y_s, three)",
)
"""The recurrence, over the tokens in the order each group walks them."""

_PORTABLE_SCAN = (
    *(f"{name}_t = Transpose <perm = [2, 0, 1, 3]> ({name}_walk)" for name in ("delta", "drive", "B_g", "C_g")),
    "delta_s = Unsqueeze (delta_t, three)",
    "drive_s = Unsqueeze (drive_t, three)",
    ints("last", -1),
    "B_s = Unsqueeze (B_g_t, last)",
    "C_s = Unsqueeze (C_g_t, three)",
    "state_shape = Concat <axis = 0> (groups, batch, states, channels)",
    "state0 = ConstantOfShape (state_shape)",
    "A_end, state_end, y_s = Scan <num_scan_inputs = 4, body = step (float[g, one0, n, e] A_in, "
    "float[g, b, n, e] state, float[g, b, one1, e] delta_i, float[g, b, one2, e] drive_i, float[g, b, n, one3] B_i, "
    "float[g, b, one4, n] C_i) => (float[g, one0, n, e] A_out, float[g, b, n, e] next, float[g, b, one5, e] y_i) {\n"
    "    A_out = Identity (A_in)\n"
    "    rate = Mul (delta_i, A_in)\n"
    "    decay = Exp (rate)\n"
    "    kept = Mul (decay, state)\n"
    "    added = Mul (drive_i, B_i)\n"
    "    next = Add (kept, added)\n"
    "    y_i = MatMul (C_i, next)\n"
    "  }> (A_g, state0, delta_s, drive_s, B_s, C_s)",
    "y_flat = Squeeze (y_s, three)",
    "y_walk = Transpose <perm = [1, 2, 0, 3]> (y_flat)",
)
"""The same with A as a state that only passes through."""

_SUM = (
    "y_skip = Add (y_all, skip)",
    "summed = ReduceSum <keepdims = 0> (y_skip, zero)",
    "factor = Constant <value_float: float = @scale> ()",
    "scaled = Mul (summed, factor)",
)
"""The skip, the sum over the groups, and the scale."""


def _reorder(name: str, body: ScanBody) -> list[str]:
    """Put the tokens of ``name`` (G, B, L, C) in the order each group walks them, as ``name``_walk."""
    return _per_group(name, f"{name}_walk", body, forth=True)


def _restore(name: str, body: ScanBody) -> list[str]:
    """Put the tokens of ``name``_walk back in the order stored, as ``name``_all."""
    return _per_group(f"{name}_walk", f"{name}_all", body, forth=False)


def _per_group(source: str, target: str, body: ScanBody, *, forth: bool) -> list[str]:
    groups = len(body.directions)
    if all(d == 1 for d in body.directions) and not any(body.column_major):
        return [f"{target} = Identity ({source})"]
    lines: list[str] = []
    for g, (direction, column_major) in enumerate(zip(body.directions, body.column_major, strict=True)):
        part = f"{target}{g}"
        reverse = _slice_group(source, f"{part}_r", g, reverse=True)
        plain = _slice_group(source, f"{part}_g", g, reverse=False)
        if not column_major:
            lines += _slice_group(source, part, g, reverse=direction == -1)
        elif forth:
            lines += plain + _transpose_grid(f"{part}_g", f"{part}_t" if direction == -1 else part, transposed=False)
            if direction == -1:
                lines += _slice_group(f"{part}_t", part, 0, reverse=True)
        else:
            lines += reverse if direction == -1 else plain
            lines += _transpose_grid(f"{part}_r" if direction == -1 else f"{part}_g", part, transposed=True)
    parts = ", ".join(f"{target}{g}" for g in range(groups))
    return [*lines, f"{target} = Concat <axis = 0> ({parts})"]


def _slice_group(source: str, target: str, g: int, *, reverse: bool) -> list[str]:
    """Take group ``g`` of (G, B, L, C), its tokens reversed if asked."""
    token_slice = (-1, INT_MIN, -1) if reverse else (0, INT_MAX, 1)
    start, end, step = token_slice
    return [
        ints(f"{target}_start", g, start),
        ints(f"{target}_end", g + 1, end),
        ints(f"{target}_axes", 0, 2),
        ints(f"{target}_step", 1, step),
        f"{target} = Slice ({source}, {target}_start, {target}_end, {target}_axes, {target}_step)",
    ]


def _transpose_grid(source: str, target: str, *, transposed: bool) -> list[str]:
    """Walk the H x W grid of (1, B, L, C) column by column, or undo that for a grid that is already ``transposed``."""
    first = f"{target}_any, rows" if transposed else f"rows, {target}_any"
    return [
        ints(f"{target}_keep", 0, 0),
        ints(f"{target}_any", -1),
        f"{target}_c = Shape <start = 3, end = 4> ({source})",
        f"{target}_split = Concat <axis = 0> ({target}_keep, {first}, {target}_c)",
        f"{target}_grid = Reshape ({source}, {target}_split)",
        f"{target}_turned = Transpose <perm = [0, 1, 3, 2, 4]> ({target}_grid)",
        f"{target}_flat = Shape ({source})",
        f"{target} = Reshape ({target}_turned, {target}_flat)",
    ]
