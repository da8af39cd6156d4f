"""How long work says what it is at: one reporter, handed down from whoever asked for the work."""

from __future__ import annotations


class Reporter:
    """Told what work is at; this one says nothing, a subclass shows it. Methods may be called from any thread."""

    def stage(self, text: str) -> None:
        """Tell that a stage begins: ``"Exporting to ONNX"``."""

    def progress(self, done: int, total: int) -> None:
        """Tell that ``done`` of ``total`` steps of the stage are done; 0 where nobody knows how many there are."""

    def note(self, text: str) -> None:
        """Tell something worth knowing that the result does not say."""

    def part(self, index: int, count: int) -> Reporter:
        """Return who is told about part ``index`` of ``count`` parts of equal length, so that they are one way."""
        return _Part(self, index, count)


class _Part(Reporter):
    def __init__(self, whole: Reporter, index: int, count: int) -> None:
        self._whole, self._index, self._count = whole, index, count

    def stage(self, text: str) -> None:
        self._whole.stage(text)

    def progress(self, done: int, total: int) -> None:
        self._whole.progress(self._index * total + done, self._count * total)

    def note(self, text: str) -> None:
        self._whole.note(text)


SILENT = Reporter()
"""Keeps everything to itself: the default of every function that takes a reporter."""
