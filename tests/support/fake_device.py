"""A GPU that only remembers: memory is host memory full of NaN, streams run nothing until somebody waits for them.

So a missing wait, a reused buffer, a freed array or a stale graph shows as wrong numbers.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from vimdeploy.artifacts.tensors import Tensor
from vimdeploy.errors import VimdeployError
from vimdeploy.runtime import dlpack
from vimdeploy.runtime.cuda import CaptureError, Device
from vimdeploy.runtime.slot import Contexts


class FakeDevice(Device):
    dlpack_device = (dlpack.CUDA, 0)

    def __init__(self, *, capturable: bool = True, capacity: int = 1 << 40) -> None:
        self.capturable = capturable
        self.capacity = capacity
        self.current = threading.local()
        self.freed: list[int] = []
        self.leaving: set[int] = set()
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
        """What is left on it may only be memory that goes back: CUDA still does that."""
        left = self.streams.pop(stream)
        assert all(getattr(work, "is_free", False) for work in left), "destroyed with work on it"
        for work in left:
            work()

    def _allocate(self, nbytes: int) -> int:
        block = (ctypes.c_uint8 * (nbytes + 512))()
        ctypes.memset(block, 0xFF, nbytes + 512)  # NaN in every float type
        address = -(-ctypes.addressof(block) // 256) * 256  # as cudaMalloc aligns
        with self._lock:
            self.memory[address] = block
        return address

    def _not_in_a_capture(self, what: str) -> None:
        here = getattr(self.current, "captures", False)
        assert not here, f"{what} while this thread captures a stream: CUDA ends the capture"

    def allocate(self, nbytes: int, stream: int) -> int:
        assert getattr(self.current, "is_this", False), "on whatever device this thread happens to use"
        self._not_in_a_capture("allocates")
        self._count("allocate")
        with self._lock:
            if sum(len(block) - 512 for block in self.memory.values()) + nbytes > self.capacity:
                raise VimdeployError("CUDA failed: out of memory")
        return self._allocate(nbytes)

    def allocate_host(self, nbytes: int) -> int:
        self._not_in_a_capture("allocates")
        return self._allocate(nbytes)

    def free(self, address: int, stream: int) -> None:
        """In stream order: what was put on the stream before still finds the memory, and nothing after it."""
        assert address in self.memory, "freed twice"
        assert address not in self.leaving, "freed twice"
        assert stream in self.streams, "freed on a stream that is gone"
        with self._lock:
            self.leaving.add(address)

        def work() -> None:
            self._gone(address)

        work.is_free = True  # type: ignore[attr-defined]
        if stream == 0:  # nothing of ours runs there: whoever frees there has waited
            work()
        else:
            self.push(stream, work)

    def _gone(self, address: int) -> None:
        with self._lock:
            block = self.memory.pop(address)
            self.leaving.discard(address)
            self.freed.append(address)
        ctypes.memset(block, 0xFF, len(block))

    def free_host(self, address: int) -> None:
        self._not_in_a_capture("frees")
        self._gone(address)

    def push(self, stream: int, work: Callable[[], None]) -> None:
        with self._lock:
            self.streams[stream].append(work)

    def copy(self, to: int, source: int, nbytes: int, stream: int) -> None:
        self._count("copy")
        self.put(stream, to, source)

        def work() -> None:
            self.check(to, source)
            ctypes.memmove(to, source, nbytes)

        self.push(stream, work)

    def check(self, *addresses: int) -> None:
        """Work on the stream must not meet memory that was given back meanwhile."""
        for address in addresses:
            assert address in self.memory or address not in self.freed, "used after it was freed"

    def put(self, stream: int, *addresses: int) -> None:
        """Nothing may be put on a stream that needs memory which is on its way back."""
        assert not self.leaving.intersection(addresses), "put on a stream after its memory was freed"

    def capture(self, stream: int, launch: Callable[[], None]) -> Any:
        if not self.capturable:
            raise CaptureError("not this engine")
        before = len(self.streams[stream])
        self.capturing = stream
        self.current.captures = True
        try:
            launch()
        except VimdeployError as error:
            raise CaptureError(error.message) from error
        finally:
            self.capturing = None
            self.current.captures = False
        graph = self.streams[stream][before:]
        del self.streams[stream][before:]
        self._count("capture")
        return graph

    def launch(self, graph: Any, stream: int) -> None:
        self._count("launch")
        for work in graph:
            self.push(stream, partial(self.replay, graph, work))

    def replay(self, graph: list[Any], work: Callable[[], None]) -> None:
        assert graph, "a graph whose context was destroyed before it ran"
        work()

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
        self._not_in_a_capture("waits")
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


WORKING_BYTES = 4096
"""What a context of the engine below works in."""


class FakeContext:
    """An engine whose output is the input's row sums and twice its first values, float32: (N, 3, 2, 2) -> (N, 4).

    As strict as TensorRT: nothing runs without every shape and address or without memory to work in, and the first
    launch after a shape change allocates, which a capture does not survive.
    """

    def __init__(self, device: FakeDevice, memory: int, largest: int = 8, fail: bool = False) -> None:
        self.device = device
        self.memory = memory
        self.fail_on = 0
        self.largest = largest
        self.fail = fail
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.said: list[str] = []
        self.is_settled = False
        self.busy = threading.Lock()
        assert memory % 256 == 0, "TensorRT refuses memory that is not aligned to 256 bytes"

    def complaints(self) -> list[str]:
        return self.said

    def _refuses(self, *reasons: str) -> bool:
        self.said = list(reasons)
        return bool(reasons)

    def set_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if not 2 <= shape[0] <= self.largest:
            return not self._refuses(f"Static dimension mismatch while setting input shape for {name}")
        if self.shapes.get(name) != shape:
            self.is_settled = False
        self.shapes[name] = shape
        return True

    def bind(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % 256 == 0

    def enqueue(self, stream: int) -> bool:
        assert self.busy.acquire(blocking=False), "two threads in one context"
        try:
            return self._enqueue(stream)
        finally:
            self.busy.release()

    def _enqueue(self, stream: int) -> bool:
        if set(self.shapes) != {"images"}:
            return not self._refuses("Not all input shapes are set")
        if set(self.addresses) != {"images", "logits"}:
            return not self._refuses("Neither address or allocator is set for an output tensor")
        if len(self.device.memory.get(self.memory, b"")) < WORKING_BYTES or self.memory in self.device.leaving:
            return not self._refuses("the context has no device memory")
        captured = self.device.capturing is not None
        if captured and not self.is_settled:
            return not self._refuses("operation not permitted when stream is capturing: the first launch of a shape")
        self.is_settled = True
        shape, source, target = self.shapes["images"], self.addresses["images"], self.addresses["logits"]
        self.device._count("enqueue")
        self.device._count(f"rows {shape[0]}")
        self.device.put(stream, source, target, self.memory)

        def work() -> None:
            assert not captured or self.shapes["images"] == shape, "a graph of a context that was reshaped since"
            self.device.check(source, target, self.memory)
            images = at(source, shape)
            at(target, (shape[0], 4))[:] = expected(images)

        self.device.push(stream, work)
        failed = self.fail or shape[0] == self.fail_on
        return not (failed and self._refuses("vimdeploy SelectiveScan (scan_3), enqueue: the launch failed"))


def contexts(device: FakeDevice, **options: Any) -> Contexts:
    """How a session makes contexts of this engine."""
    return Contexts(lambda memory: FakeContext(device, memory, **options), WORKING_BYTES)


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
