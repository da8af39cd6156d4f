"""Find what building the plugin library takes: nvcc, a host compiler, TensorRT's headers, our sources."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vimdeploy.errors import ArtifactError, MissingDependencyError, UsageError
from vimdeploy.native import places
from vimdeploy.native.locate import SOURCE_FOLDERS, SOURCE_SUFFIXES, plugin_sources, source_files, source_hash

__all__ = [
    "ARCHITECTURES",
    "Nvcc",
    "TensorRTHeaders",
    "check_sources",
    "find_host_compiler",
    "find_nvcc",
    "find_tensorrt_headers",
    "local_architectures",
    "parse_architectures",
    "plugin_sources",
    "source_files",
    "source_hash",
]

ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 120)
"""Compute capabilities built by default, as far as the nvcc at hand knows them: every GPU since Turing."""

TENSORRT_MAJORS = (10, 11)


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler."""

    path: Path
    version: str
    """``"13.0"``."""
    architectures: tuple[int, ...]
    """Compute capabilities it can compile for."""


@dataclass(frozen=True)
class TensorRTHeaders:
    """TensorRT's headers."""

    include: Path
    major: int
    minor: int

    def __str__(self) -> str:
        return f"TensorRT {self.major}.{self.minor} in {self.include}"


def find_nvcc() -> Nvcc:
    """Find nvcc on PATH, in CUDA_HOME or CUDA_PATH, in /usr/local/cuda, or in the wheel ``nvidia-cuda-nvcc``.

    Raises:
        MissingDependencyError: there is none, or the one found does not run.
    """
    sites = [Path(root) for root in sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})]
    for _, candidate in places.nvcc_candidates(os.environ, sites, places.SYSTEM_CUDA):
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return _ask_nvcc(candidate)
    raise MissingDependencyError(
        "nvcc, the CUDA compiler, is neither on PATH nor in CUDA_HOME, /usr/local/cuda or the wheel nvidia-cuda-nvcc",
        hint="Install the CUDA toolkit (13.0 or newer builds for every GPU), or: pip install nvidia-cuda-nvcc "
        "nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl",
    )


def _ask_nvcc(path: Path) -> Nvcc:
    outputs = []
    for flag in ("--version", "--list-gpu-arch"):
        try:
            result = subprocess.run([path, flag], capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MissingDependencyError(f"{path} does not run: {error}") from error
        if result.returncode != 0:
            raise MissingDependencyError(f"{path} {flag} failed: {(result.stderr or result.stdout).strip()}")
        outputs.append(result.stdout)
    release = re.search(r"release (\d+\.\d+)", outputs[0])
    if release is None:
        raise MissingDependencyError(f"{path} --version names no release: {outputs[0].strip()!r}")
    known = tuple(sorted({int(digits) for digits in re.findall(r"compute_(\d+)\b", outputs[1])}))
    return Nvcc(path, release.group(1), known)


def find_host_compiler() -> str:
    """Return the C++ compiler that nvcc will drive (``CXX`` or g++).

    Raises:
        MissingDependencyError: there is none.
    """
    compiler = shutil.which(os.environ.get("CXX", "") or "g++") or shutil.which("c++")
    if compiler is None:
        raise MissingDependencyError(
            "no C++ compiler is on PATH, and nvcc needs one",
            hint="Install it (Debian and Ubuntu: apt-get install g++) or name one in CXX.",
        )
    return compiler


def find_tensorrt_headers(include: Path | None = None) -> TensorRTHeaders:
    """Find TensorRT's headers: in ``include``, TENSORRT_INCLUDE_DIR, TENSORRT_ROOT or the system's include folders.

    Raises:
        MissingDependencyError: there are none.
        UsageError: ``include`` has none, or they are of a TensorRT without IPluginV3.
    """
    if include is not None:
        for folder in (include, include / "include"):
            if (folder / places.HEADER).is_file():
                return _read_version(folder)
        raise UsageError(
            f"{include} holds no {places.HEADER}", hint="Give the folder that does, usually <TensorRT>/include."
        )
    folders = [folder for _, folder in places.header_candidates(os.environ, places.SYSTEM_INCLUDES)]
    for folder in folders:
        if (folder / places.HEADER).is_file():
            return _read_version(folder)
    raise MissingDependencyError(
        f"TensorRT's headers ({places.HEADER}) were not found in " + ", ".join(str(folder) for folder in folders),
        hint="The pip wheels of TensorRT contain none. Set TENSORRT_ROOT to an unpacked TensorRT, install "
        "libnvinfer-headers-dev, or clone https://github.com/NVIDIA/TensorRT at your version's tag and pass "
        "--tensorrt-include TensorRT/include.",
    )


def _read_version(include: Path) -> TensorRTHeaders:
    path = include / "NvInferVersion.h"
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    numbers = []
    for part in ("MAJOR", "MINOR"):
        match = re.search(rf"#define\s+(?:TRT_{part}_ENTERPRISE|NV_TENSORRT_{part})\s+(\d+)", text)
        if match is None:
            raise UsageError(f"{path} states no {part.lower()} version")
        numbers.append(int(match.group(1)))
    if numbers[0] not in TENSORRT_MAJORS:
        raise UsageError(
            f"{include} holds the headers of TensorRT {numbers[0]}.{numbers[1]}",
            hint="The plugin needs those of TensorRT 10 or 11; build it with those of the TensorRT that will run it.",
        )
    return TensorRTHeaders(include, numbers[0], numbers[1])


def parse_architectures(names: Sequence[str], nvcc: Nvcc) -> tuple[int, ...]:
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
            raise UsageError(f"sm_{number} is unknown to nvcc {nvcc.version} ({nvcc.path})", hint=f"It knows {known}.")
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
