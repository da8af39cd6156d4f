"""Every library of the custom ops that a process here could load, what it says of itself, and what is wrong with it.

Loading takes the first that has no problem and fits; ``vimdeploy doctor`` prints them all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vimdeploy.errors import ArtifactError, MissingDependencyError
from vimdeploy.native.elf import elf_problem
from vimdeploy.native.locate import KERNELS, PLUGIN, PRELOAD, has_code, plugin_sources, source_hash
from vimdeploy.native.places import Places

ARGUMENT, PACKAGE, CACHE = "argument", "Python package vimdeploy", "cache"
"""What leads to a library, besides the environment variable of its kind."""

_INFO = re.compile(rb"vimdeploy-plugin-info(\{[^}\x00]{1,2000}\})")


@dataclass(frozen=True)
class Kind:
    """One of the libraries that are built from ``plugins/``."""

    file: str
    title: str
    """What people call it."""
    serves: str
    """What loads it: ``TensorRT``, ``PyTorch``, ``ONNX Runtime``."""
    environment: str = ""
    """Variable with the path of one; empty where there is none."""
    describes_itself: bool = True
    """Whether it states in readable text what it was built from."""
    folder: str = "plugins"
    """Of the cache, where its builds lie."""


PLUGIN_KIND = Kind(PLUGIN, "plugin library", "TensorRT", "VIMDEPLOY_PLUGIN")
PRELOAD_KIND = Kind(PRELOAD, "plugin library to preload", "TensorRT")
KERNELS_KIND = Kind(KERNELS, "kernels for PyTorch", "PyTorch", "VIMDEPLOY_KERNELS", describes_itself=False)
OPS_KIND = Kind(
    "libvimdeploy_ops.so",
    "native ops",
    "ONNX Runtime",
    "VIMDEPLOY_OPS_LIBRARY",
    describes_itself=False,
    folder="ops",
)
KINDS = (PLUGIN_KIND, PRELOAD_KIND, KERNELS_KIND, OPS_KIND)


@dataclass(frozen=True)
class BuildInfo:
    """What a library says of itself."""

    version: str
    source_hash: str
    tensorrt: str
    """Version of the headers, ``"10.14"``."""
    cuda: str
    architectures: tuple[str, ...]
    """``("80", "89", "89+PTX")``: machine code, and the architecture whose PTX newer GPUs compile at load time."""

    @property
    def tensorrt_major(self) -> int:
        """Major version of TensorRT that the library is for."""
        return int(self.tensorrt.split(".")[0])

    def serves(self, compute_capability: tuple[int, int]) -> bool:
        """Whether a GPU of this compute capability finds code it can run."""
        return has_code(self.architectures, compute_capability)


@dataclass(frozen=True)
class Library:
    """One library that was found; ``problem`` says why it cannot be used."""

    kind: Kind
    path: Path
    source: str
    """What leads there: :data:`ARGUMENT`, the kind's variable, :data:`PACKAGE` or :data:`CACHE`."""
    problem: str = ""
    info: BuildInfo | None = None

    @property
    def architectures(self) -> tuple[str, ...]:
        """What it has code for, from itself or from the name of its build's folder; empty where neither says it."""
        if self.info is not None:
            return self.info.architectures
        numbers = re.search(r"-sm([\d-]+)$", self.path.parent.name)
        named = numbers[1].split("-") if numbers else []
        return (*named, f"{named[-1]}+PTX") if named else ()

    @cached_property
    def is_current(self) -> bool:
        """Whether it is built from the sources of this package; so it counts where there are none to compare with."""
        try:
            digest = source_hash(plugin_sources())
        except MissingDependencyError:
            return True
        return self.info.source_hash == digest if self.info else self.path.parent.name.startswith(digest)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "path": str(self.path),
            "source": self.source,
            "serves": self.kind.serves,
            "tensorrt": self.info.tensorrt if self.info else "",
            "cuda": self.info.cuda if self.info else "",
            "architectures": ",".join(self.architectures),
            "problem": self.problem,
        }


def libraries(kind: Kind, places: Places | None = None, explicit: Path | None = None) -> Iterator[Library]:
    """Yield every library of a kind, in the order in which loading takes them.

    That is: what an argument or the environment names, what the package ships, then the builds of this machine, those
    of the present sources before others and the newest first.
    """
    places = places or Places()
    seen: set[Path] = set()
    for source, path in _candidates(kind, places, explicit):
        if path.resolve() not in seen:
            seen.add(path.resolve())
            yield examine(kind, path, source)
    builds = places.cache / kind.folder
    built = [examine(kind, path, CACHE) for path in builds.glob(f"**/{kind.file}")]
    unfinished = "of a build that is under way or was broken off"
    for library in sorted(built, key=lambda one: (not one.is_current, -_age(one.path), one.path)):
        hidden = any(part.startswith(".") for part in library.path.relative_to(builds).parts)
        if library.path.resolve() not in seen:
            yield Library(kind, library.path, CACHE, unfinished, library.info) if hidden else library


def _candidates(kind: Kind, places: Places, explicit: Path | None) -> Iterator[tuple[str, Path]]:
    if explicit is not None:
        yield ARGUMENT, explicit
    named = places.folder_variable(kind.environment) if kind.environment else None
    if named is not None:
        yield kind.environment, named
    for site in places.sites:
        for path in sorted((site / "vimdeploy" / "_lib").glob(f"**/{kind.file}")):
            yield PACKAGE, path


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # a link that leads nowhere
        return 0.0


def examine(kind: Kind, path: Path, source: str) -> Library:
    """Say what a library is and whether it can be used, without loading it."""
    problem = elf_problem(path)
    if problem or not kind.describes_itself:
        return Library(kind, path, source, problem)
    try:
        return Library(kind, path, source, info=_parse(path.read_bytes()))
    except ValueError as error:
        return Library(kind, path, source, str(error))


def read_info(path: Path) -> BuildInfo:
    """Read what the library at ``path`` is, without loading it.

    Raises:
        ArtifactError: the file cannot be read or is no vimdeploy plugin library.
    """
    try:
        return _parse(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ArtifactError(f"{path} {error}", hint="Build it with: vimdeploy build-plugin") from error


def _parse(content: bytes) -> BuildInfo:
    """Find what a library states; ValueError, in words that follow its path, where that is missing or unreadable."""
    match = _INFO.search(content)
    if match is None:
        raise ValueError("is not a vimdeploy plugin library")
    try:
        values = json.loads(match.group(1))
        return BuildInfo(
            version=values["version"],
            source_hash=values["source_hash"],
            tensorrt=values["tensorrt"],
            cuda=values["cuda"],
            architectures=tuple(values["architectures"].split(",")),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"says unreadable things of itself: {match.group(1)!r}") from error
