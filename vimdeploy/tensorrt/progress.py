"""A long TensorRT build that shows where it is and that Ctrl-C stops at once and cleanly."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from vimdeploy.progress import SILENT, Reporter
from vimdeploy.tensorrt.boundary import Progress

T = TypeVar("T")


class Tracker:
    """Folds TensorRT's tree of phases into one fraction, and carries the wish to cancel. Thread-safe."""

    def __init__(self, reporter: Reporter = SILENT) -> None:
        self._reporter = reporter
        self._lock = threading.Lock()
        self._phases: dict[str, tuple[str | None, int, int]] = {}
        self._shown = 0.0
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Ask the build to stop at its next step."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked the build to stop."""
        return self._cancelled.is_set()

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Open a phase."""
        with self._lock:
            self._phases[phase] = (parent, max(steps, 1), 0)
        self._show(phase)

    def step(self, phase: str, step: int) -> bool:
        """Note a finished step; False cancels the build."""
        with self._lock:
            if phase in self._phases:
                parent, steps, _ = self._phases[phase]
                self._phases[phase] = (parent, steps, min(step + 1, steps))
        self._show(phase)
        return not self.cancelled

    def finish(self, phase: str) -> None:
        """Close a phase."""
        with self._lock:
            self._phases.pop(phase, None)

    def _show(self, phase: str) -> None:
        with self._lock:
            # A child fills the step its parent is at: fraction = done/steps + (child's fraction)/steps, up the tree.
            fraction, at = 0.0, phase
            while at in self._phases:
                parent, steps, done = self._phases[at]
                fraction = min((done + fraction) / steps, 1.0)
                at = parent or ""
            self._shown = fraction = max(fraction, self._shown)
        self._reporter.progress(round(1000 * fraction), 1000)


def interruptible(work: Callable[[Progress], T], tracker: Tracker) -> T:
    """Run ``work(tracker)`` in a thread of its own, so that Ctrl-C reaches Python while TensorRT computes.

    Python delivers signals to the main thread only, between bytecodes: a build called from there would hide Ctrl-C for
    minutes, and an exception raised inside TensorRT's callback would end the process.

    Raises:
        KeyboardInterrupt: after TensorRT has stopped.

    """
    result: list[T] = []
    failure: list[BaseException] = []
    threads = _native_threads()

    def run() -> None:
        try:
            result.append(work(tracker))
        except BaseException as error:  # handed over to the waiting thread, whatever it is
            failure.append(error)

    thread = threading.Thread(target=run, name="tensorrt-build")
    thread.start()
    interrupted = False
    while True:
        try:
            while thread.is_alive():
                thread.join(0.05)
            break
        except KeyboardInterrupt:
            interrupted = True
            tracker.cancel()
    if tracker.cancelled:
        _settle(threads)
    if interrupted:
        raise KeyboardInterrupt
    if failure:
        raise failure[0]
    return result[0]


def _native_threads() -> int:
    """Return how many threads the process has, also those that Python does not know; 0 where that is not told."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 0


def _settle(threads: int, seconds: float = 10.0) -> None:
    """Wait until TensorRT's own threads are gone: a cancelled build returns before they do.

    They still log through Python, and would crash a process that exits meanwhile.
    """
    deadline = time.monotonic() + seconds
    while _native_threads() > threads and time.monotonic() < deadline:
        time.sleep(0.02)
