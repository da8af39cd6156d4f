"""The command line: each command parses its options, calls one function of the API and shows what came out.

Heavy imports stay inside the commands, so that ``--help`` is instant.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import vimdeploy
from vimdeploy.cli import benchmark, engine, examples, module, predict, serving, show
from vimdeploy.cli.options import AsJson, CheckpointGroup, Ops, grouped
from vimdeploy.cli.screen import Interrupted, errors_in_words, print_json, reporter


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
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; foreseen errors end in words and exit code 2, failed verification in 1."""
    with errors_in_words():
        app()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vimdeploy {vimdeploy.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
@grouped
def export(
    of_checkpoint: CheckpointGroup,
    of_module: module.ModuleGroup,
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            help="Trained weights: .pth, .pt or .safetensors; none with --arch. Or package.module:function, which "
            "builds a module of your own."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="ONNX file to write; default: beside the checkpoint.")
    ] = None,
    opset: Annotated[int, typer.Option(help="ONNX opset.")] = 20,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Prove it equal in ONNX Runtime.")] = True,
    as_json: AsJson = False,
) -> None:
    """Export a checkpoint, or a module of your own (package.module:function), to a verified ONNX file."""
    if checkpoint is not None and module.is_entry(str(checkpoint)):
        of_checkpoint.refuse(f"{checkpoint} is a module of your own", "Say what it is with --kwargs and --input.")
        own = module.export(str(checkpoint), output, of_module, opset=opset, verify=verify)
        if as_json:
            print_json(own.to_dict())
        else:
            show.exported_entry(own)
        return
    of_module.refuse("there is no module of your own", "Name its function: vimdeploy export package.module:function")
    with reporter("Exporting") as told:
        made = vimdeploy.export(
            checkpoint, output, opset=opset, verify=verify, reporter=told, **of_checkpoint.arguments()
        )
    if as_json:
        print_json(made.to_dict())
    else:
        show.exported(made)


@app.command()
def verify(
    model: Annotated[
        Path, typer.Argument(help="ONNX file with its manifest beside it, or a plan, which the ladder verifies.")
    ],
    checkpoint: Annotated[
        Path | None, typer.Option(help="The checkpoint, where the manifest's path no longer leads to it.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of image files; default: synthetic images.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="How many synthetic images; default: 8.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Batch size; may be repeated.")] = None,
    atol: Annotated[float | None, typer.Option(min=0, help="With --rtol: replaces the recipe's contract.")] = None,
    rtol: Annotated[float | None, typer.Option(min=0, help="|a - b| <= atol + rtol * |b|.")] = None,
    ladder: Annotated[
        bool, typer.Option("--ladder", help="Every form this machine can run: torch, ONNX, engines, both precisions.")
    ] = False,
    engine: Annotated[list[Path] | None, typer.Option(help="Plan for the ladder; may be repeated.")] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="The ladder's half precision is BF16, not FP16.")] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="For a module of your own: also run the code that built it, and compare.")
    ] = False,
    ops: Annotated[
        Ops,
        typer.Option(
            help="What computes the custom ops: native, body, or auto (both of them, where the native ones are here)."
        ),
    ] = Ops.AUTO,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also write the report, as JSON, into a file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prove that an ONNX file or a plan computes what the PyTorch model computes; exit code 1 if it does not."""
    with reporter("Verifying") as told:
        found = vimdeploy.verify(
            model,
            checkpoint=checkpoint,
            images=images,
            samples=samples,
            batch=batch or (),
            atol=atol,
            rtol=rtol,
            ladder=ladder,
            engine=engine or (),
            bf16=bf16,
            trust=trust,
            ops=ops.value,
            reporter=told,
        )
    if as_json:
        print_json(found.to_dict())
    else:
        show.verified(found)
    if output is not None:
        show.write_report(output, found)
    found.raise_unless_passed()


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A checkpoint, an ONNX file, a plan, a manifest or a recipe.")],
    layers: Annotated[
        bool, typer.Option("--layers", help="Also list an ONNX file's nodes, or, on its GPU, a plan's layers.")
    ] = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Also run an ONNX file in ONNX Runtime and measure where time goes, by op and by block.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a file holds: architecture, shapes, operators, types, sizes, manifest."""
    found = vimdeploy.inspect(file, layers=layers, profile=profile)
    if as_json:
        print_json(found.to_dict())
    else:
        show.inspected(found)


@app.command()
def recipes(as_json: AsJson = False) -> None:
    """List the published models that this version knows."""
    from vimdeploy.artifacts.recipe import recipes as all_recipes

    known = all_recipes().values()
    if as_json:
        print_json([recipe.model_dump(mode="json") for recipe in known])
    else:
        show.recipes(known)


@app.command()
def doctor(as_json: AsJson = False) -> None:
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
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", help="Folder for the results: the ONNX file, its manifest, and the digits as image files."
        ),
    ] = Path("vimdeploy-demo"),
    as_json: AsJson = False,
) -> None:
    """Export, verify and run a small model that was really trained (handwritten digits)."""
    from vimdeploy.commands.demo import run_demo

    with reporter("Running the demo") as told:
        made = run_demo(output, reporter=told)
    if as_json:
        print_json(made.to_dict())
    else:
        show.demo(made)


benchmark.register(app)
engine.register(app)
predict.register(app)
serving.register(app)
examples.add_to(app)
