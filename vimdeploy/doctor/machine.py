"""Where to look on a machine, and how to ask something that may crash.

Nothing here imports torch or TensorRT: a version is read from package metadata, and whatever has to run (a foreign
library, a compiler) runs in a process of its own with a time limit.
"""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path

from vimdeploy.native.places import Places
from vimdeploy.native.process import PROBE_SECONDS, Answer, run


def _library_folders() -> tuple[Path, ...]:
    multiarch = f"{platform.machine()}-linux-gnu"
    names = (f"/usr/lib/{multiarch}", "/usr/lib", "/usr/lib64", "/lib", "/usr/local/lib", "/usr/local/cuda/lib64")
    return tuple(Path(name) for name in (*names, "/usr/local/tensorrt/lib", "/opt/tensorrt/lib"))


@dataclass(frozen=True)
class Machine(Places):
    """All that doctor looks at: the places of a build, and those of TensorRT's libraries and of the GPU."""

    library_folders: tuple[Path, ...] = field(default_factory=_library_folders)
    pci: Path = Path("/sys/bus/pci/devices")
    ldconfig: tuple[str, ...] = ("ldconfig", "-p")
    python: str = sys.executable


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
