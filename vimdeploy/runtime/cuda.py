"""Memory, streams, events and graphs through cuda-bindings: what a session needs of CUDA, and nothing of torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol

from typing_extensions import override

from vimdeploy.errors import MissingDependencyError, UsageError, VimdeployError
from vimdeploy.runtime import dlpack


class CaptureError(Exception):
    """A CUDA graph could not be captured; the work has to be launched plainly."""


class Device(Protocol):
    """One GPU. Addresses and handles are integers; every call is asynchronous unless it says otherwise."""

    dlpack_device: tuple[int, int]
    """DLPack's type and number of this device."""

    def active(self) -> AbstractContextManager[Any]:
        """Make this the calling thread's current device for a while: CUDA keeps one per thread, at first number 0."""

    def create_stream(self) -> int:
        """Return a stream that does not synchronise with the default one."""

    def destroy_stream(self, stream: int) -> None:
        """Destroy it."""

    def allocate(self, nbytes: int, stream: int) -> int:
        """Return device memory, usable in stream order."""

    def free(self, address: int, stream: int) -> None:
        """Give device memory back, in stream order."""

    def allocate_host(self, nbytes: int) -> int:
        """Return pinned host memory. Blocks."""

    def free_host(self, address: int) -> None:
        """Give pinned host memory back. Blocks."""

    def copy(self, to: int, source: int, nbytes: int, stream: int) -> None:
        """Copy between any two addresses."""

    def capture(self, stream: int, launch: Callable[[], None]) -> Any:
        """Capture what ``launch`` puts on the stream into a graph; CaptureError where that, or ``launch``, fails."""

    def launch(self, graph: Any, stream: int) -> None:
        """Launch a graph."""

    def release(self, graph: Any) -> None:
        """Destroy a graph."""

    def create_event(self) -> int:
        """Return an event without timing."""

    def destroy_event(self, event: int) -> None:
        """Destroy it."""

    def record(self, event: int, stream: int) -> None:
        """Record an event."""

    def is_done(self, event: int) -> bool:
        """Return whether everything before the event is done. Does not block."""

    def wait(self, event: int) -> None:
        """Block until everything before the event is done."""

    def order(self, event: int, stream: int) -> None:
        """Make a stream wait for an event."""


