"""Find the plugin library, check that it fits the TensorRT at hand, and load it once.

The library states what it was built from in a line that is readable without loading it, so that a library for another
TensorRT is refused in words instead of crashing the process.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from vimdeploy.contract import PLUGIN_NAMESPACE, PLUGIN_OPS, PLUGIN_VERSION
from vimdeploy.errors import ArtifactError, MissingDependencyError, UsageError, VimdeployError
from vimdeploy.native.compile import build_plugin
from vimdeploy.native.libraries import (
    ARGUMENT,
    CACHE,
    PACKAGE,
    PLUGIN_KIND,
    BuildInfo,
    Library,
    libraries,
    read_info,
)

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

ENVIRONMENT = PLUGIN_KIND.environment
"""Environment variable with the path of a plugin library."""

_BUILD_HINT = "Build it with: vimdeploy build-plugin"


class Origin(Enum):
    """How a library was found; the values are what is told to the user."""

    ARGUMENT = "given as an argument"
    ENVIRONMENT = f"named by {ENVIRONMENT}"
    WHEEL = "shipped in the package"
    CACHE = "built on this machine"


_ORIGINS = {
    ARGUMENT: Origin.ARGUMENT,
    ENVIRONMENT: Origin.ENVIRONMENT,
    PACKAGE: Origin.WHEEL,
    CACHE: Origin.CACHE,
}


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


def check_fits(
    library: PluginLibrary,
    tensorrt_version: str,
    compute_capability: tuple[int, int] | None = None,
    driver: int | None = None,
) -> None:
    """Check a library against the TensorRT that is to load it, and the GPU if one is known.

    Args:
        library: the library.
        tensorrt_version: ``tensorrt.__version__``.
        compute_capability: of the GPU, for example ``(8, 9)``; None leaves that check out.
        driver: newest CUDA that the driver serves, as CUDA numbers it (13000); None leaves that check out.

    Raises:
        VimdeployError: it was built for another major version of TensorRT, has no code for the GPU, or was built with a
            newer major version of CUDA than the driver serves.
    """
    major = int(tensorrt_version.split(".", maxsplit=1)[0])
    if library.info.tensorrt_major != major:
        raise VimdeployError(
            f"{library.path} was built with the headers of TensorRT {library.info.tensorrt}, "
            f"but TensorRT {tensorrt_version} is running",
            hint=f"Build it with the headers of TensorRT {major}: vimdeploy build-plugin --tensorrt-include <folder>",
        )
    cuda = int(library.info.cuda.split(".")[0])
    if driver is not None and cuda > driver // 1000:
        raise VimdeployError(
            f"{library.path} was built with CUDA {library.info.cuda}, but the driver serves CUDA "
            f"{driver // 1000}.{driver % 1000 // 10}",
            hint=f"Update the driver, or build it with a CUDA {driver // 1000} toolkit: vimdeploy build-plugin",
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
    driver: int | None = None,
) -> PluginLibrary:
    """Find the plugin library: the explicit path, else VIMDEPLOY_PLUGIN, else the package, else the build cache.

    A path that the user names is taken or refused, never passed over. Of several builds in the cache, those that fit
    come first, then those of the present sources, then the newest.

    Args:
        explicit: path of the library.
        tensorrt_version: version of the TensorRT to run; None leaves the check out.
        compute_capability: as :func:`check_fits`.
        driver: as :func:`check_fits`.

    Raises:
        ArtifactError: a named file is missing or no plugin library.
        VimdeployError: it does not fit (see :func:`check_fits`).
        MissingDependencyError: there is no library at all.
    """
    refusal: VimdeployError | None = None
    for found in libraries(PLUGIN_KIND, explicit=explicit):
        try:
            library = _usable(found)
            if tensorrt_version is not None:
                check_fits(library, tensorrt_version, compute_capability, driver)
        except VimdeployError as error:
            if found.source in (ARGUMENT, ENVIRONMENT):
                raise
            # Half a file that something left in the cache is no news; a library that does not fit is.
            refusal = refusal or (None if found.problem else error)
            continue
        return library
    if refusal is not None:
        raise refusal
    raise MissingDependencyError("there is no plugin library on this machine", hint=_BUILD_HINT)


def _usable(found: Library) -> PluginLibrary:
    origin = _ORIGINS[found.source]
    if found.problem or found.info is None:
        raise ArtifactError(f"{found.path} ({origin.value}): {found.problem}", hint=_BUILD_HINT)
    return PluginLibrary(found.path.resolve(), origin, found.info, found.is_current)


def registered_ops(registry: Any) -> tuple[str, ...]:
    """Return which of our ops the TensorRT plugin registry ``registry`` can create."""
    # get_creator() would log an error for each name that is absent.
    ours = {
        creator.name
        for creator in registry.all_creators
        if (creator.plugin_namespace, creator.plugin_version) == (PLUGIN_NAMESPACE, PLUGIN_VERSION)
    }
    return tuple(name for name in PLUGIN_OPS if name in ours)


def load_library(
    trt: Any,
    explicit: Path | None = None,
    *,
    compute_capability: tuple[int, int] | None = None,
    driver: int | None = None,
) -> PluginLibrary:
    """Load the plugin library into the process's plugin registry, once.

    Args:
        trt: the TensorRT Python module (``tensorrt``, ``tensorrt_lean`` or ``tensorrt_dispatch``).
        explicit: path of the library; None searches as :func:`find_library`.
        compute_capability: as :func:`check_fits`.
        driver: as :func:`check_fits`.

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
    library = find_library(
        explicit, tensorrt_version=trt.__version__, compute_capability=compute_capability, driver=driver
    )
    handle = registry.load_library(str(library.path))
    missing = set(PLUGIN_OPS) - set(registered_ops(registry))
    if handle is None or missing:
        raise VimdeployError(
            f"TensorRT {trt.__version__} could not load {library.path}: {_why_not(library.path, missing)}",
            hint="A build on this machine usually mends it: vimdeploy build-plugin",
        )
    _LOADED.library, _LOADED.handle = library, handle
    return library


def _why_not(path: Path, missing: set[str]) -> str:
    """Return the system's reason not to load a library, else what TensorRT did not find in it."""
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return str(error)
    return f"it registers no {', '.join(sorted(missing))}" if missing else "the registry refused it"


def _mapped_library() -> str | None:
    """Return the file of ours that is mapped into this process, if the system tells."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    match = re.search(r"(/\S*libvimdeploy_plugin\S*\.so)", maps)
    return match.group(1) if match else None
