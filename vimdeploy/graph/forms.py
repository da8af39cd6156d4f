"""Other forms of an exported model, for readers that take no functions or no custom ops."""

from __future__ import annotations

from dataclasses import replace

import onnx
import onnx.inliner

from vimdeploy.graph import bodies
from vimdeploy.graph.body import Body, make_function
from vimdeploy.graph.scan_body import ScanBody


def portable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model of standard ONNX operators only: the bodies inlined, the scans as all runtimes take them.

    OpenVINO and onnx's reference evaluator run it; its custom ops are gone, so no kernel of ours serves it.
    """
    result = bodies.strip_functions(model)
    shapes = bodies.initializer_shapes(result)
    functions: dict[tuple[str, Body], onnx.FunctionProto] = {}
    for node in bodies.custom_nodes(result):
        body = bodies.body_of(node, shapes)
        if isinstance(body, ScanBody):
            body = replace(body, portable=True)
        key = (node.op_type, body)
        if key not in functions:
            overload = f"v{len(functions)}"
            functions[key] = make_function(body, bodies.default_opset(result), overload)
        node.overload = functions[key].overload
    result.functions.extend(functions.values())
    inlined = onnx.inliner.inline_local_functions(result)
    kept = [entry for entry in inlined.opset_import if entry.domain in ("", "ai.onnx")]
    del inlined.opset_import[:]
    inlined.opset_import.extend(kept)
    return inlined


def plugin_only(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose custom nodes have no bodies: for trtexec and other parsers that know the plugin."""
    return bodies.strip_functions(model)
