"""Names of CUDA devices mean the CPU: code that asks for ``cuda`` imports, builds and runs on a machine without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

_MOVES = ("to", "cuda")


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == "cuda" else value
    return "cpu" if isinstance(value, str) and value.partition(":")[0] == "cuda" else value


class CudaIsCpu(TorchFunctionMode):
    """Every torch function that is given a CUDA device gets the CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace device arguments and call ``function``."""
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name == "cuda" and args:
            return args[0]
        if name in _MOVES:
            args = tuple(map(_on_cpu, args))
        if "device" in kwargs:
            kwargs = {**kwargs, "device": _on_cpu(kwargs["device"])}
        return function(*args, **kwargs)


def _no_device(*_arguments: Any, **_named: Any) -> Any:
    return nullcontext()


@contextmanager
def cuda_is_cpu() -> Iterator[None]:
    """Map CUDA to the CPU inside the block, also for code that selects or waits for a device."""
    replaced: dict[str, Any] = {
        "device": _no_device,
        "device_of": _no_device,
        "stream": _no_device,
        "synchronize": lambda *_arguments, **_named: None,
        "set_device": lambda *_arguments, **_named: None,
        "current_device": lambda: 0,
        "empty_cache": lambda: None,
    }
    with mock.patch.multiple("torch.cuda", **replaced), CudaIsCpu():
        yield
