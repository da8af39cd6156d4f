"""Checkpoints of training frameworks: their weights are read, their objects are not, and nothing is executed."""

import collections
import datetime
import os
import pathlib
import sys
import types
from pathlib import Path

import dense_cases
import numpy as np
import pytest
import torch
import vmamba_cases

from vimdeploy.errors import CheckpointError
from vimdeploy.models.checkpoint.reading import read_checkpoint
from vimdeploy.models.load import load_model

STATE = {"backbone.a.weight": torch.arange(6.0).reshape(2, 3), "decode_head.b": torch.ones(2)}


class HistoryBuffer:
    """As mmengine's: arrays, and its own methods by name in what is pickled."""

    def __init__(self):
        self._log_history = np.array([0.5, 0.25])
        self._count_history = np.array([1, 1])
        self.last = np.float64(0.25)

    def mean(self):
        return self._log_history.mean()

    def __getstate__(self):
        return {**self.__dict__, "statistics_methods": {"mean": HistoryBuffer.mean}}

    def __setstate__(self, state):
        raise AssertionError("the framework's code ran")


class ConfigDict(dict):
    """As addict's and mmengine's: a mapping that is pickled item by item."""


class Evil(dict):
    """A class whose name no list knows."""


def _as_of(monkeypatch, cls, module, qualname=None):
    """Let ``cls`` be pickled as a class of ``module``, which is gone when the checkpoint is read."""
    fake = types.ModuleType(module)
    setattr(fake, cls.__name__, cls)
    for depth in range(1, module.count(".") + 1):
        monkeypatch.setitem(sys.modules, ".".join(module.split(".")[:depth]), types.ModuleType("parent"))
    monkeypatch.setitem(sys.modules, module, fake)
    monkeypatch.setattr(cls, "__module__", module)


@pytest.fixture
def mmengine_checkpoint(tmp_path, monkeypatch):
    """Return a function that writes what mmengine's runner saves, with more beside it if wanted."""

    def write(**beside):
        path = tmp_path / "epoch_12.pth"
        state = beside.pop("state", STATE)
        options = beside.pop("options", {})
        with monkeypatch.context() as patch:
            _as_of(patch, HistoryBuffer, "mmengine.logging.history_buffer")
            _as_of(patch, ConfigDict, "mmengine.config.config")
            content = {
                "meta": {
                    "cfg": "model = dict(type='EncoderDecoder')",
                    "seed": np.int64(3),
                    "time": datetime.datetime(2024, 5, 1),
                    "work_dir": pathlib.PurePosixPath("work_dirs"),
                    "dataset_meta": ConfigDict(classes=("wall", "floor"), palette=[[1, 2, 3]]),
                },
                "state_dict": collections.OrderedDict(state),
                "message_hub": {
                    "log_scalars": collections.OrderedDict(loss=HistoryBuffer()),
                    "runtime_info": collections.defaultdict(list, iter=[4]),
                    "scores": np.array([[0.1, 0.2]]),
                    "window": collections.deque([0.5, 0.25], maxlen=2),
                },
                "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": np.float32(0.1)}]},
                **beside,
            }
            torch.save(content, path, **options)
        assert b"mmengine.logging.history_buffer" in path.read_bytes()
        return path

    return write


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_the_weights_of_an_mmengine_checkpoint_are_read_without_mmengine(mmengine_checkpoint, zipped):
    path = mmengine_checkpoint(options={"_use_new_zipfile_serialization": zipped})
    assert "mmengine" not in sys.modules
    checkpoint = read_checkpoint(path)
    assert checkpoint.state.keys() == STATE.keys()
    assert all(torch.equal(checkpoint.state[key], value) for key, value in STATE.items())
    assert checkpoint.weights == "state_dict"
    assert checkpoint.notes == ("objects of mmengine beside the weights were not read",)
    assert "mmengine" not in sys.modules


