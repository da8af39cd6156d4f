"""What a user names as source: images, folders, globs, lists, tar and parquet shards, here or in object storage."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from glob import has_magic

from vimdeploy.errors import ArtifactError, ImageError, UsageError
from vimdeploy.predicting.containers import ParquetColumns, parquet_items, tar_items
from vimdeploy.predicting.items import (
    IMAGE_SUFFIXES,
    LIST_SUFFIXES,
    PARQUET_SUFFIXES,
    TAR_SUFFIXES,
    Item,
)
from vimdeploy.predicting.storage import Storage, is_remote, join, parent, storage_of, without_options

STDIN = "-"
_SHARDS = (*TAR_SUFFIXES, *PARQUET_SUFFIXES)


def expand(sources: Sequence[str], columns: ParquetColumns | None = None) -> Iterator[Item]:
    """Yield every image of the sources in an order that depends on nothing but their names.

    Args:
        sources: image files, folders (walked, links followed), globs, ``.txt`` lists (one source a line, relative to
            the list's own folder), ``-`` (one source a line on standard input), tar and parquet shards; local paths, or
            addresses that pyarrow or fsspec read.
        columns: which columns of parquet files to read.

    Raises:
        ImageError: a source is missing, or holds no image.
        ArtifactError: a shard or list cannot be read.

    """
    columns = columns or ParquetColumns()
    for source in sources:
        if source == STDIN:
            yield from _listed(sys.stdin, ".", columns)
        elif source.lower().endswith(LIST_SUFFIXES) and storage_of(source).kind(source) == "file":
            lines = storage_of(source).read(source).decode("utf-8", "surrogateescape").splitlines()
            yield from _listed(lines, parent(source), columns)
        else:
            yield from _expand_one(source, columns)


def check(sources: Sequence[str]) -> None:
    """Raise ImageError now for a named source that is not there; after a million images would be late."""
    if not sources:
        raise UsageError("Name images, folders, lists or shards to predict.", hint="See `vimdeploy predict --help`.")
    if sources.count(STDIN) > 1:
        raise UsageError("- stands for standard input and can be named once.")
    for source in sources:
        if source == STDIN or (has_magic(source) and storage_of(source).kind(source) == "missing"):
            continue
        if storage_of(source).kind(source) == "missing":
            raise ImageError(f"{source}: there is no such file or folder.")


def count(sources: Sequence[str]) -> int | None:
    """Return how many images the sources name, None where that would need reading shards or standard input."""
    total = 0
    for source in sources:
        if source == STDIN or source.lower().endswith(LIST_SUFFIXES) or _is_shard(source):
            return None
        storage = storage_of(source)
        if storage.kind(source) == "file":
            total += 1
            continue
        pattern = without_options(source) if storage.kind(source) == "missing" else "*"
        for path in storage.files(_fixed_part(source) if pattern != "*" else source):
            if fnmatch.fnmatchcase(without_options(path), pattern):
                if _is_shard(path):
                    return None
                total += _is_image(path)
    return total


def _listed(lines: Iterable[str], folder: str, columns: ParquetColumns) -> Iterator[Item]:
    for line in lines:
        if name := line.strip("\r\n"):
            absolute = is_remote(name) or name.startswith("/")
            yield from _expand_one(name if absolute else join(folder, name), columns, listed=True)


def _expand_one(source: str, columns: ParquetColumns, *, listed: bool = False) -> Iterator[Item]:
    if listed and _is_image(source):  # asking after ten million files one by one is slower than reading them
        yield _image(storage_of(source), source)
        return
    storage = storage_of(source)
    kind = storage.kind(source)
    if kind == "file":
        yield from _file(storage, source, columns)
    elif kind == "folder":
        yield from _walked(storage, source, "*", columns)
    elif has_magic(without_options(source)) and storage.kind(folder := _fixed_part(source)) == "folder":
        yield from _walked(storage, folder, without_options(source), columns)
    else:
        raise ImageError(f"{source}: there is no such file or folder.")


def _walked(storage: Storage, folder: str, pattern: str, columns: ParquetColumns) -> Iterator[Item]:
    found = False
    for path in storage.files(folder):
        plain = without_options(path)
        if plain.lower().endswith((*IMAGE_SUFFIXES, *_SHARDS)) and fnmatch.fnmatchcase(plain, pattern):
            found = True
            yield from _file(storage, path, columns)
    if not found:
        raise ImageError(
            f"{folder if pattern == '*' else pattern}: holds no images ({', '.join(IMAGE_SUFFIXES)}) and no shards "
            f"({', '.join(_SHARDS)})."
        )


def _fixed_part(pattern: str) -> str:
    """Return the folder above the first wildcard of a glob."""
    head, _, options = pattern.partition("?") if is_remote(pattern) and "=" in pattern else (pattern, "", "")
    parts = head.split("/")
    first = next(index for index, part in enumerate(parts) if has_magic(part))
    folder = "/".join(parts[:first]) or ("/" if head.startswith("/") else ".")
    return f"{folder}?{options}" if options else folder


def _file(storage: Storage, path: str, columns: ParquetColumns) -> Iterator[Item]:
    name = without_options(path).lower()
    if name.endswith(TAR_SUFFIXES):
        yield from tar_items(storage, path)
    elif name.endswith(PARQUET_SUFFIXES):
        yield from parquet_items(storage, path, columns)
    else:
        yield _image(storage, path)


def _is_image(path: str) -> bool:
    return without_options(path).lower().endswith(IMAGE_SUFFIXES)


def _is_shard(path: str) -> bool:
    return without_options(path).lower().endswith(_SHARDS)


def _image(storage: Storage, path: str) -> Item:
    return Item(without_options(path), partial(_read, storage, path))


def _read(storage: Storage, path: str) -> bytes:
    try:
        return storage.read(path)
    except ArtifactError as error:
        raise ImageError(error.message, hint=error.hint) from error
