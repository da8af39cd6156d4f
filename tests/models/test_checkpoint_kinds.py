"""Kinds of checkpoints that people bring: each is read, or named with what to do; nothing in it is executed."""

from __future__ import annotations

import argparse
import io
import json
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vimdeploy.errors import CheckpointError
from vimdeploy.models.checkpoint.reading import read_checkpoint

STATE = {"patch_embed.proj.weight": torch.arange(6.0).reshape(2, 3), "norm_f.weight": torch.ones(2)}
OTHER = {key: value + 1 for key, value in STATE.items()}
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
ARRAYS = {key: value.numpy() for key, value in STATE.items()}


def saved(content, name="model.pth"):
    def write(folder):
        torch.save(content, folder / name)
        return folder / name

    return write


def safetensors(name, state=None):
    def write(folder):
        save_file(STATE if state is None else state, folder / name)
        return folder / name

    return write


def sharded(named, suffix=".safetensors", **changes):
    """Return a writer of two shards and their index; the result is the part that the user names."""

    def write(folder):
        stem = "model" if suffix == ".safetensors" else "pytorch_model"
        names = [f"{stem}-0000{n}-of-00002{suffix}" for n in (1, 2)]
        for (key, value), name in zip(STATE.items(), names, strict=True):
            save = save_file if suffix == ".safetensors" else torch.save
            save({key: value}, folder / name)
        index = {"metadata": {}, "weight_map": dict(zip(STATE, names, strict=True))} | changes
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index))
        return {"index": folder / f"{stem}{suffix}.index.json", "shard": folder / names[1], "folder": folder}[named]

    return write


def several(*writers):
    def write(folder):
        for writer in writers:
            writer(folder)
        return folder

    return write


def npz(**options):
    def write(folder):
        (np.savez_compressed if options else np.savez)(folder / "model.npz", **ARRAYS)
        return folder / "model.npz"

    return write


