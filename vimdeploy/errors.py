"""What can go wrong, in words a user can act on.

Every error a command can foresee is a :class:`VimdeployError`. Its message names the file and what is wrong; its hint
says what to do next. The command line prints both and exits with :attr:`VimdeployError.exit_code`; a traceback is a
bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VimdeployError(Exception):
    """Something the user can mend.

    Args:
        message: what is wrong, naming the file or the argument.
        hint: what to do next; empty where the message already says it.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(VimdeployError):
    """An argument, recipe or option that does not exist or does not fit."""


class CheckpointError(VimdeployError):
    """A checkpoint that cannot be read, is not safe to read, or is not the model it should be."""


class ModelError(VimdeployError):
    """A model variant that the official code crashes on, or that is random by construction."""


class ArtifactError(VimdeployError):
    """An ONNX file, plan or manifest that is missing, corrupt, foreign or of another version."""


class ImageError(VimdeployError):
    """An image that cannot be read."""


class MissingDependencyError(VimdeployError):
    """A library, driver or device that this machine does not have."""


class VerificationError(VimdeployError):
    """Two forms of a model that should compute the same thing and do not."""

    exit_code = 1


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"Did you mean 'x'?"`` for the closest known name, or the list of known names when none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(known)}."
