"""The command line run inside the test process, as ``vimdeploy ...`` would run it."""

import io
import json
import os
import sys
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from vimdeploy.cli import app as cli


@dataclass(frozen=True)
class Result:
    """What a command left behind on screen."""

    code: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        return json.loads(self.stdout)


def vimdeploy(*arguments: object) -> Result:
    """Run one command."""
    out, err = io.StringIO(), io.StringIO()
    code: int | str | None = 0
    command = ["vimdeploy", *map(str, arguments)]
    with (
        patch.object(sys, "argv", command),
        patch.dict(os.environ, {"VIMDEPLOY_DEBUG": ""}),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
    assert isinstance(code, int), code
    return Result(code, out.getvalue(), err.getvalue())


def succeed(*arguments: object) -> Result:
    """Run one command that must succeed."""
    result = vimdeploy(*arguments)
    assert result.code == 0, result.stderr
    return result


def refuse(*arguments: object, code: int = 2, words: Iterable[object] = (), folder: Path | None = None) -> Result:
    """Run one command that must end in words: a message with a remedy, the exit code, and no file left behind."""
    before = snapshot(folder) if folder else None
    result = vimdeploy(*arguments)
    assert result.code == code, (result.code, result.stderr)
    assert "Traceback" not in result.stderr
    assert "error:" in result.stderr or "Usage:" in result.stderr
    for word in words:
        assert str(word) in result.stderr, (word, result.stderr)
    if folder:
        assert snapshot(folder) == before
    return result


def snapshot(folder: Path) -> dict[Path, bytes]:
    """Return every file below ``folder`` with its content."""
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
