"""The commands that put models behind a server, and the one that writes a page about them."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from vimdeploy.cli.options import AsJson, Ops
from vimdeploy.cli.screen import note, print_json, reporter, result, say, table


class TritonBackend(str, Enum):
    """What runs an ONNX file in Triton."""

    auto = "auto"
    onnxruntime = "onnxruntime"
    python = "python"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("serve-repo")(serve_repo)
    app.command()(serve)
    app.command()(report)


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
    as_json: AsJson = False,
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
    for text in made.notes:
        note(text)
    if as_json:
        print_json({**asdict(made), "command": made.command})
        return
    rows = [(m.name, m.version, m.backend, m.largest_batch or "fixed", ", ".join(m.models)) for m in made.models]
    table(f"{made.folder}", ("model", "version", "backend", "largest batch", "written"), rows)
    result(f"Start it: {made.command}")


def serve(
    model: Annotated[Path, typer.Argument(help="ONNX file or plan, with its manifest beside it.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    name: Annotated[str | None, typer.Option(help="Of the model in addresses; default: the file's.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes that /predict lists.")] = 5,
    images: Annotated[int, typer.Option(min=1, help="Images of a request, and of a batch.")] = 64,
    queue: Annotated[int, typer.Option(min=1, help="Images that may wait; beyond, requests get 503.")] = 256,
    delay_ms: Annotated[float, typer.Option(min=0, help="How long an image waits for others.")] = 2.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for a whole request.")] = 30.0,
    body_mb: Annotated[int, typer.Option(min=1, help="Megabytes of a request.")] = 32,
    connections: Annotated[int, typer.Option(min=1, help="Connections at the same time; beyond, 503.")] = 512,
    ops: Annotated[Ops, typer.Option(help="What computes the custom ops: native, body, or auto.")] = Ops.AUTO,
) -> None:
    """Serve a model over HTTP: the Open Inference Protocol (KServe v2), and a page to drop images on."""
    from vimdeploy.commands.serve import serve

    def opened(known: str) -> None:
        say(f"http://{host}:{port}/ and http://{host}:{port}/v2/models/{known}", label="Serving at")
        if host not in ("127.0.0.1", "localhost", "::1"):
            say("there is no authentication: put a proxy in front (docs/serving.md)", label="warning:")

    serve(
        model,
        host=host,
        port=port,
        name=name,
        top=top,
        images=images,
        queue=queue,
        delay_ms=delay_ms,
        timeout=timeout,
        body_mb=body_mb,
        connections=connections,
        ops=ops.value,
        opened=opened,
    )


def report(
    model: Annotated[Path, typer.Argument(help="The exported float32 ONNX file.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The page; default: beside the model.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of image files; default: synthetic images.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many synthetic images.")] = 8,
    checkpoint: Annotated[
        Path | None, typer.Option(help="The checkpoint, where the manifest's path no longer leads to it.")
    ] = None,
    engine: Annotated[list[Path] | None, typer.Option(help="Plan of the model; may be repeated.")] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also measure where ONNX Runtime spends its time.")
    ] = False,
    benchmark: Annotated[Path | None, typer.Option(help="JSON that a benchmark wrote; its rows are shown.")] = None,
) -> None:
    """Write one page to look at: parity by block, decisions, speed, provenance, and what was not run."""
    import vimdeploy

    with reporter("Reporting") as told:
        page = vimdeploy.report(
            model,
            output,
            images=images,
            samples=samples,
            checkpoint=checkpoint,
            engine=tuple(engine or ()),
            profile=profile,
            benchmark=benchmark,
            reporter=told,
        )
    say(f"wrote {page} ({page.stat().st_size / 1e3:.0f} kB)")
