"""Outputs leave through DLPack: real consumers take them, the memory is freed once, and not before they let go."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from fake_device import FakeDevice

from vimdeploy.runtime import dlpack
from vimdeploy.runtime.arrays import ITEM_BYTES, view
from vimdeploy.runtime.device_array import DeviceArray


@pytest.fixture
def device() -> Iterator[FakeDevice]:
    """A device whose memory numpy and torch can read, and which says so."""
    made = FakeDevice()
    made.dlpack_device = (dlpack.CPU, 0)
    yield made
    gc.collect()
    assert not made.memory, "never freed"
    assert not made.streams[0], "a copy that nobody waited for"


def filled(device: FakeDevice, dtype: str = "float32", shape: tuple[int, ...] = (2, 3, 4)) -> DeviceArray:
    with device.active():
        made = DeviceArray(device, shape, dtype, 0)
    values = torch.arange(made.nbytes // ITEM_BYTES[dtype]).reshape(shape).to(getattr(torch, dtype))
    ctypes.memmove(made.address, values.data_ptr(), made.nbytes)
    return made


@pytest.mark.parametrize("dtype", sorted(ITEM_BYTES))
@pytest.mark.parametrize("shape", [(2, 3, 4), (5,), (1, 1), (0, 4), ()])
def test_torch_takes_every_type(device: FakeDevice, dtype: str, shape: tuple[int, ...]) -> None:
    made = filled(device, dtype, shape)
    taken = torch.from_dlpack(made)
    assert taken.dtype == getattr(torch, dtype)
    assert taken.shape == shape
    assert taken.is_contiguous()
    assert torch.equal(taken, torch.arange(taken.numel()).reshape(shape).to(taken.dtype))
    if taken.numel():
        assert taken.data_ptr() == made.address, "copied"


@pytest.mark.parametrize("dtype", sorted(set(ITEM_BYTES) - {"bfloat16"}))
def test_numpy_takes_what_it_can_name(device: FakeDevice, dtype: str) -> None:
    taken = np.from_dlpack(filled(device, dtype))
    np.testing.assert_array_equal(taken, np.arange(24).reshape(2, 3, 4).astype(dtype))
    assert taken.dtype == dtype
    taken[0, 0, 0] = 1  # it is the consumer's: a versioned tensor that says nothing else is writable


def test_the_consumer_keeps_the_memory_and_frees_it_once(device: FakeDevice) -> None:
    made = filled(device)
    address = made.address
    first, second = torch.from_dlpack(made), np.from_dlpack(made)
    del made
    gc.collect()
    assert list(device.memory) == [address]
    assert float(first.sum()) == float(second.sum()) == 276
    rest = first[1:]
    del first, second
    gc.collect()
    assert list(device.memory) == [address], "a view of the consumer's still reads it"
    del rest
    gc.collect()
    assert device.freed == [address]


def test_a_tensor_may_die_in_another_thread(device: FakeDevice) -> None:
    held = [torch.from_dlpack(filled(device))]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert len(device.freed) == 1


@pytest.mark.parametrize("max_version", [None, (0, 8), (1, 0), (1, 3), (2, 0)])
def test_a_capsule_nobody_takes_frees_the_memory(device: FakeDevice, max_version: tuple[int, int] | None) -> None:
    capsule = filled(device).__dlpack__(max_version=max_version)
    gc.collect()
    assert len(device.memory) == 1, "the capsule owns it"
    assert ("versioned" in repr(capsule)) == (max_version is not None and max_version[0] >= 1)
    del capsule
    assert len(device.freed) == 1


def test_a_consumer_that_fails_shows_its_own_error() -> None:
    """It drops the capsule with its exception set: ours must neither hide it nor leak."""
    device = FakeDevice()  # says that its memory is a GPU's
    for _ in range(3):
        with pytest.raises((BufferError, RuntimeError), match=r"[Uu]nsupported|device"):
            np.from_dlpack(filled(device))
    gc.collect()
    assert not device.memory


@pytest.mark.parametrize("max_version", [None, (1, 0)])
def test_the_fields_of_a_capsule(max_version: tuple[int, int] | None) -> None:
    device = FakeDevice()
    device.dlpack_device = (dlpack.CUDA, 3)
    made = filled(device, "bfloat16")
    assert made.__dlpack_device__() == (dlpack.CUDA, 3)
    capsule = made.__dlpack__(stream=7, max_version=max_version)
    if max_version is None:
        tensor = dlpack.borrow(capsule)
    else:
        managed = dlpack._versioned(capsule)
        assert (managed.major, managed.flags) == (1, 0)
        tensor = managed.tensor
    assert (tensor.device.type, tensor.device.id) == (dlpack.CUDA, 3)
    assert (tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes) == (4, 16, 1), "kDLBfloat"
    assert (tensor.data, tensor.byte_offset, tensor.ndim) == (made.address, 0, 3)
    assert [tensor.shape[i] for i in range(3)] == [2, 3, 4]
    assert not tensor.strides or [tensor.strides[i] for i in range(3)] == [12, 4, 1]


def test_what_we_give_we_take_back() -> None:
    device = FakeDevice()
    made = filled(device, "float16")
    seen = view("x", made, stream=5)
    assert (seen.address, seen.shape, seen.dtype) == (made.address, (2, 3, 4), "float16")
    assert (seen.on_device, seen.contiguous, seen.device_id) == (True, True, 0)
    del made
    gc.collect()
    assert len(device.memory) == 1, "the view owns the capsule, which owns the memory"
    del seen
    assert not device.memory


def test_copies_are_made_where_they_are_asked_for() -> None:
    device = FakeDevice()
    made = filled(device, "bfloat16")
    seen = dlpack.borrow(capsule := made.__dlpack__(copy=True))
    assert seen.data != made.address
    assert ctypes.string_at(seen.data, made.nbytes) == ctypes.string_at(made.address, made.nbytes)
    del capsule
    assert len(device.memory) == 1
    on_host = _OnHost(made)
    taken = torch.from_dlpack(on_host)
    assert taken.dtype == torch.bfloat16
    assert torch.equal(taken, torch.arange(24).reshape(2, 3, 4).to(torch.bfloat16))
    assert made.numpy().dtype == np.uint16
    np.testing.assert_array_equal(np.from_dlpack(_OnHost(filled(device))), np.arange(24.0).reshape(2, 3, 4))
    with pytest.raises(BufferError, match="without a copy"):
        made.__dlpack__(dl_device=(dlpack.CPU, 0), copy=False)
    with pytest.raises(BufferError, match="cannot be shared"):
        made.__dlpack__(dl_device=(dlpack.CUDA, 1))
    del on_host, taken, made
    gc.collect()
    assert not device.memory
    assert not device.events


class _OnHost:
    """What ``from_dlpack(x, device="cpu")`` asks of an array."""

    def __init__(self, array: DeviceArray) -> None:
        self._array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CPU, 0

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**{**options, "dl_device": (dlpack.CPU, 0)})


def test_the_cuda_array_interface() -> None:
    device = FakeDevice()
    made = filled(device, "bfloat16")
    interface = made.__cuda_array_interface__
    assert (interface["version"], interface["typestr"], interface["stream"]) == (3, "<u2", None)
    assert interface["data"] == (made.address, False)
