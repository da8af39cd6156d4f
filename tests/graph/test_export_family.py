"""The exported graphs of VMamba and the dense backbones: what they compute, and what is in them."""

import functools
from collections import Counter

import dense_cases
import numpy as np
import pytest
import torch
import vmamba_cases

from vimdeploy import contract
from vimdeploy.backends.onnxruntime import OnnxBackend
from vimdeploy.backends.torch import TorchBackend
from vimdeploy.errors import UsageError
from vimdeploy.graph.check import check_model
from vimdeploy.graph.export import export_onnx

CASES = ("vmamba_v0", "vmamba_v05", "seg_fpn", "det_rope", "v052d_gated", "backbone")
VMAMBA = ("vmamba_v0", "vmamba_v05", "v052d_gated", "backbone")
CLASSIFIERS = ("vmamba_v0", "vmamba_v05", "v052d_gated")


def _load(name):
    """Return a model, images, official outputs."""
    if name in vmamba_cases.GOLDENS:
        model, arrays = vmamba_cases.golden(name)
        return model, arrays["images"], [arrays["logits"]]
    if name in ("seg_fpn", "det_rope"):
        model, images, expected = dense_cases.golden(name)
        return model, images.numpy(), expected
    arguments, images, _, expected = vmamba_cases.options()[name]
    return vmamba_cases.make(**{**arguments, "imgsize": list(images.shape[2:])}), images.numpy(), expected


@functools.cache
def exported(name):
    """Return (model, ONNX model, images, official outputs)."""
    model, images, expected = _load(name)
    return model, export_onnx(model, task=_task(name)), images, expected


def _task(name):
    return "classify" if name in CLASSIFIERS else "dense"


def _scans(onnx_model):
    return [node for node in onnx_model.graph.node if node.op_type.startswith("SelectiveScan")]


def _attributes(node):
    return {a.name: list(a.ints) or a.i or a.f or a.s for a in node.attribute}


@pytest.mark.parametrize("name", CASES)
def test_the_file_computes_what_the_official_code_computes(name):
    model, onnx_model, images, expected = exported(name)
    check_model(onnx_model, name)
    backend = OnnxBackend(onnx_model)
    outputs = backend.run(images)
    names = ("logits",) if name in CLASSIFIERS else model.config.feature_names
    assert tuple(outputs) == names
    for output, reference in zip(outputs.values(), expected, strict=True):
        np.testing.assert_allclose(output, reference, rtol=1e-4, atol=1e-4, equal_nan=False)
    single = backend.run(images[:1])
    for output, alone in zip(outputs.values(), single.values(), strict=True):
        np.testing.assert_allclose(alone, output[:1], rtol=1e-5, atol=1e-5, equal_nan=False)


@pytest.mark.parametrize("name", CASES)
def test_inner_values_carry_names_and_are_the_same(name):
    model, onnx_model, images, _ = exported(name)
    reference = TorchBackend(model, _task(name), taps=True).run(images[:1])
    inner = [name for tap in model.taps() for name in tap.names]
    assert inner
    assert set(inner) < set(reference)
    candidate = OnnxBackend(onnx_model, taps=inner).run(images[:1])
    for tap in inner:
        if tap in candidate:  # what no output needs is not in the file
            np.testing.assert_allclose(candidate[tap], reference[tap], rtol=1e-3, atol=1e-3, equal_nan=False)
    assert len(set(inner) & set(candidate)) >= len(inner) - 2


@pytest.mark.parametrize("name", VMAMBA)
def test_a_vmamba_block_is_one_scan_and_at_most_two_layout_transposes(name):
    model, onnx_model, images, _ = exported(name)
    scans = _scans(onnx_model)
    assert len(scans) == len(model.taps())
    assert {node.op_type for node in scans} == {"SelectiveScanNoGate"}
    counts = Counter(node.op_type for node in onnx_model.graph.node)
    # The stem and each downsampling have convolutions of their own.
    stem = 3 if model.config.patchembed_version == "v2" else 1
    convolutions = 0 if model.config.downsample_version == "v1" else 2 * (len(model.layers) - 1)
    features = len(model.config.out_indices)
    assert counts["Transpose"] <= 2 * len(scans) + stem + convolutions + features
    # No cross-scan, no cross-merge: nothing is flipped, gathered, stacked or copied beside the op.
    assert not {"Gather", "Expand", "Split", "Tile", "Scan", "Loop", "Einsum"} & set(counts)
    if model.config.downsample_version != "v1":
        assert not {"Slice", "Concat"} & set(counts)
    heights = {_attributes(node)["height"] for node in scans}
    walks = {tuple(_attributes(node)["directions"]) for node in scans}
    assert walks == {(1, 1, -1, -1)}
    column_major = {tuple(_attributes(node).get("column_major", ())) for node in scans}
    if name == "v052d_gated":
        assert column_major == {(0, 0, 0, 0)}
        assert heights == {1}
    else:
        assert column_major == {(0, 1, 0, 1)}
        assert max(heights) == images.shape[2] // 4
    assert [f.name for f in onnx_model.functions] == ["SelectiveScanNoGate"]


def test_u_is_shared_by_the_four_scans():
    _, onnx_model, _, _ = exported("vmamba_v05")
    initializers = {tensor.name: tuple(tensor.dims) for tensor in onnx_model.graph.initializer}
    producers = {output: node for node in onnx_model.graph.node for output in node.output}
    for node in _scans(onnx_model):
        u = producers[node.input[0]]
        assert u.op_type == "Reshape"
        x_dbl = producers[node.input[1]]
        assert x_dbl.op_type == "MatMul"
        assert x_dbl.input[0] == node.input[0]
        assert initializers[x_dbl.input[1]][:2] == (4, 1)


def test_a_model_says_which_tasks_it_has():
    backbone = vmamba_cases.make(dims=16, depths=[1], ssm_d_state=1, forward_type="v05_noz", out_indices=[0])
    with pytest.raises(UsageError, match="backbone"):
        export_onnx(backbone, task="classify")
    model, _ = vmamba_cases.golden("vmamba_v05")
    with pytest.raises(UsageError, match="classifier"):
        export_onnx(model, task="dense")
    with pytest.raises(UsageError, match="Did you mean 'dense'"):
        export_onnx(model, task="denses")


@pytest.mark.parametrize("name", CASES)
def test_opset_and_contract_are_those_of_the_house(name):
    _, onnx_model, _, _ = exported(name)
    opsets = {entry.domain: entry.version for entry in onnx_model.opset_import}
    assert opsets == {"": contract.DEFAULT_OPSET, contract.DOMAIN: contract.OP_VERSION}


def test_tokens_of_vmamba_are_a_sequence():
    model = vmamba_cases.make(
        dims=16, depths=[1, 1], ssm_d_state=1, forward_type="v05_noz", norm_layer="ln2d", imgsize=[32, 48]
    )
    images = torch.from_numpy(vmamba_cases.image("tokens", (3, 3, 32, 48)))
    tokens = OnnxBackend(export_onnx(model, task="tokens")).run(images.numpy())["tokens"]
    assert tokens.shape == (3, 24, 32)
    with torch.no_grad():
        np.testing.assert_allclose(tokens, model.forward_tokens(images).numpy(), rtol=1e-4, atol=1e-4)
