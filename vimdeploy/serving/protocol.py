"""The Open Inference Protocol (KServe v2) over HTTP: requests in, tensors out, with its binary tensor extension.

Specification: https://github.com/kserve/open-inference-protocol and, for binary tensors,
``extension_binary_data.md`` of triton-inference-server/server.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from vimdeploy.errors import UsageError
from vimdeploy.predicting.rows import Array

IMAGE_FILE = "image_file"
"""Input that takes the bytes of image files in place of the model's tensor, as the Triton ensemble does."""
_LARGEST_RANK = 8


@dataclass(frozen=True)
class InferRequest:
    """What a client asks: a tensor, or image files."""

    id: str | None
    tensor: Array | None
    files: tuple[bytes, ...]


def parse_infer(body: bytes, header_length: int | None, tensor_name: str) -> InferRequest:
    """Read the body of ``POST /v2/models/NAME/infer``.

    Args:
        body: the whole body.
        header_length: ``Inference-Header-Content-Length``, where binary tensors follow the JSON.
        tensor_name: of the model's input.

    Raises:
        UsageError: says what is wrong with it.

    """
    length = len(body) if header_length is None else header_length
    if not 0 <= length <= len(body):
        raise UsageError(f"Inference-Header-Content-Length is {length}, the body has {len(body)} bytes.")
    try:
        data = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The body is not JSON: {type(error).__name__}.") from error
    inputs = data.get("inputs") if isinstance(data, dict) else None
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise UsageError("'inputs' must be a list of one tensor.")
    (entry,) = inputs
    identity = data.get("id")
    shape = _shape(entry)
    raw = _binary(entry, body[length:])
    if entry.get("name") == IMAGE_FILE:
        return InferRequest(_text(identity), None, _files(entry, shape, raw))
    if entry.get("name") != tensor_name:
        raise UsageError(f"The model takes '{tensor_name}' or '{IMAGE_FILE}', not {str(entry.get('name'))[:80]!r}.")
    return InferRequest(_text(identity), _tensor(entry, shape, raw), ())


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _shape(entry: dict[str, Any]) -> tuple[int, ...]:
    shape = entry.get("shape")
    good = isinstance(shape, list) and 0 < len(shape) <= _LARGEST_RANK
    if not good or not all(type(size) is int and 0 < size <= 1 << 24 for size in shape or ()):
        raise UsageError("'shape' must be a list of positive numbers.")
    return tuple(shape or ())


def _binary(entry: dict[str, Any], rest: bytes) -> bytes | None:
    parameters = entry.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        return None
    if type(size) is not int or size != len(rest):
        raise UsageError(f"'binary_data_size' is {size}, {len(rest)} bytes follow the JSON.")
    return rest


def _tensor(entry: dict[str, Any], shape: tuple[int, ...], raw: bytes | None) -> Array:
    if entry.get("datatype") != "FP32":
        raise UsageError(f"'datatype' must be FP32, not {str(entry.get('datatype'))[:20]!r}.")
    if raw is not None:
        if len(raw) != 4 * math.prod(shape):
            raise UsageError(f"The tensor has {len(raw)} bytes, its shape asks for {4 * math.prod(shape)}.")
        return np.frombuffer(raw, "<f4").reshape(shape)
    try:
        values = np.asarray(entry.get("data"), dtype=np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise UsageError("'data' must be numbers, flat or nested as 'shape' says.") from error
    if values.size != math.prod(shape):
        raise UsageError(f"'data' has {values.size} values, 'shape' asks for {math.prod(shape)}.")
    return values.reshape(shape)


def _files(entry: dict[str, Any], shape: tuple[int, ...], raw: bytes | None) -> tuple[bytes, ...]:
    if entry.get("datatype") != "BYTES":
        raise UsageError(f"'{IMAGE_FILE}' is of datatype BYTES.")
    files = _from_json(entry.get("data")) if raw is None else _length_prefixed(raw)
    if len(files) != math.prod(shape):
        raise UsageError(f"There are {len(files)} image files, 'shape' asks for {math.prod(shape)}.")
    return files


def _from_json(data: Any) -> tuple[bytes, ...]:
    flat = (
        [one for part in data for one in (part if isinstance(part, list) else [part])] if isinstance(data, list) else []
    )
    try:
        return tuple(base64.b64decode(text, validate=True) for text in flat)
    except (binascii.Error, ValueError, TypeError) as error:
        raise UsageError(f"'{IMAGE_FILE}' in JSON is a list of files in base64.") from error


def _length_prefixed(raw: bytes) -> tuple[bytes, ...]:
    files, start = [], 0
    while start < len(raw):
        length = int.from_bytes(raw[start : start + 4], "little")
        if start + 4 + length > len(raw):
            raise UsageError("A file in the binary tensor is longer than the body.")
        files.append(raw[start + 4 : start + 4 + length])
        start += 4 + length
    return tuple(files)


def infer_answer(name: str, version: str, identity: str | None, outputs: dict[str, Array]) -> dict[str, Any]:
    """Return the body of an answer. JSON has no NaN and no infinity: they become null."""
    tensors = [
        {
            "name": output,
            "datatype": "FP32",
            "shape": list(values.shape),
            "data": [value if math.isfinite(value) else None for value in values.ravel().tolist()],
        }
        for output, values in outputs.items()
    ]
    return {"model_name": name, "model_version": version, **({"id": identity} if identity else {}), "outputs": tensors}
