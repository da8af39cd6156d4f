"""The commands for half an hour on a rented GPU without a network: what to carry, which part when, what to look at."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

CARRIED = ("pydantic", "pydantic-core", "annotated-types", "typing-inspection")
"""What part ``engine`` needs beyond torch and is in no CUDA image; the wheels of the machine's Python are carried."""
LONGEST = 600
"""Seconds that one command may take."""
ALL = 1800
"""Seconds that the machine is lent for."""
OUT = "/tmp/gpu_suite"
"""Results stay here between commands; each copies them to $OUT, which starts empty every time."""


@dataclass(frozen=True)
class Step:
    """One command, its time limit in seconds, and what to look at before the next one."""

    title: str
    command: str
    seconds: int
    look: str


PREPARE = (
    "python -m pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux2014_x86_64 "
    f"-d carry {' '.join(CARRIED)}",
    "python -m pip download --no-deps --no-binary=:all: --no-build-isolation -d carry mamba-ssm==2.3.2",
)
"""Run before, where there is a network: the wheels, and the peer's source package."""

_SUITE = f"python -m benchmarks.gpu_suite --out {OUT}"
_KEEP = f'cp -r {OUT} "$OUT/"'


def steps() -> list[Step]:
    """Return the commands in order."""
    return [
        Step(
            "smoke: is anything wrong, and does the machine do what the model says",
            f"python -m pip install --no-index --find-links carry pydantic; {_SUITE} --part correctness --seconds 60; "
            f"python -m benchmarks.gpu_suite.smoke --out {OUT}; {_KEEP}",
            240,
            "if half types fail and float32 passes, set params.tensorDelta = false in launch.cu and say so",
        ),
        Step(
            "correctness and sanitizer",
            f"{_SUITE} --part correctness --part sanitizer --seconds 200; {_KEEP}",
            460,
            "stop here if anything is found, and mend it first",
        ),
        Step(
            "kernels against the peer",
            f"{_SUITE} --part kernels --seconds 260 --mamba-ssm carry/mamba_ssm-2.3.2.tar.gz; {_KEEP}",
            340,
            "the goals are printed last; `fastest` names a variant that the table should have chosen",
        ),
        Step(
            "models against DeiT",
            f"{_SUITE} --part models --seconds 330; {_KEEP}",
            380,
            "images per second and memory at 1248 pixels",
        ),
        Step("engine and report", f"{_SUITE} --part engine --part report --seconds 180; {_KEEP}", 220, "report.md"),
    ]


def text() -> str:
    """Return the plan as it is printed."""
    lines = ["Before, where there is a network (the folder carry/ travels with the checkout):", ""]
    lines += [f"    {command}" for command in PREPARE]
    for number, step in enumerate(steps(), 1):
        lines += ["", f"{number}. {step.title} (at most {step.seconds} s)", "", f"    {step.command}", ""]
        lines += [f"   Then: {step.look}."]
    return "\n".join(lines)


def suite_arguments(step: Step) -> list[list[str]]:
    """Return the arguments of every call of the suite in a step."""
    calls = [shlex.split(part) for part in step.command.split(";")]
    return [call[3:] for call in calls if call[:3] == ["python", "-m", "benchmarks.gpu_suite"]]
