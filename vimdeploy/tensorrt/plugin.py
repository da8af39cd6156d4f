"""Find the plugin library, check that it fits the TensorRT at hand, and load it once.

The library states what it was built from in a line that is readable without loading it, so that a library for another
TensorRT is refused in words instead of crashing the process.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from vimdeploy.contract import OPS, PLUGIN_NAMESPACE, PLUGIN_OPS, PLUGIN_VERSION
from vimdeploy.errors import ArtifactError, MissingDependencyError, UsageError, VimdeployError
from vimdeploy.native.compile import build_plugin
from vimdeploy.native.locate import PLUGIN, cache_folder, has_code, package_libraries, plugin_sources, source_hash

__all__ = [
    "BuildInfo",
    "Origin",
    "PluginLibrary",
    "build_plugin",
    "check_fits",
    "find_library",
    "load_library",
    "read_info",
    "registered_ops",
]

ENVIRONMENT = "VIMDEPLOY_PLUGIN"
"""Environment variable with the path of a plugin library."""

_INFO = re.compile(rb"vimdeploy-plugin-info(\{[^}\x00]{1,2000}\})")
_BUILD_HINT = "Build it with: vimdeploy build-plugin"


class Origin(Enum):
    """How a library was found; the values are what is told to the user."""

    ARGUMENT = "given as an argument"
    ENVIRONMENT = f"named by {ENVIRONMENT}"
    WHEEL = "shipped in the package"
    CACHE = "built on this machine"


@dataclass(frozen=True)
class BuildInfo:
    """What a plugin library says of itself."""

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
class PluginLibrary:
    """A plugin library that was found."""

    path: Path
    origin: Origin
    info: BuildInfo
    is_current: bool
    """Whether it is built from the sources of this package."""

    def describe(self) -> str:
        """Return one line for the user: which file, from where, for what."""
        stale = "" if self.is_current else ", built from other sources than this package's"
        return f"{self.path} ({self.origin.value}; TensorRT {self.info.tensorrt}, CUDA {self.info.cuda}{stale})"


@dataclass
class _Loaded:
    """What this process has loaded. Handles are kept: dropping one would unload the creators under an engine."""

    library: PluginLibrary | None = None
    handle: Any = field(default=None, repr=False)


_LOADED = _Loaded()


def read_info(path: Path) -> BuildInfo:
    """Read what the library at ``path`` is, without loading it.

    Raises:
        ArtifactError: the file cannot be read or is no vimdeploy plugin library.
    """
    try:
        match = _INFO.search(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    if match is None:
        raise ArtifactError(f"{path} is not a vimdeploy plugin library", hint=_BUILD_HINT)
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
        raise ArtifactError(f"{path} says unreadable things of itself: {match.group(1)!r}", hint=_BUILD_HINT) from error


def check_fits(
    library: PluginLibrary, tensorrt_version: str, compute_capability: tuple[int, int] | None = None
) -> None:
    """Check a library against the TensorRT that is to load it, and the GPU if one is known.

    Args:
        library: the library.
        tensorrt_version: ``tensorrt.__version__``.
        compute_capability: of the GPU, for example ``(8, 9)``; None leaves that check out.

    Raises:
        VimdeployError: it was built for another major version, or has no code for the GPU.
    """
    major = int(tensorrt_version.split(".", maxsplit=1)[0])
    if library.info.tensorrt_major != major:
        raise VimdeployError(
            f"{library.path} was built with the headers of TensorRT {library.info.tensorrt}, "
            f"but TensorRT {tensorrt_version} is running",
            hint=f"Build it with the headers of TensorRT {major}: vimdeploy build-plugin --tensorrt-include <folder>",
        )
    if compute_capability is not None and not library.info.serves(compute_capability):
        asked = "".join(str(number) for number in compute_capability)
        raise VimdeployError(
            f"{library.path} has code for sm_{', sm_'.join(library.info.architectures)}, but the GPU is sm_{asked}",
            hint=f"Build it for this GPU: vimdeploy build-plugin --arch sm_{asked}",
        )


def find_library(
    explicit: Path | None = None,
    *,
    tensorrt_version: str | None = None,
    compute_capability: tuple[int, int] | None = None,
    cache: Path | None = None,
) -> PluginLibrary:
    """Find the plugin library: the explicit path, else VIMDEPLOY_PLUGIN, else the package, else the build cache.

    A path that the user names is taken or refused, never passed over. Of several builds in the cache, those that fit
    come first, then those of the present sources, then the newest.

    Args:
        explicit: path of the library.
        tensorrt_version: version of the TensorRT to run; None leaves the check out.
        compute_capability: as :func:`check_fits`.
        cache: folder of the builds.

    Raises:
        ArtifactError: a named file is missing or no plugin library.
        VimdeployError: it does not fit (see :func:`check_fits`).
        MissingDependencyError: there is no library at all.
    """
    named = explicit or (Path(os.environ[ENVIRONMENT]) if os.environ.get(ENVIRONMENT) else None)
    if named is not None:
        origin = Origin.ARGUMENT if explicit else Origin.ENVIRONMENT
        if not named.is_file():
            raise ArtifactError(f"{named} ({origin.value}) does not exist", hint=_BUILD_HINT)
        library = _describe(named, origin)
        if tensorrt_version is not None:
            check_fits(library, tensorrt_version, compute_capability)
        return library
    found = list(_candidates(cache or cache_folder()))
    refusal: VimdeployError | None = None
    for library in sorted(found, key=lambda one: (one.origin is Origin.CACHE, not one.is_current, -_age_key(one))):
        try:
            if tensorrt_version is not None:
                check_fits(library, tensorrt_version, compute_capability)
        except VimdeployError as error:
            refusal = refusal or error
            continue
        return library
    if refusal is not None:
        raise refusal
    raise MissingDependencyError("there is no plugin library on this machine", hint=_BUILD_HINT)


def _age_key(library: PluginLibrary) -> float:
    return library.path.stat().st_mtime


def _candidates(cache: Path) -> Iterable[PluginLibrary]:
    for path in package_libraries(PLUGIN):
        yield _describe(path, Origin.WHEEL)
    for path in sorted(cache.glob(f"[!.]*/{PLUGIN}")):
        try:
            yield _describe(path, Origin.CACHE)
        except ArtifactError:
            continue  # half a file that something else left there: not a reason to stop looking


def _describe(path: Path, origin: Origin) -> PluginLibrary:
    info = read_info(path)
    try:
        current = info.source_hash == source_hash(plugin_sources())
    except MissingDependencyError:
        current = True  # no sources to compare with
    return PluginLibrary(path.resolve(), origin, info, current)


def registered_ops(registry: Any) -> tuple[str, ...]:
    """Return which of our ops the TensorRT plugin registry ``registry`` can create."""
    # get_creator() would log an error for each name that is absent.
    ours = {
        creator.name
        for creator in registry.all_creators
        if (creator.plugin_namespace, creator.plugin_version) == (PLUGIN_NAMESPACE, PLUGIN_VERSION)
    }
    return tuple(name for name in OPS if name in ours)


def load_library(
    trt: Any, explicit: Path | None = None, *, compute_capability: tuple[int, int] | None = None
) -> PluginLibrary:
    """Load the plugin library into the process's plugin registry, once.

    Args:
        trt: the TensorRT Python module (``tensorrt``, ``tensorrt_lean`` or ``tensorrt_dispatch``).
        explicit: path of the library; None searches as :func:`find_library`.
        compute_capability: as :func:`check_fits`.

    Returns:
        The library whose creators are registered, for the caller to name.

    Raises:
        UsageError: TensorRT-RTX, which takes no plugins, or another library is already loaded.
        VimdeployError: no library, or one that does not fit or does not load.
    """
    if trt.__name__.startswith("tensorrt_rtx"):
        # An unknown node is a clean parse error there, a node whose plugin is registered ends the process.
        raise UsageError("TensorRT-RTX takes no plugins", hint="Export with functions inlined for it instead.")
    registry = trt.get_plugin_registry()
    present = registered_ops(registry)
    if _LOADED.library is not None and present:
        if explicit is not None and explicit.resolve() != _LOADED.library.path:
            raise UsageError(
                f"{explicit} was asked for, but this process already uses {_LOADED.library.path}",
                hint="Start a new process to use another plugin library.",
            )
        return _LOADED.library
    if present:
        path = _mapped_library()
        raise UsageError(
            f"the plugins {', '.join(present)} are already registered by {path or 'another library'}",
            hint="Drop LD_PRELOAD or whatever loaded it; vimdeploy loads its plugin library itself.",
        )
    library = find_library(explicit, tensorrt_version=trt.__version__, compute_capability=compute_capability)
    handle = registry.load_library(str(library.path))
    missing = set(PLUGIN_OPS) - set(registered_ops(registry))
    if handle is None or missing:
        raise VimdeployError(
            f"TensorRT {trt.__version__} could not load {library.path}"
            + (f": it registers no {', '.join(sorted(missing))}" if missing else ""),
            hint="TensorRT's log says why. A build on this machine usually mends it: vimdeploy build-plugin",
        )
    _LOADED.library, _LOADED.handle = library, handle
    return library


def _mapped_library() -> str | None:
    """Return the file of ours that is mapped into this process, if the system tells."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    match = re.search(r"(/\S*libvimdeploy_plugin\S*\.so)", maps)
    return match.group(1) if match else None
