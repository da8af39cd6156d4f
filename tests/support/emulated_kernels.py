"""Builds the kernels for the host (plugins/emulation), once per checkout, whoever asks."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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


@dataclass(frozen=True)
class Mutant:
    """A planted fault: one place of one file of the kernels, what stands there instead, and what tells it apart."""

    fault: str
    file: str
    find: str
    replace: str
    caught_by: str
    """The flavour whose run the gate repeats."""
    sign: str
    """What that run says."""

    @property
    def name(self) -> str:
        return "-".join(re.findall(r"\w+", self.fault.lower())[:8])


def mutants() -> list[Mutant]:
    """Every planted fault of plugins/emulation/mutants.toml."""
    return [Mutant(**entry) for entry in tomllib.loads((EMULATION / "mutants.toml").read_text())["mutant"]]


def _planted(mutant: Mutant) -> Path:
    """A copy of the kernels that holds the fault."""
    copy = build_folder() / "mutants" / mutant.name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(EMULATION.parent / "kernels", copy / "kernels")
    target = copy / "kernels" / mutant.file
    text = target.read_text()
    assert text.count(mutant.find) == 1, f"{mutant.file} holds {text.count(mutant.find)} times: {mutant.find}"
    target.write_text(text.replace(mutant.find, mutant.replace))
    return copy


def program_for(flavour: str, mutant: Mutant | None = None) -> Path:
    """The emulation's test program, plain or under sanitizers, with a planted fault or none."""
    if mutant is None:
        _make(f"FLAVOUR={flavour}")
        return build_folder() / flavour / "emulation_test"
    _make(f"FLAVOUR={flavour}", f"SOURCES={_planted(mutant)}", f"NAME={mutant.name}")
    return build_folder() / f"{flavour}-{mutant.name}" / "emulation_test"


def kernels_library() -> Path:
    """libvimdeploy_kernels_emulated.so: the plain C entry points on host pointers."""
    _make("library")
    return build_folder() / "libvimdeploy_kernels_emulated.so"


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One run; sanitizers stop at the first finding and do not look for leaks of the fibers."""
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    command = [str(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=1200)
