"""Arrays are looked at, not copied, whatever framework holds them."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vimdeploy.errors import UsageError
from vimdeploy.runtime import dlpack
from vimdeploy.runtime.arrays import view
from vimdeploy.runtime.batching import nearest, split


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8])
def test_torch_tensors_are_seen_through_dlpack(dtype: torch.dtype) -> None:
    x = torch.arange(24).reshape(2, 3, 4).to(dtype)
    seen = view("x", x)
    assert (seen.address, seen.shape, seen.dtype) == (x.data_ptr(), (2, 3, 4), str(dtype).removeprefix("torch."))
    assert seen.contiguous
    assert not seen.on_device
    assert seen.nbytes == x.numel() * x.element_size()


def test_offsets_strides_and_gradients() -> None:
    x = torch.arange(24.0, requires_grad=True).reshape(2, 3, 4)
    assert view("x", x[1]).address == x[1].data_ptr()
    assert not view("x", x.transpose(1, 2)).contiguous
    assert view("x", x[:, :1].expand(2, 1, 4)).contiguous == x[:, :1].is_contiguous()


def test_the_view_keeps_the_memory_alive() -> None:
    seen = view("x", torch.full((1000,), 7.0))
    values = np.ctypeslib.as_array((ctypes.c_float * 1000).from_address(seen.address))
    np.testing.assert_array_equal(values, 7.0)


def test_a_producer_may_state_a_byte_offset() -> None:
    memory = (ctypes.c_float * 8)(*range(8))
    shape = (ctypes.c_int64 * 1)(4)
    tensor = dlpack.Tensor(
        ctypes.addressof(memory), dlpack.Device(dlpack.CPU, 0), 1, dlpack.DataType(2, 32, 1), shape, None, 12
    )
    new = ctypes.pythonapi.PyCapsule_New
    new.restype = ctypes.py_object
    new.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)

    class Producer:
        def __dlpack_device__(self) -> tuple[int, int]:
            return dlpack.CPU, 0

        def __dlpack__(self) -> object:
            return new(ctypes.addressof(tensor), b"dltensor", None)

    seen = view("x", Producer())
    assert (seen.shape, seen.dtype, seen.contiguous) == ((4,), "float32", True)
    assert list((ctypes.c_float * 4).from_address(seen.address)) == [3.0, 4.0, 5.0, 6.0]


def test_what_is_no_array_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="input 'images' is a str"):
        view("images", "cat.png")


class OnGpu:
    """What CUDA's array interface says, version 3 unless told otherwise."""

    def __init__(self, **interface: object) -> None:
        plain = {"shape": (2, 3), "typestr": "<f4", "data": (4096, False), "version": 3}
        self.__cuda_array_interface__ = {**plain, **interface}


def test_cudas_array_interface() -> None:
    seen = view("x", OnGpu())
    assert seen[:5] == (4096, (2, 3), "float32", True, True)
    assert (seen.read_only, seen.stream, seen.device_id) == (False, None, -1)
    assert view("x", OnGpu(stream=1)).stream == 1
    assert view("x", OnGpu(data=(4096, True))).read_only
    assert view("x", OnGpu(strides=(12, 4))).contiguous
    assert not view("x", OnGpu(strides=(4, 8))).contiguous
    with pytest.raises(UsageError, match="input 'x' is a masked array"):
        view("x", OnGpu(mask=object()))
    with pytest.raises(UsageError, match="input 'x' is a OnGpu that cannot be shared"):
        view("x", OnGpu(typestr="nonsense"))


class Capsule:
    """DLPack from a device whose memory nobody reads here; remembers the stream it was told."""

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self.told: list[object] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, 2

    def __dlpack__(self, *, stream: object = "nothing") -> object:
        self.told.append(stream)
        return dlpack.export(4096, (2, 3), "bfloat16", (self.kind, 2), self)


def test_dlpack_on_a_device_is_told_the_stream_that_will_read() -> None:
    for kind in (dlpack.CUDA, dlpack.MANAGED):
        producer = Capsule(kind)
        seen = view("x", producer, stream=77)
        assert seen[:5] == (4096, (2, 3), "bfloat16", True, True)
        assert (seen.device_id, producer.told) == (2, [77])
    pinned = Capsule(dlpack.PINNED)
    assert not view("x", pinned, stream=77).on_device
    assert pinned.told == ["nothing"], "host memory has no stream"
    with pytest.raises(UsageError, match="input 'x' is on DLPack device type 10"):
        view("x", Capsule(10))


def test_what_a_library_will_not_share_is_refused_in_words() -> None:
    with pytest.raises(UsageError, match="input 'x' is a Tensor that cannot be shared") as caught:
        view("x", torch.eye(3).to_sparse())
    assert caught.value.hint


def test_read_only_arrays_are_seen_as_such() -> None:
    x = np.zeros(3, np.float32)
    assert not view("x", x).read_only
    x.flags.writeable = False
    assert view("x", x).read_only


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 40))
def test_a_split_covers_the_batch_once_and_fits_the_profile(batch: int, a: int, b: int) -> None:
    least, most = min(a, b), max(a, b)
    chunks = split(batch, most, least)
    rows = [row for chunk in chunks for row in range(chunk.start, chunk.stop)]
    assert rows == list(range(batch))
    assert all(1 <= chunk.stop - chunk.start <= most for chunk in chunks)
    assert len(chunks) == -(-batch // most)


def test_a_captured_graph_serves_only_batches_near_its_size() -> None:
    assert nearest(3, [2, 4, 8]) == 4
    assert nearest(5, [4, 8]) is None
    assert nearest(8, [4, 8]) == 8
    assert nearest(1, []) is None
