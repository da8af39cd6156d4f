"""Builds what the suite runs: the kernels for the GPU at hand, or for the host; the sanitizer driver; the ceilings."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vimdeploy.errors import MissingDependencyError
from vimdeploy.native.compile import build_plugin
from vimdeploy.native.locate import plugin_sources, source_hash
from vimdeploy.native.toolchain import find_nvcc

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Built:
    """What a build made. ``ceilings`` is None for the host, which has none to measure."""

    kernels: Path
    driver: Path
    ceilings: Path | None


def sources_digest() -> str:
    """Return the digest of the plugin's sources, as the library itself states it."""
    return source_hash(plugin_sources())


def build(folder: Path, compute_capability: str) -> Built:
    """Build for one architecture (``"9.0"``) into ``folder``, or return what an earlier call built.

    The kernels are built as ``vimdeploy build-plugin --kernels-only`` builds them for a user.

    Raises:
        MissingDependencyError: there is no nvcc, or it fails; the message holds its errors.
    """
    library = build_plugin([compute_capability], kernels_only=True, cache=folder)
    target = library.parent
    number = compute_capability.replace(".", "")
    compiler = [str(find_nvcc().path), "-std=c++17", "-O3", "-gencode", f"arch=compute_{number},code=sm_{number}"]
    driver, ceilings = target / "sanitizer_driver", target / "libceilings.so"
    with _lock(target):
        source = HERE / "sanitizer_driver.cpp"
        if _is_older(driver, source):
            linking = ["-L", str(target), "-lvimdeploy_kernels", f"-Xlinker=-rpath={target}"]
            _run([*compiler, "-I", str(plugin_sources()), "-x", "cu", str(source), "-o", str(driver), *linking])
        source = HERE / "ceilings.cu"
        if _is_older(ceilings, source):
            _run([*compiler, "-Xcompiler=-fPIC", "-shared", str(source), "-o", str(ceilings)])
    return Built(library, driver, ceilings)


def _is_older(built: Path, source: Path) -> bool:
    return not built.is_file() or built.stat().st_mtime < source.stat().st_mtime


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
        if _is_older(driver, source):
            flags = ["-std=c++17", "-O1", "-DVIMDEPLOY_EMULATION", "-I", str(root)]
            _run([compiler, *flags, str(source), "-o", str(driver), str(library), f"-Wl,-rpath={folder}"])
    return Built(library, driver, None)


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
