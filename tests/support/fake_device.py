"""A GPU that only remembers: memory is host memory full of NaN, streams run nothing until somebody waits for them.

So a missing wait, a reused buffer, a freed array or a stale graph shows as wrong numbers.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from vimdeploy.artifacts.tensors import Tensor
from vimdeploy.errors import VimdeployError
from vimdeploy.runtime import dlpack
from vimdeploy.runtime.cuda import CaptureError, Device


class FakeDevice(Device):
    dlpack_device = (dlpack.CUDA, 0)

    def __init__(self, *, capturable: bool = True) -> None:
        self.capturable = capturable
        self.current = threading.local()
        self.freed: list[int] = []
        self.memory: dict[int, Any] = {}
        self.streams: dict[int, list[Callable[[], None]]] = {0: []}
        self.events: dict[int, tuple[int, int]] = {}
        self.counts: dict[str, int] = {}
        self.capturing: int | None = None
        self._lock = threading.RLock()
        self._next = 1

    @contextmanager
    def active(self) -> Iterator[None]:
        before, self.current.is_this = getattr(self.current, "is_this", False), True
        try:
            yield
        finally:
            self.current.is_this = before

    def _id(self) -> int:
        with self._lock:
            self._next += 1
            return self._next

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def create_stream(self) -> int:
        stream = self._id()
        self.streams[stream] = []
        return stream

    def destroy_stream(self, stream: int) -> None:
        assert not self.streams.pop(stream), "destroyed with work on it"

    def _allocate(self, nbytes: int) -> int:
        block = (ctypes.c_uint8 * (nbytes + 512))()
        ctypes.memset(block, 0xFF, nbytes + 512)  # NaN in every float type
        address = -(-ctypes.addressof(block) // 256) * 256  # as cudaMalloc aligns
        with self._lock:
            self.memory[address] = block
        return address

    def allocate(self, nbytes: int, stream: int) -> int:
        assert getattr(self.current, "is_this", False), "on whatever device this thread happens to use"
        self._count("allocate")
        return self._allocate(nbytes)

    def allocate_host(self, nbytes: int) -> int:
        return self._allocate(nbytes)

    def free(self, address: int, stream: int) -> None:
        with self._lock:
            block = self.memory.pop(address)
            self.freed.append(address)
        ctypes.memset(block, 0xFF, len(block))

    def free_host(self, address: int) -> None:
        self.free(address, 0)

    def push(self, stream: int, work: Callable[[], None]) -> None:
        with self._lock:
            self.streams[stream].append(work)

    def copy(self, to: int, source: int, nbytes: int, stream: int) -> None:
        self._count("copy")
        self.push(stream, lambda: self.check(to, source) or (ctypes.memmove(to, source, nbytes) and None))

    def check(self, *addresses: int) -> None:
        """Work on the stream must not meet memory that was given back meanwhile."""
        for address in addresses:
            assert address in self.memory or address not in self.freed, "used after it was freed"

    def capture(self, stream: int, launch: Callable[[], None]) -> Any:
        if not self.capturable:
            raise CaptureError("not this engine")
        before = len(self.streams[stream])
        self.capturing = stream
        try:
            launch()
        except VimdeployError as error:
            raise CaptureError(error.message) from error
        finally:
            self.capturing = None
        graph = self.streams[stream][before:]
        del self.streams[stream][before:]
        self._count("capture")
        return graph

    def launch(self, graph: Any, stream: int) -> None:
        self._count("launch")
        for work in graph:
            self.push(stream, lambda work=work: self.alive(graph) and work())

    def alive(self, graph: list[Any]) -> bool:
        assert graph, "a graph whose context was destroyed before it ran"
        return True

    def release(self, graph: Any) -> None:
        self._count("release")
        graph.clear()

    def create_event(self) -> int:
        event = self._id()
        self.events[event] = (0, 0)
        return event

    def destroy_event(self, event: int) -> None:
        del self.events[event]

    def record(self, event: int, stream: int) -> None:
        marker: list[bool] = []
        with self._lock:
            self.streams[stream].append(lambda: marker.append(True))
            self.events[event] = (stream, len(self.streams[stream]))

    def is_done(self, event: int) -> bool:
        return not self.streams.get(self.events[event][0])

    def wait(self, event: int) -> None:
        stream, _ = self.events[event]
        with self._lock:
            pending, self.streams[stream] = self.streams.get(stream, []), []
        for work in pending:
            work()

    def order(self, event: int, stream: int) -> None:
        self._count("order")
        other, _ = self.events[event]

        def catch_up() -> None:
            with self._lock:
                pending, self.streams[other] = self.streams.get(other, []), []
            for work in pending:
                work()

        self.push(stream, catch_up)


class FakeContext:
    """An engine whose output is the input's row sums and twice its first values, float32: (N, 3, 2, 2) -> (N, 4)."""

    def __init__(self, device: FakeDevice, largest: int = 8, fail: bool = False) -> None:
        self.device = device
        self.fail_on = 0
        self.largest = largest
        self.fail = fail
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.busy = threading.Lock()

    def set_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return 2 <= shape[0] <= self.largest

    def shape(self, name: str) -> tuple[int, ...]:
        return (self.shapes["images"][0], 4)

    def bind(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % 256 == 0

    def enqueue(self, stream: int) -> bool:
        assert self.busy.acquire(blocking=False), "two threads in one context"
        try:
            shape, source, target = self.shapes["images"], self.addresses["images"], self.addresses["logits"]
            self.device._count("enqueue")
            self.device._count(f"rows {shape[0]}")

            captured = self.device.capturing is not None

            def work() -> None:
                assert not captured or self.shapes["images"] == shape, "a graph of a context that was reshaped since"
                self.device.check(source, target)
                images = at(source, shape)
                at(target, (shape[0], 4))[:] = expected(images)

            self.device.push(stream, work)
            return not self.fail and shape[0] != self.fail_on
        finally:
            self.busy.release()


def at(address: int, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)).reshape(shape)


def expected(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    flat = images.reshape(len(images), -1)
    return np.concatenate([flat.sum(1, keepdims=True), 2 * flat[:, :3]], axis=1)


TENSORS = [Tensor("images", "float32", (-1, 3, 2, 2), True), Tensor("logits", "float32", (-1, 4), False)]


class OnDevice:
    """An array that says it is in device memory, as torch and CuPy do; ``stream`` is the one that fills it."""

    def __init__(self, device: FakeDevice, values: np.ndarray[Any, Any], stream: int | None = None) -> None:
        self.address = device._allocate(values.nbytes)
        self.shape = values.shape
        self.stream = stream
        self.device = device
        if stream is None:
            at(self.address, values.shape)[:] = values
        else:
            device.push(stream, lambda: at(self.address, values.shape).__setitem__(slice(None), values))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": "<f4", "data": (self.address, False), "version": 3, "strides": None,
                "stream": self.stream}  # fmt: skip
