"""Triton's ``config.pbtxt``, from what a manifest says.

Fields and defaults: ``model_config.proto`` of triton-inference-server/common. The text is written here, since
tritonclient, which carries the schema, ties protobuf to older versions than onnx has; the tests parse every file with
that schema, and load it into the real server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vimdeploy.errors import UsageError

_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "int8": "TYPE_INT8",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}


class Word(str):
    """An enum value: written without quotes."""

    __slots__ = ()


@dataclass(frozen=True)
class TensorConfig:
    """One input or output of a model, without its batch dimension where Triton batches."""

    name: str
    dtype: str
    """numpy's name, or ``bytes``."""
    dims: tuple[int, ...]
    label_file: str | None = None

    def fields(self) -> dict[str, Any]:
        """Return the message ModelInput or ModelOutput."""
        fields: dict[str, Any] = {"name": self.name, "data_type": data_type(self.dtype), "dims": list(self.dims)}
        return fields | ({"label_filename": self.label_file} if self.label_file else {})


@dataclass(frozen=True)
class Batching:
    """How requests are joined."""

    largest: int
    """0: the model takes batches of one fixed size, given with its dimensions, and Triton joins nothing."""
    delay_us: int = 500
    """How long a request may wait for others."""
    queue: int = 256
    """Requests that may wait; those beyond are refused at once."""
    timeout_us: int = 10_000_000
    """How long a request may wait in the queue before it is refused."""

    def fields(self) -> dict[str, Any]:
        """Return max_batch_size and dynamic_batching."""
        if self.largest == 0:
            return {"max_batch_size": 0}
        policy = {
            "timeout_action": Word("REJECT"),
            "default_timeout_microseconds": self.timeout_us,
            "max_queue_size": self.queue,
        }
        return {
            "max_batch_size": self.largest,
            "dynamic_batching": {"max_queue_delay_microseconds": self.delay_us, "default_queue_policy": policy},
        }


def data_type(name: str) -> Word:
    """Return Triton's name of a numpy dtype; UsageError where Triton has none."""
    if name == "bytes":
        return Word("TYPE_STRING")
    try:
        return Word(_TYPES[name])
    except KeyError:
        raise UsageError(f"Triton has no tensors of type {name}.") from None


def model_config(
    name: str,
    backend: Mapping[str, str],
    inputs: Sequence[TensorConfig],
    outputs: Sequence[TensorConfig],
    batching: Batching,
    *,
    instances: int,
    gpu: bool,
    keep_versions: int,
    warmup: bool,
    extra: Mapping[str, Any] | None = None,
) -> str:
    """Return the configuration of one model.

    Args:
        name: of the model; also its folder's.
        backend: ``{"backend": ...}`` or ``{"platform": ...}``.
        inputs: in the model's order.
        outputs: in the model's order.
        batching: how requests are joined.
        instances: copies that run at the same time.
        gpu: whether they are on each GPU, or on the CPU.
        keep_versions: how many of the newest versions are served.
        warmup: run a batch of one and the largest batch before the model is called ready.
        extra: further fields.

    """
    kind = Word("KIND_GPU" if gpu else "KIND_CPU")
    fields: dict[str, Any] = {
        "name": name,
        **backend,
        **batching.fields(),
        "input": [tensor.fields() for tensor in inputs],
        "output": [tensor.fields() for tensor in outputs],
        "version_policy": {"latest": {"num_versions": keep_versions}},
        "instance_group": [{"count": instances, "kind": kind}],
        **({"model_warmup": _warmup(inputs, batching)} if warmup else {}),
        **(extra or {}),
    }
    return to_text(fields)


def ensemble_config(
    name: str,
    steps: Sequence[tuple[str, Mapping[str, str], Mapping[str, str]]],
    inputs: Sequence[TensorConfig],
    outputs: Sequence[TensorConfig],
    batching: Batching,
    *,
    keep_versions: int,
) -> str:
    """Return the configuration of models in a row: ``steps`` are (model, its inputs, its outputs) by tensor name."""
    return to_text(
        {
            "name": name,
            "platform": "ensemble",
            "max_batch_size": batching.largest,
            "input": [tensor.fields() for tensor in inputs],
            "output": [tensor.fields() for tensor in outputs],
            "version_policy": {"latest": {"num_versions": keep_versions}},
            "ensemble_scheduling": {
                "step": [
                    {
                        "model_name": model,
                        "model_version": -1,
                        "input_map": [{"key": k, "value": v} for k, v in takes.items()],
                        "output_map": [{"key": k, "value": v} for k, v in gives.items()],
                    }
                    for model, takes, gives in steps
                ]
            },
        }
    )


def _warmup(inputs: Sequence[TensorConfig], batching: Batching) -> list[dict[str, Any]]:
    def sample(batch: int) -> dict[str, Any]:
        data = [
            {
                "key": tensor.name,
                "value": {"data_type": data_type(tensor.dtype), "dims": list(tensor.dims), "random_data": True},
            }
            for tensor in inputs
        ]
        return {"name": f"batch {batch}" if batch else "batch as exported", "batch_size": batch, "inputs": data}

    sizes = {1, batching.largest} if batching.largest else {0}
    return [sample(size) for size in sorted(sizes)]


def to_text(fields: Mapping[str, Any], indent: str = "") -> str:
    """Return fields in protobuf's text format: mappings are messages, lists of mappings repeated messages."""
    lines = []
    for name, value in fields.items():
        for one in value if isinstance(value, list) and value and isinstance(value[0], Mapping) else [value]:
            if isinstance(one, Mapping):
                lines.append(f"{indent}{name} {{\n{to_text(one, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{name}: {_scalar(one)}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    if isinstance(value, Word):
        return str(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    return json.dumps(value) if isinstance(value, str) else str(value)
