"""Writing artifacts so that a killed command leaves the old file or the new one, never half of one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from vimdeploy.errors import ArtifactError


def sha256_bytes(content: bytes) -> str:
    """Return the SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_writable(path: Path) -> None:
    """Raise ArtifactError now if ``path`` could not be written later: before minutes of work, not after."""
    if path.is_dir():
        raise ArtifactError(f"{path}: is a folder.", hint="Name the file to write inside it.")
    with _explained(path):
        probe = _part(path)
        try:
            probe.write_bytes(b"")
        finally:
            probe.unlink(missing_ok=True)


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Write an artifact and the files that describe it, which stand before it in ``contents``, as one.

    All are complete on disk before the first takes its name. Renaming several files is not one step, so the describing
    files keep a pending name until the artifact has its own; whoever reads them asks :func:`sidecar_of`.

    Raises:
        ArtifactError: a folder is missing, not writable or full; files of those names are then as they were.

    """
    *sidecars, artifact = contents
    parts = {path: _part(path) for path in contents}
    named = False
    try:
        for path, part in parts.items():
            with _explained(path):
                _remove_leftovers(path)
                with part.open("wb") as file:
                    file.write(contents[path])
                    file.flush()
                    os.fsync(file.fileno())
        with _explained(artifact):
            for path in sidecars:
                parts[path].replace(_pending(path))
            parts[artifact].replace(artifact)
            named = True
            for path in sidecars:
                _pending(path).replace(path)
    finally:
        for part in (*parts.values(), *(() if named else map(_pending, sidecars))):
            with suppress(OSError):  # where nothing could be written there is nothing to remove
                part.unlink()


def sidecar_of(artifact: Path, sidecar: Path) -> Path:
    """Return the file that describes ``artifact``: ``sidecar``, or its pending form where a kill came in between.

    The pending form counts if it names the artifact's SHA-256; it then takes the sidecar's place for good.
    """
    pending = _pending(sidecar)
    try:
        description = pending.read_text(encoding="utf-8")
        if sha256_file(artifact) not in description:
            return sidecar
    except (OSError, UnicodeDecodeError):
        return sidecar
    with suppress(OSError):  # a folder that may only be read
        pending.replace(sidecar)
    return pending if pending.exists() else sidecar


def _pending(path: Path) -> Path:
    return path.with_name(f".pending.{path.name}")


def _part(path: Path) -> Path:
    return path.with_name(f".part.{os.getpid()}.{path.name}")


def _remove_leftovers(path: Path) -> None:
    """Remove what killed commands left of ``path``; a running one keeps its own."""
    for leftover in path.parent.glob(f".part.*.{path.name}"):
        pid = leftover.name.removeprefix(".part.").removesuffix(f".{path.name}")
        if pid.isdecimal() and not _is_running(int(pid)):
            leftover.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: its folder does not exist.", hint=f"mkdir -p {path.parent}") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ArtifactError(
            f"{path}: cannot be written: {reason}.", hint="Free some space or choose another folder with -o."
        ) from error
