"""Sizes that must stay symbolic while a module is traced: keeping them so, and finding the line that did not.

Python's ``int(x.shape[0] / 2)`` turns a symbolic size into a number, and the exported file then serves one batch size
without any error. Two answers: inside the user's modules ``int`` keeps symbolic sizes; and whatever still turns one
into a number is noted with the line that did it.
"""

from __future__ import annotations

import builtins
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, cast
from unittest import mock

import sympy  # type: ignore[import-untyped]
import torch
from torch import nn
from torch.fx.experimental.sym_node import SymNode
from torch.utils._sympy.functions import FloatTrueDiv, FloorDiv, IntTrueDiv, ToFloat

_NOT_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), sysconfig.get_paths()["stdlib"])
_LIBRARIES = ("torch", "numpy", "vimdeploy", "einops", "builtins")


@dataclass(frozen=True)
class Baked:
    """A symbolic size that became a number."""

    size: str
    """The expression, such as ``s0`` or ``s0*s1``."""
    value: int | float | None
    """None where a size was only compared, which decides for one side of the comparison."""
    file: str
    line: int
    code: str

    def in_words(self) -> str:
        """Return where and what, for people."""
        done = "compares sizes" if self.value is None else f"turns a size into the number {self.value}"
        return f"{self.file}:{self.line}: `{self.code}` {done}"


class _SymbolicInt(type):
    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        if len(arguments) == 1 and isinstance(arguments[0], torch.SymFloat):
            quotient = _as_floor_division(arguments[0])
            if quotient is not None:
                return quotient
        if len(arguments) == 1 and isinstance(arguments[0], (torch.SymInt, torch.SymFloat)):
            return torch.sym_int(arguments[0])  # type: ignore[no-untyped-call]
        return builtins.int(*arguments, **named)

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, (builtins.int, torch.SymInt))

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, builtins.int)


class symbolic_int(builtins.int, metaclass=_SymbolicInt):  # noqa: N801
    """Python's ``int``, except that symbolic sizes stay symbolic."""


def _as_floor_division(value: torch.SymFloat) -> torch.SymInt | None:
    """Return ``a // b`` for a value that is ``a / b`` with integers: what int() means for sizes, and can be proven."""
    ratio = _ratio(value.node.expr)
    if ratio is None:
        return None
    return cast(
        "torch.SymInt", value.node.shape_env.create_symintnode(FloorDiv(*ratio), hint=builtins.int(value.node.hint))
    )


def _ratio(expression: Any) -> tuple[Any, Any] | None:
    """Return numerator and denominator, both integers, of a quotient of sizes; None where it is something else."""
    if expression.is_integer:
        return expression, sympy.Integer(1)
    if isinstance(expression, ToFloat):
        return expression.args[0], sympy.Integer(1)
    if expression.is_Float and builtins.float(expression).is_integer():
        return sympy.Integer(builtins.int(expression)), sympy.Integer(1)
    if isinstance(expression, (FloatTrueDiv, IntTrueDiv)):
        above, below = map(_ratio, expression.args)
        if above is not None and below is not None:
            return above[0] * below[1], above[1] * below[0]
    return None


@contextmanager
def sizes_stay_symbolic(module: nn.Module) -> Iterator[None]:
    """Let ``int`` keep symbolic sizes in all code that ``module`` is made of, inside the block."""
    spaces = [space for space in _namespaces(module) if "int" not in space]
    for space in spaces:
        space["int"] = symbolic_int
    try:
        yield
    finally:
        for space in spaces:
            del space["int"]


def _namespaces(module: nn.Module) -> list[dict[str, Any]]:
    """Return the globals of the classes of a module tree, and of the user's functions that those name."""
    found: dict[int, dict[str, Any]] = {}
    todo: list[Any] = [cls for part in module.modules() for cls in type(part).__mro__]
    seen: set[int] = set()
    while todo:
        value = todo.pop()
        if id(value) in seen or str(getattr(value, "__module__", "") or "").partition(".")[0] in _LIBRARIES:
            continue
        seen.add(id(value))
        if isinstance(value, type):
            todo += [member for cls_member in vars(value).values() for member in _functions(cls_member)]
            continue
        space = getattr(value, "__globals__", None)
        if space is None or id(space) in found:
            continue
        found[id(space)] = space
        todo += [v for v in list(space.values()) if isinstance(v, type) or hasattr(v, "__code__")]
    return list(found.values())


def _functions(member: Any) -> list[Any]:
    function = getattr(member, "__func__", member)
    if isinstance(member, property):
        function = member.fget
    wrapped = getattr(function, "__wrapped__", None)
    return [f for f in (function, wrapped) if f is not None and hasattr(f, "__code__")]


@contextmanager
def watch_baking() -> Iterator[list[Baked]]:
    """Note, inside the block, every symbolic size that is turned into a number, or decides a comparison."""
    found: dict[tuple[str, int], Baked] = {}

    def note(node: Any, value: Any) -> None:
        frame = users_frame()
        if frame is not None:
            name, number = frame.f_code.co_filename, frame.f_lineno
            known = found.get((name, number))
            if known is None or known.value is None:
                found[name, number] = Baked(str(node.expr), value, name, number, _code(name, number))

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def guard(node: Any, file: str, line: int) -> Any:
            # Asked before: afterwards torch takes the expression for the number.
            symbolic = getattr(node, "constant", None) is None and getattr(node.expr, "free_symbols", None)
            value = original(node, file, line)
            if symbolic:
                note(node, value)
            return value

        return guard

    def compared(original: Callable[..., Any]) -> Callable[..., Any]:
        def guard(node: Any, *rest: Any) -> Any:
            guards = getattr(node.shape_env, "guards", ())
            before = len(guards)
            value = original(node, *rest)
            if len(guards) > before:
                note(node, None)
            return value

        return guard

    result: list[Baked] = []
    try:
        with (
            mock.patch.object(SymNode, "guard_int", watched(SymNode.guard_int)),
            mock.patch.object(SymNode, "guard_float", watched(SymNode.guard_float)),
            mock.patch.object(SymNode, "guard_bool", compared(SymNode.guard_bool)),
            mock.patch.object(SymNode, "expect_true", compared(SymNode.expect_true)),
        ):
            yield result
    finally:
        result += found.values()


def users_frame() -> FrameType | None:
    """Return the innermost frame that is neither torch's nor vimdeploy's nor Python's own."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_NOT_USERS) and not name.startswith("<"):
            return frame
        frame = frame.f_back
    return None


def users_line(error: BaseException) -> str:
    """Return ``file:line: `code` `` of the innermost line of the user's in an error's traceback, or nothing."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    for link in reversed(chain):
        trace, last = link.__traceback__, ""
        while trace is not None:
            name = trace.tb_frame.f_code.co_filename
            if not name.startswith(_NOT_USERS) and not name.startswith("<"):
                last = f"{name}:{trace.tb_lineno}: `{_code(name, trace.tb_lineno)}`"
            trace = trace.tb_next
        if last:
            return last
    return ""


def _code(file: str, line: int) -> str:
    import linecache

    return linecache.getline(file, line).strip()
