"""The commands of the second half of the way: convert, build-engine and build-plugin. See :mod:`vimdeploy.cli.app`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vimdeploy.cli.screen import print_json, progress, say, table
from vimdeploy.errors import UsageError

if TYPE_CHECKING:
    from vimdeploy.commands.build_engine import BuiltEngine
    from vimdeploy.tensorrt.boundary import Layer

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Keep = Annotated[
    list[str] | None, typer.Option(help="Keep nodes of this name in float32; a pattern as *scan*; may be repeated.")
]
MaxError = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="Relative RMS error that half precision may cost; blocks that cost more stay float32. Default: the "
        "recipe's contract.",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(help="Folder of images to measure on, as the model will see; default: synthetic images."),
]
IoDtype = Annotated[str, typer.Option(help="Type of inputs and outputs: fp32 or the model's own half (fp16, bf16).")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(convert)
    app.command("build-engine")(build_engine)
    app.command("build-plugin")(build_plugin)


def convert(
    model: Annotated[Path, typer.Argument(help="Float32 ONNX file with its manifest beside it.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Default: MODEL.fp16.onnx.")] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Convert to FP16 (the default).")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Convert to BF16 at opset 22.")] = False,
    io_dtype: IoDtype = "fp32",
    keep: Keep = None,
    max_error: MaxError = None,
    images: Images = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Compare with float32.")] = True,
    policy: Annotated[bool, typer.Option("--policy", help="Also print what goes down and what stays.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Convert a float32 ONNX file to half precision."""
    from vimdeploy.commands.convert import ConvertRequest
    from vimdeploy.commands.convert import convert as run

    precision = _precision(fp32=False, fp16=fp16, bf16=bf16) or "fp16"
    target = output or model.with_suffix(f".{precision}.onnx")
    request = ConvertRequest(precision, tuple(keep or ()), _half_io(io_dtype, precision), verify, max_error, images)
    with progress("Converting") as update:
        made = run(model, target, request, _say_stage, update)
    report = made.report
    if as_json:
        facts: dict[str, Any] = {"onnx": str(target), "casts": report.casts, "nodes": report.nodes}
        kept = {k.node: k.reason for k in report.kept}
        facts["kept_blocks"] = list(made.blocks)
        print_json({**facts, "kept_float32": kept, "metrics": made.metrics.to_dict() if made.metrics else None})
        return
    if policy:
        from vimdeploy.graph.policy import policy_table

        table("Policy", ("op", "inputs in half", "output", "why"), policy_table())
    _say_kept((f"{k.node} ({k.op})", k.reason) for k in report.kept)
    if made.metrics:
        m = made.metrics
        say(f"relative RMS {m.relative_rms:.2e}, cosine {m.cosine:.7f} against float32, over {m.samples} images")
    share = report.half_weight_bytes / max(report.half_weight_bytes + report.float_weight_bytes, 1)
    say(f"wrote {target}: {report.nodes} nodes in {precision}, {share:.0%} of the weight bytes, {report.casts} casts")


