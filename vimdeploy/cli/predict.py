"""The command `predict`, and how its rows and counts look."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vimdeploy.cli.options import Ops
from vimdeploy.cli.screen import print_json, reporter, result, say, table
from vimdeploy.errors import ArtifactError, ImageError, UsageError
from vimdeploy.progress import SILENT, Reporter

if TYPE_CHECKING:
    from vimdeploy.predicting.rows import Prediction
    from vimdeploy.predicting.run import Request, Run

_ROWS_OF_A_TABLE = 500
_MOST_CLASSES_SHOWN = 20


class Format(str, Enum):
    """How rows are written on standard output."""

    table = "table"
    json = "json"
    ndjson = "ndjson"
    csv = "csv"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(predict)


def predict(
    model: Annotated[Path, typer.Argument(help="ONNX file or plan, with its manifest beside it.")],
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders, globs, .txt lists (- reads one from standard input), tar and parquet shards; "
            "local, or s3://... and the like."
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", help="Folder for parquet shards, here or s3://...; run again to go on."),
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="Of the rows on standard output.")] = Format.table,
    as_json: Annotated[bool, typer.Option("--json", help="Short for --format json; with -o, the summary.")] = False,
    top: Annotated[int, typer.Option(min=1, help="How many classes a row lists.")] = 5,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images that run together; default: what the manifest says.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that read and decode; default: one a core.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="True classes, to count what is right: folders, source (shards), or a CSV or JSON file."),
    ] = None,
    column: Annotated[str | None, typer.Option(help="Parquet column with the image files' bytes.")] = None,
    key: Annotated[str | None, typer.Option(help="Parquet column that names the rows; default: file#row.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Parquet column with the true class.")] = None,
    ops: Annotated[
        Ops, typer.Option(help="What computes the custom ops: native, body, or auto (native where it is here).")
    ] = Ops.AUTO,
    allow_modified: Annotated[
        bool, typer.Option("--allow-modified", help="Take a file that its manifest does not describe.")
    ] = False,
    shard_rows: Annotated[int | None, typer.Option(min=1, help="Rows of a parquet shard.")] = None,
) -> None:
    """Predict images with an exported model: classes, features, tokens or maps, one row an image."""
    from vimdeploy.commands.predict import ParquetColumns, Request, Run

    columns = ParquetColumns(column, key, label_column)
    request = Request(top, batch, workers, labels, columns, ops.value, allow_modified, shard_rows)
    if output is None and shard_rows is not None:
        raise UsageError("--shard-rows is for parquet shards.", hint="Add -o FOLDER.")
    if output is None:
        run = Run(model, sources, request)
        _print_rows(run, str(model), Format.json if as_json else form)
        _say_counts(run, as_json=as_json)
        return
    _write_shards(model, sources, request, output, as_json=as_json)


def _write_shards(model: Path, sources: list[str], request: Request, output: str, *, as_json: bool) -> None:
    from dataclasses import asdict

    from vimdeploy.commands.predict import Run

    run = Run(model, sources, request)
    try:
        with reporter("Predicting", "images") as told:
            summary = run.write(output, _Told(told, run.sources))
    except KeyboardInterrupt:
        say("Finished shards stay; the same command goes on from there.", label="Interrupted.")
        raise typer.Exit(130) from None
    if run.accuracy is not None and not as_json:
        _show_accuracy(run)
    if as_json:
        print_json(asdict(summary))
    else:
        fresh = f", {summary.resumed} of them from earlier runs" if summary.resumed else ""
        result(f"wrote {summary.rows} rows{fresh} in {summary.shards} shards to {output}")
    _say_odd(summary.errors, summary.rows, summary.repeated)


def _print_rows(run: Run, title: str, form: Format) -> None:
    from vimdeploy.predicting import writers

    counted = _Counted(run.rows())
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files are bytes, not always text
    try:
        # On a terminal the rows themselves show how far it is.
        quiet = form is Format.table or sys.stdout.isatty()
        with nullcontext(SILENT) if quiet else reporter("Predicting", "images") as told:
            if not quiet:
                counted.update = _Told(told, run.sources)
            if form is Format.ndjson:
                writers.write_ndjson(counted, sys.stdout)
            elif form is Format.json:
                writers.write_json(counted, sys.stdout)
            elif form is Format.csv:
                writers.write_csv(counted, sys.stdout, writers.csv_columns(run.predictor))
            else:
                _print_tables(counted, title)
    except KeyboardInterrupt:
        say(f"{counted.rows} rows were written.", label="Interrupted.")
        raise typer.Exit(130) from None
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ArtifactError(f"standard output: cannot be written: {error.strerror or error}.") from error
    if counted.errors == counted.rows:
        raise ImageError(counted.first_error or "There was nothing to predict.")
    _say_odd(counted.errors, counted.rows, run.repeated, counted.first_error)


class _Counted:
    """Rows on their way through, counted."""

    def __init__(self, rows: Iterable[Prediction]) -> None:
        self._source = rows
        self.rows = self.errors = 0
        self.first_error = ""
        self.update: Any = lambda _done: None

    def __iter__(self) -> Iterator[Prediction]:
        for row in self._source:
            self.rows += 1
            if row.error is not None:
                self.errors += 1
                self.first_error = self.first_error or row.error
            yield row
            self.update(self.rows)


def _print_tables(rows: Iterable[Prediction], title: str) -> None:
    remaining = iter(rows)
    while block := list(islice(remaining, _ROWS_OF_A_TABLE)):
        table(title, ("image", "class", "probability"), [line for row in block for line in _lines(row)])


def _lines(row: Prediction) -> list[tuple[object, ...]]:
    if row.error is not None:
        return [(row.image, "not predicted", row.error)]
    if not row.classes:
        return [(row.image, name, f"{' x '.join(map(str, v.shape))} values") for name, v in row.outputs.items()]
    return [
        (row.image if rank == 0 else "", best.label, f"{best.probability:.2%}") for rank, best in enumerate(row.classes)
    ]


def _say_odd(errors: int, rows: int, repeated: int, first: str = "") -> None:
    if errors:
        where = f"; the first: {first}" if first else ": see the column 'error'"
        say(f"{errors} of {rows} images could not be predicted{where}", label="warning:", label_style="bold yellow")
    if repeated:
        say(f"{repeated} images were named more than once and have one row each", label="note:")


def _say_counts(run: Run, *, as_json: bool) -> None:
    if run.accuracy is None:
        return
    if as_json:
        say(
            f"top-1 {_share(run.accuracy.right, run.accuracy.images)}, "
            f"top-5 {_share(run.accuracy.among_five, run.accuracy.images)} of {run.accuracy.images} images"
        )
        return
    _show_accuracy(run)


def _show_accuracy(run: Run) -> None:
    found = run.accuracy
    if found is None:
        return
    if run.truths is not None and run.truths.note:
        say(run.truths.note, label="note:")
    rows: list[tuple[object, ...]] = [
        ("images", found.images),
        ("top-1", _share(found.right, found.images)),
        ("top-5", _share(found.among_five, found.images)),
        ("without a known label", found.unlabelled),
        ("not predicted", found.failed),
    ]
    table("Accuracy", ("measured", "value"), rows)
    classes = sorted(found.per_class(), key=lambda c: (c["recall"] is None, c["recall"], c["index"]))
    shown = classes[:_MOST_CLASSES_SHOWN]
    title = "Per class" if len(shown) == len(classes) else f"Per class, the {len(shown)} worst of {len(classes)}"
    lines = [(c["label"], c["images"], _rate(c["recall"]), _rate(c["precision"])) for c in shown]
    table(title, ("class", "images", "found", "right where named"), lines)
    wrong = [(pair, number) for pair, number in found.confusion.most_common() if pair[0] != pair[1]]
    lines2 = [(found.labels[t], found.labels[p], n) for (t, p), n in wrong[:_MOST_CLASSES_SHOWN]]
    if lines2:
        table("Confused most often", ("is", "taken for", "images"), lines2)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "-"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


class _Told:
    """Hands a reporter how many images are done, and how many there are once they are counted."""

    def __init__(self, reporter: Reporter, sources: list[str]) -> None:
        self._reporter, self._sources, self._total = reporter, sources, 0
        threading.Thread(target=self._count, daemon=True).start()

    def __call__(self, done: int) -> None:
        self._reporter.progress(done, self._total)

    def _count(self) -> None:
        from vimdeploy.predicting.sources import count

        with suppress(Exception):  # the run itself says what is wrong with a source
            self._total = count(self._sources) or 0
