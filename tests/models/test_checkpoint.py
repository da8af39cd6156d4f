import argparse
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from goldens import DATA, golden
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vimdeploy.artifacts.files import sha256_file
from vimdeploy.errors import CheckpointError
from vimdeploy.models.checkpoint.reading import read_checkpoint
from vimdeploy.models.load import ModelRequest, load_model

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2), "steps": torch.tensor(7)}


def save(folder, content, name="model.pth", **options):
    path = folder / name
    torch.save(content, path, **options)
    return path


def assert_state(checkpoint, expected=None):
    expected = STATE if expected is None else expected
    assert checkpoint.state.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(checkpoint.state[key], value), key


@pytest.mark.parametrize(
    ("content", "entry"),
    [
        (STATE, "state dict"),
        ({"model": STATE}, "model"),
        ({"state_dict": STATE, "epoch": 3}, "state_dict"),
        ({"model": STATE, "model_ema": {}, "epoch": 3, "scaler": {"scale": 1.0}}, "model"),
        ({"model": STATE, "max_accuracy": np.float64(0.9), "best": np.float32(0.5)}, "model"),
    ],
)
def test_every_published_layout_is_read(tmp_path, content, entry):
    path = save(tmp_path, content)
    checkpoint = read_checkpoint(path)
    assert_state(checkpoint)
    assert (checkpoint.weights, checkpoint.arguments, checkpoint.notes) == (entry, {}, ())
    assert checkpoint.sha256 == sha256_file(path)


def test_the_older_file_format_of_torch_is_read(tmp_path):
    assert_state(read_checkpoint(save(tmp_path, {"model": STATE}, _use_new_zipfile_serialization=False)))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_removed_and_noted(tmp_path, prefix):
    checkpoint = read_checkpoint(save(tmp_path, {"model": {prefix + k: v for k, v in STATE.items()}}))
    assert_state(checkpoint)
    assert all("removed the prefix" in note for note in checkpoint.notes)
    assert checkpoint.notes


def test_a_prefix_on_some_keys_only_is_part_of_their_names(tmp_path):
    mixed = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert_state(read_checkpoint(save(tmp_path, mixed)), mixed)


