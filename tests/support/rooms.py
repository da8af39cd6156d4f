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
    """Return every module of the package by its dotted name below it; a package is its ``__init__``."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def room_of(module: str) -> str:
    """Return the room of a module: the folder, or the file where it lies at the top."""
    return module.split(".", maxsplit=1)[0]


def imported(path: Path, known: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """Yield (module, line) of everything of the package that a file imports, and foreign packages by their name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield _below(alias.name), node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inside = _below(node.module)
            for alias in node.names:
                name = alias.name if inside == API else f"{inside}.{alias.name}"
                yield (name if name in known else inside), node.lineno


def _below(name: str) -> str:
    return API if name == "vimdeploy" else name.removeprefix("vimdeploy.")


def arrows(package: Path = PACKAGE) -> Arrows:
    """Return the arrows between rooms."""
    known = modules(package)
    rooms = {room_of(module) for module in known}
    found: Arrows = defaultdict(list)
    for module, path in known.items():
        for target, line in imported(path, known):
            source, room = room_of(module), room_of(target)
            ours = target in known or any(name.startswith(f"{target}.") for name in known)
            if ours and room in rooms and room != source:
                found[source, room].append(f"{path.relative_to(package.parent)}:{line}")
    return dict(found)


def foreign(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Return the packages from outside that each room imports anywhere."""
    known = modules(package)
    found: dict[str, set[str]] = defaultdict(set)
    for module, path in known.items():
        for target, _ in imported(path, known):
            if target not in known:
                found[room_of(module)].add(target.split(".")[0])
    return dict(found)
