"""Finding, building and loading the plugin library: every way it can be found, and every way it can be missing.

The real compiler and the real registry are at work in ``tests/plugins``; here compilers are shell scripts and TensorRT
is a few lines, so that each failure can be had on demand.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from native import elf

from vimdeploy.contract import OPS
from vimdeploy.errors import ArtifactError, MissingDependencyError, UsageError, VimdeployError
from vimdeploy.native import places, toolchain
from vimdeploy.native.compile import build_plugin, plan_build
from vimdeploy.native.locate import (
    KERNELS,
    PLUGIN,
    PRELOAD,
    cache_folder,
    plugin_sources,
    source_hash,
)
from vimdeploy.native.toolchain import find_nvcc, find_tensorrt_headers, parse_architectures
from vimdeploy.progress import Reporter
from vimdeploy.tensorrt import plugin
from vimdeploy.tensorrt.plugin import Origin, check_fits, find_library, load_library, read_info

NVCC = """\
#!/bin/sh
case "$1" in
--version) echo "Cuda compilation tools, release 13.0, V13.0.88"; exit 0 ;;
--list-gpu-arch) printf 'compute_75\\ncompute_89\\ncompute_90\\n'; exit 0 ;;
esac
echo "$@" >> "$NVCC_LOG"
while [ $# -gt 0 ]; do
    if [ "$1" = -o ]; then out=$2; fi
    shift
done
case "$out" in
*"$NVCC_FAILS"*) test -n "$NVCC_FAILS" && { echo "kernel.cuh(7): error: expected a semicolon" >&2; exit 2; } ;;
esac
printf 'built' > "$out"
"""


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def headers(folder: Path, major: int = 10, minor: int = 14) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "NvInferRuntime.h").write_text("")
    text = f"#define TRT_MAJOR_ENTERPRISE {major}\n#define TRT_MINOR_ENTERPRISE {minor}\n"
    (folder / "NvInferVersion.h").write_text(text)
    return folder


def library(path: Path, tensorrt: str = "10.14", architectures: str = "75,89,89+PTX", digest: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = digest or source_hash(plugin_sources())
    info = f'{{"version": "0.1.0", "source_hash": "{digest}", "tensorrt": "{tensorrt}", '
    info += f'"cuda": "13.0", "architectures": "{architectures}"}}'
    path.write_bytes(elf() + b"\0vimdeploy-plugin-info" + info.encode() + b"\0...")
    return path


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with no CUDA, no TensorRT and an empty cache."""
    for name in ("CUDA_HOME", "CUDA_PATH", "TENSORRT_ROOT", "TENSORRT_INCLUDE_DIR", "CXX", plugin.ENVIRONMENT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NVCC_LOG", str(tmp_path / "nvcc.log"))
    monkeypatch.setenv("NVCC_FAILS", "")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(places, "SYSTEM_CUDA", (tmp_path / "no",))
    monkeypatch.setattr(places, "SYSTEM_INCLUDES", (tmp_path / "usr" / "include",))
    monkeypatch.setattr(plugin, "_LOADED", plugin._Loaded())
    monkeypatch.setattr(places, "python_folders", lambda: [tmp_path / "site-packages"])
    compiler = executable(tmp_path / "g++", "#!/bin/sh\necho 13\n")
    monkeypatch.setattr(toolchain.shutil, "which", lambda name, path: str(compiler) if name == "g++" else None)


@pytest.fixture
def nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    return executable(tmp_path / "cuda" / "bin" / "nvcc", NVCC)


class TestToolchain:
    def test_nvcc_is_found_in_every_place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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

    def test_a_broken_nvcc_is_named(self, nvcc: Path) -> None:
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
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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

    def test_wrong_headers_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"NvInferRuntime\.h"):
            find_tensorrt_headers(tmp_path)
        with pytest.raises(UsageError, match=r"TensorRT 8\.6"):
            find_tensorrt_headers(headers(tmp_path / "old", 8, 6))
        broken = headers(tmp_path / "broken")
        (broken / "NvInferVersion.h").write_text("nothing")
        with pytest.raises(UsageError, match="names no version"):
            find_tensorrt_headers(broken)

    def test_architectures(self, nvcc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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

    def test_the_hash_follows_every_source(self, tmp_path: Path) -> None:
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


class TestBuild:
    @pytest.fixture
    def include(self, tmp_path: Path) -> Path:
        return headers(tmp_path / "tensorrt")

    def test_builds_once_and_says_how_far_it_is(self, nvcc: Path, include: Path, tmp_path: Path) -> None:
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

    def test_the_kernels_alone_need_no_tensorrt(self, nvcc: Path, tmp_path: Path) -> None:
        path = build_plugin(["sm_89"], kernels_only=True)
        assert path.parent.name == f"{source_hash(plugin_sources())}-kernels-cuda13.0-sm89"
        assert [file.name for file in path.parent.iterdir()] == [KERNELS]
        log = (tmp_path / "nvcc.log").read_text()
        assert "plugin.cpp" not in log
        assert "tensorrt/registration" not in log

    def test_the_key_tells_builds_apart(self, nvcc: Path, include: Path, tmp_path: Path) -> None:
        keys = {
            plan_build(["sm_89"], include).key,
            plan_build(["sm_90"], include).key,
            plan_build(["sm_89", "sm_90"], include).key,
            plan_build(["sm_89"], headers(tmp_path / "eleven", 11, 1)).key,
        }
        assert len(keys) == 4

    @pytest.mark.parametrize("broken", ["kernel_float16", "libvimdeploy_kernels"])
    def test_a_compiler_error_is_shown_and_leaves_nothing(
        self, nvcc: Path, include: Path, monkeypatch: pytest.MonkeyPatch, broken: str
    ) -> None:
        monkeypatch.setenv("NVCC_FAILS", broken)
        with pytest.raises(MissingDependencyError, match=r"expected a semicolon") as error:
            build_plugin(["sm_89"], include)
        assert broken in str(error.value)
        assert "TensorRT 10.14" in error.value.hint
        assert list(cache_folder().iterdir()) == []

    def test_a_failed_rebuild_keeps_the_old_library(
        self, nvcc: Path, include: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = build_plugin(["sm_89"], include)
        monkeypatch.setenv("NVCC_FAILS", "kernel_float16")
        with pytest.raises(MissingDependencyError):
            build_plugin(["sm_89"], include, force=True)
        assert path.read_text() == "built"

    def test_a_missing_host_compiler_is_named(self, nvcc: Path, include: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(toolchain.shutil, "which", lambda *_, **__: None)
        with pytest.raises(MissingDependencyError, match=r"no C\+\+ compiler") as error:
            build_plugin(["sm_89"], include)
        assert "apt-get install g++" in error.value.hint


class TestFind:
    def test_nothing_at_all(self) -> None:
        with pytest.raises(MissingDependencyError, match="no plugin library") as error:
            find_library()
        assert "vimdeploy build-plugin" in error.value.hint

    def test_the_argument_wins_over_the_environment_over_the_cache(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cached = library(cache_folder() / "key" / PLUGIN)
        assert find_library().path == cached
        assert find_library().origin is Origin.CACHE
        named = library(tmp_path / "env.so")
        monkeypatch.setenv(plugin.ENVIRONMENT, str(named))
        assert (find_library().path, find_library().origin) == (named, Origin.ENVIRONMENT)
        given = library(tmp_path / "arg.so")
        found = find_library(given)
        assert (found.path, found.origin) == (given, Origin.ARGUMENT)
        assert str(given) in found.describe()
        assert "given as an argument; TensorRT 10.14, CUDA 13.0" in found.describe()

    def test_a_named_file_is_taken_or_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        library(cache_folder() / "key" / PLUGIN)
        with pytest.raises(ArtifactError, match=r"gone\.so \(given as an argument\): cannot be read"):
            find_library(tmp_path / "gone.so")
        monkeypatch.setenv(plugin.ENVIRONMENT, str(tmp_path / "gone.so"))
        with pytest.raises(ArtifactError, match="named by VIMDEPLOY_PLUGIN"):
            find_library()
        (tmp_path / "other.so").write_bytes(elf() + b"something else")
        with pytest.raises(ArtifactError, match=r"other\.so \(.*\): is not a vimdeploy plugin library"):
            find_library(tmp_path / "other.so")
        (tmp_path / "broken.so").write_bytes(elf() + b'vimdeploy-plugin-info{"version": 3}')
        with pytest.raises(ArtifactError, match="unreadable"):
            find_library(tmp_path / "broken.so")

    def test_of_several_builds_the_fitting_current_and_newest_wins(self) -> None:
        old = library(cache_folder() / "a" / PLUGIN, "10.14", "89", digest="0123456789ab")
        eleven = library(cache_folder() / "b" / PLUGIN, "11.1", "89")
        ten = library(cache_folder() / "c" / PLUGIN, "10.14", "89")
        newest = library(cache_folder() / "d" / PLUGIN, "10.14", "90")
        for age, path in enumerate((newest, ten, eleven, old)):
            os.utime(path, (1000 - age, 1000 - age))
        (cache_folder() / "half").mkdir()
        (cache_folder() / "half" / PLUGIN).write_bytes(b"\x7fELF half a file")
        library(cache_folder() / ".build-x" / PLUGIN)
        assert find_library().path == newest
        assert find_library(tensorrt_version="10.14.1", compute_capability=(8, 9)).path == ten
        assert find_library(tensorrt_version="11.4.0").path == eleven
        ten.unlink()
        stale = find_library(tensorrt_version="10.14.1", compute_capability=(8, 9))
        assert stale.path == old
        assert not stale.is_current
        assert "other sources" in stale.describe()
        with pytest.raises(VimdeployError, match="sm_80"):
            find_library(tensorrt_version="10.14.1", compute_capability=(8, 0))

    def test_fits(self, tmp_path: Path) -> None:
        found = find_library(library(tmp_path / "a.so", "10.14", "80,89,100,100+PTX"))
        check_fits(found, "10.3.0")
        for capability in ((8, 0), (8, 6), (8, 9), (10, 0), (10, 3), (12, 0)):
            check_fits(found, "10.3.0", capability)
        for capability in ((7, 5), (9, 0)):
            with pytest.raises(VimdeployError, match="but the GPU is sm_") as error:
                check_fits(found, "10.3.0", capability)
            assert f"--arch sm_{capability[0]}{capability[1]}" in error.value.hint
        with pytest.raises(VimdeployError, match=r"TensorRT 10\.14, but TensorRT 11\.4\.0\.106 is running") as error:
            check_fits(found, "11.4.0.106")
        for driver in (13000, 13020, 14000, None):  # minor versions of one CUDA serve each other
            check_fits(found, "10.3.0", driver=driver)
        with pytest.raises(VimdeployError, match=r"built with CUDA 13\.0, but the driver serves CUDA 12\.4"):
            check_fits(found, "10.3.0", driver=12040)
        assert "headers of TensorRT 11" in error.value.hint


class Registry:
    """A plugin registry as far as the loader knows it."""

    def __init__(self, ops: tuple[str, ...] = tuple(OPS), refuses: bool = False) -> None:
        self.all_creators: list[Any] = [SimpleNamespace(name="Other", plugin_version="1", plugin_namespace="")]
        self.loads: list[str] = []
        self._ops = ops
        self._refuses = refuses

    def register(self) -> None:
        self.all_creators += [
            SimpleNamespace(name=op, plugin_version="1", plugin_namespace="vimdeploy") for op in self._ops
        ]

    def load_library(self, path: str) -> object | None:
        self.loads.append(path)
        if self._refuses:
            return None
        self.register()
        return object()


def tensorrt(registry: Registry, version: str = "10.14.1", name: str = "tensorrt") -> Any:
    return SimpleNamespace(__name__=name, __version__=version, get_plugin_registry=lambda: registry)


class TestLoad:
    def test_loads_once(self, tmp_path: Path) -> None:
        path = library(tmp_path / "a.so")
        registry = Registry()
        first = load_library(tensorrt(registry), path)
        assert first.path == path
        assert load_library(tensorrt(registry)) is first
        assert load_library(tensorrt(registry), path) is first
        assert registry.loads == [str(path)]
        with pytest.raises(UsageError, match="already uses"):
            load_library(tensorrt(registry), library(tmp_path / "b.so"))

    def test_never_into_rtx(self, tmp_path: Path) -> None:
        registry = Registry()
        with pytest.raises(UsageError, match="RTX takes no plugins"):
            load_library(tensorrt(registry, name="tensorrt_rtx"), library(tmp_path / "a.so"))
        assert registry.loads == []

    def test_never_for_another_major(self, tmp_path: Path) -> None:
        registry = Registry()
        with pytest.raises(VimdeployError, match="TensorRT 11"):
            load_library(tensorrt(registry, "11.4.0"), library(tmp_path / "a.so"))
        assert registry.loads == []

    def test_says_when_somebody_else_has_registered_the_plugins(self, tmp_path: Path) -> None:
        registry = Registry()
        registry.register()
        with pytest.raises(UsageError, match="already registered") as error:
            load_library(tensorrt(registry), library(tmp_path / "a.so"))
        assert "LD_PRELOAD" in error.value.hint

    @pytest.mark.parametrize("registry", [Registry(refuses=True), Registry(ops=("CausalConv1d",))])
    def test_says_when_tensorrt_refuses(self, tmp_path: Path, registry: Registry) -> None:
        with pytest.raises(VimdeployError, match=r"could not load .*a\.so") as error:
            load_library(tensorrt(registry), library(tmp_path / "a.so"))
        assert "build-plugin" in error.value.hint
        assert plugin._LOADED.library is None


def test_importing_it_costs_neither_torch_nor_tensorrt() -> None:
    code = """
        import sys
        import vimdeploy.tensorrt.plugin
        print([name for name in ("torch", "tensorrt", "onnx", "numpy") if name in sys.modules])
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_info_of_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_info(tmp_path)
