"""Builds what the suite runs: the kernels for the GPU at hand, or for the host; the sanitizer driver; the ceilings.

The CMake project wants TensorRT's headers, which a machine without TensorRT has not. The kernels library needs none of
them, so nvcc builds its sources directly, all at once, and ptxas's report of registers and spills is kept.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vimdeploy.engine.toolchain import find_nvcc, plugin_sources, source_files, source_hash
from vimdeploy.errors import MissingDependencyError

HERE = Path(__file__).resolve().parent
_FOLDERS = ("selective_scan/", "causal_conv1d/", "c_api/")


@dataclass(frozen=True)
class Built:
    """What :func:`build` made. ``ceilings`` is None for the host, which has none to measure."""

    kernels: Path
    driver: Path
    ceilings: Path | None
    report: dict[str, Any]
    """Per kernel: registers, spilled bytes, stack frame; empty for the host."""


def sources_digest() -> str:
    """Return the digest of the plugin's sources, as the library itself states it."""
    return source_hash(plugin_sources())


def kernel_sources() -> list[str]:
    """Return the files of libvimdeploy_kernels, the slowest to compile first."""
    names = [n for n in source_files(plugin_sources()) if n.startswith(_FOLDERS) and n.endswith((".cu", ".cpp"))]
    return sorted((n for n in names if not n.endswith("/plugin.cpp")), key=lambda n: ("kernel_" not in n, n))


def build(folder: Path, compute_capability: str) -> Built:
    """Build for one architecture (``"9.0"``) into ``folder``, or return what an earlier call built.

    Raises:
        MissingDependencyError: there is no nvcc, or it fails; the message holds its errors.
    """
    number = compute_capability.replace(".", "")
    nvcc = find_nvcc()
    target = folder / f"{sources_digest()}-cuda{nvcc.version}-sm{number}"
    target.mkdir(parents=True, exist_ok=True)
    library, driver, ceilings = (
        target / name for name in ("libvimdeploy_kernels.so", "sanitizer_driver", "libceilings.so")
    )
    report = target / "ptxas.txt"
    architecture = ["-gencode", f"arch=compute_{number},code=sm_{number}"]
    common = [str(nvcc.path), "-std=c++17", "-O3", "-lineinfo", *architecture]
    with _lock(target):
        if not library.is_file():
            _build_kernels(common, target, library, report)
        if not driver.is_file():
            linking = ["-L", str(target), "-lvimdeploy_kernels", f"-Xlinker=-rpath={target}"]
            _run(
                [
                    *common,
                    "-I",
                    str(plugin_sources()),
                    "-x",
                    "cu",
                    str(HERE / "sanitizer_driver.cpp"),
                    "-o",
                    str(driver),
                    *linking,
                ]
            )
        if not ceilings.is_file():
            _run([*common, "-Xcompiler=-fPIC", "-shared", str(HERE / "ceilings.cu"), "-o", str(ceilings)])
    return Built(library, driver, ceilings, read_ptxas(report.read_text()))


def _build_kernels(common: Sequence[str], target: Path, library: Path, report: Path) -> None:
    root = plugin_sources()

    def compile_one(name: str) -> tuple[Path, str]:
        out = target / (name.replace("/", "_") + ".o")
        flags = ["-Xcompiler=-fPIC,-fvisibility=hidden", "-Xptxas=-v", "-I", str(root)]
        return out, _run([*common, *flags, "-c", str(root / name), "-o", str(out)])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = list(pool.map(compile_one, kernel_sources()))
    report.write_text("\n".join(text for _, text in done))
    temporary = library.with_suffix(".part")
    exports = f"-Xlinker=--version-script={root / 'common' / 'kernels.map'}"
    objects = [str(out) for out, _ in done]
    _run([common[0], "-shared", "-cudart=static", exports, "-o", str(temporary), *objects])
    temporary.replace(library)


def read_ptxas(text: str) -> dict[str, Any]:
    """Read ``ptxas -v``: registers, spilled bytes and stack frame of each kernel."""
    pattern = re.compile(
        r"Compiling entry function '(?P<name>[^']+)'.*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill "
        r"stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
        re.DOTALL,
    )
    return {
        match["name"]: {
            "registers": int(match["registers"]),
            "stack": int(match["stack"]),
            "spilled": int(match["stores"]) + int(match["loads"]),
        }
        for match in pattern.finditer(text)
    }


def build_emulated(folder: Path) -> Built:
    """Build the same kernel sources and the same driver for the host (``plugins/emulation``), for a dry run.

    Raises:
        MissingDependencyError: there is no g++ or make, or they fail.
    """
    root = plugin_sources()
    folder.mkdir(parents=True, exist_ok=True)
    compiler = shutil.which(os.environ.get("CXX", "") or "g++")
    if compiler is None or shutil.which("make") is None:
        raise MissingDependencyError("a dry run builds the kernels for the host with g++ and make; one is missing")
    library = folder / "libvimdeploy_kernels_emulated.so"
    driver = folder / f"sanitizer_driver-{sources_digest()}"
    with _lock(folder):
        _run(["make", "-s", "-j2", "-C", str(root / "emulation"), f"BUILD={folder}", "library"])
        source = HERE / "sanitizer_driver.cpp"
        if not driver.is_file() or driver.stat().st_mtime < source.stat().st_mtime:
            flags = ["-std=c++17", "-O1", "-DVIMDEPLOY_EMULATION", "-I", str(root)]
            _run([compiler, *flags, str(source), "-o", str(driver), str(library), f"-Wl,-rpath={folder}"])
    return Built(library, driver, None, {})


class _lock:  # noqa: N801  # reads as a statement
    """Hold a folder against other builders of it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"

    def __enter__(self) -> None:
        self._file = self._path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr + done.stdout).strip().splitlines()
        errors = [line for line in lines if "error" in line.lower()] or lines
        raise MissingDependencyError(f"{Path(command[0]).name} failed:\n" + "\n".join(errors[:20]))
    return done.stdout + done.stderr
