"""What the tests of the C++ plugin share: TensorRT's headers, one full build, one host build."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from native import architectures, build_folder, locked, needed, run

from vimdeploy.native.compile import build_plugin
from vimdeploy.native.locate import cache_folder, plugin_sources

HEADERS_WHEEL = "kernel-lens==2.0.1"
"""A wheel that carries TensorRT 10.14 headers; fetched without its dependencies, never installed. Test-only."""


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
        return build_plugin([f"sm_{number}" for number in architectures()], tensorrt_include, jobs=2)


@pytest.fixture(scope="session")
def host_build(tensorrt_include: Path) -> Path:
    """Folder of the host build: the plugin objects and their tests, under AddressSanitizer and UBSan."""
    cmake = needed("cmake", "cmake")
    needed("g++", "g++")
    generator = "Ninja" if shutil.which("ninja") else "Unix Makefiles"
    folder = build_folder("host-tests")
    with locked(folder):
        run(
            *(cmake, "-S", plugin_sources(), "-B", folder, "-G", generator),
            *("-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DVIMDEPLOY_WITH_CUDA=OFF", "-DVIMDEPLOY_BUILD_TESTS=ON"),
            *("-DVIMDEPLOY_SANITIZE=address,undefined", f"-DTENSORRT_INCLUDE_DIR={tensorrt_include}"),
        )
        run(cmake, "--build", folder, "-j2")
    return folder
