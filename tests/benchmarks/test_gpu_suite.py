"""The GPU suite without a GPU: its build, references, comparisons and report, on the emulated kernels.

Nothing here says that a kernel is fast. It says that the suite catches one that is wrong, and that it prints no number
that nobody measured.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_suite_support import EMULATION, ROOT, assert_nothing_measured, part
from torch import Tensor

from benchmarks.gpu_suite import (
    build,
    cases,
    cli,
    correctness,
    kernels,
    peers,
    report,
    sanitizer,
)
from benchmarks.gpu_suite.cases import ConvCase, ScanCase, ScanInputs
from benchmarks.gpu_suite.library import KernelError, Kernels
from benchmarks.gpu_suite.reference import conv_reference, scan_reference
from benchmarks.gpu_suite.store import Store
from vimdeploy.ops.conv import causal_conv1d_differentiable
from vimdeploy.ops.scan import selective_scan_differentiable

ABSENT = ("pydantic", "tensorrt", "polygraphy", "mamba_ssm", "causal_conv1d", "selective_scan_cuda", "onnxruntime")
"""Not installed on the machine that the suite is for."""

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None or shutil.which("make") is None,
    reason="g++ or make is not installed: the kernels cannot be compiled for the host",
)


@pytest.fixture(scope="module")
def library() -> Kernels:
    return Kernels(build.build_emulated(EMULATION).kernels)


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1)  # tiny tensors: threads would only wait for each other


# ---- The command, end to end ----------------------------------------------------------------------------------------


def command(out: Path, *arguments: str, absent: tuple[str, ...] = ABSENT) -> subprocess.CompletedProcess[str]:
    """Run the suite in a process that cannot import ``absent``."""
    block = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); sys.argv[0] = 'gpu_suite'"
    program = f"{block}; sys.path.insert(0, {str(ROOT)!r}); from benchmarks.gpu_suite.cli import main; sys.exit(main())"
    options = ["--out", str(out), "--build", str(EMULATION), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", program, *options], capture_output=True, text=True, check=False, env=environment
    )


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("gpu_suite")
    return out, command(out, "--dry-run", "--seed", "7")


def test_dry_run_passes_on_a_machine_with_nothing_but_torch(dry_run: tuple[Path, Any]) -> None:
    out, done = dry_run
    assert done.returncode == 0, done.stdout + done.stderr
    for name in report.PARTS:
        data = json.loads((out / f"{name}.json").read_text())
        assert data["complete"], name
        assert data["identity"]["dry_run"], name
        assert data["environment"]["device"] == "host emulation (no GPU)", name
    checked = json.loads((out / "correctness.json").read_text())
    assert len(checked["cases"]) > 40
    assert checked["notes"]["seed"] == 7
    assert all(case["errors"] and not case["wrong"] for case in checked["cases"].values())
    assert json.loads((out / "sanitizer.json").read_text())["cases"]["driver"]["status"] == "clean"


def test_dry_run_gives_no_number_for_what_it_did_not_measure(dry_run: tuple[Path, Any]) -> None:
    out, done = dry_run
    timed = json.loads((out / "kernels.json").read_text())["cases"]
    assert timed
    for case in timed.values():
        assert set(case["ours"]["variants"].values()) == {None}
        assert [case["peer"][what] for what in ("kernels", "flips", "whole")] == [None] * 3
        assert case["floor"] is None
    networks = json.loads((out / "models.json").read_text())["cases"]
    assert all("images_per_s" not in case for case in networks.values())
    page = (out / "report.md").read_text()
    assert page in done.stdout
    assert "DRY RUN" in page
    assert_nothing_measured(page)


def test_dry_run_networks_compute_what_the_float32_model_does(dry_run: tuple[Path, Any]) -> None:
    networks = json.loads((dry_run[0] / "models.json").read_text())["cases"]
    errors = {name: case["logits_error"] for name, case in networks.items() if name.startswith("logits ")}
    assert len(errors) == 3
    assert all(0 < error < 5e-3 for error in errors.values()), errors
    kept, half = (next(error for name, error in errors.items() if name.endswith(f" {n}")) for n in ("vim-kept", "vim"))
    assert kept < half, "mixers in float32 are nearer"


def test_a_second_run_continues_the_first(dry_run: tuple[Path, Any]) -> None:
    out, _ = dry_run
    path = out / "correctness.json"
    data = json.loads(path.read_text())
    lost = list(data["cases"])[-1]
    del data["cases"][lost]
    path.write_text(json.dumps(data))
    done = command(out, "--dry-run", "--part", "correctness", "--part", "kernels")
    assert done.returncode == 0, done.stderr
    assert "correctness: right, 1 cases" in done.stdout
    assert "kernels: right, 0 cases" in done.stdout
    again = json.loads(path.read_text())
    assert lost in again["cases"]
    assert again["notes"]["seed"] == 7, "a continued run keeps the seed its cases were drawn from"


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = command(tmp_path, "--part", "kernels")
    assert done.returncode == 2
    assert "torch sees no GPU" in done.stderr
    assert "--dry-run" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_wrong_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    one = [ScanCase(1, 5, 8, rank=2)]
    monkeypatch.setattr(correctness.problems, "correctness_cases", lambda seed, small: iter(one))
    monkeypatch.setattr("benchmarks.gpu_suite.library.Kernels.scan", lambda *_: None)
    options = ["--dry-run", "--out", str(tmp_path), "--build", str(EMULATION)]
    assert cli.main(options) == 1
    assert not (tmp_path / "kernels.json").exists()
    printed = capsys.readouterr().out
    assert "what is wrong is not timed" in printed
    assert f"WRONG {one[0].name}" in printed


# ---- References: against the package's own torch ops, which share no line with them ----------------------------------


@pytest.mark.parametrize("walk", cases.WALKS)
def test_scan_reference_is_the_op(walk: str) -> None:
    case = ScanCase(2, 12, 5, 3, 2, "float32", height=3, **cases.WALKS[walk])
    inputs = cases.scan_inputs(case, 1, "cpu").map(lambda values: values.double())
    expected = selective_scan_differentiable(
        *vars(inputs).values(), case.directions, case.column_major, case.height, case.scale
    )
    assert torch.allclose(scan_reference(case, inputs), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("directions", [(1,), (1, -1), (1, -1, 1, -1)])
def test_conv_reference_is_the_op(directions: tuple[int, ...]) -> None:
    case = ConvCase(2, 7, 5, 3, "float32", directions)
    tensors = [values.double() for values in cases.conv_inputs(case, 1, "cpu")]
    expected = causal_conv1d_differentiable(*tensors, directions, "silu")
    assert torch.allclose(conv_reference(case, *tensors), expected, rtol=1e-12, atol=1e-12)


def test_all_that_the_peer_needs_is_the_same_operation() -> None:
    """Flips, projections, layouts and halving around a scan of one direction: or the comparison compares two things."""
    case = cases.vim_case(64, 21, 2, "float32")
    inputs = cases.scan_inputs(case, 3, "cpu")
    reference = scan_reference(case, inputs)
    peer = peers.Peer("torch", peers.torch_scan)
    problem = peers.prepare(case, inputs)
    for y in (peers.run_whole(peer, case, problem), peers.run_flips(peer, problem)):
        assert correctness.relative_error(y.transpose(1, 2), reference) < 1e-5
    first, second = peers.run_kernels(peer, problem)
    assert correctness.relative_error(((first + second.flip(-1)) / 2).transpose(1, 2), reference) < 1e-5


# ---- Planted faults -------------------------------------------------------------------------------------------------

Scan = Callable[[ScanCase, ScanInputs, Tensor, Tensor], None]


class Faulty:
    """The real kernels, with something done to the output after them."""

    def __init__(self, library: Kernels, fault: Scan) -> None:
        self._library, self._fault, self.calls = library, fault, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def scan(self, case: ScanCase, inputs: ScanInputs, y: Tensor, workspace: Tensor, variant: int = 0) -> None:
        self.calls += 1
        self._library.scan(case, inputs, y, workspace, variant)
        self._fault(case, inputs, y, workspace)


def beyond(values: Tensor, bytes_after: int) -> Tensor:
    """One byte past the end of a tensor that lies in a larger buffer."""
    storage = torch.tensor([], dtype=torch.uint8).set_(values.untyped_storage())  # type: ignore[call-overload]
    end = values.storage_offset() * values.element_size() + values.numel() * values.element_size()
    return storage[end + bytes_after : end + bytes_after + 1]


def one_element_wrong(case: ScanCase, inputs: ScanInputs, y: Tensor, workspace: Tensor) -> None:
    y[-1, -1, -1] += 4e-3 * y.abs().max()


def one_element_unwritten(case: ScanCase, inputs: ScanInputs, y: Tensor, workspace: Tensor) -> None:
    y[0, case.length // 2, 3] = float("nan")


def directions_swapped(case: ScanCase, inputs: ScanInputs, y: Tensor, workspace: Tensor) -> None:
    y.copy_(y.flip(1))


def written_past_the_end(case: ScanCase, inputs: ScanInputs, y: Tensor, workspace: Tensor) -> None:
    beyond(y, 0).fill_(1)


def written_past_the_workspace(case: ScanCase, inputs: ScanInputs, y: Tensor, workspace: Tensor) -> None:
    beyond(workspace, 3).fill_(1)


def input_changed(case: ScanCase, inputs: ScanInputs, y: Tensor, workspace: Tensor) -> None:
    inputs.u[0, 0, 0, 0] += 1


def refused(case: ScanCase, inputs: ScanInputs, y: Tensor, workspace: Tensor) -> None:
    raise KernelError("the scan could not be launched: out of registers")


FAULTS: dict[Scan, str] = {
    one_element_wrong: "of the maximum, 2e-03 allowed",
    one_element_unwritten: "1 elements are NaN",
    directions_swapped: "of the maximum, 2e-03 allowed",
    written_past_the_end: "wrote outside its output",
    written_past_the_workspace: "wrote outside its workspace",
    input_changed: "an input was changed",
    refused: "out of registers",
}
CASE = ScanCase(1, 19, 24)


def test_the_case_of_the_planted_faults_is_right_without_them(library: Kernels) -> None:
    result = correctness.check_scan(library, CASE, 5, "cpu")
    assert result["wrong"] == []
    assert len(result["errors"]) == 4, "every variant of 16 states"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_planted_fault_is_caught(fault: Scan, library: Kernels) -> None:
    result = correctness.check_scan(Faulty(library, fault), CASE, 5, "cpu")
    assert len(result["wrong"]) >= (1 if fault is input_changed else 4), "in every variant"
    assert any(FAULTS[fault] in text for text in result["wrong"]), result["wrong"]


def test_race_is_caught(library: Kernels) -> None:
    """One last-place unit that changes from run to run: far below the tolerance, and never rounding."""

    def wobble(case: ScanCase, inputs: ScanInputs, y: Tensor, workspace: Tensor) -> None:
        y.view(torch.int16)[0, 0, 0] ^= faulty.calls % 2

    faulty = Faulty(library, wobble)
    wrong = correctness.check_scan(faulty, CASE, 5, "cpu")["wrong"]
    assert len(wrong) == 4
    assert all("two runs on the same inputs differ" in text for text in wrong), wrong


def test_read_of_unwritten_workspace_is_caught(library: Kernels) -> None:
    def leak(case: ScanCase, inputs: ScanInputs, y: Tensor, workspace: Tensor) -> None:
        # One last-place unit of y depends on what lay in the workspace: far below the tolerance.
        bits = y.view(torch.int16)
        bits[0, 0, 0] ^= int(before[0] == 0xFF)

    class Leaky(Faulty):
        def scan(self, case: ScanCase, inputs: ScanInputs, y: Tensor, workspace: Tensor, variant: int = 0) -> None:
            before[:] = [int(workspace[0])]
            super().scan(case, inputs, y, workspace, variant)

    before: list[int] = []
    wrong = correctness.check_scan(Leaky(library, leak), CASE, 5, "cpu")["wrong"]
    assert len(wrong) == 4
    assert all("a read of unwritten memory" in text for text in wrong), wrong


def test_lost_device_ends_the_part_and_is_written_down(library: Kernels, tmp_path: Path) -> None:
    def lost(case: ScanCase, inputs: ScanInputs, y: Tensor, workspace: Tensor) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    store = Store.open(tmp_path, "correctness", part("correctness", {}, dry=True)["environment"])
    later = time.monotonic() + 100
    assert not correctness.run(Faulty(library, lost), store, seed=1, device="cpu", small=True, deadline=later)
    written = json.loads(store.path.read_text())
    assert len(written["cases"]) == 1
    assert not written["complete"]
    assert "illegal memory access" in correctness.failures(written["cases"]).popitem()[1][0]


def test_cuda_error_in_a_part_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def fails(*_: Any, **__: Any) -> bool:
        raise RuntimeError("CUDA error: misaligned address")

    monkeypatch.setattr(kernels, "run", fails)
    options = ["--dry-run", "--part", "kernels", "--out", str(tmp_path), "--build", str(EMULATION)]
    assert cli.main(options) == 1
    assert "- part kernels ended early: RuntimeError: CUDA error: misaligned address" in capsys.readouterr().out


def test_wrong_convolution_is_caught(library: Kernels) -> None:
    case = ConvCase(1, 9, 8)

    class Shifted(Faulty):
        def conv(self, case: ConvCase, x: Tensor, weight: Tensor, bias: Tensor, u: Tensor) -> None:
            self._library.conv(case, x, weight.roll(1, -1), bias, u)

    assert correctness.check_conv(library, case, 5, "cpu")["wrong"] == []
    wrong = correctness.check_conv(Shifted(library, one_element_wrong), case, 5, "cpu")["wrong"]
    assert any("allowed" in text for text in wrong)


def test_sanitizer_driver_stops_at_a_refused_call(tmp_path: Path, library: Kernels) -> None:
    built = build.build_emulated(EMULATION)
    line = next(text for text in sanitizer.lines(library) if text.startswith("scan "))
    words = line.split()
    words[1] = "4" if words[6] != "1" else "1"  # a variant that cannot run this number of states
    problems = tmp_path / "problems.txt"
    problems.write_text(" ".join(words))
    done = subprocess.run([built.driver, problems], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot run" in done.stderr


def test_a_part_out_of_time_is_unfinished_not_wrong(library: Kernels, tmp_path: Path) -> None:
    store = Store.open(tmp_path, "correctness", part("correctness", {}, dry=True)["environment"])
    assert correctness.run(library, store, seed=1, device="cpu", small=True, deadline=time.monotonic() - 1)
    assert not store.complete
    assert not json.loads(store.path.read_text())["complete"]


def test_official_sources_are_recognised_and_others_refused(tmp_path: Path) -> None:
    from vimdeploy.errors import UsageError

    root = tmp_path / "mamba_ssm-2.3"
    (root / "csrc" / "selective_scan").mkdir(parents=True)
    (root / "csrc" / "selective_scan" / "selective_scan_fwd_kernel.cuh").write_text("")
    (root / "mamba_ssm").mkdir()
    (root / "mamba_ssm" / "__init__.py").write_text('__version__ = "2.3"\n')
    archive = shutil.make_archive(str(tmp_path / "package"), "gztar", tmp_path, "mamba_ssm-2.3")
    for source in (root, Path(archive)):
        found, version = peers.unpack_official(source, tmp_path / "unpacked")
        assert (found.name, version) == ("selective_scan", "2.3")
    (tmp_path / "other.tar.gz").write_text("no archive")
    for source in (tmp_path / "empty", tmp_path / "other.tar.gz"):
        with pytest.raises(UsageError):
            peers.unpack_official(source, tmp_path / "nothing")
