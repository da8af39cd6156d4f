"""Writing artifacts so that a killed command leaves the old file or the new one, never half of one."""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vimdeploy.errors import ArtifactError

_COUNT = itertools.count()
"""Tells the files apart that threads of one process write at the same time."""


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
        probe = _own_name("part", path)
        try:
            probe.write_bytes(b"")
        finally:
            probe.unlink(missing_ok=True)


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Write an artifact and the files that describe it, which stand before it in ``contents``, as one.

    All are complete on disk before the first takes its name. Renaming several files is not one step, so the describing
    files keep a pending name until the artifact has its own; whoever reads them asks :func:`sidecar_of`. Of commands
    that write the same files at the same time the last one wins, with all of its files.

    Raises:
        ArtifactError: a folder is missing, not writable or full; files of those names are then as they were.

    """
    *sidecars, artifact = contents
    parts = {path: _own_name("part", path) for path in contents}
    pending = {path: _own_name("pending", path) for path in sidecars}
    named = False
    try:
        for path, part in parts.items():
            with _explained(path), part.open("wb") as file:
                file.write(contents[path])
                file.flush()
                os.fsync(file.fileno())
        with _explained(artifact), _folder_locked(artifact.parent) as alone:
            if alone:
                _clear_away(sidecars, artifact)
            for path in sidecars:
                parts[path].replace(pending[path])
            parts[artifact].replace(artifact)
            named = True
            for path in sidecars:
                with suppress(FileNotFoundError):  # a reader has finished it in between
                    pending[path].replace(path)
    finally:
        for part in (*parts.values(), *(() if named else pending.values())):
            with suppress(OSError):  # where nothing could be written there is nothing to remove
                part.unlink()


def sidecar_of(artifact: Path, sidecar: Path) -> Path:
    """Return the file that describes ``artifact``: ``sidecar``, or its pending form where a kill came in between.

    The pending form counts if it names the artifact's SHA-256; it then takes the sidecar's place for good.
    """
    for pending in sorted(sidecar.parent.glob(f".pending.*.{_escaped(sidecar.name)}")):
        try:
            if sha256_file(artifact) not in pending.read_text(encoding="utf-8"):
                continue
        except (OSError, UnicodeDecodeError):  # another process finished it meanwhile, or it is no description
            continue
        with suppress(OSError):  # a folder that may only be read
            pending.replace(sidecar)
        if pending.exists():
            return pending
    return sidecar


def _own_name(kind: str, path: Path) -> Path:
    """Return a name beside ``path`` that nobody else writes to."""
    return path.with_name(f".{kind}.{os.getpid()}-{next(_COUNT)}.{path.name}")


def _escaped(name: str) -> str:
    """Return a name without what ``glob`` would read as a pattern."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _clear_away(sidecars: Sequence[Path], artifact: Path) -> None:
    """Finish or remove what killed commands left of these files; running ones keep their own."""
    for path in sidecars:
        if artifact.exists():
            sidecar_of(artifact, path)
    for kind, path in itertools.product(("part", "pending"), (*sidecars, artifact)):
        for leftover in path.parent.glob(f".{kind}.*.{_escaped(path.name)}"):
            owner = leftover.name.removeprefix(f".{kind}.").removesuffix(f".{path.name}")
            pid = owner.partition("-")[0]
            if pid.isdecimal() and not _is_running(int(pid)):
                leftover.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def _folder_locked(folder: Path) -> Iterator[bool]:
    """Hold a lock on a folder, which leaves nothing behind; yields False where the file system knows no such lock."""
    if sys.platform == "win32":
        yield False
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        alone = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # as on some network file systems
            alone = False
        yield alone
    finally:
        os.close(descriptor)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not path.parent.is_dir():
            raise ArtifactError(f"{path}: its folder does not exist.", hint=f"mkdir -p {path.parent}") from error
        reason = error.strerror or type(error).__name__
        raise ArtifactError(
            f"{path}: cannot be written: {reason}.", hint="Free some space or choose another folder with -o."
        ) from error
