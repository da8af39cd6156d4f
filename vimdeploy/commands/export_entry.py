"""``vimdeploy export package.module:function``: a module named by an entry point, exported in a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vimdeploy.artifacts.files import check_writable
from vimdeploy.artifacts.manifest import Manifest, manifest_path, read_manifest
from vimdeploy.commands.module_worker import ModuleRequest, parse_input
from vimdeploy.errors import UsageError, VimdeployError

_ENTRY = re.compile(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*(\.\w+)*")


@dataclass(frozen=True)
class ExportedEntry:
    """What an export of an entry point made."""

    path: Path
    manifest: Manifest
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        paths = {"path": str(self.path), "manifest_path": str(manifest_path(self.path))}
        return {**paths, **self.manifest.model_dump(mode="json"), "notes": list(self.notes)}


class EntryError(VimdeployError):
    """What the process that imported the user's code says went wrong."""

    def __init__(self, message: str, *, hint: str, exit_code: int) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


def is_entry(text: str) -> bool:
    """Return whether ``text`` is written like ``package.module:function`` and is no file."""
    return bool(_ENTRY.fullmatch(text)) and not Path(text).exists()


def export_entry(request: ModuleRequest) -> ExportedEntry:
    """Export what ``request`` says, in a process of its own.

    Raises:
        UsageError: an input, folder or file that does not exist or cannot be read or written.
        EntryError: what went wrong inside, in words, with its exit code.

    """
    if not request.inputs:
        raise UsageError(
            f"{request.entry}: which inputs does it take?", hint="Say it with --input, for example --input 1x3x224x224."
        )
    for text in request.inputs:
        parse_input(text)
    for folder in request.import_paths:
        if not Path(folder).is_dir():
            raise UsageError(f"--import-path {folder}: there is no such folder.")
    check_writable(Path(request.output))
    if request.report:
        check_writable(Path(request.report))
    answer = ask(request)
    return ExportedEntry(Path(answer["path"]), read_manifest(Path(answer["path"])), tuple(answer["notes"]))


def ask(request: ModuleRequest) -> dict[str, Any]:
    """Return the worker's answer; what it prints on the way goes to stderr."""
    command = [sys.executable, "-W", "ignore", "-m", "vimdeploy.commands.module_worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            out, _ = process.communicate(request.to_json() + "\n")
        except KeyboardInterrupt:
            process.wait()
            raise
    lines = out.splitlines()
    if not lines:
        raise EntryError(
            f"{request.entry}: the process that ran it ended without an answer (exit code {process.returncode}).",
            hint="It may have run out of memory: try a smaller --input.",
            exit_code=2,
        )
    answer: dict[str, Any] = json.loads(lines[-1])
    if answer.get("interrupted"):
        raise KeyboardInterrupt
    if "error" in answer:
        raise EntryError(**answer["error"])
    if "internal" in answer:
        raise EntryError(
            f"{request.entry}: {answer['internal']['summary']}",
            hint="This should have been said better: 'vimdeploy export ... --report FILE' writes what is needed.",
            exit_code=2,
        )
    return answer


def parse_dynamic(text: str | None) -> dict[str, Any]:
    """Return ``batch,size=32`` as ``{"batch": True, "size": 32}``."""
    result: dict[str, Any] = {}
    for part in (text or "").split(","):
        name, _, number = part.strip().partition("=")
        if not name:
            continue
        if number and not number.isdecimal():
            raise UsageError(f"--dynamic {text}: '{number}' is no number.", hint="For example --dynamic batch,size=32.")
        result[name] = int(number) if number else True
    return result


def parse_kwargs(text: str | None) -> dict[str, Any]:
    """Return the JSON object of ``--kwargs``."""
    if not text:
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"--kwargs: is no JSON ({error}).", hint="""For example --kwargs '{"depth": 4}'.""") from error
    if not isinstance(value, Mapping):
        raise UsageError("--kwargs: must be a JSON object.", hint="""For example --kwargs '{"depth": 4}'.""")
    return dict(value)
