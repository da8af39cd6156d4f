"""`vimdeploy benchmark`: it measures what it says, and says what it could not measure."""

import json

import onnx
import pytest

from vimdeploy.commands.benchmark import Contender, Worker, benchmark, measure
from vimdeploy.errors import UsageError, VimdeployError


@pytest.fixture
def file(exported, tmp_path):
    onnx.save(exported("cls_tiny"), tmp_path / "m.onnx")
    return str(tmp_path / "m.onnx")


def test_both_forms_of_the_ops_are_measured_in_turns(file):
    result = benchmark([file], batch=[1, 2], seconds=0.05)
    assert [(t.backend, t.batch) for t in result.timings] == [
        (backend, batch) for batch in (1, 2) for backend in ("onnxruntime", "onnxruntime-body")
    ]
    for t in result.timings:
        assert 0 < t.p50 <= t.p90 <= t.p99
        assert t.images_per_second == pytest.approx(t.batch / t.p50)
        assert t.runs >= 3
        assert t.loaded_mib > 10
        assert t.load_seconds > 0
    assert result.timings[0].ratio == 1.0
    assert json.dumps(result.to_dict())
    assert not result.not_run


def test_what_cannot_run_is_named_and_the_rest_is_measured(file):
    result = measure([Contender(file, "onnxruntime"), Contender(file, "torch")], [1], 1, 0.05)
    assert [t.backend for t in result.timings] == ["onnxruntime"]
    assert result.not_run == {
        "m.onnx torch": f"{file}: torch runs checkpoints. Name the checkpoint it was exported from."
    }
    with pytest.raises(VimdeployError, match=r"Nothing could be measured: gone\.onnx onnxruntime: .*no such file"):
        benchmark(["gone.onnx"], backends=["onnxruntime"])


def test_environment_reaches_the_contender(file):
    with pytest.raises(VimdeployError, match="VIMDEPLOY_CPU_ISA=mmx"):
        Worker(Contender(file, "onnxruntime", {"VIMDEPLOY_CPU_ISA": "mmx"}), 1)


def test_arguments_are_checked(file):
    with pytest.raises(UsageError, match="There is no backend 'onnx'"):
        benchmark([file], backends=["onnx"])
    with pytest.raises(UsageError, match="must be positive"):
        benchmark([file], batch=[0])
