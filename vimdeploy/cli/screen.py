"""What commands share on screen: results on standard output, progress, notes and errors on standard error."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from vimdeploy import needs
from vimdeploy.errors import VimdeployError
from vimdeploy.progress import Reporter

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_REFRESH = 0.1
"""Seconds between two looks of a bar: a fast run would otherwise spend its time on drawing."""


def result(text: str) -> None:
    """Print a line of a command's result on standard output, as it is."""
    sys.stdout.write(f"{text}\n")


def print_json(value: Any) -> None:
    """Print JSON for machines on standard output."""
    result(json.dumps(value, indent=2, default=str))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table of results on standard output."""
    from rich.table import Table
    from rich.text import Text

    view = Table(title=title, title_justify="left", header_style="bold")
    for name in columns:
        view.add_column(name, overflow="fold")
    for row in rows:
        view.add_row(*(Text(str(cell)) for cell in row))
    _console(sys.stdout).print(view, highlight=False)


def say(text: str = "", *, style: str = "", label: str = "", label_style: str = "bold") -> None:
    """Print a line for people on standard error, so that standard output holds nothing but results.

    Args:
        text: printed as it is: brackets in file names and messages are no markup.
        style: of the text, in rich's words.
        label: printed before it, set off by its own style.
        label_style: of the label.

    """
    _say(_console(sys.stderr), text, style=style, label=label, label_style=label_style)


def note(text: str) -> None:
    """Print something worth knowing on standard error; a guess that parity cannot check, as a warning."""
    if text.startswith("a guess"):
        warn(text)
    else:
        say(text, label="note:")


def warn(text: str) -> None:
    """Print something that may be wrong on standard error."""
    say(text, label="warning:", label_style="bold yellow")


def _say(console: Console, text: str, *, style: str = "", label: str = "", label_style: str = "bold") -> None:
    from rich.text import Text

    line = Text.assemble((f"{label} ", label_style), (text, style)) if label else Text(text, style)
    console.print(line, highlight=False, soft_wrap=True)


class _Screen(Reporter):
    """Shows stages as lines and their progress as a bar below; without a total the bar pulses."""

    def __init__(self, bar: Progress, unit: str) -> None:
        self._bar, self._unit, self._shown = bar, unit, 0.0
        self._task = bar.add_task("", total=None, count="")

    def stage(self, text: str) -> None:
        _say(self._bar.console, f"{text} ...", style="dim")
        self._bar.reset(self._task, total=None, count="")

    def progress(self, done: int, total: int) -> None:
        if time.monotonic() - self._shown < _REFRESH and done != total:
            return
        self._shown = time.monotonic()
        count = f"{done}/{total} {self._unit}".strip() if total else f"{done} {self._unit}".strip()
        speed = self._bar.tasks[0].speed
        if self._unit and speed:
            count += f", {speed:,.0f}/s"
        self._bar.update(self._task, completed=done, total=total or None, count=count)

    def note(self, text: str) -> None:
        _say(self._bar.console, text, label="note:")


@contextmanager
def reporter(text: str, unit: str = "") -> Iterator[Reporter]:
    """Show what long work is at, on standard error.

    Args:
        text: what it is, beside the bar.
        unit: of its steps.

    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn(text),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = _console(sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield _Screen(bar, unit)


class Interrupted(BaseException):
    """Ctrl-C that a command has let through, under a name that Typer does not turn into its own silent exit."""


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Print foreseen errors without a traceback and exit with their code; say how to report the others."""
    try:
        yield
    except VimdeployError as error:
        fail(error)
    except (Interrupted, KeyboardInterrupt):
        say("Nothing was written.", label="Interrupted.")
        raise SystemExit(130) from None
    except Exception as error:
        if os.environ.get("VIMDEPLOY_DEBUG"):
            raise
        if isinstance(error, ModuleNotFoundError) and (explained := needs.explain(error)):
            fail(explained)
        _print_error(
            f"internal error: {type(error).__name__}: {error}",
            "This is a bug in vimdeploy. Please report it with the output of the same command under VIMDEPLOY_DEBUG=1.",
        )
        raise SystemExit(70) from None


def fail(error: VimdeployError) -> None:
    """Print an error with its remedy and exit with its code."""
    _print_error(error.message, error.hint)
    raise SystemExit(error.exit_code)


def _print_error(message: str, hint: str) -> None:
    say(message, label="error:", label_style="bold red")
    if hint:
        say(hint, label="  try:")


def _console(file: TextIO) -> Console:
    from rich.console import Console

    # A log file has no width of its own; 80 columns would break names that people copy.
    return Console(file=file, width=None if file.isatty() else 160)
