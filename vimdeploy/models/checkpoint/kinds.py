"""What kind of file something is, told by its first bytes: suffixes of checkpoints are often wrong.

Archives are looked at before anything in them is read: ``torch.save`` stores, it never compresses, so an entry that
is compressed, or that claims to be larger than the file, is not a checkpoint's.
"""

from __future__ import annotations

import struct
import zipfile
from enum import Enum
from pathlib import Path

from vimdeploy.errors import CheckpointError
from vimdeploy.models.checkpoint.safe_pickle import named_globals

_AGAIN = "Download or copy the checkpoint again, and compare its size or checksum with the source's."
_LARGEST_NPZ_GAIN = 8
"""Weights hardly compress; what unpacks to more than this many times its size is no set of weights."""
SLACK = 64 << 20
"""Bytes that a small file may always cost."""


class Kind(Enum):
    """A format that is read."""

    TORCH_ZIP = "torch"
    PICKLE = "pickle"
    SAFETENSORS = "safetensors"
    NPZ = "npz"


_STRANGERS = (
    (b"<", "is a web page, not a checkpoint", "The link leads to a page about the file: download the file itself."),
    (b"version https://git-lfs", "is a pointer of Git LFS, not the checkpoint itself", "git lfs pull"),
    (b"\x89HDF", "is an HDF5 file of Keras", "vimdeploy exports checkpoints of PyTorch."),
    (b"GGUF", "is a GGUF file", "vimdeploy exports checkpoints of PyTorch."),
    (b"\x93NUMPY", "is one array of numpy, not a set of weights", "Save all weights by name with numpy.savez."),
    (b"\x1f\x8b", "is compressed with gzip", "Unpack it first: gunzip FILE"),
    (b"ustar", "is a tar archive", "Unpack it first: tar xf FILE"),
    (
        b"\x08",
        "is an ONNX file: it is exported already",
        "Use `vimdeploy verify`, `convert` or `build-engine` with it.",
    ),
)
"""First bytes of what is often taken for a checkpoint, what it is, and what to do."""


def tell_kind(path: Path) -> Kind:
    """Return the format of a file.

    Raises:
        CheckpointError: it is of another kind, named where it is known, or an archive that is none of torch's.

    """
    with path.open("rb") as file:
        start = file.read(262)
    size = path.stat().st_size
    if start.startswith(b"PK"):
        return _kind_of_archive(path, size)
    header = struct.unpack("<Q", start[:8])[0] if len(start) >= 9 else 0
    if start[8:9] == b"{" and 0 < header <= size - 8:
        return Kind.SAFETENSORS
    if start[:1] == b"\x80":
        return Kind.PICKLE
    for magic, what, hint in _STRANGERS:
        if start.lstrip().startswith(magic) or (magic == b"ustar" and start[257:262] == magic):
            if magic == b"\x08" and path.suffix != ".onnx":
                continue
            raise CheckpointError(f"{path}: {what}.", hint=hint)
    if next(named_globals(path), ""):  # pickles of the protocols 0 and 1 begin like any text
        return Kind.PICKLE
    raise CheckpointError(f"{path}: is truncated, damaged or not a checkpoint.", hint=_AGAIN)


def _kind_of_archive(path: Path, size: int) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise CheckpointError(
            f"{path}: is truncated, damaged or not a PyTorch checkpoint ({error}).", hint=_AGAIN
        ) from error
    names = [entry.filename for entry in entries]
    inner = {name.partition("/")[2] or name for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        raise CheckpointError(
            f"{path}: is a TorchScript archive, which is code; nothing was executed.",
            hint="If you trust its author, open it with torch.jit.load in a sandbox and save model.state_dict() alone.",
        )
    if "archive_format" in inner or any(name.startswith("models/") for name in inner):
        raise CheckpointError(
            f"{path}: is a program of torch.export, not a checkpoint.",
            hint="Save model.state_dict() of the model that it was made from.",
        )
    total = sum(entry.file_size for entry in entries)
    if names and all(name.endswith(".npy") for name in names):
        if total > _LARGEST_NPZ_GAIN * size + SLACK:
            raise CheckpointError(f"{path}: unpacks to {total:,} bytes from {size:,}: no weights compress like that.")
        return Kind.NPZ
    if not any(name.endswith("data.pkl") for name in names):
        raise CheckpointError(f"{path}: is a zip archive, not a PyTorch checkpoint.", hint="Unpack it first.")
    packed = next((entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None or total > size:
        what = f"its entry {packed.filename} is compressed" if packed else f"its entries claim {total:,} bytes"
        raise CheckpointError(
            f"{path}: {what}, which torch.save never does; nothing was read.",
            hint="If it is your file, unpack it and save it again with torch.save.",
        )
    return Kind.TORCH_ZIP
