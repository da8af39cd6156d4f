"""Finding and loading the plugin library: every way it can be found, and every way it can be missing.

The real registry is at work in ``tests/plugins``; here TensorRT is a few lines, so that each failure
can be had on demand.
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
from bare_machine import make_bare
from native import elf

from vimdeploy.contract import OPS
from vimdeploy.errors import ArtifactError, MissingDependencyError, UsageError, VimdeployError
from vimdeploy.native.locate import (
    PLUGIN,
    cache_folder,
    plugin_sources,
    source_hash,
)
from vimdeploy.tensorrt import plugin
from vimdeploy.tensorrt.plugin import Origin, check_fits, find_library, load_library, read_info


def library(path: Path, tensorrt: str = "10.14", architectures: str = "75,89,89+PTX", digest: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = digest or source_hash(plugin_sources())
    info = f'{{"version": "0.1.0", "source_hash": "{digest}", "tensorrt": "{tensorrt}", '
    info += f'"cuda": "13.0", "architectures": "{architectures}"}}'
    path.write_bytes(elf() + b"\0vimdeploy-plugin-info" + info.encode() + b"\0...")
    return path


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bare(tmp_path, monkeypatch)
    monkeypatch.setattr(plugin, "_LOADED", plugin._Loaded())


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
