"""The ladder from torch to the engine: what it proves, what it lists as not run, and what it catches by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from exports import cli, export
from onnx import numpy_helper

import vimdeploy
from vimdeploy import contract
from vimdeploy.artifacts.images import load_images, synthetic_images
from vimdeploy.artifacts.manifest import read_manifest
from vimdeploy.artifacts.recipe import Parity
from vimdeploy.backends.onnxruntime import OnnxBackend
from vimdeploy.backends.session import SessionBackend
from vimdeploy.backends.torch import TorchBackend
from vimdeploy.errors import MissingDependencyError, UsageError
from vimdeploy.graph.emulate import emulate
from vimdeploy.graph.policy import ALL, FP16, POLICY, Policy, Rule
from vimdeploy.graph.precision import convert_model
from vimdeploy.models.load import ModelRequest, load_model
from vimdeploy.parity.compare import Report
from vimdeploy.parity.ladder import LadderReport, Rung, climb
from vimdeploy.parity.rungs import Subject, make_rungs
from vimdeploy.parity.torch_policy import lowered
from vimdeploy.runtime.onnx_session import OnnxSession

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(DIGITS / "vim_digits.pth", tmp_path_factory.mktemp("digits") / "vim.onnx")


@pytest.fixture(scope="module")
def digits_model(digits: Path) -> onnx.ModelProto:
    return onnx.load(digits)


def status(report: LadderReport) -> dict[str, str]:
    return {rung.name: rung.status for rung in report.rungs}


NOT_HERE = {"engine fp32": "not run", "engine fp16": "not run"}


def test_a_trained_model_keeps_its_contract_on_every_rung(digits: Path) -> None:
    report = vimdeploy.verify(digits, checkpoint=DIGITS / "vim_digits.pth", samples=16, ladder=True).report
    assert isinstance(report, LadderReport)
    found = status(report)
    assert found["torch float32"] == "reference"
    assert found["torch fp16"] == found["ONNX float32"] == found["ONNX fp16"] == "passed"
    by_name = {rung.name: rung for rung in report.rungs}
    exact, half = by_name["ONNX float32"].against_first, by_name["ONNX fp16"].against_first
    assert exact is not None
    assert half is not None
    assert exact.relative_rms < 1e-5 < half.relative_rms < 2e-3
    assert by_name["ONNX fp16"].against_previous is not None
    for name in ("engine fp32", "engine fp16"):
        if found[name] == "not run":
            assert by_name[name].reason
            assert name in report.verdict()
            assert "not run here" in report.verdict()
    assert report.passed


def test_fp16_agrees_on_every_held_back_digit(digits: Path, digits_model: onnx.ModelProto, tmp_path: Path) -> None:
    from vimdeploy.commands.demo import _unpack

    paths, labels = _unpack(DIGITS / "held_out.npz", tmp_path)
    images = load_images(paths, read_manifest(digits).preprocessing)
    converted, report = convert_model(digits_model, FP16)
    assert report.kept == []
    accuracy, best = {}, {}
    for name, model in (("float32", digits_model), ("fp16", emulate(converted)), ("fp16 as stored", converted)):
        backend = OnnxBackend(model)
        logits = np.concatenate([backend.run(images[i : i + 50])["logits"] for i in range(0, len(images), 50)])
        best[name] = logits.argmax(1)
        accuracy[name] = float((best[name] == labels).mean())
    print(f"accuracy on {len(labels)} held-back digits: {accuracy}")
    assert accuracy["float32"] >= 0.97
    np.testing.assert_array_equal(best["fp16"], best["float32"])
    np.testing.assert_array_equal(best["fp16 as stored"], best["float32"])


def test_torch_under_the_policy_is_the_converted_model(digits: Path, digits_model: onnx.ModelProto) -> None:
    """Two ways to FP16 that share no code: their errors are of one size, and their results nearer to each other."""
    model = load_model(DIGITS / "vim_digits.pth", ModelRequest()).model
    images = synthetic_images(8, read_manifest(digits).preprocessing)
    exact = TorchBackend(model, "classify").run(images)["logits"]
    half = TorchBackend(lowered(model, "fp16"), "classify").run(images)["logits"]
    converted = OnnxBackend(emulate(convert_model(digits_model, FP16)[0])).run(images)["logits"]
    assert 0 < np.abs(half - exact).max() < 2e-2
    assert np.abs(half - converted).max() < 2 * np.abs(half - exact).max()
    np.testing.assert_array_equal(TorchBackend(model, "classify").run(images)["logits"], exact)


def scaled(model: onnx.ModelProto, change: Callable[[str, np.ndarray], np.ndarray | None]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        changed = change(tensor.name, numpy_helper.to_array(tensor).copy())
        if changed is not None:
            tensor.CopyFrom(numpy_helper.from_array(changed.astype(np.float32), tensor.name))
    return copy


def climbed(model: onnx.ModelProto, digits: Path, policy: Policy) -> LadderReport:
    manifest = read_manifest(digits)
    images = synthetic_images(8, manifest.preprocessing)
    subject = Subject(model, manifest, None, "left out", "fp16", policy)
    return climb(make_rungs(subject, images), images, manifest.contract, classes=True)


def test_the_policy_survives_what_breaks_the_planted_ones(digits: Path, digits_model: onnx.ModelProto) -> None:
    report = climbed(scaled(digits_model, loud), digits, Policy())
    assert status(report) == {
        "torch float32": "not run",
        "torch fp16": "not run",
        "ONNX float32": "reference",
        "ONNX fp16": "passed",
        **NOT_HERE,
    }
    report = climbed(scaled(digits_model, outlier), digits, Policy())
    assert status(report)["ONNX fp16"] == "passed"


def loud(name: str, value: np.ndarray) -> np.ndarray | None:
    """A residual stream whose squares pass FP16's range while its values do not."""
    return value * 2000 if name in ("model.pos_embed", "model.cls_token") or name.endswith("mixer.out") else None


