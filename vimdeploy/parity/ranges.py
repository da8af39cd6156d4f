"""How large activations become on sample inputs: what decides whether FP16 can hold them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from vimdeploy.artifacts.golden import Samples
from vimdeploy.backends.base import Inputs, each_batch
from vimdeploy.backends.onnxruntime import OnnxBackend
from vimdeploy.graph.policy import POLICY

_BATCH = 4
"""Images at a time: every inner value of each of them is in memory."""


def watched(model: onnx.ModelProto) -> list[str]:
    """Return the values of a float32 model that cross into or out of half precision under the policy."""
    weights = {tensor.name for tensor in model.graph.initializer}
    names: dict[str, None] = {}
    for node in model.graph.node:
        if (node.domain, node.op_type) in POLICY:
            names.update(dict.fromkeys(n for n in (*node.input, *node.output) if n and n not in weights))
    return list(names)


def measure(model: onnx.ModelProto, images: Inputs) -> Mapping[str, float]:
    """Return the largest absolute value of every watched tensor over ``images``, in ONNX Runtime.

    NaN and infinity count as infinite: no type holds them.

    Args:
        model: float32.
        images: (N, C, H, W), or the named inputs of a module.

    """
    inputs = {value.name for value in model.graph.input}
    names = watched(model)
    backend = OnnxBackend(model, taps=names)
    arrays = images.arrays if isinstance(images, Samples) else {model.graph.input[0].name: images}
    largest = {name: float(np.abs(arrays[name]).max()) for name in names if name in inputs}
    batch = backend.fixed_batch or min(_BATCH, len(images))
    for outputs in each_batch(backend, images, batch):
        for name, value in outputs.items():
            top = float(np.abs(value).max())
            largest[name] = max(largest.get(name, 0.0), top if np.isfinite(top) else float("inf"))
    return largest
