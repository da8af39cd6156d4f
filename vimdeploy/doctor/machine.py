"""Where to look on a machine, and how to ask something that may crash.

Nothing here imports torch or TensorRT: a version is read from package metadata, and whatever has to run (a foreign
library, a compiler) runs in a process of its own with a time limit.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vimdeploy.native.places import SYSTEM_CUDA, SYSTEM_INCLUDES

PROBE_SECONDS = 20.0
"""Long enough for an import on a machine that is busy with other things."""


def _library_folders() -> tuple[Path, ...]:
    multiarch = f"{platform.machine()}-linux-gnu"
    names = (f"/usr/lib/{multiarch}", "/usr/lib", "/usr/lib64", "/lib", "/usr/local/lib", "/usr/local/cuda/lib64")
    return tuple(Path(name) for name in (*names, "/usr/local/tensorrt/lib", "/opt/tensorrt/lib"))


@dataclass(frozen=True)
class Machine:
    """The places that are searched; tests plant their own."""

    sites: tuple[Path, ...] = field(default_factory=lambda: tuple(Path(p) for p in sys.path if p))
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    library_folders: tuple[Path, ...] = field(default_factory=_library_folders)
    include_folders: tuple[Path, ...] = SYSTEM_INCLUDES
    cuda_folders: tuple[Path, ...] = SYSTEM_CUDA
    pci: Path = Path("/sys/bus/pci/devices")
    ldconfig: tuple[str, ...] = ("ldconfig", "-p")
    python: str = sys.executable

    def path_variable(self, name: str) -> tuple[Path, ...]:
        """Return the folders of a PATH-like variable, in order."""
        return tuple(Path(part) for part in self.env.get(name, "").split(os.pathsep) if part)

    def folder_variable(self, name: str) -> Path | None:
        """Return a variable that names one folder or file, None where it is not set."""
        value = self.env.get(name, "")
        return Path(value) if value else None


@dataclass(frozen=True)
class Answer:
    """What a process of its own said: its JSON, or why there is none."""

    value: Any = None
    problem: str = ""


def ask(machine: Machine, script: str, *arguments: str, seconds: float = PROBE_SECONDS) -> Answer:
    """Run a Python script that prints one line of JSON, in an own process with the machine's import path.

    The script sees ``arguments`` as ``sys.argv[1:]``. A crash, a hang and an exception are all answers.
    """
    # Isolated and without site: only the standard library and the folders asked about, in that order.
    prelude = f"import sys; sys.path += {[str(site) for site in machine.sites]!r}\n"
    command = [machine.python, "-I", "-S", "-c", prelude + script, *arguments]
    output = run(command, machine.env, seconds=seconds)
    if output.problem:
        return output
    lines = str(output.value).strip().splitlines()
    try:
        return Answer(json.loads(lines[-1]))
    except (IndexError, ValueError):
        return Answer(problem="gave no answer")


def run(command: Sequence[str], env: Mapping[str, str], *, seconds: float = PROBE_SECONDS) -> Answer:
    """Run a command and return its standard output, or one line that says why there is none."""
    try:
        done = subprocess.run(
            list(command),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Answer(problem=f"gave no answer within {seconds:g} s")
    except OSError as error:
        return Answer(problem=f"cannot be run: {error.strerror or error}")
    if done.returncode < 0:
        return Answer(problem=f"crashed with {_signal_name(-done.returncode)}")
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        return Answer(problem=last)
    return Answer(done.stdout)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
