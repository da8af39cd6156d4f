"""The rooms of the package and the arrows between them, read from every import, lazy ones and those of types too."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "vimdeploy"
API = "__init__"
"""The room of ``vimdeploy/__init__.py``."""

Arrows = dict[tuple[str, str], list[str]]
"""Importing and imported room -> the places that import."""


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Return every module by its dotted name (``vimdeploy.ops.scan``, ``vimdeploy.ops``)."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str) -> str:
    """Return the room of a module of the package: the folder, or the file where it lies at the top."""
    return module.split(".")[1] if "." in module else API


def imported(path: Path, known: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """Yield (dotted name, line) of every module that a file imports, ours and foreign."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield (name if _is_ours(name, known) else node.module), node.lineno


def _is_ours(name: str, known: dict[str, Path]) -> bool:
    return name in known or any(module.startswith(f"{name}.") for module in known)


def arrows(package: Path = PACKAGE) -> Arrows:
    """Return the arrows between rooms."""
    known = modules(package)
    found: Arrows = defaultdict(list)
    for module, path in known.items():
        for name, line in imported(path, known):
            if _is_ours(name, known) and room_of(name) != room_of(module):
                found[room_of(module), room_of(name)].append(f"{path.relative_to(package.parent)}:{line}")
    return dict(found)


def foreign(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Return, for each module, the packages from outside that it imports anywhere."""
    known = modules(package)
    return {
        module: {name.split(".")[0] for name, _ in imported(path, known) if not _is_ours(name, known)}
        for module, path in known.items()
    }