STREAM = ("model.pos_embed", "model.cls_token", "model.patch_embed.proj.weight", "model.patch_embed.proj.bias")


def outlier(name: str, value: np.ndarray) -> np.ndarray | None:
    """A residual stream of about 40 with one channel x1000 above: FP16 holds its parts, not the sum of two of them."""
    if name.endswith("mixer.out") or name in STREAM:
        value = value * 40
        if name in STREAM[:2]:
            value[..., 7] = 40 * 1000
        return value
    return None


def test_a_norm_in_fp16_that_overflows_is_named(digits: Path, digits_model: onnx.ModelProto) -> None:
    """RMSNorm overflows to zero, not to NaN: a check for NaN would let it pass (LeetCUDA #335)."""
    ops = ("Mul", "Add", "Sqrt", "Reciprocal")
    residual = tuple(n.name for n in digits_model.graph.node if n.op_type == "Add" and "residual" in n.output[0])
    rules = dict(POLICY) | {("", op): Rule((ALL,), True, "planted") for op in ops}
    rules[("", "ReduceMean")] = Rule((0,), True, "planted")  # its second input is the axes
    report = climbed(scaled(digits_model, loud), digits, Policy(rules=rules, keep=residual))
    assert status(report)["ONNX fp16"] == "failed"
    first_square = next(n.name for n in digits_model.graph.node if n.op_type == "Mul")
    (rung,) = [r for r in report.rungs if r.status == "failed"]
    assert f"node '{first_square}' (Mul) overflows" in rung.reason
    assert first_square in report.verdict()
    assert not report.passed


def test_a_scan_whose_a_is_fp16_is_named(digits: Path, digits_model: onnx.ModelProto) -> None:
    """mamba #72: an A that is rounded towards 0 accumulates for ever, which no short sequence shows."""
    rules = dict(POLICY) | {(contract.DOMAIN, "SelectiveScan"): Rule((0, 1, 2, 4, 6), True, "planted")}
    report = climbed(digits_model, digits, Policy(rules=rules))
    assert status(report)["ONNX fp16"] == "failed"
    first_scan = next(n.name for n in digits_model.graph.node if n.op_type == "SelectiveScan")
    assert f"node name: {first_scan}" in report.verdict()
    assert "A typestr" in report.verdict()
    assert not report.passed


def test_a_residual_stream_in_fp16_with_an_outlier_channel_is_named(
    digits: Path, digits_model: onnx.ModelProto
) -> None:
    adds = [n.name for n in digits_model.graph.node if n.op_type == "Add" and "residual" in n.output[0]]
    rules = dict(POLICY) | {(name, "*"): Rule((ALL,), True, "planted") for name in adds}
    report = climbed(scaled(digits_model, outlier), digits, Policy(rules=rules))
    assert status(report)["ONNX fp16"] == "failed"
    (rung,) = [r for r in report.rungs if r.status == "failed"]
    assert f"node '{adds[0]}' (Add) overflows (values reach 8e+04)" in rung.reason


def test_rungs_that_cannot_run_never_count_as_passed() -> None:
    def absent() -> OnnxBackend:
        raise MissingDependencyError("there is no such thing here")

    report = climb([Rung("a", "fp32", absent), Rung("b", "fp16", absent)], np.zeros((2, 3)), Parity(), classes=False)
    assert status(report) == {"a": "not run", "b": "not run"}
    assert report.verdict() == "Nothing could be compared; not run here: a, b."
    assert report.to_dict()["rungs"][0]["reason"] == "there is no such thing here"


def test_a_session_is_a_rung(digits: Path) -> None:
    images = synthetic_images(3, read_manifest(digits).preprocessing)
    with OnnxSession(digits) as session:
        through = SessionBackend(session).run(images)
    np.testing.assert_array_equal(through["logits"], OnnxBackend(digits).run(images)["logits"])


def test_a_converted_file_is_verified_by_its_own_contract(digits: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.onnx"
    vimdeploy.convert(digits, half)
    verified = vimdeploy.verify(half, checkpoint=DIGITS / "vim_digits.pth", samples=4)
    assert verified.passed
    assert isinstance(verified.report, Report)
    assert verified.report.contract == read_manifest(digits).contract.fp16
    with pytest.raises(UsageError, match="the ladder starts from float32"):
        vimdeploy.verify(half, ladder=True)


def test_the_command_ends_with_one_line_and_the_right_exit_code(digits: Path, tmp_path: Path) -> None:
    checkpoint = str(DIGITS / "vim_digits.pth")
    done = cli("verify", str(digits), "--ladder", "--checkpoint", checkpoint, "--samples", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1].startswith("Every rung up to 'ONNX fp16' keeps its contract")
    strict = tmp_path / "vim.onnx"
    strict.write_bytes(digits.read_bytes())
    sidecar = json.loads(digits.with_name("vim.onnx.json").read_text())
    sidecar["contract"]["fp16"]["relative_rms"] = 1e-6
    strict.with_name("vim.onnx.json").write_text(json.dumps(sidecar))
    broken = cli("verify", str(strict), "--ladder", "--checkpoint", checkpoint, "-o", str(tmp_path / "r.json"))
    assert broken.returncode == 1
    assert "FAILED at 'torch fp16': relative RMS" in broken.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["passed"] is False
    assert [r["status"] for r in report["rungs"][:4]] == ["reference", "failed", "passed", "failed"]
