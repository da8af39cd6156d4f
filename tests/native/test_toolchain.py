"""Compilers and headers: every place they are found in, and every way in which they are of no use."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from bare_machine import NVCC, executable, headers

from vimdeploy.errors import MissingDependencyError, UsageError
from vimdeploy.native import toolchain
from vimdeploy.native.locate import source_hash
from vimdeploy.native.toolchain import find_nvcc, find_tensorrt_headers, parse_architectures

pytestmark = pytest.mark.usefixtures("bare")


def test_nvcc_is_found_in_every_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingDependencyError, match="nvcc") as error:
        find_nvcc()
    assert "pip install nvidia-cuda-nvcc" in error.value.hint
    wheel = executable(tmp_path / "site-packages" / "nvidia" / "cu13" / "bin" / "nvcc", NVCC)
    assert find_nvcc().path == wheel
    system = executable(tmp_path / "no" / "bin" / "nvcc", NVCC)
    assert find_nvcc().path == system
    home = executable(tmp_path / "home" / "bin" / "nvcc", NVCC)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert find_nvcc().path == home
    path = executable(tmp_path / "path" / "nvcc", NVCC)
    monkeypatch.setenv("PATH", str(path.parent))
    found = find_nvcc()
    assert (found.path, found.release, found.architectures) == (path, "13.0", (75, 89, 90))
    executable(path, "#!/bin/sh\nexit 1\n")
    assert find_nvcc().path == home, "the first without a problem"


def test_a_broken_nvcc_is_named(nvcc: Path) -> None:
    executable(nvcc, "#!/bin/sh\necho no licence >&2\nexit 3\n")
    with pytest.raises(MissingDependencyError, match=r"cuda/bin/nvcc --version failed: no licence"):
        find_nvcc()
    executable(nvcc, "#!/bin/sh\necho hello\n")
    with pytest.raises(MissingDependencyError, match="names no release"):
        find_nvcc()
    executable(nvcc, "#!/no/such/interpreter\n")
    with pytest.raises(MissingDependencyError, match="cannot be run"):
        find_nvcc()


def test_headers_are_found_where_the_user_says_then_root_then_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingDependencyError, match="headers") as error:
        find_tensorrt_headers()
    assert "TENSORRT_ROOT" in error.value.hint
    assert "--tensorrt-include" in error.value.hint
    system = headers(tmp_path / "usr" / "include", 10, 3)
    assert find_tensorrt_headers().path == system
    root = headers(tmp_path / "root" / "include", 11, 1)
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path / "root"))
    assert find_tensorrt_headers().path == root
    named = headers(tmp_path / "named", 10, 5)
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(named))
    assert find_tensorrt_headers().path == named
    mine = headers(tmp_path / "mine" / "include", 10, 14)
    found = find_tensorrt_headers(tmp_path / "mine")
    assert (found.path, found.version) == (mine, "10.14")


def test_wrong_headers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"NvInferRuntime\.h"):
        find_tensorrt_headers(tmp_path)
    with pytest.raises(UsageError, match=r"TensorRT 8\.6"):
        find_tensorrt_headers(headers(tmp_path / "old", 8, 6))
    broken = headers(tmp_path / "broken")
    (broken / "NvInferVersion.h").write_text("nothing")
    with pytest.raises(UsageError, match="names no version"):
        find_tensorrt_headers(broken)


def test_architectures(nvcc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = find_nvcc()
    assert parse_architectures([], compiler) == (75, 89, 90)
    assert parse_architectures(["sm_89", "7.5", "90", "compute_90"], compiler) == (75, 89, 90)
    for name, words in {"ada": "not a GPU architecture", "sm_120": "unknown to nvcc 13.0", "": "not a GPU"}.items():
        with pytest.raises(UsageError, match=words):
            parse_architectures([name], compiler)
    with pytest.raises(MissingDependencyError, match="nvidia-smi"):
        parse_architectures(["native"], compiler)
    monkeypatch.setattr(
        toolchain.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="8.9\n9.0\n8.9\n", returncode=0)
    )
    assert parse_architectures(["native"], compiler) == (89, 90)


def test_the_hash_follows_every_source(tmp_path: Path) -> None:
    (tmp_path / "tensorrt").mkdir()
    file = tmp_path / "tensorrt" / "a.cpp"
    file.write_text("int a;")
    first = source_hash(tmp_path)
    (tmp_path / "tensorrt" / "README.md").write_text("not a source")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "b.cpp").write_text("not in a library")
    assert source_hash(tmp_path) == first
    file.write_text("int b;")
    second = source_hash(tmp_path)
    file.rename(file.with_name("c.cpp"))
    assert len({first, second, source_hash(tmp_path)}) == 3
