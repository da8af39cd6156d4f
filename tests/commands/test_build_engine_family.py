"""TensorRT-RTX builds FP16 plans of the whole family at the sizes that the released models are for."""

from __future__ import annotations

from pathlib import Path

import pytest

import vimdeploy
from vimdeploy.commands.build_engine import build_engine
from vimdeploy.tensorrt import api as trt
from vimdeploy.tensorrt.options import BuildOptions

OPTIONS = BuildOptions(flavour=trt.Flavour.RTX, compute_capabilities=("sm_89",), optimization_level=0, batch=(1, 1, 2))


@pytest.mark.parametrize(
    ("recipe", "size", "outputs", "weights"),
    [
        ("vmamba_tiny_s1l8", 224, ["logits"], 0.85),
        ("vim_tiny_upernet_512", 512, ["p2", "p3", "p4", "p5"], 0.85),
        # Position embeddings and rotary tables of 4096 tokens stay float32: a third of all bytes.
        ("vim_tiny_vimdet_1024", 1024, ["last_feat"], 0.5),
        ("deit_tiny_patch16_224", 224, ["logits"], 0.85),
    ],
)
def test_a_released_model_at_its_own_size(
    recipe: str, size: int, outputs: list[str], weights: float, tmp_path: Path
) -> None:
    onnx = tmp_path / "model.onnx"
    vimdeploy.export(output=onnx, arch=recipe, verify=False)
    # Not verified: a float32 run at 1024 pixels is minutes here, and the contract is the business of other tests.
    built = build_engine(onnx, tmp_path / "model.engine", options=OPTIONS, precision="fp16", verify=False)
    manifest = built.manifest
    assert manifest.profiles == ({"images": tuple((n, 3, size, size) for n in (1, 1, 2))},)
    assert [(t.name, t.dtype) for t in manifest.outputs] == [(name, "float32") for name in outputs]
    assert manifest.network["half_weight_share"] > weights
    assert manifest.network["half_compute_share"] > 0.6
    assert manifest.kept_float32 == ()
    print(f"{recipe}: {built.seconds:.0f} s, {manifest.plan_bytes / 1e6:.0f} MB")
