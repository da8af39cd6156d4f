"""mypy reads tensorrt/api.py with TensorRT's type stubs: what they know, it uses rightly.

The stubs of 10.13 (the package tensorrt-stubs) cannot be a dependency: they require TensorRT itself, which no machine
without its libraries can install. Nor do they parse: five lines name a parameter ``in``, or put one without a default
after one with. So they are fetched alone and mended here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import trt_wheels

ROOT = Path(__file__).parents[2]
WHEEL = "tensorrt-stubs==10.13.0.35.1"
DIMS = re.compile(
    r'expected "Dims"|incompatible type "Dims"; expected "Iterable\[int\]"|"Dims" has no attribute "__iter__"'
)
"""The one thing that the stubs have wrong: the bindings take tuples for Dims, and Dims are sequences."""


def stubs() -> Path:
    """Folder of the stubs, mended; kept between runs."""
    root = trt_wheels.cache() / WHEEL.replace("==", "-")
    if (root / "complete").exists():
        return root
    root.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(root), WHEEL]
    subprocess.run(command, check=True)
    for path in root.glob("*.whl"):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(root)
    path = root / "tensorrt_bindings" / "tensorrt.pyi"
    text = re.sub(r"\bin: list\[", "in_: list[", path.read_text())
    path.write_text(
        text.replace("power: Weights = None, channel_axis: int)", "power: Weights = None, channel_axis: int = 0)")
    )
    (root / "complete").touch()
    return root


def check(source: Path, cache: Path) -> list[str]:
    """Return mypy's errors in ``source``, less those of the stubs themselves."""
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(cache), "--no-error-summary", str(source)]
    env = {**os.environ, "MYPYPATH": str(stubs())}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert "[syntax]" not in done.stdout, done.stdout
    errors = [line for line in done.stdout.splitlines() if source.name in line and ": error: " in line]
    return [line for line in errors if not DIMS.search(line)]


def test_trt_py_fits_the_stubs_and_a_wrong_call_would_not(tmp_path: Path) -> None:
    source = ROOT / "vimdeploy" / "tensorrt" / "api.py"
    assert check(source, tmp_path / "cache") == []
    text = source.read_text()
    for right, wrong, said in (
        ("options.builder_optimization_level = ", "options.optimization_level = ", '"optimization_level"'),
        ("create_network(typed)", "create_network(str(typed))", 'incompatible type "str"'),
        (
            "return bool(self._context.execute_async_v3(stream))",
            "return bool(self._context.enqueue(stream))",
            '"enqueue"',
        ),
    ):
        assert right in text
        planted = tmp_path / "planted_trt.py"
        planted.write_text(text.replace(right, wrong))
        (error,) = check(planted, tmp_path / "cache")
        assert said in error
