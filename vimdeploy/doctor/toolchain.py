"""What building the plugin library needs: nvcc, a C++ compiler, TensorRT's headers; and the libraries built so far."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from vimdeploy.doctor.libraries import elf_problem
from vimdeploy.doctor.machine import Machine, run
from vimdeploy.doctor.report import Headers, PluginLibrary, Tool
from vimdeploy.errors import ArtifactError
from vimdeploy.native.locate import KERNELS
from vimdeploy.native.places import HEADER, header_candidates, nvcc_candidates
from vimdeploy.tensorrt.plugin import ENVIRONMENT, read_info

_PLUGIN_FILES = "libvimdeploy_*.so"


def find_nvcc(machine: Machine) -> list[tuple[str, Path]]:
    """Return every nvcc with the place that leads to it, in the order of search: PATH, CUDA_HOME, system, wheel."""
    found: dict[Path, str] = {}
    for source, path in nvcc_candidates(machine.env, machine.sites, machine.cuda_folders):
        if path.is_file() and path.resolve() not in {known.resolve() for known in found}:
            found[path] = source
    return [(source, path) for path, source in found.items()]


def examine_nvcc(machine: Machine, source: str, path: Path) -> Tool:
    """Run ``nvcc --version``."""
    answer = run([str(path), "--version"], machine.env)
    match = re.search(r"release [\d.]+, V([\d.]+)", str(answer.value or ""))
    problem = answer.problem or ("" if match else "does not answer --version as nvcc does")
    return Tool("nvcc", str(path), match[1] if match else "", source, problem)


def find_compiler(machine: Machine) -> Tool | None:
    """Return the host's C++ compiler, which nvcc calls."""
    named = machine.env.get("CXX", "")
    for name in (named, "g++", "c++"):
        path = shutil.which(name, path=machine.env.get("PATH", "")) if name else None
        if path:
            answer = run([path, "-dumpfullversion", "-dumpversion"], machine.env)
            version = str(answer.value or "").strip()
            return Tool(Path(path).name, path, version, "CXX" if name == named else "PATH", answer.problem)
    return None


def find_headers(machine: Machine) -> tuple[Headers, ...]:
    """Return every folder with TensorRT's headers, in the order in which a build looks."""
    found: dict[Path, Headers] = {}
    for source, folder in header_candidates(machine.env, machine.include_folders):
        if (folder / HEADER).is_file():
            found.setdefault(folder.resolve(), _examine_headers(folder, source))
    return tuple(found.values())


def _examine_headers(folder: Path, source: str) -> Headers:
    version = header_version(folder / "NvInferVersion.h")
    problem = "" if version else "NvInferVersion.h is missing beside it or names no version"
    return Headers(str(folder), version, source, problem)


def header_version(path: Path) -> str:
    """Read ``major.minor.patch`` from NvInferVersion.h, following macros (11 defines one by another); '' if absent."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return ""
    macros = dict(re.findall(r"^\s*#define\s+(\w+)\s+(\w+)", text, flags=re.MULTILINE))
    parts = []
    for name in ("NV_TENSORRT_MAJOR", "NV_TENSORRT_MINOR", "NV_TENSORRT_PATCH"):
        value = macros.get(name, "")
        for _ in range(len(macros)):
            value = macros.get(value, value)
        if not value.isdigit():
            return ""
        parts.append(value)
    return ".".join(parts)


def find_plugins(machine: Machine) -> tuple[PluginLibrary, ...]:
    """Return the libraries of the custom ops: named by the environment, in the package, in the cache."""
    found: dict[Path, PluginLibrary] = {}
    for source, path in _plugin_candidates(machine):
        if path.resolve() not in found:
            found[path.resolve()] = _examine_plugin(path, source)
    return tuple(found.values())


def _examine_plugin(path: Path, source: str) -> PluginLibrary:
    serves = "PyTorch" if path.name == KERNELS else "TensorRT"
    problem = elf_problem(path)
    if problem or serves == "PyTorch":
        return PluginLibrary(str(path), source, serves, problem=problem)
    try:
        info = read_info(path)
    except ArtifactError as error:
        return PluginLibrary(str(path), source, serves, problem=error.message)
    return PluginLibrary(str(path), source, serves, info.tensorrt, info.cuda, ",".join(info.architectures))


def _plugin_candidates(machine: Machine) -> Iterator[tuple[str, Path]]:
    explicit = machine.folder_variable(ENVIRONMENT)
    if explicit:
        yield ENVIRONMENT, explicit
    for site in machine.sites:
        for path in sorted((site / "vimdeploy").glob(f"_lib/**/{_PLUGIN_FILES}")):
            yield "Python package vimdeploy", path
    for path in sorted(cache_folder(machine).glob(f"**/{_PLUGIN_FILES}")):
        yield "cache", path


def cache_folder(machine: Machine) -> Path:
    """Return the folder where built plugin libraries are kept."""
    base = machine.folder_variable("XDG_CACHE_HOME")
    home = machine.env.get("HOME") or os.path.expanduser("~")
    return (base or Path(home) / ".cache") / "vimdeploy"
