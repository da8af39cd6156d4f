"""Every nvcc, C++ compiler and set of TensorRT headers on a machine, and the ones that a build takes.

A search yields records in the order of preference; a build takes the first without a problem, ``vimdeploy doctor``
prints them all.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vimdeploy.errors import ArtifactError, MissingDependencyError, UsageError
from vimdeploy.native.locate import SOURCE_FOLDERS, SOURCE_SUFFIXES
from vimdeploy.native.places import Places
from vimdeploy.native.process import run

ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 120)
"""Compute capabilities built by default, as far as the nvcc at hand knows them: every GPU since Turing."""

TENSORRT_MAJORS = (10, 11)

HEADER = "NvInferRuntime.h"
"""The header that plugins are compiled against; a folder that has it holds TensorRT's."""


@dataclass(frozen=True)
class Tool:
    """A compiler: nvcc or the host's C++ compiler; ``problem`` says why it cannot be used."""

    name: str
    path: Path
    version: str
    """As it states it: ``"13.0.88"``."""
    source: str
    """What leads there: a variable, ``system folder`` or a Python package."""
    problem: str = ""
    architectures: tuple[int, ...] = ()
    """Compute capabilities that an nvcc can compile for."""

    @property
    def release(self) -> str:
        """The version without the patch: ``"13.0"``."""
        return ".".join(self.version.split(".")[:2])


@dataclass(frozen=True)
class Headers:
    """A folder with TensorRT's headers; ``problem`` says why they cannot be used."""

    path: Path
    version: str
    """``"10.14.1"``; empty where it cannot be read."""
    source: str
    problem: str = ""

    @property
    def major(self) -> int | None:
        """First number of the version, None where it could not be read."""
        return int(self.version.split(".")[0]) if self.version else None

    def __str__(self) -> str:
        return f"TensorRT {'.'.join(self.version.split('.')[:2])} in {self.path}"


def nvccs(places: Places | None = None) -> Iterator[Tool]:
    """Yield every nvcc: on PATH, in CUDA_HOME or CUDA_PATH, in /usr/local/cuda, in the wheel ``nvidia-cuda-nvcc``."""
    places = places or Places()
    seen = set()
    for source, path in _nvcc_candidates(places):
        if path.is_file() and path.resolve() not in seen:
            seen.add(path.resolve())
            yield _examine_nvcc(path, source, places)


def _nvcc_candidates(places: Places) -> Iterator[tuple[str, Path]]:
    for folder in places.path_variable("PATH"):
        yield "PATH", folder / "nvcc"
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := places.folder_variable(variable):
            yield variable, home / "bin" / "nvcc"
    for cuda in places.cuda_folders:
        yield "system folder", cuda / "bin" / "nvcc"
    for site in places.sites:
        for path in sorted(site.glob("nvidia/*/bin/nvcc")):
            yield "Python package nvidia", path


def _examine_nvcc(path: Path, source: str, places: Places) -> Tool:
    said = []
    for flag in ("--version", "--list-gpu-arch"):
        answer = run([str(path), flag], places.env)
        if answer.problem:
            return Tool("nvcc", path, "", source, f"{flag} failed: {answer.problem}")
        said.append(str(answer.value))
    version = re.search(r"release [\d.]+, V([\d.]+)", said[0])
    if version is None:
        return Tool("nvcc", path, "", source, "--version names no release, as nvcc does")
    known = sorted({int(digits) for digits in re.findall(r"compute_(\d+)\b", said[1])})
    return Tool("nvcc", path, version[1], source, architectures=tuple(known))


def host_compilers(places: Places | None = None) -> Iterator[Tool]:
    """Yield the C++ compilers: ``CXX``, then g++ and c++ on PATH."""
    places = places or Places()
    named = places.env.get("CXX", "")
    for name in filter(None, (named, "g++", "c++")):
        path = shutil.which(name, path=places.env.get("PATH", ""))
        if path:
            answer = run([path, "-dumpfullversion", "-dumpversion"], places.env)
            version = str(answer.value or "").strip()
            yield Tool(Path(path).name, Path(path), version, "CXX" if name == named else "PATH", answer.problem)


