"""Whether a file can be a shared library of this machine, read from its header alone."""

from __future__ import annotations

import platform
import struct
from pathlib import Path

_MACHINES = {"x86_64": 62, "aarch64": 183}


def elf_problem(path: Path, machine: str = "") -> str:
    """Return why a file is not a complete shared library of this machine's processor, or an empty string.

    Only the header is read: a truncated copy is known by a section table that would lie behind the end of the file.
    """
    try:
        with path.open("rb") as file:
            header = file.read(64)
        size = path.stat().st_size
    except OSError as error:
        link = path.is_symlink() and not path.exists()
        return "a link that leads nowhere" if link else f"cannot be read: {error.strerror or error}"
    if size == 0:
        return "an empty file"
    if header.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the library itself"
    if len(header) < 64 or header[:4] != b"\x7fELF":
        return "not a shared library"
    return _header_problem(header, size, machine or platform.machine())


def _header_problem(header: bytes, size: int, machine: str) -> str:
    """Check the fields of a 64-bit ELF header (ELF-64 object file format, figure 2)."""
    (kind,) = struct.unpack_from("<H", header, 18)
    (table,) = struct.unpack_from("<Q", header, 40)
    entry, count = struct.unpack_from("<HH", header, 58)
    if header[4] != 2 or kind != _MACHINES.get(machine, kind):
        return f"built for another processor than this machine's {machine}"
    return "truncated: the file ends before its section table" if table + entry * count > size else ""
