"""The command `benchmark`, and how its numbers look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import vimdeploy
from vimdeploy.cli.options import AsJson
from vimdeploy.cli.screen import print_json, reporter, say, table
from vimdeploy.errors import UsageError

if TYPE_CHECKING:
    from vimdeploy.commands.benchmark import Benchmark

_BAR = 30


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(benchmark)


def benchmark(
    models: Annotated[
        list[str], typer.Argument(help="ONNX files, plans, checkpoints, or arch:NAME for random weights of a recipe.")
    ],
    backend: Annotated[
        str,
        typer.Option(help="onnxruntime, onnxruntime-body, torch, openvino, tensorrt; default: what runs each file."),
    ] = "",
    against: Annotated[
        list[str] | None, typer.Option(help="Further models to compare with, on the same backends.")
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes, as 1,8.")] = "1",
    threads: Annotated[int, typer.Option(min=1, help="Threads of each backend.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each contender runs at each batch size.")] = 3.0,
    as_json: AsJson = False,
) -> None:
    """Measure how fast models run here: backends and models side by side, in turns."""
    sizes = batch.split(",")
    if not all(size.strip().isdigit() for size in sizes):
        raise UsageError(f"--batch {batch}: batch sizes are numbers, as 1,8.")
    with reporter("Benchmark") as told:
        result = vimdeploy.benchmark(
            models,
            backends=[name.strip() for name in backend.split(",") if name.strip()],
            against=against or [],
            batch=[int(size) for size in sizes],
            threads=threads,
            seconds=seconds,
            reporter=told,
        )
    if as_json:
        print_json(result.to_dict())
    else:
        _show(result)


def _show(result: Benchmark) -> None:
    for batch in dict.fromkeys(t.batch for t in result.timings):
        timings = [t for t in result.timings if t.batch == batch]
        fastest = min(t.cpu for t in timings)
        rows = [
            (
                t.name,
                *(f"{1e3 * value:.2f}" for value in (t.p50, t.p90, t.p99)),
                f"{t.images_per_second:.1f}",
                f"{t.cpu:.4f}",
                f"{t.added_mib:.0f}",
                f"{t.load_seconds:.2f}",
                f"{t.ratio:.2f}x",
                "█" * max(1, round(_BAR * fastest / t.cpu)),
            )
            for t in timings
        ]
        columns = (
            *("model and backend", "p50 ms", "p90 ms", "p99 ms", "images/s", "CPU s", "added MiB", "load s", "ratio"),
            "speed",
        )
        threads = timings[0].threads
        table(f"Batch {batch}, {threads} thread{'s' if threads > 1 else ''}", columns, rows)
    for name, reason in result.not_run.items():
        say(f"not run: {name}: {reason}")
    say(
        f"This machine: load {result.load_average}, equal runs differed by {result.noise:.0%}, "
        f"waiting for a core {result.waiting:.0%} of the time. Ratios are of processor time, against the first row."
    )
    _say_reference()


def _say_reference() -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "native.md"
    if results.is_file():
        say(f"Reference values of the committed run: {results}")
