"""Facts inside an ONNX file, read without onnx, which a deployment host need not have, and without its weights.

``vimdeploy export`` writes the manifest's facts into the model's ``metadata_props`` too, so that a file that travelled
alone still says what it is, and a file that was put in another's place says that it is another.
"""

from __future__ import annotations

import hashlib
import io
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vimdeploy.artifacts.structured import LARGEST_FILE, parse_json
from vimdeploy.errors import ArtifactError

FACTS_KEY = "vimdeploy.manifest"
"""Key of the entry; its value is JSON."""
_DIGEST = "sha256"
_METADATA, _KEY, _VALUE = 14, 1, 2
"""Field numbers: ``ModelProto.metadata_props``, ``StringStringEntryProto.key`` and ``.value`` (onnx.proto)."""
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
"""Wire types of protobuf's encoding."""


def with_facts(content: bytes, facts: dict[str, Any]) -> bytes:
    """Return a serialised model with facts in it, and with the hash of everything that is not metadata.

    Args:
        content: a serialised ``ModelProto``; facts that it has are replaced.
        facts: plain values for JSON.

    """
    before, others, after = _around_metadata(content)
    digest = hashlib.sha256(before + after + _canonical(facts)).hexdigest()
    text = _canonical({**facts, _DIGEST: digest})
    key = FACTS_KEY.encode()
    entry = _header(_KEY, len(key)) + key + _header(_VALUE, len(text)) + text
    return before + others + _header(_METADATA, len(entry)) + entry + after


def _around_metadata(content: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the fields of lower numbers than metadata's, the metadata beside the facts, and the other fields.

    In the order of their numbers, any protobuf writes the fields again as they were.
    """
    parts: dict[str, list[bytes]] = {"before": [], "others": [], "after": []}
    for number, start, begin, end in _pieces(io.BytesIO(content), len(content)):
        if number == _METADATA and FACTS_KEY.encode() in content[begin : begin + len(FACTS_KEY) + 8]:
            continue
        place = "others" if number == _METADATA else "before" if number < _METADATA else "after"
        parts[place].append(content[start:end])
    before, others, after = (b"".join(pieces) for pieces in parts.values())
    return before, others, after


def take_digest(facts: dict[str, Any], path: Path) -> bool:
    """Remove the hash from a file's facts; returns whether it is that of the file without metadata, and of the facts.

    Args:
        facts: of :func:`read_facts`.
        path: the file that they are from.

    """
    said = facts.pop(_DIGEST, None)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for number, start, _, end in _pieces(file, path.stat().st_size):
            if number == _METADATA:
                continue
            file.seek(start)
            while block := file.read(min(end - file.tell(), 1 << 20)):
                digest.update(block)
    digest.update(_canonical(facts))
    return bool(said == digest.hexdigest())


def _canonical(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()


def read_facts(path: Path) -> dict[str, Any] | None:
    """Return what :func:`with_facts` put into a file; None where there is nothing, or it is no ONNX file.

    Raises:
        ArtifactError: the facts are there and damaged.

    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return None
        with path.open("rb") as file:
            entries = list(_entries(file, status.st_size))
    except (OSError, EOFError, ValueError):
        return None
    for key, value in entries:
        if key == FACTS_KEY.encode():
            data = parse_json(
                value.decode("utf-8", "replace"), f"{path}: the manifest inside it", hint="Export the model again."
            )
            if not isinstance(data, dict):
                raise ArtifactError(f"{path}: the manifest inside it is no table.", hint="Export the model again.")
            return data
    return None


def _entries(file: IO[bytes], size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the model's metadata; every length is held against what is there before anything is read."""
    for number, _, start, end in _pieces(file, size):
        if number != _METADATA:
            continue
        if end - start > LARGEST_FILE:
            raise ValueError("metadata larger than any manifest")
        file.seek(start)
        entry = {_KEY: b"", _VALUE: b""}
        while file.tell() < end:
            inner, length = _field(file, end)
            entry[inner] = file.read(length)
        yield entry[_KEY], entry[_VALUE]


def _pieces(file: IO[bytes], size: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield each field's number, where it starts, where its content starts, and where it ends."""
    place = 0
    while place < size:
        file.seek(place)
        number, length = _field(file, size)
        begin = file.tell()
        yield number, place, begin, begin + length
        place = begin + length


def _field(file: IO[bytes], end: int) -> tuple[int, int]:
    """Return a field's number and the bytes of its content that follow; ValueError where they pass ``end``."""
    tag = _varint(file)
    kind = tag & 7
    if kind == _VARINT:
        _varint(file)
        return tag >> 3, 0
    length = {_FIXED_64: 8, _FIXED_32: 4}.get(kind)
    if length is None:
        if kind != _BYTES:
            raise ValueError("no field of protobuf")
        length = _varint(file)
    if file.tell() + length > end:
        raise ValueError("a field is longer than the file")
    return tag >> 3, length


def _varint(file: IO[bytes]) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise EOFError
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("a number of more than 64 bits")


def _header(number: int, length: int) -> bytes:
    """Return what stands before a field of bytes."""
    encoded = bytearray()
    for value in (number << 3 | _BYTES, length):
        rest = value
        while rest > 0x7F:
            encoded.append(rest & 0x7F | 0x80)
            rest >>= 7
        encoded.append(rest)
    return bytes(encoded)
