"""Shards with many images in one file: tar as WebDataset writes it, and parquet."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, Literal

from vimdeploy.errors import ArtifactError, ImageError, MissingDependencyError, UsageError
from vimdeploy.needs import REQUIREMENTS, pip_install
from vimdeploy.predicting.items import IMAGE_SUFFIXES, Item
from vimdeploy.predicting.storage import Storage, explained, without_options

_LONGEST_LABEL = 1024
"""Bytes of a ``.cls`` member; a longer one is no label."""
_LARGEST_MEMBER = 1 << 30
"""Bytes of one image in a shard; a header that names more is damaged or hostile."""
_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "content")
_ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class ParquetColumns:
    """Which columns of parquet files to read; None looks for the usual names."""

    image: str | None = None
    """Binary, or a structure with a field ``bytes`` as Hugging Face's data sets have."""
    key: str | None = None
    """Names the rows; None names them ``file#row``."""
    label: str | None = None
    """The true class, by name or index."""


def tar_items(storage: Storage, path: str) -> Iterator[Item]:
    """Yield the images of a tar shard; ``name.cls`` beside ``name.jpg`` is its label, as in WebDataset.

    Of a plain tar only the headers are read here, and each image when its turn comes. Of a compressed one the bytes
    come along, since it can only be read from front to end.
    """
    name, plain = without_options(path), without_options(path).lower().endswith(".tar")
    # "r:" seeks from header to header; "r|*" reads on and finds out how it is compressed.
    mode: Literal["r:", "r|*"] = "r:" if plain else "r|*"
    with _tar_in_words(name), storage.open(path) as file, tarfile.open(fileobj=file, mode=mode) as archive:
        group: list[tuple[str, Any]] = []
        stem, label = "", None
        for member in archive:
            vars(archive)["members"].clear()  # tarfile remembers every header, which is not bounded
            if not member.isfile():
                continue
            folder, _, last = member.name.rpartition("/")
            base, _, suffix = last.partition(".")
            if (here := f"{folder}/{base}") != stem:
                yield from _grouped(name, group, label)
                group, stem, label = [], here, None
            if suffix == "cls" and member.size <= _LONGEST_LABEL:
                label = _content(archive, member).decode("utf-8", "replace").strip()
            elif member.name.lower().endswith(IMAGE_SUFFIXES):
                if member.size > _LARGEST_MEMBER:
                    raise ArtifactError(f"{name}: its member {member.name} says that it has {member.size} bytes.")
                if plain:
                    read: Any = partial(_range, storage, path, member.name, member.offset_data, member.size)
                else:
                    read = partial(bytes, _content(archive, member))
                group.append((member.name, read))
        yield from _grouped(name, group, label)


def _grouped(shard: str, group: list[tuple[str, Any]], label: str | None) -> Iterator[Item]:
    for member, read in group:
        yield Item(f"{shard}/{member}", read, label)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file: IO[bytes] | None = archive.extractfile(member)
    return file.read() if file else b""


def _range(storage: Storage, path: str, member: str, offset: int, size: int) -> bytes:
    try:
        content = storage.read_range(path, offset, size)
    except ArtifactError as error:
        raise ImageError(error.message, hint=error.hint) from error
    if len(content) != size:
        raise ImageError(f"{without_options(path)}/{member}: the shard ends in the middle of it.")
    return content


@contextmanager
def _tar_in_words(name: str) -> Iterator[None]:
    try:
        with explained(name, "read"):
            yield
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ArtifactError(
            f"{name}: is not a readable tar file ({error}).",
            hint="Copy it again; finished rows stay, and the same command goes on from there.",
        ) from error


def parquet_items(storage: Storage, path: str, columns: ParquetColumns) -> Iterator[Item]:
    """Yield the images of a parquet file, a few rows in memory at a time."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingDependencyError(
            f"{path}: reading parquet needs pyarrow, which is not installed.", hint=pip_install(REQUIREMENTS["pyarrow"])
        ) from error
    name = without_options(path)
    try:
        with explained(name, "read"), storage.open(path) as file:
            table = pq.ParquetFile(file)
            image = _image_column(table.schema_arrow, columns.image, name)
            wanted = [image, *(c for c in (columns.key, columns.label) if c)]
            for column in wanted:
                if column not in table.schema_arrow.names:
                    raise UsageError(f"{name}: has no column '{column}'.", hint=_names(table.schema_arrow))
            row = 0
            for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=wanted):
                for values in batch.to_pylist():
                    key = f"{name}#{row}" if columns.key is None else str(values[columns.key])
                    label = None if columns.label is None else values[columns.label]
                    content = values[image]["bytes"] if isinstance(values[image], dict) else values[image]
                    yield Item(key, partial(_present, key, content), None if label is None else str(label))
                    row += 1
    except pa.ArrowInvalid as error:
        reason = str(error).partition("\n")[0]
        raise ArtifactError(f"{name}: is not a readable parquet file ({reason}).", hint="Copy it again.") from error


def _present(key: str, content: bytes | None) -> bytes:
    if content is None:
        raise ImageError(f"{key}: the row has no image bytes.")
    return content


def _image_column(schema: Any, named: str | None, path: str) -> str:
    from pyarrow import types

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    if named is not None:
        if named not in schema.names or not holds_bytes(schema.field(named).type):
            raise UsageError(f"{path}: has no column '{named}' of image files' bytes.", hint=_names(schema))
        return named
    fitting = [field.name for field in schema if holds_bytes(field.type)]
    usual = [name for name in fitting if name.lower() in _IMAGE_COLUMNS]
    if len(usual or fitting) != 1:
        raise UsageError(f"{path}: which column holds the images is not plain.", hint=f"--column. {_names(schema)}")
    return str((usual or fitting)[0])


def _names(schema: Any) -> str:
    return f"It has: {', '.join(f'{field.name} ({field.type})' for field in schema)}."
