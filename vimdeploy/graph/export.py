"""torch -> ONNX: a folded model becomes one self-contained file with the custom ops and their portable bodies."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnxscript.values import Opset

from vimdeploy import contract
from vimdeploy.errors import UsageError
from vimdeploy.graph.bodies import add_functions
from vimdeploy.graph.schema import register_schemas
from vimdeploy.models.family import FamilyModel, fold
from vimdeploy.models.tapped import TappedModel
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
        A model with input ``images`` (B, C, H, W) float32. The values of its blocks keep the names that its
        :meth:`~vimdeploy.models.family.FamilyModel.taps` give, so that a comparison finds the first that departs.

    Raises:
        UsageError: an opset that the function bodies cannot be written in, or a task that does not fit the model.

    """
    if not contract.MIN_OPSET <= opset <= contract.MAX_OPSET:
        raise UsageError(f"opset {opset} is not supported.", hint=f"Use {contract.MIN_OPSET} to {contract.MAX_OPSET}.")
    register_schemas()
    wrapper = TappedModel(fold(model), task)
    config = model.config
    images = torch.zeros(batch or 2, config.channels, *config.img_size)
    with quiet_exporter(), torch.no_grad():
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
    return finish(program.model_proto, len(wrapper.outputs))


def serialize(model: onnx.ModelProto) -> bytes:
    """Return the bytes of a model; equal models give equal bytes."""
    return bytes(model.SerializeToString(deterministic=True))


def translations() -> dict[Any, Callable[..., Any]]:
    """Return how torch's custom ops are spelt in ONNX, for ``torch.onnx.export(custom_translation_table=)``.

    A torch op takes the inputs of its contract and then the attributes, in the contract's order. One whose last input,
    the gate, is None is the contract's op of that name with ``NoGate`` behind it.
    """
    return {
        torch.ops.vimdeploy.causal_conv1d.default: _translation(contract.CAUSAL_CONV1D),
        torch.ops.vimdeploy.selective_scan.default: _translation(contract.SELECTIVE_SCAN),
        torch.ops.vimdeploy.selective_scan_delta.default: _translation(contract.SELECTIVE_SCAN_DELTA),
    }


def _translation(whole: contract.CustomOp) -> Callable[..., Any]:
    ops = Opset(contract.DOMAIN, contract.OP_VERSION)
    plugin = dict(zip(contract.PLUGIN_ATTRIBUTES, (contract.PLUGIN_VERSION, contract.PLUGIN_NAMESPACE), strict=True))
    convert: dict[contract.AttributeKind, Callable[[Any], Any]] = {
        contract.AttributeKind.INT: int,
        contract.AttributeKind.INTS: list,
        contract.AttributeKind.FLOAT: float,
        contract.AttributeKind.STRING: str,
    }

    def translate(*arguments: Any) -> Any:
        inputs, values = arguments[: len(whole.inputs)], arguments[len(whole.inputs) :]
        op = whole
        if inputs[-1] is None:
            op, inputs = contract.OPS[f"{whole.name}NoGate"], inputs[:-1]
        attributes = {a.name: convert[a.kind](value) for a, value in zip(op.attributes, values, strict=True)}
        return getattr(ops, op.name)(*inputs, **attributes, **plugin)

    return translate


def finish(model: onnx.ModelProto, outputs: int) -> onnx.ModelProto:
    """Drop the taps from the outputs, strip what only the exporter needs, and add the bodies of the custom ops."""
    del model.graph.output[outputs:]
    remove_unused(model.graph)
    _strip_metadata(model)
    add_functions(model)
    model.producer_name, model.producer_version = "vimdeploy", __version__
    model.graph.name = "vision_mamba"
    return model


def remove_unused(graph: onnx.GraphProto) -> None:
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
def quiet_exporter() -> Iterator[None]:
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
