"""tensorrt/api.py uses only what TensorRT 10, TensorRT 11 and TensorRT-RTX really have, with fitting arguments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trt_double
import trt_wheels

from vimdeploy.errors import MissingDependencyError
from vimdeploy.tensorrt import api as trt
from vimdeploy.tensorrt.boundary import Config, Messages

SUPPORT = Path(__file__).parents[1] / "support"
RUN_ELSEWHERE = {"installed_version", "load", "_import"}
"""What imports the real packages: the tests below run it."""


def walk(package: str, flavour: str, env: dict[str, str]) -> dict[str, object]:
    root = Path(trt.__file__).parents[2]
    env = {**env, "PYTHONPATH": os.pathsep.join([str(root), str(SUPPORT), env.get("PYTHONPATH", "")])}
    command = [sys.executable, str(SUPPORT / "trt_walk.py"), package, flavour]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, object] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("major", sorted(trt_wheels.VERSIONS))
def test_every_line_fits_the_real_bindings_of_each_major(major: int) -> None:
    report = walk("tensorrt_bindings", "tensorrt", trt_wheels.environment(major))
    assert report["version"] == trt_wheels.VERSIONS[major]
    assert {"ITimingCache.combine", "IBuilderConfig.clear_flag"} <= set(report["called"])  # type: ignore[call-overload]
    # Compute capabilities are set ahead of time only: the one branch of RTX.
    assert set(report["missing"]) <= RUN_ELSEWHERE | {"_set_target"}


def test_every_line_that_rtx_takes_fits_its_bindings() -> None:
    report = walk("tensorrt_rtx", "rtx", dict(os.environ))
    not_for_rtx = {b.where for b in trt.BRANCHES if b.rtx in ("never called", "nothing is timed ahead of time")}
    timing = {"TimingCache.__init__", "TimingCache.merged"}
    assert set(report["missing"]) <= RUN_ELSEWHERE | not_for_rtx | timing
    assert {"IBuilderConfig.set_compute_capability", "IBuilderConfig.clear_flag"} <= set(report["called"])  # type: ignore[call-overload]


def test_the_table_of_branches_names_what_exists() -> None:
    for branch in trt.BRANCHES:
        assert hasattr(trt, branch.where), branch


@pytest.fixture(scope="module")
def rtx_double() -> object:
    import tensorrt_rtx

    return trt_double.double(tensorrt_rtx, {})


def test_the_double_refuses_what_the_bindings_lack(rtx_double: object) -> None:
    api: object = rtx_double
    builder = api.Builder(api.ILogger())  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        _ = builder.platform_has_fast_fp16
    with pytest.raises(AttributeError):
        _ = api.BuilderFlag.FP16  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="flags should be"):
        builder.create_network("strongly typed")
    with pytest.raises(TypeError, match="takes 1 arguments"):
        builder.create_builder_config(1)
    with pytest.raises(TypeError, match="config is missing"):
        builder.build_serialized_network(builder.create_network(1))
    with pytest.raises(TypeError, match="pool should be"):
        builder.create_builder_config().set_memory_pool_limit(api.BuilderFlag.REFIT, 1)  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        builder.create_network(1).num_layers = 3


def test_a_missing_flavour_says_what_to_install_and_what_works_instead() -> None:
    if trt.installed_version("tensorrt"):
        pytest.skip("TensorRT is installed here: its absence cannot be shown")
    with pytest.raises(MissingDependencyError) as caught:
        trt.load("tensorrt")
    assert "not installed" in caught.value.message
    assert "pip install tensorrt cuda-bindings" in caught.value.hint
    assert "--runtime rtx" in caught.value.hint


def test_type_stubs_are_not_taken_for_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stub_only").mkdir()
    (tmp_path / "stub_only" / "__init__.pyi").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(trt._PACKAGES, trt.Flavour.LEAN, "stub_only")
    assert trt._import(trt.Flavour.LEAN) == (
        None,
        "the Python package 'stub_only' is not installed (only type stubs are)",
    )


def test_rtx_is_installed_and_parses_for_real() -> None:
    rtx = trt.load("rtx")
    assert trt.load("rtx") is rtx
    assert "sm_89" in rtx.known_compute_capabilities
    network, problems = rtx.parse(b"not onnx", Messages())
    assert network is None
    assert problems[0].code == "MODEL_DESERIALIZE_FAILED"
    assert Config().profiles == ()