def test_safetensors_are_read(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file(STATE, path)
    checkpoint = read_checkpoint(path)
    assert_state(checkpoint)
    assert checkpoint.weights == "state dict"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_another_precision_become_float32_and_that_is_noted(tmp_path, dtype):
    checkpoint = read_checkpoint(save(tmp_path, {"a": torch.tensor([1.5, 2]).to(dtype), "n": torch.tensor(3)}))
    assert torch.equal(checkpoint.state["a"], torch.tensor([1.5, 2.0]))
    assert checkpoint.state["n"].dtype == torch.int64
    assert str(dtype).removeprefix("torch.") in checkpoint.notes[0]


@pytest.mark.parametrize(("weights", "logits"), [("model", "logits"), ("ema", "logits_ema")])
def test_a_whole_training_checkpoint_gives_either_of_its_weights(weights, logits):
    case = golden("cls_tiny")
    loaded = load_model(DATA / "cls_tiny.pth", ModelRequest(weights=weights))
    with torch.no_grad():
        result = loaded.model(case.images).numpy()
    np.testing.assert_allclose(result, case.arrays[logits], atol=1e-4, rtol=1e-4)
    assert loaded.checkpoint.weights == ("model" if weights == "model" else "model_ema")
    assert loaded.checkpoint.arguments


@pytest.mark.parametrize(("content", "held"), [(STATE, "bare state dict"), ({"model": STATE}, "'model'")])
def test_missing_moving_averages_are_said_with_what_is_there(tmp_path, content, held):
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(save(tmp_path, content), "ema")
    assert held in caught.value.message
    assert "--weights model" in caught.value.hint


def test_a_file_with_moving_averages_only_points_to_them(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(save(tmp_path, {"model_ema": STATE}))
    assert "--weights ema" in caught.value.hint


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_named(tmp_path, value):
    broken = STATE | {"head.weight": torch.tensor([1.0, value])}
    with pytest.raises(CheckpointError, match=r"head\.weight"):
        read_checkpoint(save(tmp_path, {"model": broken}))


@pytest.mark.parametrize("values", [[3e38, 3e38], [-3e38, -3e38], [3e38, 3e38, -3e38, -3e38]])
def test_finite_weights_whose_sum_overflows_are_read(tmp_path, values):
    large = STATE | {"head.weight": torch.tensor(values)}
    assert read_checkpoint(save(tmp_path, {"model": large})).state["head.weight"].tolist() == pytest.approx(values)


def test_infinities_that_cancel_are_named(tmp_path):
    broken = STATE | {"head.weight": torch.tensor([float("inf"), float("-inf")])}
    with pytest.raises(CheckpointError, match=r"head\.weight"):
        read_checkpoint(save(tmp_path, {"model": broken}))


def test_at_most_three_broken_weights_are_named(tmp_path):
    broken = {f"layer{i}": torch.full((1,), float("nan")) for i in range(9)}
    with pytest.raises(CheckpointError, match=r"layer0, layer1, layer2 and 6 more"):
        read_checkpoint(save(tmp_path, broken))


@pytest.mark.parametrize("name", ["model.pth", "model.pt", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"PK\x03\x04", "truncated"),
        (b"<!DOCTYPE html><html>404: Not Found</html>", "web page"),
        (bytes(range(256)) * 9, "truncated"),
        (b"\x80\x02}q\x00.", "no weights|truncated"),
    ],
)
def test_what_is_no_checkpoint_is_refused_naming_the_file(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_checkpoint(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="folder"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [[1, 2], torch.ones(2), {"epoch": 3}, {}, {"model": {}}, {"model": {"epoch": 3}}])
def test_a_torch_file_without_weights_is_refused(tmp_path, content):
    with pytest.raises(CheckpointError, match="holds"):
        read_checkpoint(save(tmp_path, content))


class Bomb:
    """Pickles into a call that writes a file when it is loaded."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.system, (f"touch '{self.target}'",))


@pytest.mark.parametrize(
    "form", ["zip", "zip protocol 4", "legacy", *(f"pickle {p}" for p in range(6)), "named safetensors"]
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_pickle_that_would_execute_code_is_refused_and_not_executed(tmp_path, form, nested):
    target = tmp_path / "executed"
    content = {"model": STATE, "extra": Bomb(target)} if nested else Bomb(target)
    path = tmp_path / ("bomb.safetensors" if form == "named safetensors" else "bomb.pth")
    if form.startswith("pickle"):
        content = {"model": {}, "extra": Bomb(target)} if nested else content
        path.write_bytes(pickle.dumps(content, protocol=int(form[-1])))
    else:
        protocol = 4 if form.endswith("4") else 2
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy", pickle_protocol=protocol)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert not target.exists()
    assert str(path) in caught.value.message
    if form != "named safetensors":
        assert "would execute code" in caught.value.message
        assert "system" in caught.value.message
        assert "nothing was executed" in caught.value.message


def test_the_bomb_of_these_tests_goes_off_where_it_is_not_defused(tmp_path):
    target = tmp_path / "executed"
    torch.load(save(tmp_path, Bomb(target)), weights_only=False)
    assert target.exists()


def test_arguments_of_the_training_script_are_read(tmp_path):
    args = argparse.Namespace(model="vim_tiny", input_size=224)
    assert read_checkpoint(save(tmp_path, {"model": STATE, "args": args})).arguments == {
        "model": "vim_tiny",
        "input_size": 224,
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the bytes of one small checkpoint in each format."""
    from safetensors.torch import save as save_safetensors

    folder = tmp_path_factory.mktemp("whole")
    args = argparse.Namespace(model="vim_tiny")
    return {
        ".pth": save(folder, {"model": STATE, "args": args}).read_bytes(),
        ".pt": save(folder, {"model": STATE, "args": args}, _use_new_zipfile_serialization=False).read_bytes(),
        ".safetensors": save_safetensors(STATE),
    }


def read_or_refuse(path, content):
    """Return the error, or None if the content could be read; anything else that is raised fails the test."""
    path.write_bytes(content)
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        return error
    return None


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(st.sampled_from((".pth", ".pt", ".safetensors")), st.floats(0, 1))
def test_a_file_cut_anywhere_is_refused(tmp_path, whole, suffix, where):
    content = whole[suffix]
    cut = min(int(where * len(content)), len(content) - 1)
    path = tmp_path / f"cut{suffix}"
    assert str(path) in str(read_or_refuse(path, content[:cut]))


@FUZZ
@given(st.sampled_from((".pth", ".pt", ".safetensors")), st.integers(0, 1 << 20), st.integers(1, 255))
def test_a_flipped_byte_is_refused_or_read_but_never_an_accident(tmp_path, whole, suffix, where, change):
    content = bytearray(whole[suffix])
    content[where % len(content)] ^= change
    read_or_refuse(tmp_path / f"flipped{suffix}", bytes(content))


@FUZZ
@given(st.sampled_from((".pth", ".pt", ".safetensors")), st.binary(max_size=200))
def test_random_bytes_are_refused(tmp_path, suffix, content):
    path = tmp_path / f"random{suffix}"
    assert str(path) in str(read_or_refuse(path, content))


def test_a_zip_of_something_else_is_refused(tmp_path):
    path = tmp_path / "archive.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="not a PyTorch checkpoint"):
        read_checkpoint(path)
