"""Ask a program something: its output, or one line that says why there is none."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PROBE_SECONDS = 20.0
"""Long enough for an import on a machine that is busy with other things."""


@dataclass(frozen=True)
class Answer:
    """What a process of its own said, or why it said nothing."""

    value: Any = None
    problem: str = ""


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
