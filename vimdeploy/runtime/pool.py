"""Calls under way, and the contexts they run on: handed out, waited for, taken back."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from vimdeploy.errors import UsageError
from vimdeploy.runtime.slot import Slot

_BACKSTOP = 0.05
"""Seconds. A call that is dropped gives its slot back from ``__del__``, which may run inside somebody's ``wait`` just
before it waits: that notice is lost, and this bounds what it costs."""


class Job:
    """A call on its slot, which goes back to the pool with the result. Thread-safe.

    ``event`` is a CUDA event to wait on, of the device's outputs, until :meth:`result` has returned.
    """

    def __init__(self, slot: Slot, pool: Pool, keep: tuple[Any, ...], finish: Callable[[], dict[str, Any]]) -> None:
        self.event = slot.event
        self._slot: Slot | None = slot
        self._pool = pool
        self._keep: tuple[Any, ...] = keep
        self._finish: Callable[[], dict[str, Any]] | None = finish
        self._result: dict[str, Any] = {}
        self._error: BaseException | None = None
        self._lock = threading.Lock()

    def done(self) -> bool:
        """Return whether :meth:`result` would not block."""
        slot = self._slot
        return slot is None or slot.device.is_done(self.event)

    def result(self) -> dict[str, Any]:
        """Wait and return the outputs by name."""
        self.settle()
        if self._error is not None:
            raise self._error
        return self._result

    def settle(self) -> None:
        """Wait, keep the result or the error for :meth:`result`, and give the slot back."""
        dropped: list[Any] = []  # outlives the lock: what goes with these may want it
        with self._lock:
            if self._slot is None or self._finish is None:
                return
            dropped += (self._finish, self._keep)
            try:
                self._result = self._finish()
            except BaseException as error:  # raised to whoever asks for the result
                self._error = error
            finally:
                self._give_back()

    def _give_back(self) -> None:
        slot, self._slot, self._finish, self._keep = self._slot, None, None, ()
        if slot is not None:
            self._pool.give_back(slot)

    def __del__(self) -> None:
        # Nobody asked for the result, and the stream still uses the slot's buffers. While this runs, the pool's weak
        # reference still gives the call out: whoever has the lock then gives the slot back. Waiting for it here could
        # be waiting for oneself, with the pool's lock held.
        if hasattr(self, "_lock") and self._lock.acquire(blocking=False):
            try:
                if self._slot is not None:
                    self._slot.settle()
                    self._give_back()
            finally:
                self._lock.release()


class Pool:
    """Hands every slot to one call at a time, the last one used first: its graphs are the ones just captured.

    Where none is free, the oldest call under way is brought to its end, and its result kept for whoever holds it. So a
    single thread may start any number of calls before it asks for the first result.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = list(slots)
        self._free = list(slots)
        self._running: dict[Slot, weakref.ref[Job]] = {}
        self._closed = False
        # Reentrant: a dropped call gives its slot back from wherever the garbage collector happens to run.
        self._changed = threading.Condition(threading.RLock())

    def take(self) -> Slot:
        """Return a slot of one's own, to be given back; UsageError once the pool is closed."""
        while True:
            with self._changed:
                if self._closed:
                    raise UsageError("this session is closed", hint="Open another with vimdeploy.load.")
                if self._free:
                    return self._free.pop()
                job = self._oldest()
                if job is None:  # every slot is with a thread that is still putting its call together
                    self._changed.wait(_BACKSTOP)
            if job is not None:
                job.settle()

    def register(self, slot: Slot, job: Job) -> None:
        """Say which call runs on a slot that was taken, so that others can bring it to its end."""
        with self._changed:
            self._running[slot] = weakref.ref(job)
            self._changed.notify_all()

    def give_back(self, slot: Slot) -> None:
        """Take a slot back whose stream is idle."""
        with self._changed:
            self._running.pop(slot, None)
            self._free.append(slot)
            self._changed.notify_all()

    def close(self) -> None:
        """Bring every call to its end and close every slot; later calls are refused. Does nothing a second time."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        while True:
            with self._changed:
                if len(self._free) == len(self.slots):
                    break
                job = self._oldest()
                if job is None:
                    self._changed.wait(_BACKSTOP)
            if job is not None:
                job.settle()
        with ExitStack() as every:  # one that fails does not keep the others from their turn
            for slot in self.slots:
                every.callback(slot.close)

    def _oldest(self) -> Job | None:
        return next((job for reference in self._running.values() if (job := reference()) is not None), None)
