"""The file that keeps TensorRT's kernel timings between builds, one per GPU and TensorRT version.

Another GPU's cache can fail a build hard, so its key is in the file's name. Any number of builds may share a file: each
reads it before it builds, and after it reads what others stored meanwhile, adds to it and replaces it, under a lock.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vimdeploy.artifacts.files import write_all
from vimdeploy.errors import ArtifactError
from vimdeploy.tensorrt.boundary import TimingCacheHandle


def cache_file(folder: Path, version: str, device: str, compute_capability: str) -> Path:
    """Return where the timings of one GPU and TensorRT version lie in ``folder``."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", device).strip("-").lower()
    return folder / f"tensorrt-{version}-{compute_capability}-{name}.timing"


def read(path: Path) -> bytes:
    """Return the cache; empty where there is none yet.

    Raises:
        ArtifactError: it exists and cannot be read.

    """
    with _locked(path, exclusive=False):
        return _content(path)


def merge(path: Path, add: Callable[[bytes], bytes]) -> None:
    """Replace the cache by ``add`` of what it holds now, with every other build kept out meanwhile.

    Raises:
        ArtifactError: it cannot be read or written; the old one is then untouched.

    """
    with _locked(path, exclusive=True):
        write_all({path: add(_content(path))})


def set_aside(path: Path, content: bytes) -> Path | None:
    """Rename a cache that TensorRT refuses, and return its new name; None where it is not ``content`` any more."""
    with _locked(path, exclusive=True):
        if not content or _content(path) != content:  # another build has put it right already
            return None
        aside = path.with_suffix(".refused")
        try:
            path.replace(aside)
        except OSError as error:
            raise ArtifactError(f"{path}: the timing cache cannot be set aside: {error.strerror}.") from error
        return aside


def store(path: Path, read: bytes, measured: TimingCacheHandle) -> list[str]:
    """Add a build's timings to the file that other builds may have written meanwhile.

    Args:
        path: the file.
        read: what it held before the build.
        measured: TensorRT's cache after the build.

    Returns:
        Notes for the user: a file that TensorRT refused is kept beside under another name.

    """
    aside = set_aside(path, read) if measured.refused else None
    merge(path, measured.merged)
    if aside is None:
        return []
    return [f"TensorRT refused the timing cache {path.name}: it is now {aside.name}, and a new one is there"]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ArtifactError(f"{path}: the timing cache cannot be read: {error.strerror}.") from error


@contextmanager
def _locked(path: Path, *, exclusive: bool) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f".{path.name}.lock").open("w") as lock:
            _lock(lock.fileno(), exclusive=exclusive)
            yield
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise ArtifactError(
            f"{path.parent}: the timing cache cannot be kept there: {error.strerror}.",
            hint="Name another folder with --timing-cache.",
        ) from error


if sys.platform == "win32":
    import msvcrt

    def _lock(file: int, *, exclusive: bool) -> None:
        """Wait for the lock, which closing the file gives back. Windows has exclusive ones only."""
        while True:
            try:
                return msvcrt.locking(file, msvcrt.LK_LOCK, 1)
            except OSError:  # it gives up after ten seconds
                continue

else:
    import fcntl

    def _lock(file: int, *, exclusive: bool) -> None:
        """Wait for the lock, which closing the file gives back, as does the end of the process."""
        fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
