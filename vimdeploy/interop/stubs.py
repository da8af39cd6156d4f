"""Stubs: what an absent package looks like to code that only imports it. A stub that is called raises with its name.

While modules are being imported, stubs behave as decorators, base classes and registries must; afterwards a call is an
error, because a model that needs the package would compute nothing.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from vimdeploy.interop.refusal import UnsupportedCallError

_IMPORT_MACHINERY = "<frozen importlib._bootstrap>"


class StubCalledError(UnsupportedCallError):
    """The user's code called something of an absent package."""


class StubType(type):
    """Type of stubs that are classes, so that they can be subclassed, indexed and looked into."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return make_stub(f"{_name_of(cls)}.{name}")

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        """Decorate while modules are imported; raise StubCalledError afterwards."""
        del named
        if not is_importing():
            raise _called(_name_of(cls))
        if len(arguments) == 1 and (isinstance(arguments[0], type) or hasattr(arguments[0], "__code__")):
            return arguments[0]  # a decorator
        return super().__call__()

    def __getitem__(cls, _key: Any) -> Any:
        return cls

    def __iter__(cls) -> Any:
        return iter(())

    def __or__(cls, other: Any) -> Any:
        return cls

    def __ror__(cls, other: Any) -> Any:
        return cls


class StubModule(ModuleType):
    """A module whose every attribute is a stub."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = make_stub(f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value


def make_stub(name: str) -> Any:
    """Return the stub of ``name``, such as ``torchvision.ops.deform_conv2d``."""
    return StubType(name.rpartition(".")[2], (), {**_MEMBERS, "_stub_name": name})


def _call(self: Any, *arguments: Any, **named: Any) -> Any:
    del named
    if not is_importing():
        raise _called(_name_of(type(self)))
    return arguments[0] if len(arguments) == 1 and callable(arguments[0]) else self


def _attribute(self: Any, name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return make_stub(f"{_name_of(type(self))}.{name}")


def _nothing(_self: Any, *_arguments: Any, **_named: Any) -> None:
    return None


def _itself(self: Any, *_key: Any) -> Any:
    return self


def _empty(_self: Any) -> Any:
    return iter(())


_MEMBERS = {
    "__init__": _nothing,
    "__call__": _call,
    "__getattr__": _attribute,
    "__getitem__": _itself,
    "__iter__": _empty,
    "__enter__": _itself,
    "__exit__": _nothing,
}


def _name_of(cls: type) -> str:
    return str(getattr(cls, "_stub_name", cls.__name__))


def _called(name: str) -> StubCalledError:
    package = name.partition(".")[0]
    return StubCalledError(
        f"{name} was called, but {package} is not installed: a stub stands in for it.",
        hint=f"Install {package}, or take the call out of the model's forward path.",
    )


def is_importing() -> bool:
    """Return whether a module is being executed further up the stack, by an import."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT_MACHINERY and frame.f_code.co_name == "_load_unlocked":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
