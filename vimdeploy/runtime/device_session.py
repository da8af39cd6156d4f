"""What every session shares (:class:`Face`), and batches, threads and buffers over a device (:class:`DeviceSession`).

Nothing here knows TensorRT: contexts and the device come through protocols, so that all of it is tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from typing_extensions import Self

from vimdeploy.errors import UsageError, VimdeployError
from vimdeploy.runtime.arrays import View, numpy_dtype, validate, view
from vimdeploy.runtime.batching import split
from vimdeploy.runtime.cuda import Device
from vimdeploy.runtime.device_array import DeviceArray
from vimdeploy.runtime.pool import Job, Pool
from vimdeploy.runtime.slot import Context, Output, Slot, row_bytes
from vimdeploy.tensorrt.boundary import Profile, Tensor

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

    def look_out(self, out: Arrays | None, batch: int, stream: int | None = None) -> dict[str, View]:
        """Validate preallocated outputs; returns their views."""
        views = {}
        names = [t.name for t in self.outputs]
        if unknown := [str(name) for name in out or () if name not in names]:
            raise UsageError(f"out names '{unknown[0]}'; the model gives: {', '.join(names)}", hint="Name an output.")
        for tensor in self.outputs:
            if out is None or tensor.name not in out:
                continue
            found = views[tensor.name] = view(tensor.name, out[tensor.name], stream=stream, role="output")
            wanted = (batch, *tensor.shape[1:])
            fits = found.dtype == tensor.dtype or (tensor.dtype == "bfloat16" and found.dtype == "uint16")
            if found.shape != wanted or not fits or not found.contiguous or found.read_only:
                kind = "read-only " * found.read_only + found.dtype
                raise UsageError(
                    f"out['{tensor.name}'] is {kind} {found.shape}, the result is {tensor.dtype} {wanted}",
                    hint="Pass a contiguous, writable array of that shape and dtype, or leave it out.",
                )
        return views

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
        with device.active(), ExitStack() as made:
            slots = []
            for _ in range(contexts):
                slots.append(Slot(make_context, device, tensors, self.smallest_batch, self.largest_batch, graphs))
                made.callback(slots[-1].close)
            made.pop_all()  # all of them could be made, so none is closed here
        self._pool = Pool(slots)

    def submit(self, inputs: Arrays, out: Arrays | None = None) -> Job:
        """Start a batch and return a handle. See :meth:`run`.

        Host inputs may be overwritten as soon as this returns, device inputs once the result is there. It blocks while
        every context is busy, and for all but the last part of a batch that is split and does not stay on the device.
        """
        slot = self._pool.take()
        try:
            with self._device.active():
                views, batch = self.look(inputs, slot.stream)
                arrays, targets, outs = self._targets(batch, out, slot.stream, all(v.on_device for v in views.values()))
                for found in (*views.values(), *outs.values()):
                    self._order(found, slot)
                last, part = self._enqueue(slot, views, targets, batch)
            keep = (views, inputs, outs)
            job = Job(slot, self._pool, keep, partial(_finish, slot, part, last, arrays))
            self._pool.register(slot, job)
        except BaseException:
            slot.settle()  # what is on the stream already still uses memory that goes away with this frame
            self._pool.give_back(slot)
            raise
        return job

    def close(self) -> None:
        """Wait for every call under way, whose results stay readable, and give all memory back."""
        with self._device.active():
            self._pool.close()

    def __del__(self) -> None:
        if hasattr(self, "_pool"):
            with suppress(VimdeployError):  # CUDA may be gone when the interpreter ends
                self.close()

    def _order(self, array: View, slot: Slot) -> None:
        here = self._device.dlpack_device[1]
        if array.on_device and array.device_id not in (-1, here):
            raise UsageError(
                f"an array is on GPU {array.device_id}, this session on GPU {here}",
                hint="Copy it over first, or open the session while that GPU is the current one.",
            )
        if array.stream is not None:
            slot.after(array.stream)

    def _enqueue(
        self, slot: Slot, views: dict[str, View], targets: dict[str, Output], batch: int
    ) -> tuple[slice, dict[str, Output]]:
        """Put a whole batch on the stream; returns its last chunk, whose host outputs are still in pinned memory."""
        *chunks, last = split(batch, self.largest_batch, self.smallest_batch)
        stays = all(t.on_device for t in targets.values()) and all(v.on_device for v in views.values())
        for chunk in chunks:
            part = self._part(targets, chunk)
            slot.run(views, part, chunk)
            if not stays:  # the next chunk wants the same pinned memory
                slot.finish(part, chunk.stop - chunk.start)
        part = self._part(targets, last)
        slot.run(views, part, last)
        return last, part

    def _targets(
        self, batch: int, out: Arrays | None, stream: int, on_device: bool
    ) -> tuple[dict[str, Any], dict[str, Output], dict[str, View]]:
        """Find or make the memory of every output; also returns the views of what the caller brought."""
        arrays: dict[str, Any] = {}
        targets: dict[str, Output] = {}
        brought = self.look_out(out, batch, stream)
        for tensor in self.outputs:
            shape = (batch, *tensor.shape[1:])
            if out is not None and tensor.name in brought:
                arrays[tensor.name] = out[tensor.name]
                targets[tensor.name] = Output(brought[tensor.name].address, brought[tensor.name].on_device)
            elif on_device:
                made = arrays[tensor.name] = DeviceArray(self._device, shape, tensor.dtype, stream)
                targets[tensor.name] = Output(made.address, True)
            else:
                array = arrays[tensor.name] = np.empty(shape, numpy_dtype(tensor.dtype))
                targets[tensor.name] = Output(array.ctypes.data, False)
        return arrays, targets, brought

    def _part(self, targets: dict[str, Output], chunk: slice) -> dict[str, Output]:
        return {
            t.name: Output(targets[t.name].address + chunk.start * row_bytes(t), targets[t.name].on_device)
            for t in self.outputs
        }


def _finish(slot: Slot, part: dict[str, Output], rows: slice, arrays: dict[str, Any]) -> dict[str, Any]:
    slot.finish(part, rows.stop - rows.start)
    return arrays
