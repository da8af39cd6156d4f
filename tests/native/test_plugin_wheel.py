"""The wheel carries the plugin's sources, so that ``vimdeploy build-plugin`` works from an installed package."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the unpacked wheel, away from the checkout."""
    folder = tmp_path_factory.mktemp("site")
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def python(installed: Path, code: str) -> str:
    """Run code with the unpacked wheel first on the path and the checkout nowhere."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(installed)!r})\n{code}"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=installed, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_sources_are_those_of_the_checkout(installed: Path) -> None:
    from vimdeploy.native.locate import source_files, source_hash

    code = "from vimdeploy.native.locate import *; s = plugin_sources(); print(s); print(source_hash(s))"
    folder, digest = python(installed, code).splitlines()
    assert Path(folder) == installed / "vimdeploy" / "_plugins"
    assert digest == source_hash(ROOT / "plugins")
    shipped = {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}
    ops = {
        path.relative_to(ROOT / "plugins").as_posix()
        for name in ("cpu", "onnxruntime")
        for path in (ROOT / "plugins" / name).rglob("*")
        if path.is_file()
    }
    assert shipped == {*source_files(ROOT / "plugins"), *ops, "CMakeLists.txt", "CMakePresets.json"}


def test_a_build_from_the_wheel_finds_its_sources_and_names_what_is_missing(installed: Path) -> None:
    code = """
from pathlib import Path
from vimdeploy.native.compile import plan_build
from vimdeploy.errors import VimdeployError
try:
    plan_build(["sm_89"], Path("/no/such/folder"))
except VimdeployError as error:
    print(error.message)
"""
    assert python(installed, code) == "/no/such/folder holds no NvInferRuntime.h"