def build_engine(
    model: Annotated[Path, typer.Argument(help="ONNX file that `vimdeploy export` or `convert` wrote.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Plan to write; default: MODEL.engine.")] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="FP16 where the policy says so.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="BF16 where the policy says so.")] = False,
    fp32: Annotated[bool, typer.Option("--fp32", help="Float32; default is what the recipe says.")] = False,
    io_dtype: IoDtype = "fp32",
    keep: Keep = None,
    max_error: MaxError = None,
    images: Images = None,
    min_batch: Annotated[int | None, typer.Option(help="Smallest batch; default from the recipe.")] = None,
    opt_batch: Annotated[int | None, typer.Option(help="The batch to tune for.")] = None,
    max_batch: Annotated[int | None, typer.Option(help="Largest batch.")] = None,
    profile: Annotated[
        list[str] | None, typer.Option(help="Full profile NAME:MIN,OPT,MAX, as images:1x3x224x224,...; repeatable.")
    ] = None,
    runtime: Annotated[str, typer.Option(help="tensorrt, or rtx to build ahead of time without a GPU.")] = "tensorrt",
    compute_capability: Annotated[
        list[str] | None, typer.Option(help="With --runtime rtx: target GPUs, as sm_89; repeat or separate by commas.")
    ] = None,
    plugin: Annotated[Path | None, typer.Option(help="Plugin library; default: found by itself.")] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="Folder that keeps kernel timings between builds.")] = None,
    workspace: Annotated[str | None, typer.Option(help="Most scratch memory, as 4GiB.")] = None,
    optimization_level: Annotated[int | None, typer.Option(help="0 (fast build) to 5 (fast engine).")] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Plan runs in later TensorRT versions too.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Plan runs on every GPU from Ampere on.")
    ] = False,
    same_compute_capability: Annotated[
        bool, typer.Option("--same-compute-capability", help="Plan runs on every GPU of this one's compute capability.")
    ] = False,
    embed_plugin: Annotated[bool, typer.Option("--embed-plugin", help="Put the plugin library into the plan.")] = False,
    tf32: Annotated[
        bool, typer.Option("--tf32", help="Let float32 products round their inputs to 10 bits; faster, less exact.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Hold it to the recipe's contract.")] = True,
    layers: Annotated[bool, typer.Option("--layers", help="Print the layers of network and engine.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Build a TensorRT engine from an ONNX file."""
    from vimdeploy.commands.build_engine import BuildRequest
    from vimdeploy.commands.build_engine import build_engine as run
    from vimdeploy.tensorrt.api import Flavour
    from vimdeploy.tensorrt.options import BuildOptions, parse_size

    if runtime not in ("tensorrt", "rtx"):
        raise UsageError(f"--runtime {runtime}: must be tensorrt or rtx.")
    precision = _precision(fp32=fp32, fp16=fp16, bf16=bf16)
    options = BuildOptions(
        flavour=Flavour(runtime),
        batch=(min_batch, opt_batch, max_batch),
        profiles=tuple(profile or ()),
        compute_capabilities=_capabilities(compute_capability or ()),
        plugin=plugin,
        workspace=parse_size(workspace) if workspace else None,
        optimization_level=optimization_level,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        same_compute_capability=same_compute_capability,
        embed_plugin=embed_plugin,
        tf32=tf32,
    )
    half_io = _half_io(io_dtype, precision)
    request = BuildRequest(options, precision, tuple(keep or ()), half_io, max_error, images, timing_cache, verify)
    with progress("Building") as update:
        bar = _Bar(update)
        made = run(model, output or model.with_suffix(".engine"), request, _say_stage, bar)
    if as_json:
        print_json({"engine": str(made.path), "notes": made.notes, **made.manifest.model_dump(mode="json")})
        return
    if layers:
        show_layers(made.layers, made.inspector)
    _show_built(made)


def is_plan(path: Path) -> bool:
    """Whether a file is named like a TensorRT plan."""
    from vimdeploy.artifacts.manifest import PLAN_SUFFIXES

    return path.suffix in PLAN_SUFFIXES


def verify_ladder(
    model: Path,
    checkpoint: Path | None,
    images: Path | None,
    samples: int,
    engines: list[Path],
    bf16: bool,
    json_file: Path | None,
) -> None:
    """Climb the ladder and print it; exit code 1 where a rung breaks its contract."""
    from vimdeploy.artifacts.files import write_all
    from vimdeploy.commands.ladder import raise_unless_climbed
    from vimdeploy.commands.ladder import verify_ladder as climb
    from vimdeploy.commands.pipeline import VerifyRequest

    request = VerifyRequest(checkpoint, images, samples)

    with progress("Verifying") as update:

        def stage(name: str) -> Any:
            _say_stage(name)
            return update

        report = climb(model, tuple(engines), request, "bf16" if bf16 else "fp16", stage)
    if json_file == Path("-"):
        print_json(report.to_dict())
    else:
        rows = []
        for rung in report.rungs:
            a, b = rung.against_first, rung.against_previous
            numbers = (f"{a.relative_rms:.1e}", f"{a.cosine:.6f}", _share(a.top1)) if a else ("", "", "")
            rows.append((rung.name, rung.status, *numbers, f"{b.relative_rms:.1e}" if b else "", rung.reason))
        columns = ("rung", "status", "rel. RMS", "cosine", "top-1", "to the one before", "")
        table(f"{model} on {report.samples} images, against the first rung", columns, rows)
    if json_file not in (None, Path("-")):
        import json

        write_all({json_file: (json.dumps(report.to_dict(), indent=2) + "\n").encode()})
        say(f"wrote {json_file}")
    raise_unless_climbed(report, str(model))
    say(report.verdict())


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
    as_json: JsonFlag = False,
) -> None:
    """Build the TensorRT plugin library on this machine, into the cache."""
    from vimdeploy.tensorrt import plugin

    names = [name.strip() for name in arch.split(",")] if arch is not None else []
    with progress("Building the plugin library", "steps") as update:
        path = plugin.build_plugin(
            names,
            tensorrt_include,
            kernels_only=kernels_only,
            jobs=jobs,
            force=force,
            progress=lambda done, total, _: update(done, total),
        )
    info = {} if kernels_only else vars(plugin.read_info(path))
    if as_json:
        print_json({"library": str(path), **info})
        return
    say(f"{path}" + "".join(f"; {name.replace('_', ' ')} {value}" for name, value in info.items()))


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


class _Bar:
    """Shows TensorRT's progress in per cent."""

    def __init__(self, update: Any) -> None:
        self._update = update

    def update(self, description: str, fraction: float) -> None:
        """See :class:`vimdeploy.tensorrt.progress.Bar`."""
        self._update(round(100 * fraction), 100)


def _say_stage(text: str) -> None:
    say(f"{text} ...", style="dim")


def _show_built(made: BuiltEngine) -> None:
    manifest, network = made.manifest, made.manifest.network
    _say_kept(entry.partition(": ")[::2] for entry in manifest.kept_float32)
    for note in made.notes:
        say(note, label="note:")
    from vimdeploy.commands.build_engine import show_profile

    rows = [
        ("precision", manifest.precision + (", TF32 allowed" if manifest.tf32 else "")),
        ("layers parsed", f"{network['layers']}, of which {network['plugin_layers']} plugins"),
        ("compute layers in half", f"{network['half_compute_share']:.0%} of {network['compute_layers']}"),
        ("weight bytes in half", f"{network['half_weight_share']:.0%}"),
        ("profiles", "; ".join(map(show_profile, manifest.profiles)) or "fixed shapes"),
        ("for", ", ".join(manifest.target.compute_capabilities)),
        ("built by", f"{manifest.tensorrt.flavour} {manifest.tensorrt.version} in {made.seconds:.1f} s"),
    ]
    if manifest.inspector:
        i = manifest.inspector
        rows.append(("layers built", f"{i['layers']}, {i['fused_layers']} fused, {i['reformats']} reformats"))
    table("Engine", ("what", "value"), rows)
    say(f"wrote {made.path} ({manifest.plan_bytes / 1e6:.1f} MB) and {made.path}.json")


def _say_kept(kept: Iterable[tuple[str, str]]) -> None:
    """Say which nodes stay float32 and why; the nodes of a block have their reason in common."""
    by_reason: dict[str, list[str]] = {}
    for node, reason in kept:
        by_reason.setdefault(reason, []).append(node)
    for reason, nodes in by_reason.items():
        who = f"{nodes[0]} stays" if len(nodes) == 1 else f"{len(nodes)} nodes stay"
        say(f"{who} float32: {reason}", label="note:")


def show_layers(layers: Sequence[Layer], inspector: dict[str, Any] | None) -> None:
    """Print what was parsed by kind and type, then the engine's layers where they could be read."""
    counts = Counter((layer.kind, layer.dtype) for layer in layers)
    weights: Counter[tuple[str, str]] = Counter()
    for layer in layers:
        weights[layer.kind, layer.dtype] += layer.weight_bytes
    rows = [(kind, dtype, n, weights[kind, dtype]) for (kind, dtype), n in counts.most_common()]
    table("Network as parsed", ("layer", "type", "count", "weight bytes"), rows)
    if inspector:
        from vimdeploy.tensorrt.proof import engine_layers

        table("Engine as built", ("layer", "name", "tactic"), engine_layers(inspector))


def _precision(*, fp32: bool, fp16: bool, bf16: bool) -> str | None:
    given = [name for name, flag in (("fp32", fp32), ("fp16", fp16), ("bf16", bf16)) if flag]
    if len(given) > 1:
        raise UsageError(f"--{given[0]} and --{given[1]} exclude each other.")
    return given[0] if given else None


def _half_io(io_dtype: str, precision: str | None) -> bool:
    if io_dtype == "fp32":
        return False
    if io_dtype != precision:
        raise UsageError(
            f"--io-dtype {io_dtype}: must be fp32 or the model's own half precision.",
            hint=f"Add --{io_dtype}." if io_dtype in ("fp16", "bf16") else "",
        )
    return True


def _capabilities(names: Sequence[str]) -> tuple[str, ...]:
    found: list[str] = []
    for text in names:
        for part in text.replace(" ", "").lower().split(","):
            digits = part.removeprefix("sm_").removeprefix("sm").replace(".", "")
            found.append(f"sm_{digits}")
    return tuple(dict.fromkeys(found))
