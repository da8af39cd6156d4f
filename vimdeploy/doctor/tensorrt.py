"""Every TensorRT library that some process on this machine could load.

Two TensorRTs on one machine are behind most unreadable version errors, so all of them are listed, with the place that
makes each visible.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from vimdeploy.doctor.machine import Machine, ask
from vimdeploy.doctor.report import RuntimeLibrary
from vimdeploy.native.elf import elf_problem
from vimdeploy.native.process import Answer, run

_NAME = re.compile(r"lib(nvinfer\w*|nvonnxparser\w*|tensorrt_rtx|tensorrt_onnxparser_rtx)\.so((?:\.\d+)*)$")
RUNTIMES = ("nvinfer", "nvinfer_lean", "nvinfer_dispatch", "tensorrt_rtx")
"""The families that hold a runtime, and so can be asked for their version."""

_ASK_VERSION = """
import ctypes, json
try:
    print(json.dumps({"version": ctypes.CDLL(sys.argv[1]).getInferLibVersion()}))
except OSError as error:
    print(json.dumps({"problem": str(error)}))
except AttributeError:
    print(json.dumps({"problem": "has no getInferLibVersion: not a TensorRT library"}))
"""


def find_libraries(machine: Machine) -> dict[Path, tuple[str, ...]]:
    """Return every TensorRT library by its real path, with the places that lead to it, in the order of search.

    A link that leads nowhere is kept under its own path: it is what a loader would stumble over.
    """
    found: dict[Path, list[str]] = {}
    for source, path in _candidates(machine):
        real = path.resolve() if path.exists() else path
        sources = found.setdefault(real, [])
        if source not in sources:
            sources.append(source)
    return {path: tuple(sources) for path, sources in found.items()}


def _candidates(machine: Machine) -> Iterator[tuple[str, Path]]:
    for site in machine.sites:
        for path in _inside_packages(site):
            yield f"Python package {path.relative_to(site).parts[0]}", path
    root = machine.folder_variable("TENSORRT_ROOT")
    groups: list[tuple[str, Iterable[Path]]] = [("LD_LIBRARY_PATH", machine.path_variable("LD_LIBRARY_PATH"))]
    if root:
        groups.append(("TENSORRT_ROOT", (root / "lib", root / "lib64", *sorted(root.glob("targets/*/lib")))))
    prefix = machine.folder_variable("CONDA_PREFIX")
    if prefix:
        groups.append(("CONDA_PREFIX", (prefix / "lib",)))
    groups.append(("system folder", machine.library_folders))
    for source, folders in groups:
        for folder in folders:
            for path in _in_folder(folder):
                yield source, path
    for path in _loader_cache(machine):
        yield "ldconfig", path


def _inside_packages(site: Path) -> Iterator[Path]:
    """Yield libraries one to three folders below a site folder, as all TensorRT wheels place them."""
    for package in _folders(site):
        if package.name.endswith((".dist-info", "__pycache__")):
            continue
        yield from _in_folder(package)
        for inner in ("lib", "libs"):
            yield from _in_folder(package / inner)
        if package.name in ("nvidia", "tensorrt"):
            for child in _folders(package):
                yield from _in_folder(child)
                yield from _in_folder(child / "lib")


def _folders(parent: Path) -> list[Path]:
    try:
        with os.scandir(parent) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir())
    except OSError:
        return []


def _in_folder(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if _NAME.match(entry.name))
    except OSError:
        return []


def _loader_cache(machine: Machine) -> Iterator[Path]:
    command = list(machine.ldconfig)
    # Ordinary users often have no sbin folder in PATH.
    env = {**machine.env, "PATH": machine.env.get("PATH", "") + os.pathsep + "/usr/sbin:/sbin"}
    for line in str(run(command, env).value or "").splitlines():
        name, arrow, target = line.strip().partition(" => ")
        if arrow and _NAME.match(name.split(" ")[0]):
            yield Path(target)


def examine_library(machine: Machine, path: Path, sources: tuple[str, ...]) -> RuntimeLibrary:
    """Say what a library is and whether it can be loaded; loading happens in a process of its own."""
    match = _NAME.match(path.name)
    family, version = (match[1], match[2].lstrip(".")) if match else (path.name, "")
    problem = elf_problem(path)
    if not problem and family in RUNTIMES:
        answer = ask(machine, _ASK_VERSION, str(path))
        problem = _problem_of(answer)
        version = version if problem else decode_version(int(answer.value["version"]))
    return RuntimeLibrary(family, str(path), version, sources, problem, _owner(machine, path))


def _owner(machine: Machine, path: Path) -> str:
    """Return the name of the distribution whose record lists this file."""
    for site in machine.sites:
        if not path.is_relative_to(site):
            continue
        line = f"{path.relative_to(site).as_posix()},"
        for record in site.glob("*.dist-info/RECORD"):
            if line in record.read_text(errors="replace"):
                return record.parent.name.split("-")[0].replace("_", "-")
    return ""


def _problem_of(answer: Answer) -> str:
    if answer.problem:
        return f"loading it {answer.problem}"
    return str(answer.value.get("problem", ""))


def decode_version(number: int) -> str:
    """Turn ``getInferLibVersion`` into words: 101301 is 10.13.1; before TensorRT 10 the scheme was 8601 for 8.6.1."""
    if number < 10000:
        return f"{number // 1000}.{number // 100 % 10}.{number % 100}"
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
