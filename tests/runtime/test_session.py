"""One face over ONNX files and plans; plans that cannot be loaded here are refused in words."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import vimdeploy
from vimdeploy.artifacts.engine_manifest import (
    EngineManifest,
    Machine,
    PluginInfo,
    TargetInfo,
    TensorRtInfo,
    read_engine_manifest,
    refuse_unloadable,
)
from vimdeploy.artifacts.files import sha256_file
from vimdeploy.commands.build_engine import build_engine
from vimdeploy.commands.convert import convert
from vimdeploy.errors import ArtifactError, MissingDependencyError, UsageError
from vimdeploy.runtime.cuda import CudaDevice
from vimdeploy.runtime.onnx_session import OnnxSession
from vimdeploy.runtime.plan_session import load_plan, this_machine
from vimdeploy.tensorrt.api import Flavour
from vimdeploy.tensorrt.options import BuildOptions, parse_size


def images(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, 3, 64, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def plan(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = BuildOptions(flavour=Flavour.RTX, compute_capabilities=("sm_89",), optimization_level=0)
    path = tmp_path_factory.mktemp("plan") / "vim.engine"
    build_engine(tiny, path, options=options, precision="fp32")
    return path


def test_load_picks_by_content(tiny: Path, plan: Path, tmp_path: Path) -> None:
    with vimdeploy.load(tiny) as session:
        assert isinstance(session, OnnxSession)
    disguised = tmp_path / "model.bin"
    disguised.write_bytes(tiny.read_bytes())
    with vimdeploy.load(disguised) as session:
        assert isinstance(session, OnnxSession)
    if not has_gpu():
        with pytest.raises(ArtifactError, match="no NVIDIA GPU can be used here"):
            vimdeploy.load(plan)
    noise = tmp_path / "noise.bin"
    noise.write_bytes(b"\x00noise")
    with pytest.raises(ArtifactError, match="neither a TensorRT plan nor an ONNX model"):
        vimdeploy.load(noise)
    with pytest.raises(ArtifactError, match="cannot be read"):
        vimdeploy.load(tmp_path / "absent.onnx")


def has_gpu() -> bool:
    try:
        CudaDevice()
    except MissingDependencyError:
        return False
    return True


def test_an_onnx_session_has_the_face_of_a_session(tiny: Path) -> None:
    with OnnxSession(tiny, threads=1, batch=4) as session:
        assert [(t.name, t.dtype, t.shape) for t in session.inputs] == [("images", "float32", (-1, 3, 64, 64))]
        assert [(t.name, t.dtype, t.shape) for t in session.outputs] == [("logits", "float32", (-1, 10))]
        whole = session(images(10))
        assert whole.shape == (10, 10)
        one_by_one = np.concatenate([session(images(10)[i : i + 1]) for i in range(10)])
        np.testing.assert_allclose(whole, one_by_one, atol=1e-5)
        np.testing.assert_array_equal(session(torch.from_numpy(images(3)).requires_grad_()), session(images(3)))
        out = np.zeros((3, 10), np.float32)
        assert session.run({"images": images(3)}, {"logits": out})["logits"] is out
        np.testing.assert_array_equal(out, session(images(3)))
        pending = session.submit({"images": images(5)})
        np.testing.assert_array_equal(pending.result()["logits"], session(images(5)))
        with pytest.raises(UsageError, match="float64"):
            session(images(2).astype(np.float64))
        wide = torch.zeros(3, 10)
        assert session.run({"images": images(3)}, {"logits": wide})["logits"] is wide
        np.testing.assert_array_equal(wide.numpy(), out)
        for wrong in (np.zeros((1, 10), np.float32), np.zeros((3, 10), np.float16), [1.0]):
            with pytest.raises(UsageError, match="logits"):
                session.run({"images": images(3)}, {"logits": wrong})
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda seed: session(images(2, seed)), range(8)))
        for seed, result in enumerate(results):
            np.testing.assert_allclose(result, session(images(2, seed)), atol=1e-6)


def test_a_closed_onnx_session_says_so(tiny: Path) -> None:
    session = OnnxSession(tiny)
    session.close()
    for call in (session.run, session.submit):
        with pytest.raises(UsageError, match="this session is closed"):
            call({"images": images(1)})


def test_a_fixed_batch_is_filled_up(tiny: Path, tmp_path: Path) -> None:
    from exports import DATA, export

    fixed = export(DATA / "cls_tiny.pth", tmp_path / "fixed.onnx", batch=4)
    with OnnxSession(fixed) as session, OnnxSession(tiny) as free:
        for batch in (1, 4, 7):
            np.testing.assert_allclose(session(images(batch)), free(images(batch)), atol=1e-5)


def test_half_inputs_and_outputs(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "half.onnx", io_dtype="fp16")
    with OnnxSession(tmp_path / "half.onnx") as session, OnnxSession(tiny) as full:
        assert session.inputs[0].dtype == session.outputs[0].dtype == "float16"
        half = session(images(2).astype(np.float16))
        assert half.dtype == np.float16
        np.testing.assert_allclose(half.astype(np.float32), full(images(2)), atol=2e-2)
        with pytest.raises(UsageError, match="is float32, the model takes float16"):
            session(images(2))


HERE = Machine({"tensorrt": "11.4.0", "rtx": "1.7.1.116"}, "sm_89", 13000, "1", "ab" * 32)


def edit(manifest: EngineManifest, **changes: Any) -> EngineManifest:
    return manifest.model_copy(update=changes)


TRT = TensorRtInfo(flavour="tensorrt", version="11.4.0", version_compatible=False)
PLUGIN = PluginInfo(version="1", sha256="ab" * 32, file="libvimdeploy_plugin.so", embedded=False)
AMPERE = TargetInfo(compute_capabilities=("sm_90",), hardware_compatible=True, device="H100", driver=13000)


@pytest.mark.parametrize(
    ("changes", "machine", "reason"),
    [
        ({}, HERE, ""),
        ({}, dataclasses.replace(HERE, versions={}), "needs TensorRT-RTX 1.7.1.116, which is not installed"),
        (
            {},
            dataclasses.replace(HERE, versions={"rtx": "1.8.0"}),
            "was built by TensorRT-RTX 1.7.1.116, here is 1.8.0",
        ),
        ({}, dataclasses.replace(HERE, compute_capability="sm_90"), "it is for sm_89, the GPU here is sm_90"),
        ({}, dataclasses.replace(HERE, compute_capability=None), "no NVIDIA GPU can be used here"),
        ({"tensorrt": TRT}, dataclasses.replace(HERE, versions={"tensorrt": "10.16.1"}), "here is 10.16.1"),
        (
            {"tensorrt": TRT.model_copy(update={"version_compatible": True})},
            dataclasses.replace(HERE, versions={"tensorrt": "11.10.0"}),
            "",
        ),
        (
            {"tensorrt": TRT.model_copy(update={"version_compatible": True})},
            dataclasses.replace(HERE, versions={"tensorrt": "11.1.0"}),
            "compatible with later versions only",
        ),
        (
            {"tensorrt": TRT.model_copy(update={"version": "10.14.1", "version_compatible": True})},
            HERE,
            "",
        ),
        (
            {"tensorrt": TRT.model_copy(update={"version": "10.14.1", "version_compatible": True})},
            dataclasses.replace(HERE, versions={"tensorrt": "12.0.0"}),
            "whose compatible plans TensorRT 12.0.0 does not take",
        ),
        (
            {"tensorrt": TRT.model_copy(update={"version": "8.6.1", "version_compatible": True})},
            HERE,
            "whose compatible plans TensorRT 11.4.0 does not take",
        ),
        ({"target": AMPERE}, HERE, ""),
        ({"target": AMPERE}, dataclasses.replace(HERE, compute_capability="sm_75"), "from Ampere (sm_80) on"),
        ({"target": AMPERE}, dataclasses.replace(HERE, compute_capability="sm_120"), ""),
        ({"plugin": PLUGIN}, HERE, ""),
        ({"plugin": PLUGIN}, dataclasses.replace(HERE, plugin_sha256=None), "libvimdeploy_plugin.so (version 1)"),
        ({"plugin": PLUGIN}, dataclasses.replace(HERE, plugin_version="2"), "needs version 1 of the plugin library"),
        ({"plugin": PLUGIN.model_copy(update={"embedded": True})}, dataclasses.replace(HERE, plugin_sha256=None), ""),
    ],
)
def test_why_a_plan_cannot_be_loaded(plan: Path, changes: dict[str, Any], machine: Machine, reason: str) -> None:
    manifest = edit(read_engine_manifest(plan), **changes)
    if not reason:
        refuse_unloadable(plan, manifest, machine, allow_host_code=True)
        return
    with pytest.raises(ArtifactError) as caught:
        refuse_unloadable(plan, manifest, machine)
    assert reason in caught.value.message
    assert str(plan) in caught.value.message
    assert "build-engine" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "brings"),
    [
        ({"tensorrt": TRT.model_copy(update={"version_compatible": True})}, "a lean runtime"),
        ({"plugin": PLUGIN.model_copy(update={"embedded": True})}, "a plugin library"),
    ],
)
def test_a_plan_that_brings_code_is_loaded_by_the_users_word_alone(
    plan: Path, changes: dict[str, Any], brings: str
) -> None:
    manifest = edit(read_engine_manifest(plan), **changes)
    with pytest.raises(ArtifactError, match=f"brings code that loading it would run.*{brings}") as caught:
        refuse_unloadable(plan, manifest, HERE)
    assert "allow_host_code=True" in caught.value.hint
    refuse_unloadable(plan, manifest, HERE, allow_host_code=True)


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("says_so", [False, True])
def test_the_manifest_never_switches_host_code_on(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says_so: bool, allowed: bool
) -> None:
    """The file that asks for its own code to run is the stranger's: only the caller's word reaches TensorRT."""
    asked: list[bool] = []

    class Owner:
        def runtime(self, _: Any, *, host_code: bool) -> Any:
            asked.append(host_code)
            return SimpleNamespace(engine=lambda _: "engine")

    monkeypatch.setattr("vimdeploy.runtime.plan_session.trt.load", lambda _: Owner())
    monkeypatch.setattr("vimdeploy.runtime.plan_session.this_machine", lambda *_: HERE)
    monkeypatch.setattr("vimdeploy.runtime.plan_session.CudaDevice", lambda _: SimpleNamespace(active=nullcontext))
    path = broken(plan, tmp_path, lambda d: d["tensorrt"].update(version_compatible=says_so))
    if says_so and not allowed:
        with pytest.raises(ArtifactError, match="brings code"):
            load_plan(path)
    else:
        load_plan(path, allow_host_code=allowed)
    assert asked == ([] if says_so and not allowed else [allowed])


def test_every_reason_is_told_at_once(plan: Path) -> None:
    machine = Machine({}, "sm_75", None)
    with pytest.raises(ArtifactError) as caught:
        refuse_unloadable(plan, edit(read_engine_manifest(plan), plugin=PLUGIN), machine)
    assert caught.value.message.count(";") == 2


def broken(plan: Path, folder: Path, change: Callable[[dict[str, Any]], None], plan_bytes: bytes | None = None) -> Path:
    path = folder / "vim.engine"
    path.write_bytes(plan.read_bytes() if plan_bytes is None else plan_bytes)
    data = json.loads(plan.with_name("vim.engine.json").read_text())
    change(data)
    path.with_name("vim.engine.json").write_text(json.dumps(data))
    return path


OTHER_PLUGIN = {"version": "9", "sha256": "0" * 64, "file": "libother.so", "embedded": False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(plan_sha256="0" * 64), "is not the plan that its manifest describes"),
        (lambda d: d.update(plan_bytes=7), "is not the plan that its manifest describes"),
        (lambda d: d.update(schema_version=2), "has engine schema 2; this vimdeploy reads up to 1"),
        (lambda d: d.update(kind="onnx"), "is not the manifest of an engine"),
        (lambda d: d.pop("precision"), "precision: Field required"),
        (lambda d: d["tensorrt"].update(version="0.9.9"), "was built by TensorRT-RTX 0.9.9"),
        (lambda d: d.update(plugin=OTHER_PLUGIN), "needs the plugin library libother.so (version 9)"),
        (lambda d: d.update(plugin={"version": "9"}), "plugin.sha256: Field required"),
    ],
)
def test_a_manifest_that_lies_is_refused(
    plan: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(ArtifactError) as caught:
        vimdeploy.load(broken(plan, tmp_path, change))
    assert message in caught.value.message
    assert caught.value.hint


def test_a_plan_without_manifest_or_cut_short_is_refused(plan: Path, tmp_path: Path) -> None:
    cut = broken(plan, tmp_path, lambda _: None, plan.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="is not the plan that its manifest describes"):
        vimdeploy.load(cut)
    cut.with_name("vim.engine.json").write_text("{")
    with pytest.raises(ArtifactError, match="not a readable JSON file"):
        vimdeploy.load(cut)
    cut.with_name("vim.engine.json").unlink()
    with pytest.raises(ArtifactError, match=r"the manifest of vim\.engine is missing"):
        vimdeploy.load(cut)


def test_the_machine_is_described_by_what_is_there(plan: Path) -> None:
    machine = this_machine(read_engine_manifest(plan))
    assert set(machine.versions) == {"rtx"}
    assert (machine.compute_capability is None) == (not has_gpu())


@pytest.mark.parametrize(
    ("text", "size"), [("4GiB", 4 << 30), ("512M", 512 << 20), ("1.5g", 3 << 29), ("1024", 1024), (" 2 KB ", 2048)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text + "x")


def test_no_torch_and_no_onnx_are_needed_to_run(tiny: Path) -> None:
    """A deployment host has onnxruntime or TensorRT, numpy and pydantic: nothing that trains or exports."""
    import subprocess

    code = (
        "import sys; [sys.modules.__setitem__(m, None) for m in ('torch', 'onnx', 'onnx_ir', 'onnxscript')];"
        "import numpy as np, vimdeploy;"
        f"s = vimdeploy.load({str(tiny)!r}); print(s(np.zeros((2, 3, 64, 64), np.float32)).shape);"
        "from vimdeploy.runtime.plan_session import PlanSession"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(2, 10)"
    assert sha256_file(tiny)