@pytest.mark.parametrize("name", ["seg_fpn", "backbone_bn_unordered"])
def test_the_backbone_of_an_mmengine_segmentor_computes_what_the_official_code_computes(mmengine_checkpoint, name):
    if name == "seg_fpn":
        model, images, expected = dense_cases.golden(name)
    else:
        arguments, images, _, expected = vmamba_cases.options()[name]
        model = vmamba_cases.make(**arguments)
    state = {"backbone." + key: value for key, value in model.state_dict().items()}
    loaded = load_model(mmengine_checkpoint(state={**state, "decode_head.conv_seg.bias": torch.zeros(2)}))
    assert loaded.config.is_backbone
    assert any("decode_head (1)" in note for note in loaded.notes)
    with torch.no_grad():
        for mine, theirs in zip(loaded.model(images), expected, strict=True):
            np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-4, atol=1e-4, equal_nan=False)


def test_numpy_of_another_version_is_no_obstacle(tmp_path):
    path = tmp_path / "numpy1.pth"
    # numpy 1 and 2 name their inner module differently; a checkpoint of either is read under either
    other = b"numpy.core.multiarray" if hasattr(np, "_core") else b"numpy._core.multiarray"
    own = b"numpy._core.multiarray" if hasattr(np, "_core") else b"numpy.core.multiarray"
    torch.save({"model": STATE, "best": np.float64(0.9)}, path, _use_new_zipfile_serialization=False)
    assert own in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(own, other))
    assert read_checkpoint(path).state.keys() == STATE.keys()


class Bomb:
    """Pickles into a call that writes a file when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["beside", "inside"])
def test_a_bomb_among_a_frameworks_objects_is_refused_and_not_executed(mmengine_checkpoint, tmp_path, zipped, place):
    target = tmp_path / "executed"
    bomb = Bomb(os.system, f"touch '{target}'")
    beside = {"hook": bomb} if place == "beside" else {"meta": {"cfg": ConfigDict(a=bomb)}}
    if place == "inside":
        beside = {"extra": {"cfg": [bomb, HistoryBuffer.mean.__name__]}}
    path = mmengine_checkpoint(**beside, options={"_use_new_zipfile_serialization": zipped})
    with pytest.raises(CheckpointError, match="system") as caught:
        read_checkpoint(path)
    assert "nothing was executed" in caught.value.message
    assert not target.exists()


def test_getattr_is_a_name_here_and_never_a_call(mmengine_checkpoint, tmp_path):
    target = tmp_path / "executed"
    path = mmengine_checkpoint(hook=Bomb(getattr, Path(target), "touch"))
    assert read_checkpoint(path).state.keys() == STATE.keys()
    # what stands for the method cannot be called either
    path = mmengine_checkpoint(hook=Bomb(Method(target)))
    with pytest.raises(CheckpointError, match="nothing was executed"):
        read_checkpoint(path)
    assert not target.exists()


class Method:
    """Pickles as ``target.touch``, which a pickle may then call."""

    def __init__(self, target):
        self.target = target

    def __call__(self):
        raise AssertionError

    def __reduce__(self):
        return getattr, (Path(self.target), "touch")


@pytest.mark.parametrize("function", [eval, exec, __import__, pathlib.os.remove])
def test_no_other_builtin_is_let_through(mmengine_checkpoint, function):
    with pytest.raises(CheckpointError, match="nothing was executed"):
        read_checkpoint(mmengine_checkpoint(hook=Bomb(function, "1")))


def test_a_class_of_an_unknown_package_is_named_with_the_remedy(tmp_path, monkeypatch):
    path = tmp_path / "own.pth"
    with monkeypatch.context() as patch:
        _as_of(patch, Evil, "my_training.config")
        torch.save({"model": STATE, "config": Evil(a=1)}, path)
    with pytest.raises(CheckpointError, match=r"my_training\.config\.Evil") as caught:
        read_checkpoint(path)
    assert "save model.state_dict() alone" in caught.value.hint


def test_a_framework_object_that_cannot_be_stood_for_is_said_to_be_the_reason(tmp_path, monkeypatch):
    path = tmp_path / "list.pth"
    with monkeypatch.context() as patch:
        _as_of(patch, Stack, "mmengine.structures")
        torch.save({"model": STATE, "stack": Stack([1, 2])}, path)
    with pytest.raises(CheckpointError, match="beside its weights") as caught:
        read_checkpoint(path)
    assert "damaged" not in caught.value.message


class Stack(list):
    """A list of a framework, pickled by appending."""
