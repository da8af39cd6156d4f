"""Where files lie: on a local disk with the standard library, anywhere else through pyarrow or fsspec.

A path is local unless it holds ``://``. Every failure is told as an :class:`ArtifactError` naming the path.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from vimdeploy.artifacts.files import write_all
from vimdeploy.errors import ArtifactError, MissingDependencyError, UsageError
from vimdeploy.needs import REQUIREMENTS, pip_install

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_LONGEST_REASON = 300
"""Object stores answer with whole XML documents; this much of the first line tells what is wrong."""


class Storage(Protocol):
    """One file system. Paths are the texts a user types, and come back in the same form."""

    def kind(self, path: str) -> str:
        """Return ``file``, ``folder`` or ``missing``."""

    def files(self, folder: str) -> Iterator[str]:
        """Yield every file below a folder, sorted folder by folder."""

    def names(self, folder: str) -> list[str]:
        """Return the names of the files directly in a folder, sorted; none where the folder is missing."""

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders directly in a folder, sorted."""

    def read(self, path: str) -> bytes:
        """Return a whole file."""

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset``."""

    def open(self, path: str) -> IO[bytes]:
        """Open a file for reading, with random access."""

    def write(self, path: str, content: bytes) -> None:
        """Write a whole file, which appears complete or not at all; makes its folder."""


def is_remote(path: str) -> bool:
    """Whether a path names another file system than the local one."""
    return "://" in path


def storage_of(path: str) -> Storage:
    """Return the file system that a path lies on.

    Raises:
        UsageError: neither pyarrow nor fsspec knows the scheme.
        MissingDependencyError: a remote path, and pyarrow is not installed.

    """
    return _Remote(path) if is_remote(path) else _Local()


@contextmanager
def explained(path: str, doing: str) -> Iterator[None]:
    """Turn what a file system raises into words: ``doing`` is ``read`` or ``written``."""
    try:
        yield
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: there is no such file.") from error
    except OSError as error:
        reason = error.strerror or str(error).partition("\n")[0][:_LONGEST_REASON] or type(error).__name__
        raise ArtifactError(f"{path}: cannot be {doing}: {reason}.", hint=_hint(path, doing)) from error


def _hint(path: str, doing: str) -> str:
    if is_remote(path):
        return "Check address, credentials and rights; `vimdeploy predict` goes on where it stopped."
    return "Free some space or choose another folder with -o." if doing == "written" else "Check its rights."


class _Local:
    def kind(self, path: str) -> str:
        return "folder" if os.path.isdir(path) else "file" if os.path.exists(path) else "missing"

    def files(self, folder: str) -> Iterator[str]:
        with explained(folder, "read"):
            yield from self._walk(folder, frozenset())

    def _walk(self, folder: str, above: frozenset[str]) -> Iterator[str]:
        here = os.path.realpath(folder)
        if here in above:  # a link to a folder that this one lies in
            return
        with os.scandir(folder) as listing:
            entries = sorted((entry.name, entry.is_dir()) for entry in listing)
        for name, is_folder in entries:
            path = os.path.join(folder, name)
            if is_folder:
                yield from self._walk(path, above | {here})
            else:
                yield path

    def names(self, folder: str) -> list[str]:
        try:
            with explained(folder, "read"), os.scandir(folder) as listing:
                return sorted(entry.name for entry in listing if entry.is_file())
        except ArtifactError:
            if not os.path.exists(folder):
                return []
            raise

    def folders(self, folder: str) -> list[str]:
        with explained(folder, "read"), os.scandir(folder) as listing:
            return sorted(entry.name for entry in listing if entry.is_dir())

    def read(self, path: str) -> bytes:
        with explained(path, "read"), open(path, "rb") as file:
            return file.read()

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        with explained(path, "read"), open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)

    def open(self, path: str) -> IO[bytes]:
        with explained(path, "read"):
            return open(path, "rb")

    def write(self, path: str, content: bytes) -> None:
        with explained(path, "written"):
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        write_all({Path(path): content})


class _Remote:
    """A file system of pyarrow, or one of fsspec that pyarrow wraps."""

    def __init__(self, uri: str) -> None:
        self._fs, inside = _filesystem(uri)
        # ``s3://bucket/folder?endpoint_override=...`` keeps its options in every path that comes back.
        self._head, self._options = uri.partition("?")[0], uri.partition("?")[2]
        self._root = self._head.removesuffix(inside.lstrip("/"))

    def _inside(self, uri: str) -> str:
        path = uri.partition("?")[0].removeprefix(self._root)
        return path if not self._root.endswith(":///") else f"/{path}"

    def _uri(self, inside: str) -> str:
        plain = self._root + inside.lstrip("/")
        return f"{plain}?{self._options}" if self._options else plain

    def kind(self, path: str) -> str:
        from pyarrow.fs import FileType

        with explained(path, "read"):
            found = self._fs.get_file_info(self._inside(path)).type
        return {FileType.File: "file", FileType.Directory: "folder"}.get(found, "missing")

    def files(self, folder: str) -> Iterator[str]:
        for info in self._listed(folder, recursive=True):
            if info.is_file:
                yield self._uri(info.path)

    def names(self, folder: str) -> list[str]:
        return [info.base_name for info in self._listed(folder, recursive=False) if info.is_file]

    def folders(self, folder: str) -> list[str]:
        return [info.base_name for info in self._listed(folder, recursive=False) if not info.is_file]

    def _listed(self, folder: str, *, recursive: bool) -> list[Any]:
        from pyarrow.fs import FileSelector

        selector = FileSelector(self._inside(folder).rstrip("/"), allow_not_found=True, recursive=recursive)
        with explained(folder, "read"):
            return sorted(self._fs.get_file_info(selector), key=lambda info: str(info.path))

    def read(self, path: str) -> bytes:
        with explained(path, "read"), self._fs.open_input_file(self._inside(path)) as file:
            return bytes(file.readall())

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        with explained(path, "read"), self._fs.open_input_file(self._inside(path)) as file:
            file.seek(offset)
            return bytes(file.read(size))

    def open(self, path: str) -> IO[bytes]:
        with explained(path, "read"):
            opened: IO[bytes] = self._fs.open_input_file(self._inside(path))
            return opened

    def write(self, path: str, content: bytes) -> None:
        """An object takes its name when the stream is closed: a process killed before leaves none."""
        with explained(path, "written"):
            inside = self._inside(path)
            if self._fs.type_name not in ("s3", "gcs", "abfs"):  # object stores have no folders to make
                self._fs.create_dir(inside.rpartition("/")[0], recursive=True)
            with self._fs.open_output_stream(inside) as stream:
                stream.write(content)


def _filesystem(uri: str) -> tuple[FileSystem, str]:
    try:
        import pyarrow as pa
        from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem
    except ImportError as error:
        raise MissingDependencyError(
            f"{uri}: reading and writing other file systems needs pyarrow, which is not installed.",
            hint=pip_install(REQUIREMENTS["pyarrow"]),
        ) from error
    try:
        found: tuple[FileSystem, str] = FileSystem.from_uri(_quoted(uri))
    except pa.ArrowInvalid as refusal:
        try:
            from fsspec.core import url_to_fs

            filesystem, path = url_to_fs(uri)
        except (ImportError, ValueError) as error:
            raise UsageError(
                f"{uri}: is on no file system that pyarrow or fsspec can reach here: {error}.",
                hint="Check the scheme; many need a package of their own (s3fs, gcsfs, adlfs, ...).",
            ) from refusal
        return PyFileSystem(FSSpecHandler(filesystem)), str(path)
    except OSError as error:
        raise UsageError(f"{uri}: cannot be reached: {str(error).partition(chr(10))[0][:_LONGEST_REASON]}.") from error
    return found


def _quoted(uri: str) -> str:
    """Escape what an address may not hold and names do: spaces, brackets, wildcards."""
    scheme, _, rest = uri.partition("://")
    path, mark, options = rest.partition("?")
    return f"{scheme}://{quote(path, safe='/:@')}{mark}{options}"


def join(folder: str, name: str) -> str:
    """Return the path of a file in a folder; options of an address stay at its end."""
    head, mark, options = folder.partition("?") if is_remote(folder) else (folder, "", "")
    return f"{head.rstrip('/')}/{name}{mark}{options}" if head != "." else name


def parent(path: str) -> str:
    """Return the folder of a file, in the form that :func:`join` takes."""
    head, mark, options = path.partition("?") if is_remote(path) else (path, "", "")
    folder, slash, _ = head.rpartition("/")
    return f"{folder}{mark}{options}" if slash else "."


def without_options(path: str) -> str:
    """Return an address as rows name it: without ``?endpoint_override=...``, which may hold secrets."""
    return path.partition("?")[0] if is_remote(path) else path


__all__ = ["Storage", "explained", "is_remote", "join", "parent", "storage_of", "without_options"]
