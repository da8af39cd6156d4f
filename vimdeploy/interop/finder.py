"""The import hook: names of the tables lead to substitutes, named absent packages to stubs, all else is untouched."""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import linecache
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Literal

from vimdeploy.interop import table
from vimdeploy.interop.stubs import StubModule
from vimdeploy.interop.triton import make_triton

Kind = Literal["substitute", "stub", "triton"]

EVER_SERVED: dict[str, Kind] = {}
"""What was served to anybody in this process: models built earlier still hold it."""

_IMPORT_ERRORS = ("ImportError", "ModuleNotFoundError", "Exception", "BaseException")


def below(name: str, roots: Sequence[str]) -> bool:
    """Return whether ``name`` is one of ``roots`` or lies below one."""
    return any(name == root or name.startswith(f"{root}.") for root in roots)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Serves substitutes and stubs, and remembers what it served.

    Args:
        stubs: packages to stub where they are absent.

    """

    def __init__(self, stubs: Sequence[str] = table.STUBS) -> None:
        self.stubs = tuple(stubs)
        self.served: dict[str, Kind] = {}
        """Names in the order they were asked for."""
        self._modules: dict[str, ModuleType] = {}

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Return a spec for what is substituted or stubbed."""
        del path, target
        kind = self._kind(fullname)
        if kind is None or not _is_users(importer := _importer()):
            return None
        if kind == "stub" and _is_guarded(importer):
            return None  # its author has a way without the package
        self.served[fullname] = EVER_SERVED[fullname] = kind
        spec = importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        spec.loader_state = kind
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Return the module, the same one every time."""
        name = spec.name
        if name not in self._modules:
            self._modules[name] = self._make(name, spec.loader_state)
        return self._modules[name]

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the module is made whole."""

    def owns(self, module: ModuleType | None) -> bool:
        """Return whether a module was made here."""
        return module is not None and self._modules.get(module.__name__) is module

    def _make(self, name: str, kind: Kind) -> ModuleType:
        if kind == "triton":
            return make_triton(name)
        contents = table.EXTENSIONS.get(name, table.PACKAGE.get(name))
        if kind == "substitute" and contents is not None:
            return table.build(name, contents)
        module = StubModule(name)
        module.__path__ = []
        module.__version__ = "0.0.0"  # type: ignore[attr-defined]
        return module

    def _kind(self, name: str) -> Kind | None:
        root = name.partition(".")[0]
        if root == "triton":
            return "triton"
        if name in table.EXTENSIONS:
            return "substitute"
        if below(name, table.HOLLOW):
            return "stub"
        if root == "mamba_ssm" and _is_absent(root):
            if name in table.PACKAGE:
                return "substitute"
            return "stub" if below(name, table.HOLLOW_PACKAGE) else None
        return "stub" if below(name, self.stubs) and _is_absent(root) else None


def _is_absent(package: str) -> bool:
    return importlib.machinery.PathFinder.find_spec(package) is None


def _importer() -> FrameType | None:
    """Return the frame whose import statement is under way."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (
        frame.f_code.co_filename == __file__ or "importlib" in Path(frame.f_code.co_filename).name
        or "importlib" in frame.f_code.co_filename
    ):  # fmt: skip
        frame = frame.f_back
    return frame


def _is_users(frame: FrameType | None) -> bool:
    """Return whether code outside torch and its exporter asks: that must see which packages are really there."""
    name = frame.f_globals.get("__name__", "") if frame else ""
    return not below(name, ("torch", "onnxscript", "onnx", "onnx_ir", "onnxruntime", "numpy"))


def _is_guarded(frame: FrameType | None) -> bool:
    """Return whether the import statement sits in a ``try`` that expects it to fail."""
    if frame is None:
        return False
    try:
        tree = ast.parse("".join(linecache.getlines(frame.f_code.co_filename)))
    except SyntaxError:
        return False
    return any(
        isinstance(node, ast.Try)
        and any(part.lineno <= frame.f_lineno <= (part.end_lineno or 0) for part in node.body)
        and any(_expects_import_error(handler) for handler in node.handlers)
        for node in ast.walk(tree)
    )


def _expects_import_error(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    return any(isinstance(n, ast.Name) and n.id in _IMPORT_ERRORS for n in ast.walk(handler.type))
