"""Part ``engine`` of the GPU suite: it runs the tests marked gpu, and never takes a skipped one for a passed one."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from gpu_suite_support import part, section

from benchmarks.gpu_suite import cli, engine, report
from benchmarks.gpu_suite.store import NOT_MEASURED, Store
from vimdeploy.errors import MissingDependencyError
from vimdeploy.runtime.cuda import CudaDevice

SOME_TESTS = """
import pytest
def test_right(): pass
def test_wrong(): assert 1 == 2
def test_absent(): pytest.skip("needs a TensorRT")
@pytest.fixture
def broken(): raise ValueError("no fixture")
def test_broken(broken): pass
"""


@pytest.fixture
def no_gpu() -> None:
    try:
        CudaDevice()
    except MissingDependencyError:
        return
    pytest.skip("a GPU is here: its absence cannot be shown")


def run_tests(tmp_path: Path, text: str) -> dict[str, Any]:
    path = tmp_path / "test_some.py"
    path.write_text(text)
    return engine.run_tests(dry_run=False, seconds=60, tests=path)


def test_every_outcome_of_a_test_is_told_apart(tmp_path: Path) -> None:
    found = run_tests(tmp_path, SOME_TESTS)
    assert found["status"] == "FAILED: 2 tests"
    assert found["passed"] == ["test_right"]
    assert found["skipped"] == {"test_absent": "needs a TensorRT"}
    assert "1 == 2" in found["failed"]["test_wrong"]
    assert "no fixture" in found["failed"]["test_broken"]
    assert "test_wrong" in found["output"]


def test_passed_skipped_and_absent_tests(tmp_path: Path) -> None:
    assert run_tests(tmp_path, "def test_right(): pass")["status"] == "passed"
    skipped = "import pytest\ndef test_absent(): pytest.skip('needs a GPU')"
    assert run_tests(tmp_path, skipped)["status"] == f"{NOT_MEASURED}: needs a GPU"
    assert run_tests(tmp_path, "x = 1")["status"].startswith("FAILED"), "no test at all is no success"
    assert run_tests(tmp_path, "import nonsense")["status"].startswith("FAILED")
    slow = "import time\ndef test_slow(): time.sleep(30)"
    (tmp_path / "test_some.py").write_text(slow)
    found = engine.run_tests(dry_run=False, seconds=2, tests=tmp_path / "test_some.py")
    assert found["status"] == f"{NOT_MEASURED}: longer than 2 s"


@pytest.mark.usefixtures("no_gpu")
def test_a_dry_run_says_why_nothing_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Alone, the part needs no compiled kernels; the real tests run, and each says that it needs a GPU."""
    out = tmp_path / "out"
    assert cli.main(["--dry-run", "--part", "engine", "--out", str(out), "--build", str(tmp_path / "nothing")]) == 0
    assert "kernels built" not in capsys.readouterr().out
    data = json.loads((out / "engine.json").read_text())
    assert data["complete"]
    tests, sessions = data["cases"]["tests"], data["cases"]["sessions"]
    assert tests["status"].startswith(f"{NOT_MEASURED}: ")
    assert "needs an NVIDIA GPU" in tests["status"]
    assert tests["passed"] == []
    assert len(tests["skipped"]) >= 6
    assert sessions["status"] == f"{NOT_MEASURED}: dry run"
    assert section(report.write(out), "Sessions and engines").strip() == "Not measured."


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_sessions_are_not_measured() -> None:
    found = engine.measure_sessions(dry_run=False, seconds=60)
    assert found["status"].startswith(f"{NOT_MEASURED}: no NVIDIA GPU can be used here")


def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "engine.json", {"dry_run": False}, {})


def test_a_part_continues_and_a_failure_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    outcomes = iter(["FAILED: 1 tests", "passed"])

    def tests(**_: Any) -> dict[str, Any]:
        calls.append("tests")
        return {"status": next(outcomes)}

    def sessions(**_: Any) -> dict[str, Any]:
        calls.append("sessions")
        return {"status": "measured"}

    monkeypatch.setattr(engine, "run_tests", tests)
    monkeypatch.setattr(engine, "measure_sessions", sessions)
    kept = store(tmp_path)
    assert engine.run(kept, dry_run=False, deadline=time.monotonic()), "out of time is unfinished, not wrong"
    assert not calls
    assert not kept.complete
    assert not engine.run(kept, dry_run=False, deadline=time.monotonic() + 60)
    assert engine.run(kept, dry_run=False, deadline=time.monotonic() + 60)
    assert calls == ["tests", "sessions", "tests"]
    assert kept.complete


def test_the_page_shows_failures_gaps_and_times(tmp_path: Path) -> None:
    row = {"what": "Session", "how": "graph on, host to host", "batch": 8, "p50_us": 812.34, "p99_us": 900.0}
    tests = {"status": "FAILED: 1 tests", "passed": ["a", "b"], "failed": {"test_x": "assert 1 == 2\nmore"}}
    cases = {
        "tests": {**tests, "skipped": {"test_y": "needs TensorRT"}},
        "sessions": {"status": "measured", "rows": [row]},
    }
    (tmp_path / "engine.json").write_text(json.dumps(part("engine", cases)))
    page = section(report.write(tmp_path), "Sessions and engines")
    assert "tests on the GPU: FAILED: 1 tests (2 passed, 1 failed, 1 skipped)" in page
    assert "FAILED test_x: assert 1 == 2\n" in page
    assert "not run: needs TensorRT" in page
    assert "| Session | graph on, host to host | 8 | 812.3  | 900.0  |" in page
    assert "Device: NVIDIA Test" in report.write(tmp_path)
