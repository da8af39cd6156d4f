"""How long work says what it is at: one reporter, handed down from whoever asked for the work."""

from __future__ import annotations


class Reporter:
    """Told what work is at; this one says nothing, a subclass shows it. Methods may be called from any thread."""

    def stage(self, text: str) -> None:
        """Tell that a stage begins: ``"Exporting to ONNX"``."""

    def progress(self, done: int, total: int) -> None:
        """Tell that ``done`` of ``total`` steps of the stage are done."""

    def note(self, text: str) -> None:
        """Tell something worth knowing that the result does not say."""


SILENT = Reporter()
"""Keeps everything to itself: the default of every function that takes a reporter."""
