"""The CMake project: where it finds TensorRT, what it builds for; it builds what `vimdeploy build-plugin` does."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from native import build_folder, locked, needed, run

from vimdeploy.native.locate import KERNELS, PLUGIN, PRELOAD, plugin_sources, source_hash
from vimdeploy.native.toolchain import ARCHITECTURES, find_nvcc
from vimdeploy.tensorrt.plugin import read_info


def configure(folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Configure the project; TensorRT is nowhere unless an argument or the environment leads to it."""
    generator = "Ninja" if shutil.which("ninja") else "Unix Makefiles"
    command = [needed("cmake", "cmake"), "-S", plugin_sources(), "-B", folder, "-G", generator]
    command += ["-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF", *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TENSORRT")}
    clean["PATH"] = f"{find_nvcc().path.parent}{os.pathsep}{clean['PATH']}"
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=300,
        env={**clean, **environment},
        check=False,
    )


def test_tensorrt_is_found_by_root_and_by_folder(tensorrt_include: Path, tmp_path: Path) -> None:
    host = "-DVIMDEPLOY_WITH_CUDA=OFF"
    root = tmp_path / "TensorRT"
    root.mkdir()
    (root / "include").symlink_to(tensorrt_include)
    found = re.compile(r"TensorRT \d+ headers in")
    for name, result in {
        "explicit": configure(tmp_path / "a", host, f"-DTENSORRT_INCLUDE_DIR={tensorrt_include}"),
        "variable": configure(tmp_path / "b", host, f"-DTENSORRT_ROOT={root}"),
        "environment": configure(tmp_path / "c", host, TENSORRT_ROOT=str(root)),
    }.items():
        assert result.returncode == 0, f"{name}: {result.stderr}"
        assert found.search(result.stdout), name
    missing = configure(tmp_path / "d", host)
    assert missing.returncode != 0
    words = " ".join(missing.stderr.split())
    assert "The pip wheels of TensorRT contain no headers. Set TENSORRT_ROOT" in words


def test_a_tensorrt_without_the_interfaces_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "NvInferRuntime.h").write_text("")
    (tmp_path / "old" / "NvInferVersion.h").write_text("#define NV_TENSORRT_MAJOR 8\n")
    result = configure(tmp_path / "b", "-DVIMDEPLOY_WITH_CUDA=OFF", f"-DTENSORRT_INCLUDE_DIR={tmp_path / 'old'}")
    assert result.returncode != 0
    assert "TensorRT 8 has no IPluginV3" in result.stderr


def test_by_default_it_builds_for_every_gpu_that_nvcc_knows(tmp_path: Path) -> None:
    result = configure(tmp_path, "-DVIMDEPLOY_KERNELS_ONLY=ON")
    assert result.returncode == 0, result.stderr
    known = [str(number) for number in ARCHITECTURES if number in find_nvcc().architectures]
    (line,) = [line for line in result.stdout.splitlines() if "architectures" in line]
    assert line.endswith(",".join([*known, f"{known[-1]}+PTX"]))


def test_presets_are_valid(tmp_path: Path) -> None:
    presets = json.loads((plugin_sources() / "CMakePresets.json").read_text())
    names = {preset["name"] for preset in presets["configurePresets"]}
    listed = run("cmake", "--list-presets", "-S", plugin_sources()).stdout
    assert names
    assert all(f'"{name}"' in listed for name in names)


@pytest.fixture(scope="module")
def built(tensorrt_include: Path) -> Path:
    """The three libraries for one architecture: warnings are errors in both compilers."""
    folder = build_folder("cmake-build")
    with locked(folder):
        result = configure(folder, "-DCMAKE_CUDA_ARCHITECTURES=90-real", f"-DTENSORRT_INCLUDE_DIR={tensorrt_include}")
        assert result.returncode == 0, result.stderr
        run("cmake", "--build", folder, "-j2")
    return folder


def test_it_builds_the_same_three_libraries(built: Path) -> None:
    assert {path.name for path in built.glob("*.so")} == {PLUGIN, PRELOAD, KERNELS}
    info = read_info(built / PLUGIN)
    assert info.source_hash == source_hash(plugin_sources())
    assert info.architectures == ("90",)


def test_its_exports_are_those_of_the_other_build(built: Path, library: Path) -> None:
    for name in (PLUGIN, PRELOAD, KERNELS):
        tables = [
            {line.split()[-1] for line in run("nm", "-D", "--defined-only", folder / name).stdout.splitlines()}
            for folder in (built, library.parent)
        ]
        assert tables[0] == tables[1]