def headers(places: Places | None = None) -> Iterator[Headers]:
    """Yield every folder with TensorRT's headers: TENSORRT_INCLUDE_DIR, TENSORRT_ROOT, the system's folders."""
    seen = set()
    for source, folder in _header_candidates(places or Places()):
        if (folder / HEADER).is_file() and folder.resolve() not in seen:
            seen.add(folder.resolve())
            yield examine_headers(folder, source)


def _header_candidates(places: Places) -> Iterator[tuple[str, Path]]:
    if include := places.folder_variable("TENSORRT_INCLUDE_DIR"):
        yield "TENSORRT_INCLUDE_DIR", include
    if root := places.folder_variable("TENSORRT_ROOT"):
        for folder in (root / "include", *sorted(root.glob("targets/*/include"))):
            yield "TENSORRT_ROOT", folder
    for folder in places.include_folders:
        yield "system folder", folder


def examine_headers(folder: Path, source: str) -> Headers:
    """Say of which TensorRT the headers in a folder are, and whether a plugin can be built with them."""
    version = header_version(folder / "NvInferVersion.h")
    found = Headers(folder, version, source)
    if not version:
        return replace(found, problem="NvInferVersion.h is missing beside it or names no version")
    if found.major not in TENSORRT_MAJORS:
        wanted = " or ".join(map(str, TENSORRT_MAJORS))
        return replace(found, problem=f"the headers are of TensorRT {version}, the plugin needs those of {wanted}")
    return found


