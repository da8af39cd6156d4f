"""Plain data that crosses the boundary to TensorRT: what :mod:`vimdeploy.tensorrt.api` takes and gives."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vimdeploy.artifacts.tensors import Profile


@dataclass(frozen=True)
class Message:
    """One line of TensorRT's log: severity is error, warning, info or verbose."""

    severity: str
    text: str


class Messages:
    """What TensorRT said while this object lived, collected thread-safely for the translation of errors.

    The last :data:`KEPT` errors and warnings are kept: a session may log for months.
    """

    def __init__(self, forward: Callable[[Message], None] | None = None) -> None:
        self._lock = threading.Lock()
        self._lines: deque[tuple[int, int, Message]] = deque(maxlen=KEPT)
        self._count = 0
        self._forward = forward

    def add(self, severity: str, text: str) -> None:
        """Keep one line; forward it where the caller asked for it."""
        message = Message("error" if severity == "internal_error" else severity, text.strip())
        if message.severity in ("error", "warning"):
            with self._lock:
                self._count += 1
                self._lines.append((self._count, threading.get_ident(), message))
        if self._forward:
            self._forward(message)

    def errors(self) -> list[str]:
        """Return the text of every error that is kept."""
        with self._lock:
            return [line.text for _, _, line in self._lines if line.severity == "error"]

    def mark(self) -> int:
        """Return a mark for :meth:`own_since`."""
        return self._count

    def own_since(self, mark: int) -> list[str]:
        """Return the errors that the calling thread met after ``mark``: TensorRT logs in the thread that calls it."""
        here = threading.get_ident()
        with self._lock:
            return [
                line.text
                for number, thread, line in self._lines
                if number > mark and thread == here and line.severity == "error"
            ]


KEPT = 200
"""How many lines :class:`Messages` keeps."""


class Progress(Protocol):
    """What a build reports to. ``step`` returns False to cancel. Calls may come from any thread."""

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Open ``phase`` of ``steps`` steps inside ``parent``."""

    def step(self, phase: str, step: int) -> bool:
        """Step ``step`` of ``phase`` is done; return whether to go on."""

    def finish(self, phase: str) -> None:
        """Close ``phase``."""


@dataclass(frozen=True)
class Layer:
    """One layer of a parsed network. ``compute``: a matrix product, convolution or plugin; ``dtype``: of its output."""

    name: str
    kind: str
    dtype: str
    compute: bool
    plugin: bool
    weight_bytes: int


@dataclass(frozen=True)
class ParseProblem:
    """One error of the ONNX parser."""

    code: str
    text: str
    node: str
    op: str


@dataclass(frozen=True)
class Config:
    """What a build may be told; see ``vimdeploy build-engine --help``. ``workspace`` is in bytes."""

    profiles: tuple[Profile, ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    workspace: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    embed_plugins: tuple[str, ...] = ()
    same_compute_capability: bool = False
    tf32: bool = False
    timing_cache: bytes | None = None


class TimingCacheHandle(Protocol):
    """TensorRT's timings after a build."""

    refused: bool
    """Whether TensorRT would not take what was stored before."""

    def merged(self, stored: bytes) -> bytes:
        """Return these timings and what ``stored`` has besides, serialised; without it where TensorRT refuses it."""


@dataclass
class Built:
    """A serialised plan, or None where TensorRT gave up (its messages say why), and the timing cache after it."""

    plan: bytes | None
    timing_cache: TimingCacheHandle | None = None
    bad_profile: bool = False
