"""Where native code lives: its sources in the package or the checkout, its builds in the user's cache."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vimdeploy.errors import MissingDependencyError
from vimdeploy.native.places import Places

PLUGIN = "libvimdeploy_plugin.so"
"""Loaded by a TensorRT registry."""
PRELOAD = "libvimdeploy_plugin_preload.so"
"""Registers the same plugins when it is only dlopened."""
KERNELS = "libvimdeploy_kernels.so"
"""Plain C entry points, for PyTorch."""

SOURCE_FOLDERS = ("kernels/common", "kernels/selective_scan", "kernels/causal_conv1d", "tensorrt", "c_api")
"""Folders of ``plugins/`` that a library is built from; the others hold tests."""
SOURCE_SUFFIXES = (".h", ".cuh", ".cpp", ".cu", ".map")


def cache_folder() -> Path:
    """Return the folder that builds of the plugin go to, in :attr:`vimdeploy.native.places.Places.cache`."""
    return Places().cache / "plugins"


def plugin_sources() -> Path:
    """Return the folder of the plugin's sources: in the installed package, or beside it in a checkout.

    Raises:
        MissingDependencyError: neither has them.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_plugins", package.parent / "plugins"):
        if (folder / "tensorrt" / "registration.cpp").is_file():
            return folder
    raise MissingDependencyError(
        f"the plugin's sources are neither in {package / '_plugins'} nor in {package.parent / 'plugins'}",
        hint="Reinstall vimdeploy: its wheel carries them.",
    )


def source_files(sources: Path) -> list[str]:
    """Return the files a library is built from, relative to ``sources``, sorted."""
    return sorted(
        path.relative_to(sources).as_posix()
        for folder in SOURCE_FOLDERS
        for path in (sources / folder).glob("*")
        if path.suffix in SOURCE_SUFFIXES
    )


def source_hash(sources: Path) -> str:
    """Return 12 hexadecimal digits that change with any source file; ``CMakeLists.txt`` computes the same."""
    lines = [f"{name} {hashlib.sha256((sources / name).read_bytes()).hexdigest()}\n" for name in source_files(sources)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]


def has_code(architectures: tuple[str, ...], compute_capability: tuple[int, int]) -> bool:
    """Whether a GPU finds code it can run among ``("80", "89", "89+PTX")``.

    Machine code serves the same major generation from its minor one on; PTX serves everything newer.
    """
    major, minor = compute_capability
    for entry in architectures:
        number = int(entry.removesuffix("+PTX"))
        if entry.endswith("+PTX"):
            if number <= major * 10 + minor:
                return True
        elif number // 10 == major and number % 10 <= minor:
            return True
    return False
