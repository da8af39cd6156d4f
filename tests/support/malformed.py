"""Malformed inputs by the hundred: each ends in words, with exit code 2, leaves nothing behind and costs little memory.

``python tests/support/malformed.py --count 10000 --seed 7`` runs as many as wanted, every one reproducible by its
seed; the gate runs 250. A case is a file that was whole, and a lie: it is cut at a boundary of its structure or
anywhere, a length, count or number in it is another one, fields change places, or it is of another kind.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import shutil
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from commandline import snapshot, vimdeploy
from goldens import golden
from PIL import Image
from safetensors.torch import save as save_safetensors

Lie = Callable[[random.Random, bytes], bytes]
MEMORY = 400
"""MB that all cases together may add to the process at most."""


def cut_anywhere(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content) * 9 // 10)]


def cut_at(*marks: bytes) -> Lie:
    def cut(rng: random.Random, content: bytes) -> bytes:
        places = [i for mark in marks for i in _places(content, mark) if i < len(content) * 9 // 10]
        return content[: rng.choice(places or [0]) + rng.choice((0, 1, 4))]

    return cut


def _places(content: bytes, mark: bytes) -> list[int]:
    places: list[int] = []
    start = 0
    while (place := content.find(mark, start)) >= 0 and len(places) < 200:
        places.append(place)
        start = place + 1
    return places


def of_another_kind(rng: random.Random, content: bytes) -> bytes:
    return rng.choice(
        (b"", b"<!DOCTYPE html><html></html>", b"version https://git-lfs", bytes(300), b"PK\x05\x06" + bytes(18))
    ) + bytes(rng.randrange(3))


def zip_sizes(rng: random.Random, content: bytes) -> bytes:
    """Change a size or an offset in the directory at the end of an archive."""
    place = rng.choice(_places(content, b"PK\x01\x02"))
    data = bytearray(content)
    data[place + rng.choice((20, 24, 42)) :][:4] = b""
    offset = place + rng.choice((20, 24))
    data[offset : offset + 4] = struct.pack("<I", rng.choice((0xFFFFFFF0, 0x7FFFFFFF, len(content) * 3)))
    return bytes(data)


def compressed(rng: random.Random, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as stored, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in stored.infolist():
            archive.writestr(entry.filename, bytes(rng.randrange(1, 20_000_000)))
    return file.getvalue()


def safetensors_header(rng: random.Random, content: bytes) -> bytes:
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    first, second = rng.sample(sorted(header), 2)
    lie = rng.randrange(6)
    if lie == 0:
        header[first]["data_offsets"][1] += rng.choice((4, 1 << 40))
    elif lie == 1:
        header[first]["shape"] = [rng.choice((1 << 40, 7))] * 3
    elif lie == 2:
        header[first], header[second] = {**header[first], "dtype": "XX"}, header[first]
    elif lie == 3:
        return struct.pack("<Q", rng.choice((length + (1 << 50), length - 2))) + content[8:]
    elif lie == 4:
        header[first]["data_offsets"] = header[second]["data_offsets"]
    else:
        header[first] = rng.choice(([], None, 7, "x"))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


_FIELDS = (
    *(("onnx", "opset"), ("onnx", "sha256"), ("model", "img_size"), ("preprocessing", "size"), ("input", "shape")),
    *(("preprocessing", "std"), ("preprocessing", "mean"), ("classes", "count"), ("batch", "max"), ("outputs",)),
    *(("model", "task"), ("checkpoint", "file"), ("schema_version",), ("kind",), ("preprocessing", "crop_ratio")),
)


def json_field(rng: random.Random, content: bytes) -> bytes:
    """Take a field of a manifest away, or give it a value that it cannot have."""
    data = json.loads(content)
    section: Any = data
    path = rng.choice(_FIELDS)
    for name in path[:-1]:
        section = section[name]
    if rng.random() < 0.3:
        del section[path[-1]]
        if path[-1] in ("kind", "schema_version"):
            section["schema_version"] = 99
    else:
        section[path[-1]] = rng.choice(({"a": 1}, [[[[]]]], -(10**9), 1e300, 10**25, None, [10**9, 10**9, 10**9, 1]))
    return json.dumps(data).encode()


def deep(rng: random.Random, content: bytes) -> bytes:
    depth = rng.choice((70, 1000, 100_000))
    start, end = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    return b'{"schema_version": 1, "model": ' + start * depth + b"1" + end * depth + b"}"


def toml_field(rng: random.Random, content: bytes) -> bytes:
    lines = content.decode().splitlines()
    places = [i for i, line in enumerate(lines) if line.startswith(("size", "count", "mean", "family", "title", "std"))]
    place = rng.choice(places)
    name = lines[place].partition(" =")[0]
    lines[place] = rng.choice(
        (
            f"{name} = {{a = 1}}",
            f"{name} = {'[' * 200}{']' * 200}",
            f"{name} = 9999999999999999999999",
            f"{name} =",
            "=",
        )
    )
    return "\n".join(lines).encode()


def png_size(rng: random.Random, content: bytes) -> bytes:
    data = bytearray(content)
    data[16:24] = struct.pack(">II", *rng.choice(((60_000, 60_000), (0, 5), (1 << 31, 1), (20_000, 9_000))))
    return bytes(data)


def jpeg_start(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.choice((2, 3, 11, 20))] + bytes(rng.randrange(256) for _ in range(50))


def bytes_of_a_graph(rng: random.Random, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 4, 64))):
        data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    return bytes(data)


def make_whole(folder: Path) -> dict[str, bytes]:
    """Write one good file of each kind; returns their contents."""
    import os

    from exports import DATA, export

    state = golden("cls_tiny").state()
    files: dict[str, bytes] = {}
    for name, options in (("zip.pth", {}), ("legacy.pth", {"_use_new_zipfile_serialization": False})):
        torch.save({"model": state}, folder / name, **options)
        files[name] = (folder / name).read_bytes()
    files["model.safetensors"] = save_safetensors(state)
    arrays: dict[str, Any] = {key: value.numpy() for key, value in state.items()}
    np.savez(folder / "model.npz", **arrays)
    files["model.npz"] = (folder / "model.npz").read_bytes()
    path = export(DATA / "cls_tiny.pth", folder / "vim.onnx")
    files["vim.onnx"], files["vim.onnx.json"] = path.read_bytes(), path.with_name("vim.onnx.json").read_bytes()
    root = Path(__file__).parents[2]
    files["recipe.toml"] = (root / "export" / "vim_digits.toml").read_bytes()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8))
    for suffix in ("png", "jpg", "tiff", "gif"):
        image.save(folder / f"image.{suffix}")
        files[f"image.{suffix}"] = (folder / f"image.{suffix}").read_bytes()
    for name in os.listdir(folder):
        (folder / name).unlink()
    return files


CASES: dict[str, tuple[Lie, ...]] = {
    "zip.pth": (
        cut_anywhere,
        cut_at(b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"),
        zip_sizes,
        compressed,
        of_another_kind,
    ),
    "legacy.pth": (cut_anywhere, cut_at(b"\x80\x02"), of_another_kind),
    "model.safetensors": (cut_anywhere, safetensors_header, of_another_kind),
    "model.npz": (cut_anywhere, cut_at(b"PK\x03\x04", b"\x93NUMPY"), of_another_kind),
    "vim.onnx": (cut_anywhere, bytes_of_a_graph, of_another_kind),
    "vim.onnx.json": (cut_anywhere, json_field, deep, of_another_kind),
    "recipe.toml": (cut_at(b"[model]", b"[input]", b"size"), toml_field),
    "image.png": (png_size, of_another_kind, lambda rng, c: c[: rng.randrange(60)]),
    "image.jpg": (jpeg_start, of_another_kind),
    "image.tiff": (lambda rng, c: c[: rng.randrange(8)], of_another_kind),
    "image.gif": (lambda rng, c: c[: rng.randrange(13)], of_another_kind),
}


def command(name: str, folder: Path) -> list[object]:
    """Return what a user would type with the file."""
    if name.startswith("image"):
        return ["predict", folder / "vim.onnx", folder / name]
    if name in ("vim.onnx", "vim.onnx.json"):
        return ["predict", folder / "vim.onnx", folder / "image.png"]
    if name == "recipe.toml":
        return ["export", folder / "zip.pth", "--recipe", folder / name, "-o", folder / "new.onnx"]
    return ["export", folder / name, "-o", folder / "new.onnx", "--no-verify"]


def run(count: int, seed: int) -> list[str]:
    """Return what went otherwise than it should, in words."""
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = make_whole(folder)
        kinds = list(CASES)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(count):
            rng = random.Random(f"{seed}/{number}")
            kind = kinds[number % len(kinds)]
            lie = rng.choice(CASES[kind])
            for needed in ("vim.onnx", "vim.onnx.json", "image.png", "zip.pth"):
                (folder / needed).write_bytes(whole[needed])
            (folder / kind).write_bytes(lie(rng, whole[kind]))
            files = snapshot(folder)
            result = vimdeploy(*command(kind, folder))
            said = result.stderr.count("error:")
            # A row of predictions carries its image's error, and the command's own message counts them.
            if result.code != 2 or said != 1 or "Traceback" in result.stderr or snapshot(folder) != files:
                wrong.append(
                    f"case {seed}/{number} ({kind}): exit {result.code}, {said} messages: {result.stderr[-300:]}"
                )
            shutil.rmtree(folder)
            folder.mkdir()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        if grown > MEMORY:
            wrong.append(f"{grown} MB more memory than before, {MEMORY} are allowed")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    wrong = run(options.count, options.seed)
    sys.stdout.write("\n".join([*wrong, f"{options.count} cases, {len(wrong)} went wrong"]) + "\n")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    root = Path(__file__).parents[2]
    sys.path[:0] = [str(root), str(root / "tests" / "data")]
    main()
