"""What the tests of the C++ plugin share: TensorRT's headers, one full build, one host build.

Nothing here is skipped when a tool is missing: nvcc, cmake, g++ and GoogleTest are part of the gate, and a test that
cannot have them fails and names them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vimdeploy.engine.plugin_build import build_plugin, cache_folder
from vimdeploy.engine.toolchain import plugin_sources

HEADERS_WHEEL = "kernel-lens==2.0.1"
"""A wheel that carries TensorRT 10.14 headers; fetched without its dependencies, never installed. Test-only."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one pytest worker at a time work in ``folder``; the others find its result."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def needed(tool: str, package: str) -> str:
    """Return the path of ``tool``, or fail and say which package has it."""
    path = shutil.which(tool)
    if path is None:
        pytest.fail(f"{tool} is missing: apt-get install {package}", pytrace=False)
    return path


def run(*command: object, timeout: float = 900, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command that has to succeed."""
    words = [str(word) for word in command]
    result = subprocess.run(
        words, capture_output=True, text=True, timeout=timeout, env={**os.environ, **environment}, check=False
    )
    assert result.returncode == 0, f"{' '.join(words)}\n{result.stdout[-8000:]}\n{result.stderr[-8000:]}"
    return result


@pytest.fixture(scope="session")
def tensorrt_include() -> Path:
    """Folder with TensorRT headers: VIMDEPLOY_TEST_TENSORRT_INCLUDE, or those of the wheel."""
    if os.environ.get("VIMDEPLOY_TEST_TENSORRT_INCLUDE"):
        return Path(os.environ["VIMDEPLOY_TEST_TENSORRT_INCLUDE"])
    home = cache_folder().parent / "test-headers"
    with locked(home):
        include = home / "kernel_lens" / "include" / "tensorrt"
        if not (include / "NvInferRuntime.h").is_file():
            run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", home, HEADERS_WHEEL)
            (wheel,) = home.glob("kernel_lens-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                members = [name for name in archive.namelist() if name.startswith("kernel_lens/include/tensorrt/")]
                archive.extractall(home, members)
    return include


@pytest.fixture(scope="session")
def library(tensorrt_include: Path) -> Path:
    """``libvimdeploy_plugin.so`` for every architecture, built once per state of the sources and kept in the cache."""
    with locked(cache_folder()):
        return build_plugin(tensorrt_include=tensorrt_include, jobs=2)


@pytest.fixture(scope="session")
def host_build(tensorrt_include: Path) -> Path:
    """Folder of the host build: the plugin objects and their tests, under AddressSanitizer and UBSan."""
    cmake = needed("cmake", "cmake")
    needed("g++", "g++")
    generator = "Ninja" if shutil.which("ninja") else "Unix Makefiles"
    folder = cache_folder().parent / "host-tests"
    with locked(folder):
        run(
            *(cmake, "-S", plugin_sources(), "-B", folder, "-G", generator),
            *("-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DVIMDEPLOY_WITH_CUDA=OFF", "-DVIMDEPLOY_BUILD_TESTS=ON"),
            *("-DVIMDEPLOY_SANITIZE=address,undefined", f"-DTENSORRT_INCLUDE_DIR={tensorrt_include}"),
        )
        run(cmake, "--build", folder, "-j2")
    return folder
