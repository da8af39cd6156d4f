"""The command line: each command parses its options, calls one function and prints what came out.

Heavy imports stay inside the commands, so that ``--help`` is instant.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from vimdeploy import __version__
from vimdeploy.cli import engine as cli_engine
from vimdeploy.cli import predict as cli_predict
from vimdeploy.cli import serving as cli_serving
from vimdeploy.cli.screen import Interrupted, errors_in_words, print_json, progress, say, table
from vimdeploy.errors import UsageError

if TYPE_CHECKING:
    from vimdeploy.artifacts.manifest import ModelInfo
    from vimdeploy.commands.pipeline import Stage
    from vimdeploy.parity.compare import Report


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        # Typer would catch Ctrl-C and leave without a word.
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None


app = typer.Typer(
    cls=_Commands,
    help="From a Vision Mamba checkpoint to a fast, verified TensorRT engine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_LARGEST_SIDE = 16384
"""A million tokens at patch 16, beyond what any machine runs; larger numbers are slips."""

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
OpsOption = Annotated[
    str, typer.Option("--ops", help="What computes the custom ops: native, body, or auto (native where it is here).")
]


def main() -> None:
    """Run the command line; foreseen errors end in words and exit code 2, failed verification in 1."""
    with errors_in_words():
        app()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vimdeploy {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def export(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="Trained weights: .pth, .pt or .safetensors; none with --arch.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="ONNX file to write; default: beside the checkpoint.")
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="A recipe's model; without a checkpoint it gets random weights, to measure it.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Name of a recipe (see `vimdeploy recipes`) or a TOML file.")
    ] = None,
    model_args: Annotated[
        str | None,
        typer.Option(
            help="What shapes cannot tell: JSON text or a JSON/TOML file, in the official constructor's names."
        ),
    ] = None,
    weights: Annotated[str, typer.Option(help="Which weights of a training checkpoint: model or ema.")] = "model",
    img_size: Annotated[
        str | None, typer.Option(help="Export at another image size, N or HxW; position embeddings are resized.")
    ] = None,
    official_pos_resize: Annotated[
        bool, typer.Option("--official-pos-resize", help="Resize position embeddings as the official code does.")
    ] = False,
    batch: Annotated[str, typer.Option(help="A fixed batch size, or dynamic.")] = "dynamic",
    opset: Annotated[int, typer.Option(help="ONNX opset.")] = 20,
    task: Annotated[
        str | None,
        typer.Option(
            help="classify (logits), features (before the head), tokens, or dense (feature maps); "
            "default: dense for a backbone, else classify."
        ),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Prove it equal in ONNX Runtime.")] = True,
    as_json: JsonFlag = False,
) -> None:
    """Export a checkpoint to a verified ONNX file."""
    from vimdeploy.errors import require

    require("torch", "export", "vimdeploy export")
    require("onnxscript", "export", "vimdeploy export")
    from vimdeploy.commands import pipeline
    from vimdeploy.models.load import ModelRequest

    if checkpoint is None and arch is None:
        raise UsageError("Name a checkpoint, or a recipe with --arch for random weights.")
    if arch is not None and recipe is not None:
        raise UsageError("--arch and --recipe say the same thing: name one of them.")
    model = ModelRequest(
        recipe=recipe or (arch if checkpoint else None),
        model_args=model_args,
        weights=_choice("--weights", weights, ("model", "ema")),
        img_size=_parse_size(img_size) if img_size else None,
        official_pos_resize=official_pos_resize,
        arch=None if checkpoint else arch,
    )
    fixed = None if batch == "dynamic" else _positive("--batch", batch)
    request = pipeline.ExportRequest(task=task, batch=fixed, opset=opset, verify=verify)
    target = output or (checkpoint.with_suffix(".onnx") if checkpoint else Path(f"{arch}.onnx"))
    with progress("Exporting") as update:
        made = pipeline.export(checkpoint, target, model, request, _stages(update))
    if as_json:
        print_json(
            {"path": str(made.path), "manifest_path": str(made.manifest_path), **made.manifest.model_dump(mode="json")}
        )
        return
    _show_model(made.manifest.model)
    for note in made.manifest.notes:
        say(note, label="note:")
    if made.report:
        _show_report(made.report)
    say(f"wrote {made.path} ({made.path.stat().st_size / 1e6:.1f} MB) and {made.manifest_path}")


@app.command()
def verify(
    model: Annotated[Path, typer.Argument(help="ONNX file with its manifest beside it.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="The checkpoint, where the manifest's path no longer leads to it.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of image files; default: synthetic images.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many synthetic images.")] = 8,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Batch size; may be repeated.")] = None,
    atol: Annotated[float | None, typer.Option(min=0, help="With --rtol: replaces the recipe's contract.")] = None,
    rtol: Annotated[float | None, typer.Option(min=0, help="|a - b| <= atol + rtol * |b|.")] = None,
    ladder: Annotated[
        bool, typer.Option("--ladder", help="Every form this machine can run: torch, ONNX, engines, both precisions.")
    ] = False,
    engine: Annotated[list[Path] | None, typer.Option(help="Plan for the ladder; may be repeated.")] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="The ladder's half precision is BF16, not FP16.")] = False,
    ops: OpsOption = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report as JSON; - prints it.")] = None,
) -> None:
    """Prove that an ONNX file or a plan computes what the PyTorch model computes; exit code 1 if it does not."""
    from vimdeploy.errors import require

    if ladder or engine or cli_engine.is_plan(model):
        cli_engine.verify_ladder(model, checkpoint, images, samples, engine or [], bf16, json_file)
        return
    require("torch", "export", "vimdeploy verify")
    from vimdeploy.artifacts.files import write_all
    from vimdeploy.commands import pipeline

    request = pipeline.VerifyRequest(checkpoint, images, samples, tuple(dict.fromkeys(batch or ())), atol, rtol, ops)
    with progress("Verifying") as update:
        verified = pipeline.verify(model, request, _stages(update))
    for note in verified.notes:
        say(note, label="warning:", label_style="bold yellow")
    report = verified.report.to_dict() | {"notes": list(verified.notes)}
    if json_file == Path("-"):
        print_json(report)
    else:
        _show_report(verified.report)
    if json_file not in (None, Path("-")):
        import json

        write_all({json_file: (json.dumps(report, indent=2) + "\n").encode()})
        say(f"wrote {json_file}")
    pipeline.raise_unless_equal(verified.report, str(model), "Export the model again with `vimdeploy export`.")
    say(f"{model} computes what the PyTorch model computes.")


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A checkpoint, an ONNX file, a plan, a manifest or a recipe.")],
    layers: Annotated[
        bool, typer.Option("--layers", help="Also list an ONNX file's nodes, or, on its GPU, a plan's layers.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Say what a file holds: architecture, shapes, operators, types, sizes, manifest."""
    from vimdeploy.commands.inspect import inspect_file, inspect_layers

    facts = inspect_file(file)
    listed = inspect_layers(file) if layers else []
    if as_json:
        print_json({**facts, "layers": listed} if layers else facts)
        return
    for section, content in facts.items():
        rows = content.items() if isinstance(content, dict) else [("", content)]
        table(section, ("what", "value"), [(key, _short(value)) for key, value in rows])
    if layers:
        table("layers", tuple(listed[0]) if listed else (), [tuple(row.values()) for row in listed])