def header_version(path: Path) -> str:
    """Read ``major.minor.patch`` from NvInferVersion.h, following macros (11 defines one by another); '' if absent."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return ""
    macros = dict(re.findall(r"^\s*#define\s+(\w+)\s+(\w+)", text, flags=re.MULTILINE))
    parts = []
    for name in ("MAJOR", "MINOR", "PATCH"):
        value = macros.get(f"NV_TENSORRT_{name}") or macros.get(f"TRT_{name}_ENTERPRISE", "")
        for _ in range(len(macros)):
            value = macros.get(value, value)
        if value.isdigit():
            parts.append(value)
        elif name != "PATCH":
            return ""
    return ".".join(parts)


def find_nvcc() -> Tool:
    """Return the nvcc that a build takes: the first that :func:`nvccs` finds without a problem.

    Raises:
        MissingDependencyError: there is none, or none that runs.
    """
    return _first(
        nvccs(),
        "nvcc, the CUDA compiler, is neither on PATH nor in CUDA_HOME, /usr/local/cuda or the wheel nvidia-cuda-nvcc",
        hint="Install the CUDA toolkit (13.0 or newer builds for every GPU), or: pip install nvidia-cuda-nvcc "
        "nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl",
    )


def find_host_compiler() -> Tool:
    """Return the C++ compiler that nvcc will drive.

    Raises:
        MissingDependencyError: there is none, or none that runs.
    """
    return _first(
        host_compilers(),
        "no C++ compiler is on PATH, and nvcc needs one",
        hint="Install it (Debian and Ubuntu: apt-get install g++) or name one in CXX.",
    )


def _first(tools: Iterable[Tool], missing: str, hint: str) -> Tool:
    problems = []
    for tool in tools:
        if not tool.problem:
            return tool
        problems.append(f"{tool.path} {tool.problem}")
    raise MissingDependencyError("; ".join(problems) or missing, hint=hint)


def find_tensorrt_headers(include: Path | None = None) -> Headers:
    """Return the headers that a build takes: those in ``include``, else the first of :func:`headers` that fit.

    Raises:
        MissingDependencyError: there are none.
        UsageError: ``include`` has none, or they are of a TensorRT without IPluginV3.
    """
    if include is not None:
        for folder in (include, include / "include"):
            if (folder / HEADER).is_file():
                named = examine_headers(folder, "argument")
                if named.problem:
                    raise UsageError(f"{folder}: {named.problem}", hint=_HEADERS_HINT)
                return named
        raise UsageError(f"{include} holds no {HEADER}", hint="Give the folder that does, usually <TensorRT>/include.")
    problems = []
    for found in headers():
        if not found.problem:
            return found
        problems.append(f"{found.path}: {found.problem}")
    folders = ", ".join(str(folder) for _, folder in _header_candidates(Places()))
    missing = f"TensorRT's headers ({HEADER}) were not found in {folders}"
    raise MissingDependencyError("; ".join(problems) or missing, hint=_HEADERS_HINT)


_HEADERS_HINT = (
    "The pip wheels of TensorRT contain none. Set TENSORRT_ROOT to an unpacked TensorRT, install "
    "libnvinfer-headers-dev, or clone https://github.com/NVIDIA/TensorRT at your version's tag and pass "
    "--tensorrt-include TensorRT/include."
)


def parse_architectures(names: Sequence[str], nvcc: Tool) -> tuple[int, ...]:
    """Turn ``sm_89``, ``8.9``, ``89`` or ``native`` into compute capabilities, or pick the default ones.

    Args:
        names: what the user asked for; empty for every one of :data:`ARCHITECTURES` that ``nvcc`` knows.
        nvcc: the compiler that has to know them.

    Raises:
        UsageError: a name is not an architecture, or ``nvcc`` does not know it.
        MissingDependencyError: ``native`` was asked for and no GPU answers.
    """
    if not names:
        return tuple(number for number in ARCHITECTURES if number in nvcc.architectures)
    numbers: set[int] = set()
    for name in names:
        if name == "native":
            numbers.update(local_architectures())
            continue
        match = re.fullmatch(r"(?:sm_|compute_)?(\d{2,3}|\d{1,2}\.\d)", name.strip())
        if match is None:
            raise UsageError(f"'{name}' is not a GPU architecture", hint="Write it like sm_89, or 'native'.")
        numbers.add(int(match.group(1).replace(".", "")))
    for number in sorted(numbers):
        if number not in nvcc.architectures:
            known = ", ".join(f"sm_{known}" for known in nvcc.architectures)
            raise UsageError(f"sm_{number} is unknown to nvcc {nvcc.release} ({nvcc.path})", hint=f"It knows {known}.")
        if number < min(ARCHITECTURES):
            raise UsageError(f"sm_{number} is older than Turing (sm_75), the oldest GPU that TensorRT 10 serves")
    return tuple(sorted(numbers))


def local_architectures() -> tuple[int, ...]:
    """Return the compute capabilities of the GPUs in this machine, as nvidia-smi lists them.

    Raises:
        MissingDependencyError: nvidia-smi is missing, fails or lists none.
    """
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise MissingDependencyError(
            f"nvidia-smi does not say which GPU this machine has: {error}",
            hint="Name the architecture instead, for example --arch sm_89.",
        ) from error
    numbers = {int(major + minor) for major, minor in re.findall(r"^\s*(\d+)\.(\d)\s*$", output, re.MULTILINE)}
    if not numbers:
        raise MissingDependencyError("nvidia-smi lists no GPU", hint="Name the architecture, for example --arch sm_89.")
    return tuple(sorted(numbers))


def check_sources(sources: Path) -> None:
    """Raise ArtifactError unless ``sources`` has every folder that a library is built from."""
    for folder in SOURCE_FOLDERS:
        if not any(path.suffix in SOURCE_SUFFIXES for path in (sources / folder).glob("*")):
            raise ArtifactError(f"{sources / folder} holds no sources", hint="Reinstall vimdeploy.")
