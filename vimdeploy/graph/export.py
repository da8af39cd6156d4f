"""torch -> ONNX: a folded model becomes one self-contained file with the custom ops and their portable bodies."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnxscript.values import Opset
from torch import Tensor, nn

from vimdeploy import contract
from vimdeploy.errors import UsageError
from vimdeploy.graph.bodies import add_functions
from vimdeploy.graph.schema import register_schemas
from vimdeploy.models.folding import fold
from vimdeploy.models.registry import FamilyModel
from vimdeploy.models.tasks import find_taps, find_task
from vimdeploy.version import __version__

INPUT = "images"


def export_onnx(
    model: FamilyModel, *, task: str = "classify", batch: int | None = None, opset: int = contract.DEFAULT_OPSET
) -> onnx.ModelProto:
    """Export a model of the family.

    Args:
        model: with the official parameters; it is not changed.
        task: ``classify`` gives ``logits`` (B, classes), ``features`` what the head sees (B, D), ``tokens`` the normed
            sequence (B, L, D), ``dense`` the feature maps of a backbone (B, D, h, w), one output each.
        batch: a fixed batch size; None exports any batch.
        opset: of the standard ONNX operators.

    Returns:
        A model with input ``images`` (B, C, H, W) float32. The values of its blocks keep the names that
        :func:`~vimdeploy.models.tasks.find_taps` gives, so that a comparison can find the first block that departs.

    Raises:
        UsageError: an opset that the function bodies cannot be written in, or a task that does not fit the model.

    """
    if not contract.MIN_OPSET <= opset <= contract.MAX_OPSET:
        raise UsageError(f"opset {opset} is not supported.", hint=f"Use {contract.MIN_OPSET} to {contract.MAX_OPSET}.")
    register_schemas()
    wrapper = TappedModel(fold(model), task)
    config = model.config
    images = torch.zeros(batch or 2, config.channels, *config.img_size)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            wrapper,
            (images,),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT],
            output_names=[*wrapper.outputs, *wrapper.taps],
            dynamic_shapes=None if batch else ({0: torch.export.Dim("batch")},),
            custom_translation_table=translations(),
            verbose=False,
        )
        assert program is not None
    return _finish(program.model_proto, len(wrapper.outputs))


def serialize(model: onnx.ModelProto) -> bytes:
    """Return the bytes of a model; equal models give equal bytes."""
    return bytes(model.SerializeToString(deterministic=True))


class TappedModel(nn.Module):
    """The task's outputs, followed by the inner values of every block that runs."""

    def __init__(self, model: FamilyModel, task: str) -> None:
        super().__init__()
        self.model = model
        self._task, self._taps = find_task(model, task), find_taps(model)

    @property
    def outputs(self) -> list[str]:
        """Names of the task's outputs."""
        return list(self._task.outputs)

    @property
    def taps(self) -> list[str]:
        """Names of the inner values, in the order of computation."""
        return [name for tap in self._taps for name in tap.names]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs and the inner values of images (B, C, H, W)."""
        seen: list[Tensor] = []
        hooks = [
            tap.module.register_forward_hook(lambda _module, _inputs, output, tap=tap: seen.extend(tap.read(output)))
            for tap in self._taps
        ]
        try:
            result = self._task.run(images)
        finally:
            for hook in hooks:
                hook.remove()
        return (*result, *seen)


def translations() -> dict[Any, Callable[..., Any]]:
    """Return how torch's custom ops are spelt in ONNX, for ``torch.onnx.export(custom_translation_table=)``."""
    ops = Opset(contract.DOMAIN, contract.OP_VERSION)
    plugin = dict(zip(contract.PLUGIN_ATTRIBUTES, (contract.PLUGIN_VERSION, contract.PLUGIN_NAMESPACE), strict=True))

    def conv(x: Any, weight: Any, bias: Any, directions: Sequence[int], activation: str) -> Any:
        return ops.CausalConv1d(x, weight, bias, directions=list(directions), activation=activation, **plugin)

    def scan(
        u: Any,
        x_dbl: Any,
        A: Any,
        D: Any,
        dt_weight: Any,
        dt_bias: Any,
        z: Any,
        directions: Sequence[int],
        column_major: Sequence[int],
        height: int,
        scale: float,
    ) -> Any:
        attributes = {
            "directions": list(directions),
            "column_major": list(column_major),
            "height": height,
            "scale": scale,
            **plugin,
        }
        if z is None:
            return ops.SelectiveScanNoGate(u, x_dbl, A, D, dt_weight, dt_bias, **attributes)
        return ops.SelectiveScan(u, x_dbl, A, D, dt_weight, dt_bias, z, **attributes)

    def scan_delta(
        u: Any,
        delta: Any,
        A: Any,
        B: Any,
        C: Any,
        D: Any,
        delta_bias: Any,
        z: Any,
        delta_softplus: bool,
        reverse: bool,
    ) -> Any:
        attributes = {"delta_softplus": int(delta_softplus), "reverse": int(reverse), **plugin}
        if z is None:
            return ops.SelectiveScanDeltaNoGate(u, delta, A, B, C, D, delta_bias, **attributes)
        return ops.SelectiveScanDelta(u, delta, A, B, C, D, delta_bias, z, **attributes)

    return {
        torch.ops.vimdeploy.selective_scan_delta.default: scan_delta,
        torch.ops.vimdeploy.causal_conv1d.default: conv,
        torch.ops.vimdeploy.selective_scan.default: scan,
    }


def _finish(model: onnx.ModelProto, outputs: int) -> onnx.ModelProto:
    """Drop the taps from the outputs, strip what only the exporter needs, and add the bodies of the custom ops."""
    del model.graph.output[outputs:]
    _remove_unused(model.graph)
    _strip_metadata(model)
    add_functions(model)
    model.producer_name, model.producer_version = "vimdeploy", __version__
    model.graph.name = "vision_mamba"
    return model


def _remove_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes and initializers that no output needs."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    if len(kept) < len(graph.node) or len(initializers) < len(graph.initializer):
        del graph.node[:]
        graph.node.extend(reversed(kept))
        del graph.initializer[:]
        graph.initializer.extend(initializers)


def _strip_metadata(model: onnx.ModelProto) -> None:
    """Remove stack traces and class names, which are half a megabyte, vary between runs and name private paths."""
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks about torchvision and about its own deprecations."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
