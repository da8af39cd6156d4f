"""How a substitute says that it does not stand in for something."""

from __future__ import annotations

from vimdeploy.errors import VimdeployError


class UnsupportedCallError(VimdeployError):
    """A call of the user's code that no substitute can answer: a stub, a training-only path, carried states."""


def refuse(function: str, what: str, hint: str = "") -> UnsupportedCallError:
    """Return the error for an argument of ``function`` that is not supported.

    Args:
        function: as the user's code calls it, such as ``causal_conv1d_fn``.
        what: the argument or feature.
        hint: what to do instead.

    """
    return UnsupportedCallError(
        f"{function}: {what} is not supported.",
        hint=hint or "vimdeploy exports whole sequences for inference: no step caches, no packed sequences.",
    )
