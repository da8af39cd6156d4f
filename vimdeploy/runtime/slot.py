"""One execution context with its stream, buffers and graphs: everything a single call needs for itself."""

from __future__ import annotations

import ctypes
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from vimdeploy.artifacts.tensors import Tensor
from vimdeploy.errors import VimdeployError
from vimdeploy.runtime.arrays import ITEM_BYTES, View
from vimdeploy.runtime.batching import GraphCache, nearest
from vimdeploy.runtime.cuda import CaptureError, Device
from vimdeploy.tensorrt.translate import runtime_error

_log = logging.getLogger(__name__)
_ALIGNMENT = 256
"""Bytes; TensorRT refuses other addresses. Rows in the middle of somebody's array are copied to one of these."""


class Context(Protocol):
    """What a slot asks of an execution context (:class:`vimdeploy.tensorrt.api.Context`)."""

    def set_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Set the shape of an input."""

    def bind(self, name: str, address: int) -> bool:
        """Set an address."""

    def enqueue(self, stream: int) -> bool:
        """Launch."""

    def complaints(self) -> list[str]:
        """Return what was said about the last call, where that failed."""


class Contexts(NamedTuple):
    """How execution contexts are made: ``make`` takes the device address of ``nbytes`` bytes that they work in."""

    make: Callable[[int], Context]
    nbytes: int = 0


@dataclass
class Buffer:
    """Staging memory of one input or output: pinned on the host, and on the device."""

    host: int
    device: int
    nbytes: int


class Output(NamedTuple):
    """Where an output has to go: ``address`` of host or device memory for the rows of this chunk."""

    address: int
    on_device: bool


@dataclass(frozen=True)
class Captured:
    """A CUDA graph and the context it was captured from: reshaping a context may invalidate its graphs."""

    graph: Any
    context: Context


class Slot:
    """Runs chunks of a batch. Used by one call at a time; a :class:`vimdeploy.runtime.pool.Pool` hands it out."""

    def __init__(
        self,
        contexts: Contexts,
        device: Device,
        tensors: list[Tensor],
        least: int,
        most: int,
        graphs: int,
    ) -> None:
        self.device = device
        self.stream = device.create_stream()
        # All contexts of a slot run one after the other on its stream, so they share what they work in.
        self._memory = 0
        try:
            self._memory = device.allocate(contexts.nbytes, self.stream) if contexts.nbytes else 0
            self._context = contexts.make(self._memory)
        except BaseException:
            self._close_stream()
            raise
        self._make_context = contexts.make
        self._inputs = [t for t in tensors if t.is_input]
        self._outputs = [t for t in tensors if not t.is_input]
        self._row_bytes = {t.name: row_bytes(t) for t in tensors}
        self._least = least
        self._most = most
        self._buffers: dict[str, Buffer] = {}
        self._graphs: GraphCache[Captured] = GraphCache(graphs, self._release)
        self.event = device.create_event()

    def after(self, stream: int) -> None:
        """Let what follows on this slot wait for what is on another stream now: the work that fills an input."""
        self.device.record(self.event, stream)
        self.device.order(self.event, self.stream)

    def run(self, inputs: Mapping[str, View], outputs: Mapping[str, Output], rows: slice) -> None:
        """Put one chunk on the stream: inputs in, launch, outputs out (host outputs as far as pinned memory)."""
        count = rows.stop - rows.start
        on_device = all(v.on_device for v in inputs.values()) and all(o.on_device for o in outputs.values())
        addresses = {n: v.address + rows.start * self._row_bytes[n] for n, v in inputs.items()}
        addresses.update((n, o.address) for n, o in outputs.items())
        if on_device and count >= self._least and not any(a % _ALIGNMENT for a in addresses.values()):
            self._launch(("in place", count, *addresses.values()), addresses, inputs, count)
        else:
            self._run_staged(inputs, outputs, rows, count)
        self.device.record(self.event, self.stream)

    def finish(self, outputs: Mapping[str, Output], count: int) -> None:
        """Wait for the chunk and bring its host outputs from pinned memory to where they belong."""
        self.device.wait(self.event)
        for name, output in outputs.items():
            if not output.on_device:
                ctypes.memmove(output.address, self._buffers[name].host, count * self._row_bytes[name])

    def settle(self) -> None:
        """Wait for whatever is on the stream: after a failure, before the memory it uses goes away."""
        with suppress(VimdeployError):  # the failure itself is on its way to the caller
            self.device.record(self.event, self.stream)
            self.device.wait(self.event)

    def close(self) -> None:
        """Give everything back. The stream must be idle."""
        self._graphs.clear()
        for buffer in self._buffers.values():
            self.device.free(buffer.device, self.stream)
            self.device.free_host(buffer.host)
        self._buffers.clear()
        self.device.destroy_event(self.event)
        self._close_stream()

    def _close_stream(self) -> None:
        if self._memory:
            self.device.free(self._memory, self.stream)
        self.device.destroy_stream(self.stream)

    def captured(self) -> list[int]:
        """Return the batch sizes that a host-side batch can be served by, least recently used first."""
        return [key[1] for key in self._graphs.keys() if isinstance(key, tuple) and key[0] == "staged"]  # noqa: SIM118

    def _run_staged(self, inputs: Mapping[str, View], outputs: Mapping[str, Output], rows: slice, count: int) -> None:
        size = nearest(count, self.captured()) or max(count, self._least)
        for tensor in self._inputs:
            self._stage(self._buffer(tensor), inputs[tensor.name], rows.start, count * self._row_bytes[tensor.name])
        addresses = {t.name: self._buffer(t).device for t in (*self._inputs, *self._outputs)}
        self._launch(("staged", size), addresses, inputs, size)
        for tensor in self._outputs:
            output, buffer = outputs[tensor.name], self._buffers[tensor.name]
            target = output.address if output.on_device else buffer.host
            self.device.copy(target, buffer.device, count * self._row_bytes[tensor.name], self.stream)

    def _launch(
        self, key: tuple[Any, ...], addresses: Mapping[str, int], inputs: Mapping[str, View], size: int
    ) -> None:
        captured = self._graphs.get(key)
        if captured is not None:
            self.device.launch(captured.graph, self.stream)
            return
        self._prepare(self._context, addresses, inputs, size)
        self._enqueue(self._context)
        if self._graphs.due(key):
            self._capture(key, addresses, inputs, size)

    def _capture(
        self, key: tuple[Any, ...], addresses: Mapping[str, int], inputs: Mapping[str, View], size: int
    ) -> None:
        try:
            context = self._make_context(self._memory)
            self._prepare(context, addresses, inputs, size)
            self._enqueue(context)  # the first launch of a context allocates, which a capture must not meet
            graph = self.device.capture(self.stream, lambda: self._enqueue(context))
        except (CaptureError, VimdeployError) as error:  # no memory for one more context, or not capturable
            _log.warning("no CUDA graph of this engine could be captured; it runs without: %s", error)
            self._graphs.clear()
            self._graphs = GraphCache(0, self._release)
            return
        self._graphs.put(key, Captured(graph, context))

    def _release(self, captured: Captured) -> None:
        # CUDA lets a running graph finish; the context whose memory it uses would not wait.
        self.settle()
        self.device.release(captured.graph)

    def _prepare(self, context: Context, addresses: Mapping[str, int], inputs: Mapping[str, View], size: int) -> None:
        for name, view in inputs.items():
            if not context.set_shape(name, (size, *view.shape[1:])):
                raise VimdeployError(
                    f"the engine does not take a batch of {size} for input '{name}'{_said(context)}",
                    hint="Build it again with a profile that holds this batch (--min-batch, --max-batch).",
                )
        for name, address in addresses.items():
            if not context.bind(name, address):
                raise VimdeployError(
                    f"TensorRT refuses the address of '{name}'{_said(context)}", hint="Align it to 256 bytes."
                )

    def _enqueue(self, context: Context) -> None:
        if not context.enqueue(self.stream):
            raise runtime_error("launching the engine", context.complaints())

    def _buffer(self, tensor: Tensor) -> Buffer:
        if tensor.name not in self._buffers:
            nbytes = self._most * self._row_bytes[tensor.name]
            host, device = self.device.allocate_host(nbytes), self.device.allocate(nbytes, self.stream)
            # Rows that only pad a batch are read too: they must be finite, so start from zeros.
            ctypes.memset(host, 0, nbytes)
            self.device.copy(device, host, nbytes, self.stream)
            self._buffers[tensor.name] = Buffer(host, device, nbytes)
        return self._buffers[tensor.name]

    def _stage(self, buffer: Buffer, view: View, start: int, nbytes: int) -> None:
        source = view.address + start * (view.nbytes // view.shape[0])
        if not view.on_device:
            ctypes.memmove(buffer.host, source, nbytes)
            source = buffer.host
        self.device.copy(buffer.device, source, nbytes, self.stream)


def _said(context: Context) -> str:
    return "".join(f": {text}" for text in context.complaints()[-1:])


def row_bytes(tensor: Tensor) -> int:
    """Return the bytes of one row (one image) of a tensor. Dimensions after the batch are fixed."""
    return math.prod(tensor.shape[1:]) * ITEM_BYTES[tensor.dtype]
