"""Helpers of the tests of the C++ plugin.

Nothing is skipped when a tool is missing: nvcc, cmake, g++ and GoogleTest are part of the gate, and a test that cannot
have them fails and names them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vimdeploy.native.locate import cache_folder, plugin_sources
from vimdeploy.native.toolchain import find_nvcc, parse_architectures


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one pytest worker at a time work in ``folder``; the others find its result."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def elf() -> bytes:
    """Return a header that is enough to pass for a shared library of this machine."""
    header = bytearray(64)
    header[:5] = b"\x7fELF\x02"
    struct.pack_into("<H", header, 18, {"x86_64": 62, "aarch64": 183}[platform.machine()])
    return bytes(header)


def needed(tool: str, package: str) -> str:
    """Return the path of ``tool``, or fail and say which package has it."""
    path = shutil.which(tool)
    if path is None:
        pytest.fail(f"{tool} is missing: apt-get install {package}", pytrace=False)
    return path


def run(*command: object, timeout: float = 900, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command that has to succeed."""
    words = [str(word) for word in command]
    result = subprocess.run(
        words, capture_output=True, text=True, timeout=timeout, env={**os.environ, **environment}, check=False
    )
    assert result.returncode == 0, f"{' '.join(words)}\n{result.stdout[-8000:]}\n{result.stderr[-8000:]}"
    return result


def build_folder(name: str) -> Path:
    """Return the folder of a CMake build of these sources: it is bound to their path, so checkouts have their own."""
    place = hashlib.sha256(str(plugin_sources()).encode()).hexdigest()[:8]
    return cache_folder().parent / f"{name}-{place}"


def architectures() -> tuple[int, ...]:
    """What the shared library is built for: every GPU since Turing; while working on the kernels, fewer.

    VIMDEPLOY_TEST_ARCHITECTURES=sm_90 spares a developer minutes per change. The gate does not set it.
    """
    names = os.environ.get("VIMDEPLOY_TEST_ARCHITECTURES", "")
    return parse_architectures(names.split(",") if names else [], find_nvcc())
