"""Part ``engine``: the tests of sessions and engines that need a GPU, and what a session costs on one.

The tests are tests/runtime/test_gpu.py, run by pytest in a process of its own; the measurements are those of
benchmarks/engine.py, on a plan of the digits model that whatever TensorRT is installed builds here.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.gpu_suite.store import NOT_MEASURED, Store

ROOT = Path(__file__).resolve().parents[2]
TESTS = Path("tests", "runtime", "test_gpu.py")
NEEDED = ("numpy", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "pydantic")
"""What exporting and ONNX Runtime take; cuda-bindings and TensorRT say themselves if they are missing."""
_DONE = ("passed", "measured")


def run(store: Store, *, dry_run: bool, deadline: float) -> bool:
    """Run the part; returns whether no test failed and no measurement broke off."""
    for name, work in (("tests", run_tests), ("sessions", measure_sessions)):
        if store.cases.get(name, {}).get("status") in _DONE:
            continue
        left = deadline - time.monotonic()
        if left < 5:
            return _is_fine(store)
        store.put(name, work(dry_run=dry_run, seconds=left))
    store.save(complete=True)
    return _is_fine(store)


def _is_fine(store: Store) -> bool:
    return all(not str(case["status"]).startswith("FAILED") for case in store.cases.values())


def absent(*packages: str) -> list[str]:
    """Return which packages are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def _missing(*packages: str) -> str:
    names = absent(*packages)
    return f"{NOT_MEASURED}: {', '.join(names)} is not installed" if names else ""


def run_tests(*, dry_run: bool, seconds: float, tests: Path = TESTS) -> dict[str, Any]:
    """Run the tests marked ``gpu``; without a GPU each of them says what is missing."""
    if missing := _missing("pytest", *NEEDED):
        return {"status": missing}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", str(tests), "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds)
        except subprocess.TimeoutExpired:
            return {"status": f"{NOT_MEASURED}: longer than {seconds:.0f} s"}
        if not report.exists():
            return {"status": "FAILED: pytest did not run", "output": (done.stdout + done.stderr)[-4000:]}
        return read_junit(report.read_text(), done.stdout[-4000:])


def read_junit(text: str, output: str) -> dict[str, Any]:
    """Return what became of each test. All of them skipped is no pass: it is ``not measured``, with the reason."""
    passed: list[str] = []
    failed: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for case in ElementTree.fromstring(text).iter("testcase"):
        name = str(case.get("name"))
        for outcome, into in (("failure", failed), ("error", failed), ("skipped", skipped)):
            if (found := case.find(outcome)) is not None:
                into[name] = str(found.get("message"))[:500]
                break
        else:
            passed.append(name)
    result: dict[str, Any] = {"passed": passed, "failed": failed, "skipped": skipped}
    if failed or not (passed or skipped):
        return {"status": f"FAILED: {len(failed)} tests", **result, "output": output}
    if not passed:
        return {"status": f"{NOT_MEASURED}: {next(iter(skipped.values()))}", **result}
    return {"status": "passed", **result}


def measure_sessions(*, dry_run: bool, seconds: float) -> dict[str, Any]:
    """Measure sessions on a plan built here, against TensorRT's other Python runner where that is installed."""
    if dry_run:
        return {"status": f"{NOT_MEASURED}: dry run"}
    if missing := _missing(*NEEDED):
        return {"status": missing}
    from benchmarks import engine
    from vimdeploy.errors import MissingDependencyError, VimdeployError

    with tempfile.TemporaryDirectory() as folder:
        try:
            rows = engine.tensorrt(engine.build_plan(engine.export_digits(Path(folder)), Path(folder)))
        except MissingDependencyError as error:
            return {"status": f"{NOT_MEASURED}: {error.message}"}
        except VimdeployError as error:
            return {"status": f"FAILED: {error.message}"}
    measured = any("p50_us" in row for row in rows)
    return {"status": "measured" if measured else str(rows[0]["how"]), "rows": [*engine.overhead(), *rows]}
