"""The commands of the second half of the way: convert, build-engine and build-plugin. See :mod:`vimdeploy.cli.app`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import vimdeploy
from vimdeploy.cli import show
from vimdeploy.cli.options import AsJson, EngineGroup, HalfGroup, grouped, one_precision, refuse_flags, refuse_with_json
from vimdeploy.cli.screen import print_json, reporter, result


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(convert)
    app.command("build-engine")(build_engine)
    app.command("build-plugin")(build_plugin)


@grouped
def convert(
    model: Annotated[Path, typer.Argument(help="Float32 ONNX file with its manifest beside it.")],
    half: HalfGroup,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="ONNX file to write; default: MODEL.fp16.onnx or MODEL.bf16.onnx."),
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Convert to FP16 (the default).")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Convert to BF16 at opset 22.")] = False,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Compare with float32.")] = True,
    allow_modified: Annotated[
        bool, typer.Option("--allow-modified", help="Take a file that its manifest does not describe.")
    ] = False,
    policy: Annotated[bool, typer.Option("--policy", help="Also print what goes down and what stays.")] = False,
    portable: Annotated[
        bool, typer.Option("--portable", help="Instead: standard operators only, for OpenVINO and others.")
    ] = False,
    plugin_only: Annotated[
        bool, typer.Option("--plugin-only", help="Instead: custom nodes without function bodies, for trtexec.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Convert a float32 ONNX file to half precision, or to another form."""
    refuse_with_json(as_json, policy=policy)
    if portable or plugin_only:
        form = "portable" if portable else "plugin-only"
        why, hint = f"--{form} keeps the types", "Convert to half precision first, then that file."
        half.refuse(why, hint)
        refuse_flags(why, hint, fp16=fp16, bf16=bf16, policy=policy, no_verify=not verify)
        refuse_flags(f"--{form} stands alone", "Leave one out.", plugin_only=portable and plugin_only)
        _convert_form(model, output, form, as_json=as_json)
        return
    precision = one_precision(fp16=fp16, bf16=bf16) or "fp16"
    with reporter("Converting") as told:
        made = vimdeploy.convert(
            model,
            output,
            precision=precision,
            verify=verify,
            allow_modified=allow_modified,
            reporter=told,
            **half.arguments(),
        )
    if as_json:
        print_json(made.to_dict())
        return
    if policy:
        show.policy()
    show.converted(made)


def _convert_form(model: Path, output: Path | None, form: str, *, as_json: bool) -> None:
    from vimdeploy.commands.convert_form import convert_form

    written = convert_form(model, output, form=form)
    if as_json:
        print_json({"path": str(written)})
    else:
        result(f"wrote {written} ({written.stat().st_size / 1e6:.1f} MB)")


@grouped
def build_engine(
    model: Annotated[Path, typer.Argument(help="ONNX file that `vimdeploy export` or `convert` wrote.")],
    half: HalfGroup,
    engine: EngineGroup,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Plan to write; default: MODEL.engine.")] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="FP16 where the policy says so.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="BF16 where the policy says so.")] = False,
    fp32: Annotated[bool, typer.Option("--fp32", help="Float32; default is what the recipe says.")] = False,
    timing_cache: Annotated[Path | None, typer.Option(help="Folder that keeps kernel timings between builds.")] = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Hold it to the recipe's contract.")] = True,
    layers: Annotated[bool, typer.Option("--layers", help="Print the layers of network and engine.")] = False,
    as_json: AsJson = False,
) -> None:
    """Build a TensorRT engine from an ONNX file."""
    refuse_with_json(as_json, layers=layers)
    precision = one_precision(fp32=fp32, fp16=fp16, bf16=bf16)
    with reporter("Building") as told:
        made = vimdeploy.build_engine(
            model,
            output,
            precision=precision,
            timing_cache=timing_cache,
            verify=verify,
            options=engine.options(),
            reporter=told,
            **half.arguments(),
        )
    if as_json:
        print_json(made.to_dict())
        return
    if layers:
        show.layers(made.layers, made.inspector)
    show.built(made)


def build_plugin(
    arch: Annotated[
        str | None, typer.Option(help="GPU architectures, as in sm_89,sm_90, or native; default: Turing and newer.")
    ] = None,
    tensorrt_include: Annotated[
        Path | None, typer.Option(help="Folder with NvInferRuntime.h; default: TENSORRT_ROOT, then the system's.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Compilers at work at once; default: one per core.")] = None,
    kernels_only: Annotated[
        bool, typer.Option("--kernels-only", help="Only the kernels for PyTorch: needs nothing of TensorRT.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Build again what is already in the cache.")] = False,
    as_json: AsJson = False,
) -> None:
    """Build the TensorRT plugin library on this machine, into the cache."""
    from vimdeploy.tensorrt import plugin

    names = [name.strip() for name in arch.split(",")] if arch is not None else []
    with reporter("Building the plugin library", "steps") as told:
        path = plugin.build_plugin(
            names, tensorrt_include, kernels_only=kernels_only, jobs=jobs, force=force, reporter=told
        )
    info = {} if kernels_only else vars(plugin.read_info(path))
    if as_json:
        print_json({"library": str(path), **info})
    else:
        result(f"{path}" + "".join(f"; {name.replace('_', ' ')} {value}" for name, value in info.items()))
