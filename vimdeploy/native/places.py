"""Where native libraries, compilers and headers are looked for: one search for builds, for loading and for doctor."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SYSTEM_CUDA = (Path("/usr/local/cuda"),)
SYSTEM_INCLUDES = (
    Path(f"/usr/include/{os.uname().machine}-linux-gnu"),
    Path("/usr/include"),
    Path("/usr/local/include"),
    Path("/usr/local/cuda/include"),
    Path("/usr/local/tensorrt/include"),
    Path("/opt/tensorrt/include"),
)


def python_folders() -> list[Path]:
    """Return the folders that Python imports from, where wheels may have put compilers and libraries."""
    installed = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    package = str(Path(__file__).resolve().parents[2])
    return [Path(folder) for folder in dict.fromkeys((package, *sys.path, *installed)) if folder]


@dataclass(frozen=True)
class Places:
    """The places that are searched; tests plant their own."""

    sites: tuple[Path, ...] = field(default_factory=lambda: tuple(python_folders()))
    """Folders of Python packages."""
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    include_folders: tuple[Path, ...] = field(default_factory=lambda: SYSTEM_INCLUDES)
    cuda_folders: tuple[Path, ...] = field(default_factory=lambda: SYSTEM_CUDA)

    def path_variable(self, name: str) -> tuple[Path, ...]:
        """Return the folders of a PATH-like variable, in order."""
        return tuple(Path(part) for part in self.env.get(name, "").split(os.pathsep) if part)

    def folder_variable(self, name: str) -> Path | None:
        """Return a variable that names one folder or file, None where it is not set."""
        value = self.env.get(name, "")
        return Path(value) if value else None

    @property
    def cache(self) -> Path:
        """The folder that builds go to: ``$XDG_CACHE_HOME/vimdeploy``, by default in ``~/.cache``."""
        home = self.env.get("HOME") or os.path.expanduser("~")
        return (self.folder_variable("XDG_CACHE_HOME") or Path(home) / ".cache") / "vimdeploy"