@app.command()
def recipes(as_json: JsonFlag = False) -> None:
    """List the published models that this version knows."""
    from vimdeploy.artifacts.recipe import recipes as all_recipes

    known = all_recipes().values()
    if as_json:
        print_json([recipe.model_dump(mode="json") for recipe in known])
        return
    rows = [
        (r.name, r.title, f"{r.parameters:,}", " x ".join(map(str, r.input.size)), r.classes.count, r.checkpoint or "")
        for r in known
    ]
    table("Recipes", ("name", "model", "parameters", "image", "classes", "checkpoint"), rows)


@app.command()
def doctor(as_json: JsonFlag = False) -> None:
    """Say what this machine can do, what is missing, and the command that mends it."""
    from rich.console import Console

    from vimdeploy.doctor import examine, render

    commands = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    report = examine(available=commands)
    if as_json:
        print_json(report.to_dict())
    else:
        render(report, Console())


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")] = Path("vimdeploy-demo"),
    as_json: JsonFlag = False,
) -> None:
    """Export, verify and run a small model that was really trained (handwritten digits)."""
    from vimdeploy.errors import require

    require("torch", "export", "vimdeploy demo")
    require("onnxscript", "export", "vimdeploy demo")
    from vimdeploy.commands.demo import run_demo

    with progress("Running the demo") as update:
        made = run_demo(output, _stages(update))
    if as_json:
        print_json(made.to_dict())
        return
    m = made.metrics
    rows = [
        ("held-back digits", made.held_out),
        ("accuracy, PyTorch", f"{made.accuracy['torch']:.2%}"),
        ("accuracy, ONNX Runtime", f"{made.accuracy['onnxruntime']:.2%}"),
        ("same best class", f"{made.agreement:.2%}"),
        ("largest difference of a logit", f"{m.max_abs:.1e}"),
    ]
    table("On digits that training never saw", ("measured", "value"), rows)
    seen = [(Path(p.image).name, *(f"{c.label}  {c.probability:.1%}" for c in p.classes)) for p in made.predictions]
    table("Classified by the ONNX model", ("image", "best", "second"), seen)
    rows = [
        ("checkpoint", made.checkpoint),
        ("ONNX model", made.exported.path),
        ("manifest", made.exported.manifest_path),
        ("images", made.images),
    ]
    table("Where everything lies", ("what", "where"), rows)
    example = f"{made.images / Path(made.predictions[0].image).name}"
    say(f"Next: vimdeploy predict {made.exported.path} {example}")


