"""Inputs and outputs of an ONNX graph as manifests describe them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vimdeploy.artifacts.manifest import TensorInfo

if TYPE_CHECKING:
    import onnx


def tensor_info(value: onnx.ValueInfoProto) -> TensorInfo:
    """Return name, dtype and shape of an ONNX graph's input or output."""
    import onnx

    tensor = value.type.tensor_type
    return TensorInfo(
        name=value.name,
        dtype=onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name,
        shape=tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim),
    )
