"""``substitute_mamba_ssm()``: inside it, code built on mamba_ssm's kernels imports, builds and runs on any machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

from vimdeploy.interop import table
from vimdeploy.interop.devices import cuda_is_cpu
from vimdeploy.interop.finder import EVER_SERVED, Finder, Kind, below
from vimdeploy.interop.stubs import StubType


@dataclass(frozen=True)
class Substitution:
    """What was put in the place of what."""

    finder: Finder

    @property
    def substituted(self) -> tuple[str, ...]:
        """Modules that compute the same as the original."""
        return tuple(name for name, kind in self._served().items() if kind == "substitute")

    @property
    def stubbed(self) -> tuple[str, ...]:
        """Absent packages whose functions raise when they are called; ``triton`` as far as its kernels are launched."""
        return tuple(name for name, kind in self._served().items() if kind != "substitute")

    def _served(self) -> dict[str, Kind]:
        """Return what this context served, or where it served nothing, what models built before it may hold."""
        return self.finder.served or EVER_SERVED

    def in_words(self) -> str:
        """Return one line for people."""
        parts = []
        if self.substituted:
            parts.append(f"substituted {', '.join(self.substituted)}")
        if self.stubbed:
            parts.append(f"stubbed (raise when called) {', '.join(_roots(self.stubbed))}")
        return "; ".join(parts) or "nothing was substituted or stubbed"


def _roots(names: Sequence[str]) -> list[str]:
    return sorted({name if name.startswith("mamba_ssm") else name.partition(".")[0] for name in names})


_active: list[Finder] = []


@contextmanager
def substitute_mamba_ssm(*, stubs: Sequence[str] = ()) -> Iterator[Substitution]:
    """Let models that need mamba_ssm, its CUDA extensions or Triton import, build and run without any of them.

    Inside the block, compiled extensions and Triton norms are substituted by functions that compute the same (autograd
    follows them), ``mamba_ssm`` itself where it is not installed; a named list of packages is stubbed where absent, and
    CUDA means the CPU. Afterwards no substitute can be imported any more, and modules that were imported inside the
    block and hold one have to be imported again; objects made from them keep working.

    Args:
        stubs: further packages to stub where they are absent.

    Yields:
        What was substituted and stubbed; it fills while modules are imported.

    """
    finder = _active[-1] if _active else Finder((*table.STUBS, *stubs))
    if _active:
        finder.stubs = tuple(dict.fromkeys((*finder.stubs, *stubs)))
        yield Substitution(finder)
        return
    _look_before_the_stub_does()
    before = dict(sys.modules)
    hidden = {name: sys.modules.pop(name) for name in before if finder._kind(name) in ("substitute", "triton")}
    sys.meta_path.insert(0, finder)
    _active.append(finder)
    try:
        with cuda_is_cpu():
            yield Substitution(finder)
    finally:
        _active.remove(finder)
        sys.meta_path.remove(finder)
        _forget(finder, before)
        sys.modules.update(hidden)


def _look_before_the_stub_does() -> None:
    """Let torch find out, and keep, whether Triton is really there."""
    import torch._inductor.runtime.triton_compat  # noqa: F401
    from torch.utils import _triton

    for name in ("has_triton_package", "has_triton"):
        look = getattr(_triton, name, None)
        if look is not None:
            look()


def _forget(finder: Finder, before: dict[str, ModuleType]) -> None:
    """Remove what was served, and new modules that hold any of it or are part of a package that does."""
    fresh = {
        name: module
        for name, module in list(sys.modules.items())
        if module is not None and before.get(name) is not module and not below(name, ("torch", "vimdeploy"))
    }
    tainted = {name for name, module in fresh.items() if finder.owns(module)}
    rest = {name: module for name, module in fresh.items() if name not in tainted}
    while True:
        roots = {name.partition(".")[0] for name in tainted if name not in finder.served}
        found = {name for name, module in rest.items() if below(name, tuple(roots)) or _holds(module, tainted)}
        if not found:
            break
        tainted |= found
        rest = {name: module for name, module in rest.items() if name not in found}
    for name in tainted:
        del sys.modules[name]


def _holds(module: ModuleType, tainted: set[str]) -> bool:
    try:
        values: list[Any] = list(vars(module).values())
    except TypeError:
        return False
    for value in values:
        if isinstance(value, ModuleType):
            origin = value.__name__
        elif isinstance(value, StubType) or isinstance(type(value), StubType):
            return True
        elif isinstance(value, (type, FunctionType)):
            origin = str(value.__module__)
        else:
            continue  # asking other objects for attributes may run their code
        if origin in tainted or origin.startswith("vimdeploy.interop."):
            return True
    return False