cli_engine.register(app)
cli_predict.register(app)
cli_serving.register(app)


def _stages(update: Any) -> Stage:
    """Return a stage callback that reports to a progress bar."""

    def stage(name: str) -> Any:
        say(f"{name} ...", style="dim")
        return update

    return stage


def _show_model(model: ModelInfo) -> None:
    """Say what was seen, and what was inferred from where."""
    sources, arguments = model.sources, model.arguments
    by_source: dict[str, list[str]] = {}
    flat = {**arguments, **arguments.get("ssm_cfg", {})}
    for name, source in sources.items():
        by_source.setdefault(source, []).append(f"{name}={_short(flat.get(name))}")
    title = f"Architecture: {model.family}, {f'recipe {model.recipe}' if model.recipe else 'no recipe fits'}"
    table(title, ("known from", "values"), [(s, ", ".join(v)) for s, v in by_source.items()])


def _show_report(report: Report) -> None:
    rows = [
        (
            r.batch,
            r.output,
            r.ops,
            r.metrics.samples,
            f"{r.metrics.max_abs:.2e}",
            f"{r.metrics.relative_rms:.2e}",
            f"{r.metrics.cosine:.7f}",
            "" if r.metrics.top1 is None else f"{r.metrics.top1:.2%} of {r.metrics.decided}",
            "" if r.metrics.top5 is None else f"{r.metrics.top5:.2%}",
            "yes" if r.metrics.passed else "NO",
        )
        for r in report.results
    ]
    columns = (
        "batch",
        "output",
        "ops",
        "images",
        "max abs",
        "relative RMS",
        "cosine",
        "top-1",
        "top-5",
        "within contract",
    )
    table(f"{report.candidate} against {report.reference}", columns, rows)


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_short(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        shown = ", ".join(_short(v) for v in value[:12])
        return f"[{shown}{', ...' if len(value) > 12 else ''}]"
    return str(value)


def _choice(option: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise UsageError(f"{option} {value}: must be {' or '.join(allowed)}.")
    return value


def _positive(option: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise UsageError(f"{option} {text}: must be a positive number or dynamic.")
    return int(text)


def _parse_size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--img-size {text}: must be N or HxW, in pixels.", hint="For example --img-size 384x640.")
    if max(map(int, parts)) > _LARGEST_SIDE:
        raise UsageError(f"--img-size {text}: a side has at most {_LARGEST_SIDE} pixels.")
    return int(parts[0]), int(parts[-1])