class CudaDevice(Device):
    """A CUDA device, through ``cuda.bindings.runtime``. See :class:`Device` for each call.

    Args:
        number: as CUDA counts them; None for the calling thread's current device.

    Raises:
        MissingDependencyError: CUDA's bindings, a driver or a GPU is missing.
        UsageError: there is no device of that number.

    """

    def __init__(self, number: int | None = None) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise MissingDependencyError(
                f"CUDA's Python bindings do not load: {error}", hint="pip install cuda-bindings"
            ) from error
        self._cuda: Any = runtime
        status, count = runtime.cudaGetDeviceCount()
        if int(status) != 0 or count == 0:
            raise MissingDependencyError(
                f"no NVIDIA GPU can be used here ({_describe(runtime, status)})",
                hint="Run the ONNX file instead: vimdeploy.load('model.onnx') needs only ONNX Runtime.",
            )
        if number is not None and not 0 <= number < count:
            raise UsageError(
                f"there is no GPU {number}: CUDA shows {count}, numbered from 0",
                hint="CUDA_VISIBLE_DEVICES decides which GPUs a process sees; 'nvidia-smi' lists them.",
            )
        self._number = int(self._do(runtime.cudaGetDevice())) if number is None else number
        attribute = runtime.cudaDeviceAttr.cudaDevAttrMemoryPoolsSupported
        # Some virtual GPUs have no pools: there memory is allocated and freed at once, which blocks but is right.
        self._pools = bool(self._do(runtime.cudaDeviceGetAttribute(attribute, self._number)))
        self.dlpack_device = (dlpack.CUDA, self._number)

    @override
    def active(self) -> AbstractContextManager[Any]:
        return _Active(self._cuda, self._number)

    def facts(self) -> tuple[str, str, int]:
        """Return the device's name, its compute capability (``sm_90``) and the newest CUDA the driver serves."""
        c = self._cuda
        properties = self._do(c.cudaGetDeviceProperties(self._number))
        name = properties.name.split(b"\0")[0].decode()
        return name, f"sm_{properties.major}{properties.minor}", int(self._do(c.cudaDriverGetVersion()))

    @override
    def create_stream(self) -> int:
        return int(self._do(self._cuda.cudaStreamCreateWithFlags(self._cuda.cudaStreamNonBlocking)))

    @override
    def destroy_stream(self, stream: int) -> None:
        self._do(self._cuda.cudaStreamDestroy(stream))

    @override
    def allocate(self, nbytes: int, stream: int) -> int:
        if not self._pools:
            return int(self._do(self._cuda.cudaMalloc(max(nbytes, 1))))
        return int(self._do(self._cuda.cudaMallocAsync(max(nbytes, 1), stream)))

    @override
    def free(self, address: int, stream: int) -> None:
        # cudaFree waits for the device by itself.
        self._do(self._cuda.cudaFreeAsync(address, stream) if self._pools else self._cuda.cudaFree(address))

    @override
    def allocate_host(self, nbytes: int) -> int:
        return int(self._do(self._cuda.cudaMallocHost(max(nbytes, 1))))

    @override
    def free_host(self, address: int) -> None:
        self._do(self._cuda.cudaFreeHost(address))

    @override
    def copy(self, to: int, source: int, nbytes: int, stream: int) -> None:
        self._do(self._cuda.cudaMemcpyAsync(to, source, nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyDefault, stream))

    @override
    def capture(self, stream: int, launch: Callable[[], None]) -> Any:
        c = self._cuda
        self._do(c.cudaStreamBeginCapture(stream, c.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
        refused: VimdeployError | None = None
        try:
            launch()
        except VimdeployError as error:  # an engine that cannot be captured says so by failing to launch
            refused = error
        finally:
            status, graph = c.cudaStreamEndCapture(stream)
        try:
            if refused is None and int(status) == 0:
                status, executable = c.cudaGraphInstantiate(graph, 0)
        finally:
            if graph is not None and int(graph) != 0:
                c.cudaGraphDestroy(graph)
        if refused is not None or int(status) != 0:
            c.cudaGetLastError()  # a failed capture stays there, and the next call would take it for its own
            raise CaptureError(refused.message if refused else _describe(c, status))
        return executable

    @override
    def launch(self, graph: Any, stream: int) -> None:
        self._do(self._cuda.cudaGraphLaunch(graph, stream))

    @override
    def release(self, graph: Any) -> None:
        self._do(self._cuda.cudaGraphExecDestroy(graph))

    @override
    def create_event(self) -> int:
        return int(self._do(self._cuda.cudaEventCreateWithFlags(self._cuda.cudaEventDisableTiming)))

    @override
    def destroy_event(self, event: int) -> None:
        self._do(self._cuda.cudaEventDestroy(event))

    @override
    def record(self, event: int, stream: int) -> None:
        self._do(self._cuda.cudaEventRecord(event, stream))

    @override
    def is_done(self, event: int) -> bool:
        (error,) = self._cuda.cudaEventQuery(event)
        if error == self._cuda.cudaError_t.cudaErrorNotReady:
            return False
        self._do((error,))
        return True

    @override
    def wait(self, event: int) -> None:
        self._do(self._cuda.cudaEventSynchronize(event))

    @override
    def order(self, event: int, stream: int) -> None:
        self._do(self._cuda.cudaStreamWaitEvent(stream, event, 0))

    def _do(self, result: tuple[Any, ...]) -> Any:
        error = result[0]
        if int(error) != 0:
            hint = "Lower the batch or the number of contexts." if int(error) == 2 else "Run 'vimdeploy doctor'."
            raise VimdeployError(f"CUDA failed: {_describe(self._cuda, error)}", hint=hint)
        return result[1] if len(result) > 1 else None


class _Active:
    """Switches the thread's current device and back; costs one query where it is the right one already."""

    __slots__ = ("_cuda", "_number", "_previous")

    def __init__(self, cuda: Any, number: int) -> None:
        self._cuda = cuda
        self._number = number
        self._previous = number

    def __enter__(self) -> None:
        _, previous = self._cuda.cudaGetDevice()
        self._previous = self._number if previous is None else previous
        if self._previous != self._number:
            self._cuda.cudaSetDevice(self._number)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous != self._number:
            self._cuda.cudaSetDevice(self._previous)


def _describe(cuda: Any, error: Any) -> str:
    _, text = cuda.cudaGetErrorString(error)
    return text.decode() if isinstance(text, bytes) else str(error)
