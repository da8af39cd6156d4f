"""Which code computes the custom ops: our kernels, torch code, or the official kernels as a cross-check."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor

from vimdeploy.errors import MissingDependencyError, UsageError, nearest

Implementation = Literal["kernels", "torch", "mamba-ssm"]
"""``kernels``: on a GPU those of the TensorRT plugin, on a CPU the native ops; where they are not built, torch."""
VARIABLE = "VIMDEPLOY_OPS"
"""Environment variable that selects the implementation for a whole process."""

_PACKAGES = {"mamba-ssm": ("mamba_ssm", "causal_conv1d")}
_selected: list[Implementation] = []


def implementation() -> Implementation:
    """Return the implementation in use: the innermost :func:`using`, else ``VIMDEPLOY_OPS``, else ``kernels``.

    Raises:
        UsageError: ``VIMDEPLOY_OPS`` names none.
        MissingDependencyError: its packages are not installed.

    """
    return _selected[-1] if _selected else check(os.environ.get(VARIABLE) or "kernels")


@contextmanager
def using(name: str) -> Iterator[None]:
    """Compute the ops with ``name`` inside the block; raises as :func:`implementation` does."""
    _selected.append(check(name))
    try:
        yield
    finally:
        _selected.pop()


def check(name: str) -> Implementation:
    """Return ``name`` if it is an implementation whose packages are installed; raises as :func:`implementation`."""
    for known in get_args(Implementation):
        if name == known:
            missing = [p for p in _PACKAGES.get(name, ()) if importlib.util.find_spec(p) is None]
            if missing:
                raise MissingDependencyError(
                    f"Computing the ops with {name} needs {' and '.join(missing)}.",
                    hint="pip install causal-conv1d mamba-ssm",
                )
            return known  # type: ignore[no-any-return]
    raise UsageError(f"There is no implementation '{name}' of the ops.", hint=nearest(name, get_args(Implementation)))


def autograd_follows(*tensors: Tensor) -> bool:
    """Whether gradients of any of the tensors are asked for: then a model needs the differentiable form of an op."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
