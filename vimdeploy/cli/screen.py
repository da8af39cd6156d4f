"""What commands share on screen: tables, progress, errors, JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vimdeploy.errors import VimdeployError

if TYPE_CHECKING:
    from collections.abc import Callable


def say(text: str = "", *, style: str = "", label: str = "", label_style: str = "bold") -> None:
    """Print a line for people, on standard error, so that ``--json`` on standard output stays clean.

    Args:
        text: printed as it is: brackets in file names and messages are no markup.
        style: of the text, in rich's words.
        label: printed before it, set off by its own style.
        label_style: of the label.

    """
    from rich.text import Text

    line = Text.assemble((f"{label} ", label_style), (text, style)) if label else Text(text, style)
    _console().print(line, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print JSON for machines on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table for people."""
    from rich.table import Table
    from rich.text import Text

    view = Table(title=title, title_justify="left", header_style="bold")
    for name in columns:
        view.add_column(name, overflow="fold")
    for row in rows:
        view.add_row(*(Text(str(cell)) for cell in row))
    _console().print(view, highlight=False)


@contextmanager
def progress(text: str, unit: str = "") -> Iterator[Callable[[int, int], None]]:
    """Show a bar while long work runs; yields ``update(done, total)``. Unknown length shows a pulse."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), TimeElapsedColumn())
    with Progress(*columns, console=_console(), transient=True) as bar:
        task = bar.add_task(text, total=None, count="")

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, count=f"{done}/{total} {unit}".strip())

        yield update


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


def _console() -> Any:
    from rich.console import Console

    # A log file has no width of its own; 80 columns would break names that people copy.
    return Console(stderr=True, width=None if sys.stderr.isatty() else 160)
