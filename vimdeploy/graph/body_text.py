"""Portable bodies of the custom ops: the same mathematics in plain ONNX, as model-local functions.

With them ONNX Runtime runs an exported file without any custom library. A body is generated for the attribute values in
use, because a function cannot turn its attributes into the axes and steps that Slice and Scan want; sizes come from the
inputs' shapes, ``height`` and ``scale`` by attribute reference.

The state lies as (G, B, N, E), so that every product is vectorised along the channels, and one Scan walks all groups
together: groups that walk backward or column by column are reordered before it and put back after it.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx.parser

from vimdeploy import contract
from vimdeploy.graph.delta_body import DeltaBody, delta_text

_INT_MIN = -(1 << 63)


@dataclass(frozen=True)
class ConvBody:
    """What a body of ``CausalConv1d`` depends on."""

    directions: tuple[int, ...]
    activation: str
    width: int


@dataclass(frozen=True)
class ScanBody:
    """What a body of ``SelectiveScan`` and ``SelectiveScanNoGate`` depends on."""

    directions: tuple[int, ...]
    column_major: tuple[int, ...]
    gated: bool


Body = ConvBody | ScanBody | DeltaBody


def make_function(body: Body, opset: int, overload: str = "") -> onnx.FunctionProto:
    """Return the ONNX function for ``body``.

    Args:
        body: the attribute values it is for.
        opset: ONNX opset of its nodes; it must equal the model's, or inlining silently does nothing.
        overload: tells several bodies of one op apart; empty for the only one.

    """
    if isinstance(body, ConvBody):
        text = _conv_text(body, opset)
    elif isinstance(body, ScanBody):
        text = _scan_text(body, opset)
    else:
        text = delta_text(body, opset)
    function = onnx.parser.parse_function(text)
    function.overload = overload
    return function


def _ints(name: str, *values: int) -> str:
    """Name a tensor of integers; as ``value_ints`` ONNX Runtime before 1.25 cannot infer the shapes behind it."""
    return f"{name} = Constant <value = int64[{len(values)}] {{{', '.join(map(str, values))}}}> ()"


def _int(name: str, value: int) -> str:
    return f"{name} = Constant <value = int64 {{{value}}}> ()"


def _header(opset: int) -> str:
    return f'<opset_import: ["" : {opset}], domain: "{contract.DOMAIN}">'


def _attributes(op: contract.CustomOp) -> str:
    return ", ".join((*contract.PLUGIN_ATTRIBUTES, *(attribute.name for attribute in op.attributes)))


def _conv_text(body: ConvBody, opset: int) -> str:
    width, pad = body.width, body.width - 1
    lines = [
        "x_f = Cast <to = 1> (x)",
        "w_f = Cast <to = 1> (weight)",
        "b_f = Cast <to = 1> (bias)",
        _ints("pads", 0, pad, 0, 0, pad, 0),
        "padded = Pad (x_f, pads)",
        _ints("tokens", 1),
        _ints("first", 0),
    ]
    # One shifted view of the padded tokens per offset, shared by the groups: a forward group's tap k sits at offset k,
    # a backward group's at offset K - 1 + k.
    offsets = sorted({k + (pad if d == -1 else 0) for d in body.directions for k in range(width)})
    for offset in offsets:
        end = offset - 2 * pad or (1 << 62)
        lines += [
            _ints(f"start{offset}", offset),
            _ints(f"end{offset}", end),
            f"shifted{offset} = Slice (padded, start{offset}, end{offset}, tokens)",
        ]
    for g, direction in enumerate(body.directions):
        lines += [
            _int(f"g{g}", g),
            f"w{g} = Gather <axis = 0> (w_f, g{g})",
            f"acc{g}_0 = Gather <axis = 0> (b_f, g{g})",
        ]
        for k in range(width):
            offset = k + (pad if direction == -1 else 0)
            lines += [
                _int(f"k{g}_{k}", k),
                f"w{g}_{k} = Gather <axis = 1> (w{g}, k{g}_{k})",
                f"p{g}_{k} = Mul (shifted{offset}, w{g}_{k})",
                f"acc{g}_{k + 1} = Add (acc{g}_{k}, p{g}_{k})",
            ]
        result = f"acc{g}_{width}"
        if body.activation == "silu":
            lines += [f"s{g} = Sigmoid ({result})", f"a{g} = Mul ({result}, s{g})"]
            result = f"a{g}"
        lines.append(f"out{g} = Unsqueeze ({result}, first)")
    groups = ", ".join(f"out{g}" for g in range(len(body.directions)))
    lines += [f"u_f = Concat <axis = 0> ({groups})", "u = CastLike (u_f, x)"]
    op = contract.CAUSAL_CONV1D
    return f"{_header(opset)}\n{op.name} <{_attributes(op)}> (x, weight, bias) => (u) {{\n{_block(lines)}\n}}"


def _scan_text(body: ScanBody, opset: int) -> str:
    op = contract.SELECTIVE_SCAN if body.gated else contract.SELECTIVE_SCAN_NO_GATE
    lines = [
        "u_f = Cast <to = 1> (u)",
        "x_f = Cast <to = 1> (x_dbl)",
        "dtw_f = Cast <to = 1> (dt_weight)",
        _ints("zero", 0),
        _ints("one", 1),
        _ints("two", 2),
        _ints("three", 3),
        _ints("one_two", 1, 2),
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
        _ints("ones", 1, 1, 1),
        "spread = Concat <axis = 0> (groups, ones)",
        "B_g = Expand (B, spread)",
        "C_g = Expand (C, spread)",
        "height = Constant <value_int: int = @height> ()",
        "rows = Reshape (height, one)",
    ]
    for name in ("delta", "drive", "B_g", "C_g"):
        lines += _reorder(name, body)
    lines += [
        "delta_s = Unsqueeze (delta_walk, three)",
        "drive_s = Unsqueeze (drive_walk, three)",
        _ints("last", -1),
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
    ]
    lines += _restore("y", body)
    lines += [
        "y_skip = Add (y_all, skip)",
        "summed = ReduceSum <keepdims = 0> (y_skip, zero)",
        "factor = Constant <value_float: float = @scale> ()",
        "scaled = Mul (summed, factor)",
    ]
    inputs = ", ".join(tensor.name for tensor in op.inputs)
    if body.gated:
        lines += [
            "z_f = Cast <to = 1> (z)",
            "z_s = Sigmoid (z_f)",
            "gate = Mul (z_f, z_s)",
            "gated = Mul (scaled, gate)",
            "y = CastLike (gated, u)",
        ]
    else:
        lines.append("y = Identity (scaled)")
    return f"{_header(opset)}\n{op.name} <{_attributes(op)}> ({inputs}) => (y) {{\n{_block(lines)}\n}}"


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
    token_slice = (-1, _INT_MIN, -1) if reverse else (0, 1 << 62, 1)
    start, end, step = token_slice
    return [
        _ints(f"{target}_start", g, start),
        _ints(f"{target}_end", g + 1, end),
        _ints(f"{target}_axes", 0, 2),
        _ints(f"{target}_step", 1, step),
        f"{target} = Slice ({source}, {target}_start, {target}_end, {target}_axes, {target}_step)",
    ]


def _transpose_grid(source: str, target: str, *, transposed: bool) -> list[str]:
    """Walk the H x W grid of (1, B, L, C) column by column, or undo that for a grid that is already ``transposed``."""
    first = f"{target}_any, rows" if transposed else f"rows, {target}_any"
    return [
        _ints(f"{target}_keep", 0, 0),
        _ints(f"{target}_any", -1),
        f"{target}_c = Shape <start = 3, end = 4> ({source})",
        f"{target}_split = Concat <axis = 0> ({target}_keep, {first}, {target}_c)",
        f"{target}_grid = Reshape ({source}, {target}_split)",
        f"{target}_turned = Transpose <perm = [0, 1, 3, 2, 4]> ({target}_grid)",
        f"{target}_flat = Shape ({source})",
        f"{target} = Reshape ({target}_turned, {target}_flat)",
    ]


def _block(lines: list[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)
