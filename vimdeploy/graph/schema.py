"""The custom ops as ONNX operator schemas, generated from the contract."""

from __future__ import annotations

import onnx
import onnx.defs

from vimdeploy import contract

OpSchema = onnx.defs.OpSchema


def register_schemas() -> None:
    """Register the schemas with onnx, once per process: the exporter and the checker look the ops up there."""
    for op in contract.OPS.values():
        if not onnx.defs.has(op.name, contract.DOMAIN):
            onnx.defs.register_schema(make_schema(op))


def make_schema(op: contract.CustomOp) -> OpSchema:
    """Return the operator schema of one custom op."""

    def parameter(tensor: contract.Tensor) -> OpSchema.FormalParameter:
        dtype = "T" if tensor.dtype == "T" else f"tensor({tensor.dtype})"
        return OpSchema.FormalParameter(tensor.name, dtype, f"({', '.join(tensor.shape)})")

    attributes = [
        OpSchema.Attribute(
            attribute.name, getattr(OpSchema.AttrType, attribute.kind.value), attribute.doc, required=True
        )
        for attribute in op.attributes
    ]
    # TensorRT's parser finds the plugin by these; a file without them is still valid.
    attributes += [
        OpSchema.Attribute(name, OpSchema.AttrType.STRING, "names the TensorRT plugin", required=False)
        for name in contract.PLUGIN_ATTRIBUTES
    ]
    return OpSchema(
        op.name,
        contract.DOMAIN,
        contract.OP_VERSION,
        doc=f"{op.name} of vimdeploy's op contract.",
        inputs=[parameter(tensor) for tensor in op.inputs],
        outputs=[parameter(op.output)],
        type_constraints=[("T", list(contract.FLOAT_TYPES), "one floating-point type per node")],
        attributes=attributes,
    )
