"""Builds the kernels for the host (plugins/emulation), once per checkout, whoever asks."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

EMULATION = Path(__file__).parents[2] / "plugins" / "emulation"
FLAVOURS = ("plain", "asan", "tsan")


def build_folder() -> Path:
    """Where the objects of this checkout lie; VIMDEPLOY_EMULATION_BUILD moves it."""
    default = Path(__file__).parents[2] / "build" / "emulation"
    return Path(os.environ.get("VIMDEPLOY_EMULATION_BUILD", default))


def _make(*arguments: str) -> None:
    for tool in ("g++", "make"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: the kernels cannot be compiled for the host")
    folder = build_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # several test processes share the folder
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = ["make", "-s", "-j2", "-C", str(EMULATION), f"BUILD={folder}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stderr[-4000:]}"


def program_for(flavour: str, mutant: int = 0) -> Path:
    """The emulation's test program, plain or under sanitizers, with a planted fault or none."""
    _make(f"FLAVOUR={flavour}", f"MUTANT={mutant}")
    name = flavour if mutant == 0 else f"{flavour}-mutant{mutant}"
    return build_folder() / name / "emulation_test"


def kernels_library() -> Path:
    """libvimdeploy_kernels_emulated.so: the plain C entry points on host pointers."""
    _make("library")
    return build_folder() / "libvimdeploy_kernels_emulated.so"


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One run; sanitizers stop at the first finding and do not look for leaks of the fibers."""
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    command = [str(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=1200)
