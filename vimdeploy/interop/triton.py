"""What stands in for triton: kernels can be defined and decorated; launching one raises unless it is known here."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor

from vimdeploy.interop.refusal import refuse
from vimdeploy.interop.stubs import StubModule, make_stub


def _windows(x: Tensor, y: Tensor, size: int, flip: int, *grid: int, back: bool) -> None:
    """Reorder the pixels of x (B, C, H, W) window by window into y, or back (LocalMamba's local scan)."""
    channels, height, width = grid[3:6]
    rows, columns = height // size, width // size
    if back:
        v = x.reshape(x.shape[0], channels, rows, columns, size, size)
    else:
        v = x.reshape(x.shape[0], channels, rows, size, columns, size)
    if flip and back:
        v = x.reshape(x.shape[0], channels, -1).flip(-1).reshape(v.shape)
    moved = v.permute(0, 1, 2, 4, 3, 5).reshape(x.shape[0], channels, -1)
    if flip and not back:
        moved = moved.flip(-1)
    y.copy_(moved.reshape(y.shape))


KERNELS: dict[str, Callable[..., None]] = {
    "triton_local_scan": lambda x, y, size, flip, *grid: _windows(x, y, size, flip, *grid, back=False),
    "triton_local_reverse": lambda x, y, size, flip, *grid: _windows(x, y, size, flip, *grid, back=True),
}
"""What is computed instead of launching a kernel that only moves values, by the kernel's name."""


class Kernel:
    """A decorated function: ``kernel[grid](...)`` launches it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__name__ = getattr(function, "__name__", "kernel")
        self.__doc__ = function.__doc__
        self.fn = function

    def __getitem__(self, _grid: Any) -> Callable[..., Any]:
        return KERNELS.get(self.__name__, self)

    def __call__(self, *_arguments: Any, **_named: Any) -> Any:
        """Refuse by name."""
        raise refuse(
            f"the Triton kernel {getattr(self.fn, '__module__', '')}.{self.__name__}",
            "a launch",
            "Give the model a path without it (most repositories have one for the CPU), or report it with --report.",
        )


def _jit(function: Any = None, **_options: Any) -> Any:
    return Kernel(function) if callable(function) else Kernel


def _unchanged(*_arguments: Any, **_options: Any) -> Callable[[Any], Any]:
    return lambda kernel: kernel


def make_triton(name: str) -> ModuleType:
    """Return the module ``triton``, or one below it."""
    module = StubModule(name)
    module.__path__ = []
    module.__version__ = "3.0.0"  # type: ignore[attr-defined]
    if name == "triton":
        module.__dict__.update(
            jit=_jit,
            autotune=_unchanged,
            heuristics=_unchanged,
            Config=make_stub("triton.Config"),
            cdiv=lambda a, b: -(-a // b),
            next_power_of_2=lambda n: 1 << (int(n) - 1).bit_length(),
        )
    return module
