"""What every session shares (:class:`Face`), and batches, threads and buffers over a device (:class:`DeviceSession`).

Nothing here knows TensorRT: contexts and the device come through protocols, so that all of it is tested without a GPU.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from typing_extensions import Self

from vimdeploy.engine.arrays import View, numpy_dtype, validate, view
from vimdeploy.engine.batching import split
from vimdeploy.engine.boundary import Profile, Tensor
from vimdeploy.engine.cuda import Device
from vimdeploy.engine.slot import Context, Output, Slot, row_bytes
from vimdeploy.errors import UsageError, VimdeployError

Arrays = Mapping[str, Any]


class Pending(Protocol):
    """A call under way."""

    def done(self) -> bool:
        """Return whether :meth:`result` would not block."""

    def result(self) -> dict[str, Any]:
        """Wait and return the outputs by name."""


class Runner(Protocol):
    """What both sessions are. Inputs and outputs are dictionaries by tensor name."""

    @property
    def inputs(self) -> list[Tensor]:
        """Names, dtypes and shapes of the inputs; -1 is the batch."""

    @property
    def outputs(self) -> list[Tensor]:
        """Names, dtypes and shapes of the outputs."""

    def run(self, inputs: Arrays, out: Arrays | None = None) -> dict[str, Any]:
        """Run a batch of any size."""

    def submit(self, inputs: Arrays, out: Arrays | None = None) -> Pending:
        """Start a batch and return at once."""

    def __call__(self, images: Any) -> Any:
        """Run a model of one input and one output."""

    def close(self) -> None:
        """Give everything back."""


class DeviceArray:
    """An output in device memory, freed with this object. torch, CuPy and numba take it without a copy.

    It is complete when the call that made it has returned; ``bfloat16`` shows as ``uint16``, its raw bits.
    """

    def __init__(self, device: Device, tensor: Tensor, rows: int, stream: int) -> None:
        self.shape = (rows, *tensor.shape[1:])
        self.dtype = tensor.dtype
        self.address = device.allocate(rows * row_bytes(tensor), stream)
        self._device = device

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        typestr = numpy_dtype(self.dtype).str
        return {"shape": self.shape, "typestr": typestr, "data": (self.address, False), "version": 3, "strides": None}

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self._device.free(self.address, 0)


class Job:
    """A call on its slot; the slot goes back to the pool with the result. ``event`` is a CUDA event to wait on."""

    def __init__(self, slot: Slot, give_back: Callable[[Slot], None], keep: tuple[Any, ...]) -> None:
        self.event = slot.event
        self._slot: Slot | None = slot
        self._give_back = give_back
        self._keep = keep
        self._finish: Callable[[], dict[str, Any]] = dict
        self._lock = threading.Lock()
        self._result: dict[str, Any] = {}
        self._error: BaseException | None = None

    def finish_with(self, finish: Callable[[], dict[str, Any]]) -> None:
        """Say how the result is made once the event is due."""
        self._finish = finish

    def done(self) -> bool:
        """Return whether :meth:`result` would not block."""
        return self._slot is None or self._slot.device.is_done(self.event)

    def result(self) -> dict[str, Any]:
        """Wait and return the outputs by name."""
        with self._lock:
            if self._slot is not None:
                try:
                    self._result = self._finish()
                except BaseException as error:
                    self._error = error
                finally:
                    self.abandon()
        if self._error is not None:
            raise self._error
        return self._result

    def abandon(self) -> None:
        """Return the slot to the pool."""
        slot, self._slot = self._slot, None
        if slot is not None:
            self._give_back(slot)
            self._keep = ()

    def __del__(self) -> None:
        slot = getattr(self, "_slot", None)
        if slot is not None:  # nobody asked for the result: the stream still uses the slot's buffers
            slot.device.wait(slot.event)
            self.abandon()


class Face:
    """What both sessions share: names, validation, and running synchronously on top of ``submit``."""

    def __init__(self, tensors: list[Tensor], profile: Profile) -> None:
        self._tensors = tensors
        self._profile = profile
        self.inputs = [t for t in tensors if t.is_input]
        self.outputs = [t for t in tensors if not t.is_input]

    @property
    def largest_batch(self) -> int:
        """The largest batch that is run in one piece."""
        return min(most[0] for _, _, most in self._profile.values())

    @property
    def smallest_batch(self) -> int:
        """The smallest batch the profile admits; smaller ones are padded."""
        return max(least[0] for least, _, _ in self._profile.values())

    def look(self, inputs: Arrays, stream: int | None = None) -> tuple[dict[str, View], int]:
        """Validate inputs; returns their views and the batch size."""
        names = {t.name for t in self.inputs}
        if set(inputs) != names:
            given, wanted = ", ".join(sorted(map(str, inputs))) or "none", ", ".join(sorted(names))
            raise UsageError(f"inputs given: {given}; the model takes: {wanted}", hint="Name every input once.")
        views = {}
        for tensor in self.inputs:
            found = view(tensor.name, inputs[tensor.name], stream=stream)
            least, _, most = self._profile[tensor.name]
            validate(tensor.name, found, dtype=tensor.dtype, shape=tensor.shape, least=least, most=most)
            views[tensor.name] = found
        batches = {v.shape[0] for v in views.values()}
        if len(batches) != 1:
            raise UsageError(f"the inputs have different batch sizes: {sorted(batches)}", hint="Make them equal.")
        return views, batches.pop()

    def run(self, inputs: Arrays, out: Arrays | None = None) -> dict[str, Any]:
        """Run a batch of any size and wait for it.

        Args:
            inputs: by name: numpy, torch or anything with DLPack, on the host or the device, contiguous.
            out: optional preallocated outputs by name, on the host or the device.

        Returns:
            Outputs by name: ``out`` where given; else on the device where every input is, else numpy.

        Raises:
            UsageError: an input or ``out`` does not fit; the message names it.

        """
        result: dict[str, Any] = self.submit(inputs, out).result()
        return result

    def submit(self, inputs: Arrays, out: Arrays | None = None) -> Any:
        """Start a batch; the subclass says how."""
        raise NotImplementedError

    def close(self) -> None:
        """Give everything back; the subclass says how."""

    def __call__(self, images: Any) -> Any:
        """Run a model of one input and one output on an array; returns an array."""
        if len(self.inputs) != 1 or len(self.outputs) != 1:
            raise UsageError("this model has several inputs or outputs", hint="Use run({'name': array, ...}).")
        return self.run({self.inputs[0].name: images})[self.outputs[0].name]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class DeviceSession(Face):
    """Batches, threads and buffers over execution contexts; :class:`Session` gives it TensorRT's.

    Args:
        make_context: creates an execution context.
        device: the GPU.
        tensors: inputs and outputs of the engine.
        profile: what shapes it admits.
        contexts: how many calls may run at the same time; each has its own memory.
        graphs: how many CUDA graphs each context keeps; 0 turns them off.

    """

    def __init__(
        self,
        make_context: Callable[[], Context],
        device: Device,
        tensors: list[Tensor],
        profile: Profile,
        *,
        contexts: int = 1,
        graphs: int = 8,
    ) -> None:
        super().__init__(tensors, profile)
        if contexts < 1 or graphs < 0:
            raise UsageError("a session needs at least one context and no negative number of graphs")
        self._device = device
        self._pool: queue.LifoQueue[Slot] = queue.LifoQueue()
        self._slots = [
            Slot(make_context, device, tensors, self.smallest_batch, self.largest_batch, graphs)
            for _ in range(contexts)
        ]
        for slot in self._slots:
            self._pool.put(slot)
        self._closed = False
        self._jobs: weakref.WeakSet[Job] = weakref.WeakSet()

    def submit(self, inputs: Arrays, out: Arrays | None = None) -> Job:
        """Start a batch and return a handle; blocks only while every context is busy. See :meth:`run`."""
        if self._closed:
            raise UsageError("this session is closed", hint="Open another with vimdeploy.load.")
        slot = self._pool.get()
        job: Job | None = None
        try:
            views, batch = self.look(inputs, slot.stream)
            arrays, targets = self._targets(views, batch, out, slot.stream)
            job = Job(slot, self._pool.put, (views, inputs, out))
            chunks = split(batch, self.largest_batch, self.smallest_batch)
            for chunk in chunks[:-1]:
                part = self._part(targets, chunk)
                slot.run(views, part, chunk)
                if not all(o.on_device for o in part.values()) or not all(v.on_device for v in views.values()):
                    slot.finish(part, chunk.stop - chunk.start)
            last, part = chunks[-1], self._part(targets, chunks[-1])
            slot.run(views, part, last)
        except BaseException:
            if job is None:
                self._pool.put(slot)
            else:
                job.abandon()
            raise

        def finish() -> dict[str, Any]:
            slot.finish(part, last.stop - last.start)
            return arrays

        job.finish_with(finish)
        self._jobs.add(job)
        return job

    def close(self) -> None:
        """Wait for every call under way, whose results stay readable, and give all memory back."""
        if self._closed:
            return
        self._closed = True
        for job in list(self._jobs):
            with suppress(VimdeployError):  # told again to whoever asks for the result
                job.result()
        for _ in self._slots:
            self._pool.get().close()

    def _targets(
        self, views: dict[str, View], batch: int, out: Arrays | None, stream: int
    ) -> tuple[dict[str, Any], dict[str, Output]]:
        """Find or make the memory of every output."""
        on_device = all(v.on_device for v in views.values())
        arrays: dict[str, Any] = {}
        targets: dict[str, Output] = {}
        for tensor in self.outputs:
            if out is not None and tensor.name in out:
                arrays[tensor.name] = out[tensor.name]
                found = _output(tensor, out[tensor.name], batch, stream)
                targets[tensor.name] = Output(found.address, found.on_device)
            elif on_device:
                made = arrays[tensor.name] = DeviceArray(self._device, tensor, batch, stream)
                targets[tensor.name] = Output(made.address, True)
            else:
                array = arrays[tensor.name] = np.empty((batch, *tensor.shape[1:]), numpy_dtype(tensor.dtype))
                targets[tensor.name] = Output(array.ctypes.data, False)
        return arrays, targets

    def _part(self, targets: dict[str, Output], chunk: slice) -> dict[str, Output]:
        return {
            t.name: Output(targets[t.name].address + chunk.start * row_bytes(t), targets[t.name].on_device)
            for t in self.outputs
        }


def _output(tensor: Tensor, array: Any, batch: int, stream: int) -> View:
    found = view(tensor.name, array, stream=stream)
    wanted = (batch, *tensor.shape[1:])
    fits = found.dtype == tensor.dtype or (tensor.dtype == "bfloat16" and found.dtype == "uint16")
    if found.shape != wanted or not fits or not found.contiguous:
        raise UsageError(
            f"out['{tensor.name}'] is {found.dtype} {found.shape}, the result is {tensor.dtype} {wanted}",
            hint="Pass a contiguous array of that shape and dtype, or leave it out.",
        )
    return found
