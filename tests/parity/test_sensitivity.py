"""The blocks that half precision hurts most: found by measuring, and only as many kept as a contract needs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from exports import DATA, cli, relative_rms
from onnx import numpy_helper
from PIL import Image
from trained_like import image

from vimdeploy.artifacts.manifest import read_manifest
from vimdeploy.artifacts.recipe import ParityContract
from vimdeploy.backends.onnxruntime import OnnxBackend
from vimdeploy.commands.convert import HalfOptions, to_half
from vimdeploy.errors import UsageError, VerificationError
from vimdeploy.graph.emulate import emulate
from vimdeploy.graph.policy import FP16, Policy
from vimdeploy.parity.ranges import measure
from vimdeploy.parity.sensitivity import HEAD, Fitted, Task, blocks, fit

SMALL = image("sensitivity", (2, 3, 64, 64))


def fitted(model: onnx.ModelProto, bound: float, images: np.ndarray = SMALL) -> Fitted:
    contract = ParityContract(relative_rms=bound)
    task = Task(model, images, contract, classes=True, ranges=measure(model, images))
    return fit(task, FP16, Policy())


def test_fp16_of_vim_ti_reaches_two_per_mille_with_few_blocks_in_float32(vim_ti: Path) -> None:
    """Every matrix product rounded costs 6e-3 here, and the rounded weights alone 4e-3: no policy by op type can."""
    golden = np.load(DATA / "full_tiny224.npz")
    images = np.concatenate([golden["images"], image("beside the golden", (3, 3, 224, 224))])
    model = onnx.load(vim_ti)
    found = fitted(model, 2e-3, images)
    print(f"FP16 with {', '.join(found.kept)} in float32: {found.metrics.relative_rms:.2e}")
    assert found.metrics.relative_rms <= 2e-3
    assert 1 <= len(found.kept) <= 8
    errors = [cost.error for cost in found.costs]
    assert len(errors) == 25
    assert max(errors[:3]) > 5 * max(errors[-8:]), "what is rounded early is amplified most"
    emulated = OnnxBackend(emulate(found.model)).run(golden["images"])["logits"]
    assert relative_rms(emulated, golden["logits"]) <= 2e-3
    for weight in found.model.graph.initializer:
        block = weight.name.split(".")[2] if ".layers." in weight.name else ""
        if ".mixer.in_x" in weight.name:
            held = f"block.{block}" in found.kept
            assert (weight.data_type == onnx.TensorProto.FLOAT) == held, weight.name


def test_nothing_is_kept_where_the_policy_alone_keeps_the_contract(tiny_model: onnx.ModelProto) -> None:
    found = fitted(tiny_model, 5e-3)
    assert found.metrics.passed
    assert (found.kept, found.costs) == ((), ())


def test_blocks_follow_the_model_and_hold_every_node_once(tiny_model: onnx.ModelProto) -> None:
    parts = blocks(tiny_model)
    assert [part.name for part in parts] == [*(f"block.{i}" for i in range(4)), HEAD]
    assert sum(len(part.nodes) for part in parts) == len(tiny_model.graph.node)
    assert all(any("scan" in node for node in part.nodes) == (part.name != HEAD) for part in parts)


@pytest.mark.parametrize("culprit", [1, 2])
def test_a_block_that_loses_its_precision_is_the_one_kept(tiny_model: onnx.ModelProto, culprit: int) -> None:
    """Weights below FP16's normal range in all channels but one, made up for by the convolution: exact in float32."""
    planted = onnx.ModelProto()
    planted.CopyFrom(tiny_model)
    for tensor in planted.graph.initializer:
        value = numpy_helper.to_array(tensor).copy()
        if tensor.name == f"model.layers.{culprit}.mixer.in_x":  # (D, E)
            value[:, 1:] *= 2.0**-15
        elif tensor.name == f"model.layers.{culprit}.mixer.conv_weight":  # (G, E, K)
            value[:, 1:] *= 2.0**15
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    exact, original = (OnnxBackend(m).run(SMALL)["logits"] for m in (planted, tiny_model))
    assert relative_rms(exact, original) < 1e-5
    found = fitted(planted, 2e-3)
    assert found.metrics.passed
    assert found.kept == (f"block.{culprit}",)
    assert max(found.costs, key=lambda cost: cost.error).block.name == f"block.{culprit}"
    assert {kept.reason.split()[0] for kept in found.report.kept} == {f"block.{culprit}"}


def test_at_most_half_of_the_blocks_are_kept(tiny: Path, tiny_model: onnx.ModelProto) -> None:
    found = fitted(tiny_model, 1e-7)
    assert not found.metrics.passed
    assert len(found.kept) == 2
    strict = read_manifest(tiny).bounded(precision="fp16", max_error=1e-7)
    with pytest.raises(VerificationError, match=r"relative RMS .* even with block\.\d, block\.\d in float32"):
        to_half(tiny_model, strict, HalfOptions(max_error=1e-7), "vim.onnx")
    with pytest.raises(UsageError, match="without its manifest nothing can be measured"):
        to_half(tiny_model, None, HalfOptions(max_error=1e-3), "vim.onnx")


def test_the_command_says_which_blocks_stay_and_why(tiny: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.onnx"
    done = cli("convert", str(tiny), "-o", str(half), "--max-error", "1e-3")
    assert done.returncode == 0, done.stderr
    conversion = read_manifest(half).conversion
    assert conversion is not None
    (kept, *_) = conversion["kept_blocks"]
    assert f"nodes stay float32: {kept} alone in FP16 costs relative RMS" in done.stderr
    assert conversion["metrics"]["relative_rms"] <= 1e-3
    assert read_manifest(half).contract.fp16.relative_rms == 1e-3, "the file owes what was asked of it"
    as_json = json.loads(cli("convert", str(tiny), "-o", str(half), "--max-error", "1e-3", "--json").stdout)
    assert as_json["kept_blocks"] == conversion["kept_blocks"]


def test_the_images_to_measure_on_can_be_the_users_own(tiny: Path, tmp_path: Path) -> None:
    folder, half = tmp_path / "photos", tmp_path / "half.onnx"
    missing = cli("convert", str(tiny), "-o", str(half), "--images", str(folder))
    assert missing.returncode == 2
    assert f"{folder}: there is no such folder" in missing.stderr
    folder.mkdir()
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 255, (80, 100, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    done = cli("convert", str(tiny), "-o", str(half), "--images", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["samples"] == 3
