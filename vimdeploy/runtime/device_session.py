"""Batches, threads and buffers over a device.

Nothing here knows TensorRT: contexts and the device come through protocols, so that all of it is tested without a GPU.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import numpy as np
from typing_extensions import override

from vimdeploy.artifacts.tensors import Profile, Tensor
from vimdeploy.errors import UsageError, VimdeployError
from vimdeploy.runtime.arrays import View, numpy_dtype
from vimdeploy.runtime.batching import split
from vimdeploy.runtime.cuda import Device
from vimdeploy.runtime.device_array import DeviceArray
from vimdeploy.runtime.pool import Job, Pool
from vimdeploy.runtime.session import Arrays, Session
from vimdeploy.runtime.slot import Contexts, Output, Slot, row_bytes


class DeviceSession(Session):
    """Batches, threads and buffers over execution contexts; a plan's session gives it those of TensorRT.

    Args:
        make: how execution contexts are made.
        device: the GPU.
        tensors: inputs and outputs of the engine.
        profile: what shapes it admits.
        contexts: how many calls may run at the same time; each has its own memory.
        graphs: how many CUDA graphs each context keeps; 0 turns them off.

    """

    def __init__(
        self,
        make: Contexts,
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
                slots.append(Slot(make, device, tensors, self.smallest_batch, self.largest_batch, graphs))
                made.callback(slots[-1].close)
            made.pop_all()  # all of them could be made, so none is closed here
        self._pool = Pool(slots)

    @override
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

    @override
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
