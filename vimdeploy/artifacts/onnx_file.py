"""ONNX files: reading one, and what its inputs and outputs are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimdeploy.artifacts.manifest import TensorInfo
from vimdeploy.errors import ArtifactError

if TYPE_CHECKING:
    import onnx


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        ArtifactError: it is missing, empty or not an ONNX model.

    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: there is no such file.") from error
    except (OSError, DecodeError, onnx.checker.ValidationError) as error:
        raise ArtifactError(
            f"{path}: is not a readable ONNX file ({error}).", hint="Export the model again."
        ) from error
    if not model.graph.node or not model.graph.input or not model.graph.output:
        raise ArtifactError(f"{path}: is not an ONNX model: it has no graph.", hint="Export the model again.")
    return model


def fixed_batch(model: onnx.ModelProto) -> int | None:
    """Return the only batch that a model takes; None where it takes any."""
    return model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or None


def tensor_info(value: Any) -> TensorInfo:
    """Return name, dtype and shape of an ONNX graph input or output."""
    import onnx

    tensor = value.type.tensor_type
    return TensorInfo(
        name=value.name,
        dtype=onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name,
        shape=tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim),
    )