READ = {
    **{f"under '{name}'": saved({name: STATE}) for name in ("net", "params", "weights", "teacher", "generator")},
    "under an unknown name, in training": saved({"net": STATE, "epoch": 3, "optimizer": OPTIMIZER}),
    "under two names": saved({"state": {"net": STATE}, "epoch": 3}),
    "state_dict in model": saved({"model": {"state_dict": STATE}}),
    "ordered, with metadata": saved({"model": OrderedDict(STATE)}),
    **{
        f"wrapped: {prefix}": saved({prefix + key: value for key, value in STATE.items()})
        for prefix in ("module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "module.module.")
    },
    "arrays of numpy": saved({"model": ARRAYS}),
    "arrays of numpy, half precision": saved({key: value.astype(np.float16) for key, value in ARRAYS.items()}),
    "arrays of numpy, big-endian": saved({key: value.astype(">f4") for key, value in ARRAYS.items()}),
    "arrays of numpy, older file format": lambda folder: (
        torch.save(ARRAYS, folder / "m.pth", _use_new_zipfile_serialization=False) or folder / "m.pth"
    ),
    "npz": npz(),
    "npz, compressed": npz(compressed=True),
    "lightning": saved({"state_dict": STATE, "hyper_parameters": {"model": "vim"}, "callbacks": {}}, "last.ckpt"),
    "no suffix": saved(STATE, "checkpoint"),
    "safetensors named .bin": safetensors("pytorch_model.bin"),
    "safetensors named .pth": safetensors("model.pth"),
    "torch named .safetensors": saved(STATE, "model.safetensors"),
    "torch named .npz": saved(STATE, "model.npz"),
    "a folder with one checkpoint": several(saved(STATE, "best.pth")),
    "a folder with both forms of one": several(safetensors("model.safetensors"), saved(STATE, "pytorch_model.bin")),
    **{
        f"{part} of {suffix} shards": sharded(part, suffix)
        for part in ("index", "shard", "folder")
        for suffix in (".safetensors", ".bin")
    },
}


@pytest.mark.parametrize("kind", READ)
def test_a_checkpoint_is_read(tmp_path, kind):
    found = read_checkpoint(READ[kind](tmp_path))
    assert found.state.keys() == STATE.keys()
    for key, value in STATE.items():
        assert torch.equal(found.state[key], value), key


@pytest.mark.parametrize(
    ("content", "weights", "expected"),
    [
        ({"student": STATE, "teacher": OTHER}, "teacher", OTHER),
        ({"model": STATE, "swa": OTHER}, "swa", OTHER),
        ({"state": {"student": STATE, "teacher": OTHER}}, "state.student", STATE),
    ],
)
def test_any_entry_can_be_named(tmp_path, content, weights, expected):
    found = read_checkpoint(saved(content)(tmp_path), weights)
    assert all(torch.equal(found.state[key], value) for key, value in expected.items())
    assert found.weights == weights


@pytest.mark.parametrize("name", ["args", "hyper_parameters", "config"])
@pytest.mark.parametrize("form", [dict, argparse.Namespace])
def test_the_arguments_of_a_training_are_read_in_any_form(tmp_path, name, form):
    arguments = read_checkpoint(
        saved({"model": STATE, name: form(model="vim_tiny", input_size=64)})(tmp_path)
    ).arguments
    assert arguments == {"model": "vim_tiny", "input_size": 64}


def zipped(names, compression=zipfile.ZIP_STORED, suffix=".pth"):
    def write(folder):
        with zipfile.ZipFile(folder / f"model{suffix}", "w", compression) as archive:
            for name, content in names.items():
                archive.writestr(name, content)
        return folder / f"model{suffix}"

    return write


def scripted(folder):
    torch.jit.script(torch.nn.Linear(2, 2)).save(folder / "model.pt")
    return folder / "model.pt"


def content(start, name="model.pth"):
    return lambda folder: (folder / name).write_bytes(start) and folder / name


def folder_of(*names):
    def write(folder):
        for name in names:
            (folder / name).write_bytes(b"x")
        return folder

    return write


def repeated_values(folder):
    """A view in which one number stands for ten billion: a few hundred bytes on disk."""
    torch.save({"model": {"a": torch.ones(1, dtype=torch.float16).expand(100_000, 100_000)}}, folder / "model.pth")
    return folder / "model.pth"


def packed_zeros(folder):
    """A checkpoint as torch writes it, its entries then compressed: kilobytes that unpack to 200 MB."""
    file = io.BytesIO()
    torch.save({"a": torch.zeros(50_000_000)}, file)
    with zipfile.ZipFile(file) as stored, zipfile.ZipFile(folder / "m.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in stored.infolist():
            archive.writestr(entry.filename, stored.read(entry))
    return folder / "m.pth"


def packed_npz(folder):
    np.savez_compressed(folder / "m.npz", a=np.zeros(30_000_000))
    return folder / "m.npz"


def lying_npy(folder):
    """An array of a few bytes whose header claims a terabyte."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 38,)})
    return zipped({"a.npy": file.getvalue()}, suffix=".npz")(folder)


def lying_safetensors(header):
    text = json.dumps(header).encode()
    return content(struct.pack("<Q", len(text)) + text + bytes(64), "m.safetensors")


ONE = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
REFUSED = {
    "TorchScript": (scripted, "TorchScript", "torch.jit.load"),
    "torch.export": (zipped({"m/archive_format": "pt2", "m/data.pkl": ""}), "torch.export", "state_dict"),
    "a zip of something else": (zipped({"readme.txt": "hello"}), "not a PyTorch checkpoint", "Unpack"),
    "Git LFS pointer": (content(b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS", "git lfs pull"),
    "web page": (content(b"\n<html>Sign in"), "web page", "download"),
    "Keras": (content(b"\x89HDF\r\n\x1a\n" + bytes(50)), "Keras", "PyTorch"),
    "gzip": (content(b"\x1f\x8b\x08" + bytes(50)), "gzip", "gunzip"),
    "tar": (content(bytes(257) + b"ustar" + bytes(50)), "tar", "Unpack"),
    "one array": (content(b"\x93NUMPY" + bytes(50)), "one array", "savez"),
    "ONNX": (content(b"\x08\x0a\x12\x00", "model.onnx"), "exported already", "convert"),
    "DeepSpeed folder": (folder_of("mp_rank_00_model_states.pt", "zero_to_fp32.py"), "DeepSpeed", "zero_to_fp32.py"),
    "DeepSpeed ZeRO-3": (saved({"module": {k: torch.empty(0) for k in STATE}}), "DeepSpeed", "zero_to_fp32.py"),
    "DeepSpeed optimizer": (
        saved({"optimizer_state_dict": OPTIMIZER, "ds_config": {}, "ds_version": "0.1"}),
        "DeepSpeed",
        "zero_to_fp32.py",
    ),
    "distributed checkpoint": (folder_of(".metadata", "__0_0.distcp"), "distributed", "dcp_to_torch"),
    "folder of many": (folder_of("a.pth", "b.pth"), "several", "Name one"),
    "folder of none": (folder_of("readme.md"), "without a checkpoint", "Name"),
    "several unknown entries": (saved({"student": STATE, "teacher": STATE}), "'student', 'teacher'", "--weights"),
    "complex": (saved({"a": torch.ones(2, dtype=torch.complex64)}), "complex", "trained"),
    "shard without index": (safetensors("model-00001-of-00002.safetensors"), "one shard", "folder"),
    "index of a missing shard": (
        sharded("index", weight_map={"a": "model-00003-of-00003.safetensors"}),
        "not beside it",
        "again",
    ),
    "index that points elsewhere": (sharded("index", weight_map={"a": "../../etc/passwd"}), "not in its folder", ""),
    "index with an absolute path": (sharded("index", weight_map={"a": "/dev/zero"}), "not in its folder", ""),
    "index that promises more": (
        sharded("index", weight_map=dict.fromkeys((*STATE, "more"), "model-00001-of-00002.safetensors")),
        "which no shard holds",
        "again",
    ),
    "index without map": (sharded("index", weight_map=None), "no weight_map", "again"),
    "one value for ten billion": (repeated_values, "one value stands for many", "state_dict"),
    "entries of zeros, compressed": (packed_zeros, "compressed, which torch.save never does", "torch.save"),
    "npz of zeros": (packed_npz, "no weights compress like that", ""),
    "npz that lies about its shape": (lying_npy, "truncated or not a file of numpy", "again"),
    "safetensors: tensor beyond the file": (
        lying_safetensors({"a": {**ONE, "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}),
        "truncated or not a safetensors",
        "again",
    ),
    "safetensors: shape of other size": (lying_safetensors({"a": {**ONE, "shape": [5]}}), "safetensors", "again"),
    "safetensors: header beyond the file": (
        content(struct.pack("<Q", 1 << 40) + b"{}", "m.safetensors"),
        "truncated",
        "again",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_checkpoint_is_refused_by_name(tmp_path, kind):
    make, words, hint = REFUSED[kind]
    path = make(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(tmp_path) in caught.value.message
    assert words in caught.value.message
    assert hint in caught.value.hint


PEAK = """
import resource, sys
from pathlib import Path
from vimdeploy.errors import CheckpointError
from vimdeploy.models.checkpoint.reading import read_checkpoint
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in map(Path, sys.argv[1:]):
    try:
        read_checkpoint(path)
        raise SystemExit(f"{path} was read")
    except CheckpointError:
        pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_no_checkpoint_of_a_few_kilobytes_takes_gigabytes(tmp_path):
    paths = []
    for number, make in enumerate((repeated_values, packed_zeros, packed_npz, lying_npy)):
        (tmp_path / str(number)).mkdir()
        paths.append(str(make(tmp_path / str(number))))
    done = subprocess.run([sys.executable, "-c", PEAK, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100


def test_shards_are_one_checkpoint_with_one_hash(tmp_path):
    path = sharded("index")(tmp_path)
    first = read_checkpoint(path).sha256
    assert first == read_checkpoint(tmp_path).sha256
    shard = next(tmp_path.glob("*00002-of*"))
    save_file({"norm_f.weight": torch.zeros(2)}, shard)
    assert read_checkpoint(path).sha256 != first
