"""What `vimdeploy doctor` found, as plain data: the same facts feed the table and ``--json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vimdeploy.native.libraries import Library
from vimdeploy.native.toolchain import Headers, Tool

SCHEMA = 1
"""Raised when a field of ``--json`` is renamed, removed or changes its meaning; new fields do not raise it."""

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Package:
    """A Python distribution; ``version`` is empty where it is not installed."""

    name: str
    version: str
    detail: str = ""
    location: str = ""


@dataclass(frozen=True)
class RuntimeLibrary:
    """One shared library of TensorRT, after following links.

    ``family`` is the file name without ``lib`` and ``.so``; ``version`` comes from the library itself where it can be
    asked, else from its file name; ``package`` is the Python distribution that owns it; ``problem`` says why it cannot
    be used.
    """

    family: str
    path: str
    version: str
    sources: tuple[str, ...]
    problem: str = ""
    package: str = ""

    @property
    def major(self) -> int | None:
        """First number of the version, None where it is unknown."""
        head = self.version.split(".")[0]
        return int(head) if head.isdigit() else None


@dataclass(frozen=True)
class Flavour:
    """One flavour of the TensorRT Python packages; ``problem`` says why the installed one does not import."""

    name: str
    module: str
    version: str
    problem: str = ""

    @property
    def usable(self) -> bool:
        """Whether its module was imported in a process of its own."""
        return bool(self.version) and not self.problem


@dataclass(frozen=True)
class Gpu:
    """One GPU as the CUDA driver lists it."""

    name: str
    compute_capability: str
    memory_mib: int


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver: its own version, the newest CUDA it serves, and what is wrong with it."""

    version: str
    cuda: str
    problem: str = ""
    hardware: bool = False


@dataclass(frozen=True)
class Finding:
    """Something to know or to mend; ``remedy`` is a command where one command mends it."""

    severity: Severity
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class Command:
    """Whether a vimdeploy command can run on this machine, and what it lacks."""

    name: str
    ready: bool
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """Everything that was looked up, before any judgement."""

    vimdeploy: str
    python: str
    executable: str
    system: str
    packages: tuple[Package, ...]
    providers: tuple[str, ...]
    flavours: tuple[Flavour, ...]
    libraries: tuple[RuntimeLibrary, ...]
    driver: Driver
    gpus: tuple[Gpu, ...]
    nvcc: tuple[Tool, ...]
    compiler: Tool | None
    headers: tuple[Headers, ...]
    plugins: tuple[Library, ...]

    def package(self, name: str) -> Package:
        """Return the named package; one that is not installed has an empty version."""
        return next((p for p in self.packages if p.name == name), Package(name, ""))

    def flavour(self, module: str) -> Flavour | None:
        """Return the installed flavour with this module name."""
        return next((f for f in self.flavours if f.module == module), None)


@dataclass(frozen=True)
class Report:
    """Facts, what they mean, and which commands can run."""

    facts: Facts
    findings: tuple[Finding, ...]
    commands: tuple[Command, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready data, with its schema version first."""
        facts = {
            **asdict(self.facts, dict_factory=_plain),
            "plugins": [library.to_dict() for library in self.facts.plugins],
        }
        return {
            "schema": SCHEMA,
            **facts,
            "findings": [asdict(f) for f in self.findings],
            "commands": [asdict(c) for c in self.commands],
        }


def _plain(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in fields}
