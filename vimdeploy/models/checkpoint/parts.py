"""Which files a checkpoint is made of: one, a folder's, or the shards that an index of Hugging Face lists."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from vimdeploy.artifacts.files import sha256_file
from vimdeploy.artifacts.structured import read_json
from vimdeploy.errors import CheckpointError

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".npz", ".tar")
"""Names of checkpoints in a folder. A file that is named itself may have any suffix."""
INDEX = ".index.json"
_SHARD = re.compile(r"(.+)-\d+-of-\d+(\.\w+)")
_ZERO_TO_FP32 = "python zero_to_fp32.py FOLDER OUTPUT, which DeepSpeed leaves beside them, makes one file of them."


@dataclass(frozen=True)
class Parts:
    """The files of a checkpoint, and where each weight is said to be."""

    path: Path
    """The file, or the index."""
    files: tuple[Path, ...]
    keys: frozenset[str] | None
    """What the index promises; None without one."""
    notes: tuple[str, ...] = ()

    def sha256(self) -> str:
        """Return the SHA-256 of the file, or of the names and hashes of several."""
        if len(self.files) == 1:
            return sha256_file(self.files[0])
        lines = (f"{file.name} {sha256_file(file)}\n" for file in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def find_parts(path: Path) -> Parts:
    """Return the files of the checkpoint at a path.

    Args:
        path: a file, a shard, an index, or a folder with one checkpoint in it.

    Raises:
        CheckpointError: nothing is there, or too much, or parts are missing; names what to do.

    """
    if os.path.isdir(path):
        return _in_folder(path)
    if path.name.endswith(INDEX):
        return _of_index(path)
    _check_file(path)
    if shard := _SHARD.fullmatch(path.name):
        index = path.with_name(f"{shard[1]}{shard[2]}{INDEX}")
        if not index.is_file():
            raise CheckpointError(
                f"{path}: is one shard of several, and {index.name}, which lists them, is not beside it.",
                hint="Copy all files of the checkpoint into one folder and name the folder.",
            )
        whole = _of_index(index)
        note = f"{path.name} is one shard of {len(whole.files)}: all were read, as {index.name} lists them"
        return Parts(whole.path, whole.files, whole.keys, (note,))
    return Parts(path, (path,), None)


def _check_file(path: Path) -> None:
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise CheckpointError(f"{path}: is not a file.", hint="Check the path of the checkpoint.")
        path.open("rb").close()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file.", hint="Check the path of the checkpoint.") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from error
    if size == 0:
        raise CheckpointError(f"{path}: is empty.", hint="Download or copy the checkpoint again.")


def _in_folder(folder: Path) -> Parts:
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error.strerror}.") from error
    if ".metadata" in names and any(name.endswith(".distcp") for name in names):
        raise CheckpointError(
            f"{folder}: holds the pieces of a distributed checkpoint.",
            hint="python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pth makes one of them.",
        )
    if "zero_to_fp32.py" in names or any(name.endswith("_optim_states.pt") for name in names):
        raise CheckpointError(f"{folder}: holds the pieces of a checkpoint of DeepSpeed.", hint=_ZERO_TO_FP32)
    indices = [name for name in names if name.endswith(INDEX)]
    whole = [name for name in names if name.endswith(SUFFIXES) and not _SHARD.fullmatch(name)]
    found = [*indices, *whole]
    # Where the same weights lie in two forms, the one that cannot bring code is meant.
    preferred = [name for name in found if ".safetensors" in name]
    if len(preferred or found) == 1:
        chosen = find_parts(folder / (preferred or found)[0])
        note = f"took {chosen.path.name} of the folder {folder.name}"
        return Parts(chosen.path, chosen.files, chosen.keys, (*chosen.notes, note))
    if not found:
        raise CheckpointError(
            f"{folder}: is a folder without a checkpoint ({', '.join(SUFFIXES)}).", hint="Name the checkpoint's file."
        )
    raise CheckpointError(
        f"{folder}: is a folder with several checkpoints: {', '.join(found[:6])}{', ...' * (len(found) > 6)}.",
        hint="Name one of them.",
    )


def _of_index(index: Path) -> Parts:
    hint = "Download the checkpoint again: index and shards belong together."
    try:
        data = read_json(index, hint=hint)
    except FileNotFoundError as error:
        raise CheckpointError(f"{index}: there is no such file.", hint="Check the path of the checkpoint.") from error
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: is no index of shards: it has no weight_map.", hint=hint)
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(f"{index}: names the shard '{name[:80]}', which is not in its folder.", hint=hint)
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index}: lists the shard {name}, which is not beside it.", hint=hint)
        _check_file(index.parent / name)
    if not names:
        raise CheckpointError(f"{index}: lists no shards.", hint=hint)
    return Parts(index, tuple(index.parent / name for name in names), frozenset(weight_map))
