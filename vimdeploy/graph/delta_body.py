"""The portable body of ``SelectiveScanDelta`` and ``SelectiveScanDeltaNoGate``; see :mod:`vimdeploy.graph.body_text`.

Its Scan walks axis 0 and takes nothing from outside: A passes through it as a state. OpenVINO and onnx's reference
evaluator run no other form. Constants are tensors: older runtimes infer no shapes from ``value_ints``.
"""

from __future__ import annotations

from dataclasses import dataclass

from vimdeploy import contract

_INT_MIN = -(1 << 63)


@dataclass(frozen=True)
class DeltaBody:
    """What a body depends on."""

    delta_softplus: bool
    reverse: bool
    gated: bool


def delta_text(body: DeltaBody, opset: int) -> str:
    """Return the function for ``body`` in onnx's textual form."""
    op = contract.SELECTIVE_SCAN_DELTA if body.gated else contract.SELECTIVE_SCAN_DELTA_NO_GATE
    lines = [
        "u_f = Cast <to = 1> (u)",
        "delta_f = Cast <to = 1> (delta)",
        "B_f = Cast <to = 1> (B)",
        "C_f = Cast <to = 1> (C)",
        *_ints("zero", 0),
        *_ints("three", 3),
        *_ints("last", -1),
        *_ints("one", 1),
        "batch = Shape <start = 0, end = 1> (u)",
        "length = Shape <start = 1, end = 2> (u)",
        "groups = Shape <start = 2, end = 3> (B)",
        "states = Shape <start = 3, end = 4> (B)",
        "channels = Shape <start = 0, end = 1> (A)",
        "size = Div (channels, groups)",
        "biased = Add (delta_f, delta_bias)",
        f"step_size = {'Softplus' if body.delta_softplus else 'Identity'} (biased)",
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
            *_walk(f"{name}_first", f"{name}_walk", body),
            f"{name}_s = Reshape ({name}_walk, by_group)",
        ]
    for name, axis in (("B", "last"), ("C", "three")):
        lines += [
            f"{name}_first = Transpose <perm = [1, 0, 2, 3]> ({name}_f)",
            *_walk(f"{name}_first", f"{name}_walk", body),
            f"{name}_s = Unsqueeze ({name}_walk, {axis})",
        ]
    lines += [
        "state_shape = Concat <axis = 0> (batch, groups, states, size)",
        "state_0 = ConstantOfShape (state_shape)",
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
        "  }> (state_0, A_0, delta_s, drive_s, B_s, C_s)",
        "flat = Concat <axis = 0> (length, batch, channels)",
        "y_flat = Reshape (y_s, flat)",
        *_walk("y_flat", "y_first", body),
        "y_scan = Transpose <perm = [1, 0, 2]> (y_first)",
        "skip = Mul (u_f, D)",
    ]
    if body.gated:
        lines += [
            "summed = Add (y_scan, skip)",
            "z_f = Cast <to = 1> (z)",
            "z_s = Sigmoid (z_f)",
            "gate = Mul (z_f, z_s)",
            "gated = Mul (summed, gate)",
            "y = CastLike (gated, u)",
        ]
    else:
        lines.append("y = Add (y_scan, skip)")
    attributes = ", ".join((*contract.PLUGIN_ATTRIBUTES, *(attribute.name for attribute in op.attributes)))
    inputs = ", ".join(tensor.name for tensor in op.inputs)
    header = f'<opset_import: ["" : {opset}], domain: "{contract.DOMAIN}">'
    text = "\n".join(f"  {line}" for line in lines)
    return f"{header}\n{op.name} <{attributes}> ({inputs}) => (y) {{\n{text}\n}}"


def _ints(name: str, *values: int) -> list[str]:
    listed = ", ".join(map(str, values))
    return [f"{name} = Constant <value: tensor = int64[{len(values)}] {{{listed}}}> ()"]


def _walk(source: str, target: str, body: DeltaBody) -> list[str]:
    """Reverse the tokens, which lie on axis 0, where the op walks them backward. It is its own inverse."""
    if not body.reverse:
        return [f"{target} = Identity ({source})"]
    return [
        *_ints(f"{target}_step", -1),
        *_ints(f"{target}_end", _INT_MIN),
        f"{target} = Slice ({source}, {target}_step, {target}_end, zero, {target}_step)",
    ]
