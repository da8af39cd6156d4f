"""Building the plugin library with a compiler that is a shell script; the real one is at work in ``tests/plugins``."""

from __future__ import annotations

from pathlib import Path

import pytest
from bare_machine import headers

from vimdeploy.errors import MissingDependencyError
from vimdeploy.native import toolchain
from vimdeploy.native.compile import build_plugin, plan_build
from vimdeploy.native.locate import KERNELS, PLUGIN, PRELOAD, cache_folder, plugin_sources, source_hash
from vimdeploy.progress import Reporter

pytestmark = pytest.mark.usefixtures("bare")


@pytest.fixture
def include(tmp_path: Path) -> Path:
    return headers(tmp_path / "tensorrt")


def test_builds_once_and_says_how_far_it_is(nvcc: Path, include: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []

    class Told(Reporter):
        def progress(self, done: int, total: int) -> None:
            steps.append((done, total))

    path = build_plugin(["sm_89"], include, reporter=Told())
    assert path.parent.parent == cache_folder() == tmp_path / "cache" / "vimdeploy" / "plugins"
    assert path.parent.name == f"{source_hash(plugin_sources())}-trt10-cuda13.0-sm89"
    assert {file.name for file in path.parent.iterdir()} == {PLUGIN, PRELOAD, KERNELS}
    assert [done for done, _ in steps] == list(range(1, steps[-1][1] + 1))
    assert steps[-1][0] == steps[-1][1]
    log = (tmp_path / "nvcc.log").read_text()
    assert "-gencode arch=compute_89,code=sm_89 -gencode arch=compute_89,code=compute_89" in log
    assert "compute_75" not in log
    calls = len(log.splitlines())
    assert build_plugin(["sm_89"], include) == path
    assert len((tmp_path / "nvcc.log").read_text().splitlines()) == calls
    build_plugin(["sm_89"], include, force=True)
    assert len((tmp_path / "nvcc.log").read_text().splitlines()) == 2 * calls
    assert [entry.name for entry in cache_folder().iterdir()] == [path.parent.name], "nothing temporary stays"


def test_the_kernels_alone_need_no_tensorrt(nvcc: Path, tmp_path: Path) -> None:
    path = build_plugin(["sm_89"], kernels_only=True)
    assert path.parent.name == f"{source_hash(plugin_sources())}-kernels-cuda13.0-sm89"
    assert [file.name for file in path.parent.iterdir()] == [KERNELS]
    log = (tmp_path / "nvcc.log").read_text()
    assert "plugin.cpp" not in log
    assert "tensorrt/registration" not in log


def test_the_key_tells_builds_apart(nvcc: Path, include: Path, tmp_path: Path) -> None:
    keys = {
        plan_build(["sm_89"], include).key,
        plan_build(["sm_90"], include).key,
        plan_build(["sm_89", "sm_90"], include).key,
        plan_build(["sm_89"], headers(tmp_path / "eleven", 11, 1)).key,
    }
    assert len(keys) == 4


@pytest.mark.parametrize("broken", ["kernel_float16", "libvimdeploy_kernels"])
def test_a_compiler_error_is_shown_and_leaves_nothing(
    nvcc: Path, include: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setenv("NVCC_FAILS", broken)
    with pytest.raises(MissingDependencyError, match=r"expected a semicolon") as error:
        build_plugin(["sm_89"], include)
    assert broken in str(error.value)
    assert "TensorRT 10.14" in error.value.hint
    assert list(cache_folder().iterdir()) == []


def test_a_failed_rebuild_keeps_the_old_library(nvcc: Path, include: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build_plugin(["sm_89"], include)
    monkeypatch.setenv("NVCC_FAILS", "kernel_float16")
    with pytest.raises(MissingDependencyError):
        build_plugin(["sm_89"], include, force=True)
    assert path.read_text() == "built"


def test_a_missing_host_compiler_is_named(nvcc: Path, include: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain.shutil, "which", lambda *_, **__: None)
    with pytest.raises(MissingDependencyError, match=r"no C\+\+ compiler") as error:
        build_plugin(["sm_89"], include)
    assert "apt-get install g++" in error.value.hint
