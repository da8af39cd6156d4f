"""The file that keeps TensorRT's kernel timings between builds, one per GPU and TensorRT version.

Another GPU's cache can fail a build hard, so its key is in the file's name. Builds may share a file: each reads it
whole and replaces it whole; of two at once the later one wins, which costs the other's timings and nothing else.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vimdeploy.errors import ArtifactError
from vimdeploy.files import write_all


def cache_file(folder: Path, version: str, device: str, compute_capability: str) -> Path:
    """Return where the timings of one GPU and TensorRT version lie in ``folder``."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", device).strip("-").lower()
    return folder / f"tensorrt-{version}-{compute_capability}-{name}.timing"


def read(path: Path) -> bytes:
    """Return the cache; empty where there is none yet.

    Raises:
        ArtifactError: it exists and cannot be read.

    """
    with _locked(path, fcntl.LOCK_SH):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise ArtifactError(f"{path}: the timing cache cannot be read: {error.strerror}.") from error


def write(path: Path, content: bytes) -> None:
    """Replace the cache; ArtifactError where that fails, with the old one untouched."""
    with _locked(path, fcntl.LOCK_EX):
        write_all({path: content})


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, how)
            yield
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise ArtifactError(
            f"{path.parent}: the timing cache cannot be kept there: {error.strerror}.",
            hint="Name another folder with --timing-cache.",
        ) from error
