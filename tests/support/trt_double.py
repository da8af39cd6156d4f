"""A double of TensorRT's Python API, generated from the real bindings.

Every class, method, property and enum of the double is read from the bindings themselves: what they lack raises
AttributeError, a call whose arguments do not fit the signature that the bindings document raises TypeError, a property
that they do not let anyone set cannot be set. Results are doubles of the documented type; a test replaces the few whose
value matters. So code that runs against the double of a version uses that version's API rightly, as far as types say.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable
from typing import Any

_REAL = ("ILogger", "IProgressMonitor")
"""Classes that users subclass: the bindings' own work without TensorRT's libraries."""

_ALIASES = {"IParserError": "ParserError"}
"""C++ names that some docstrings use for classes of another Python name."""


def double(bindings: types.ModuleType, results: dict[str, Callable[..., Any]]) -> types.ModuleType:
    """Return a module that stands for ``bindings``. ``results`` maps ``"Class.member"`` to a function of self."""
    module = types.ModuleType("tensorrt_double")
    factory = _Factory(bindings, results)
    for name in dir(bindings):
        value = getattr(bindings, name)
        if inspect.isclass(value):
            setattr(module, name, factory.cls(name))
        elif isinstance(value, types.BuiltinFunctionType):
            setattr(module, name, factory.function(name, value.__doc__ or ""))
    module.__version__ = bindings.__version__  # type: ignore[attr-defined]
    module.called = factory.called  # type: ignore[attr-defined]
    return module


class _Factory:
    def __init__(self, bindings: types.ModuleType, results: dict[str, Callable[..., Any]]) -> None:
        self.bindings = bindings
        self.results = results
        self.classes: dict[str, Any] = {}
        self.called: set[str] = set()

    def cls(self, name: str) -> Any:
        real = getattr(self.bindings, name)
        if hasattr(real, "__members__") or name in _REAL or not real.__module__.startswith("tensorrt"):
            return real
        if name not in self.classes:
            base = bytearray if name == "IHostMemory" else object  # the one class with the buffer protocol
            self.classes[name] = made = type(name, (base,), {})
            for member in dir(real):
                if not member.startswith("__"):
                    setattr(made, member, self.member(name, member, inspect.getattr_static(real, member)))
            setattr(made, "__init__", self.function(f"{name}.__init__", real.__init__.__doc__ or ""))  # noqa: B010
        return self.classes[name]

    def member(self, cls: str, name: str, real: Any) -> Any:
        key = f"{cls}.{name}"
        if isinstance(real, property):
            doc = (real.fget.__doc__ if real.fget else "") or ""
            returns = doc.split(" -> ")[-1].strip().split("\n")[0] if " -> " in doc else "object"
            stored = f"_{name}"

            def get(this: Any) -> Any:
                self.called.add(key)
                if stored in this.__dict__:
                    return this.__dict__[stored]
                return self.results[key](this) if key in self.results else self.value(returns)

            def put(this: Any, value: Any) -> None:
                self.called.add(key)
                self.check(key, name, returns, value)
                this.__dict__[stored] = value

            return property(get, put if real.fset else None)
        return self.function(key, getattr(real, "__doc__", "") or "")

    def function(self, key: str, doc: str) -> Any:
        name = key.rsplit(".", maxsplit=1)[-1]
        overloads = [_signature(text) for text in re.findall(rf"{name}(\(.*\) -> .*)", doc) if "*args" not in text]

        def call(*args: Any, **kwargs: Any) -> Any:
            self.called.add(key)
            if not overloads:
                raise TypeError(f"{key}: the bindings document no signature")
            problems = []
            for parameters, returns in overloads:
                try:
                    self.bind(key, parameters, args, kwargs)
                except TypeError as error:
                    problems.append(str(error))
                    continue
                if key in self.results:
                    return self.results[key](*args[:1])
                return None if name == "__init__" else self.value(returns)
            raise TypeError("; ".join(problems))

        return call

    def bind(self, key: str, parameters: list[tuple[str, str, bool]], args: Any, kwargs: Any) -> None:
        if len(args) > len(parameters):
            raise TypeError(f"{key} takes {len(parameters)} arguments, got {len(args)}")
        given = dict(zip((p[0] for p in parameters), args, strict=False))
        for name, value in kwargs.items():
            if name in given or name not in {p[0] for p in parameters}:
                raise TypeError(f"{key}: unexpected argument {name}")
            given[name] = value
        for name, annotation, optional in parameters:
            if name in given:
                self.check(key, name, annotation, given[name])
            elif not optional:
                raise TypeError(f"{key}: {name} is missing")

    def check(self, key: str, name: str, annotation: str, value: Any) -> None:
        plain = {"int": int, "bool": bool, "str": str, "list[str]": list}
        short = _short(annotation)
        if short in ("SupportsInt",):
            fits = isinstance(value, int)
        elif short == "Buffer":
            fits = isinstance(value, (bytes, bytearray, memoryview))
        elif short == "Dims":
            fits = isinstance(value, tuple) and all(isinstance(d, int) for d in value)
        elif annotation in plain:
            fits = isinstance(value, plain[annotation])
        elif hasattr(self.bindings, short):
            fits = value is not None and isinstance(value, self.cls(short))
        else:
            fits = short in ("object", "CapsuleType")
        if not fits:
            raise TypeError(f"{key}: {name} should be {annotation}, got {value!r}")

    def value(self, annotation: str) -> Any:
        plain = {"bool": True, "int": 1, "str": "{}", "None": None, "object": object()}
        short = _short(annotation)
        if annotation in plain:
            return plain[annotation]
        if annotation == "list[object]":
            return []
        if short == "Dims" and not annotation.startswith("list"):
            return (1, 2)
        if annotation.startswith("list["):
            return [self.value(annotation[5:-1])]
        if hasattr(self.bindings, short):
            cls = self.cls(short)
            return next(iter(cls.__members__.values())) if hasattr(cls, "__members__") else cls.__new__(cls)
        return object()


def _short(annotation: str) -> str:
    name = re.split(r"[.:]", annotation)[-1].rstrip("]")
    return _ALIASES.get(name, name)


def _signature(text: str) -> tuple[list[tuple[str, str, bool]], str]:
    """Parse ``(self: a.B, x: int = 0) -> C`` into parameters (name, annotation, optional) and the result."""
    inside, returns = text[1:].rsplit(") -> ", 1)
    parameters, depth, start = [], 0, 0
    for i, c in enumerate(inside + ","):
        depth += (c in "[(<") - (c in "])>")
        if c == "," and depth == 0:
            parameters.append(inside[start:i].strip())
            start = i + 1
    parsed = []
    for parameter in filter(None, parameters):
        name, _, annotation = parameter.partition(": ")
        kind, _, default = annotation.partition(" = ")
        parsed.append((name, kind.strip(), bool(default)))
    return parsed, returns.strip()
