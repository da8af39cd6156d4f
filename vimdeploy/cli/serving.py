"""The commands that put models behind a server."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from vimdeploy.cli.screen import print_json, say, table


class TritonBackend(str, Enum):
    """What runs an ONNX file in Triton."""

    auto = "auto"
    onnxruntime = "onnxruntime"
    python = "python"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("serve-repo")(serve_repo)


def serve_repo(
    models: Annotated[list[Path], typer.Argument(help="ONNX files and plans, with their manifests beside them.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the repository; new versions are added.")],
    backend: Annotated[
        TritonBackend, typer.Option(help="For ONNX files: Triton's own onnxruntime (auto), or python with vimdeploy.")
    ] = TritonBackend.auto,
    instances: Annotated[int, typer.Option(min=1, help="Copies of each model that run at the same time.")] = 1,
    delay_us: Annotated[int, typer.Option(min=0, help="How long a request waits for others, in microseconds.")] = 500,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; those beyond are refused.")] = 256,
    timeout_ms: Annotated[int, typer.Option(min=1, help="How long a request may wait in the queue.")] = 10_000,
    keep_versions: Annotated[int, typer.Option(min=1, help="How many of the newest versions are served.")] = 1,
    warmup: Annotated[bool, typer.Option("--warmup/--no-warmup", help="Run batches before the model is ready.")] = True,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Also an ensemble that takes the bytes of image files.")
    ] = True,
    native_ops: Annotated[
        Path | None, typer.Option(help="Library of native CPU ops for Triton's onnxruntime backend.")
    ] = None,
    python_path: Annotated[
        list[str] | None, typer.Option(help="Folder the python backend imports from; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Write a model repository for NVIDIA Triton."""
    from dataclasses import asdict

    from vimdeploy.commands.serve_repo import RepositoryOptions, serve_repo

    options = RepositoryOptions(
        backend=backend.value,
        instances=instances,
        delay_us=delay_us,
        queue=queue,
        timeout_us=1000 * timeout_ms,
        keep_versions=keep_versions,
        warmup=warmup,
        images=images,
        native_ops=native_ops,
        python_path=tuple(python_path or ()),
    )
    made = serve_repo(models, output, options)
    for note in made.notes:
        say(note, label="note:")
    if as_json:
        print_json({**asdict(made), "command": made.command})
        return
    rows = [(m.name, m.version, m.backend, m.largest_batch or "fixed", ", ".join(m.models)) for m in made.models]
    table(f"{made.folder}", ("model", "version", "backend", "largest batch", "written"), rows)
    say(made.command, label="Start it:")
