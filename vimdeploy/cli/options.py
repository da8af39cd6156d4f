"""Options as types: what several commands share, groups of options, and how text becomes a value.

Help texts are the words of the API's docstrings: a test compares them, with names and defaults.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer

from vimdeploy.artifacts.structured import parse_json, read_json, read_toml
from vimdeploy.errors import UsageError

_LARGEST_SIDE = 16384
"""A million tokens at patch 16, beyond what any machine runs; larger numbers are slips."""


class Interpolation(str, Enum):
    """How images are resized."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


class Task(str, Enum):
    """What the exported model gives: the names of :data:`vimdeploy.models.tasks.TASKS`."""

    CLASSIFY = "classify"
    FEATURES = "features"
    TOKENS = "tokens"
    DENSE = "dense"


class Ops(str, Enum):
    """What computes the custom ops of an ONNX file."""

    AUTO = "auto"
    NATIVE = "native"
    BODY = "body"


class DType(str, Enum):
    """Type of inputs and outputs."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class Runtime(str, Enum):
    """Which TensorRT: the names of :class:`vimdeploy.tensorrt.api.Flavour` that build."""

    TENSORRT = "tensorrt"
    RTX = "rtx"


class ImageSize(NamedTuple):
    """In pixels."""

    height: int
    width: int


def parse_image_size(text: str) -> ImageSize:
    """Read ``N`` or ``HxW``; UsageError otherwise."""
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--img-size {text}: must be N or HxW, in pixels.", hint="For example --img-size 384x640.")
    if max(map(int, parts)) > _LARGEST_SIDE:
        raise UsageError(f"--img-size {text}: a side has at most {_LARGEST_SIDE} pixels.")
    return ImageSize(int(parts[0]), int(parts[-1]))


@dataclass(frozen=True)
class Numbers:
    """One for each channel of an image."""

    values: tuple[float, ...]


def parse_numbers(text: str) -> Numbers:
    """Read ``0.485,0.456,0.406``; UsageError otherwise."""
    try:
        return Numbers(tuple(float(part) for part in text.split(",")))
    except ValueError as error:
        raise UsageError(f"{text}: must be numbers separated by commas.", hint="As in 0.485,0.456,0.406.") from error


def parse_batch(text: str) -> int | None:
    """Read a positive number, or ``dynamic`` as None; UsageError otherwise."""
    if text == "dynamic":
        return None
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise UsageError(f"--batch {text}: must be a positive number or dynamic.")
    return int(text)


def parse_model_args(text: str) -> dict[str, Any]:
    """Read ``--model-args``: JSON text, or a path to a JSON or TOML file."""
    hint = "Write --model-args '{\"if_divide_out\": false}', or name a .json or .toml file."
    if text.lstrip().startswith("{"):
        values = parse_json(text, "--model-args", hint=hint, error=UsageError)
    elif text.endswith(".toml"):
        values = read_toml(Path(text), hint=hint)
    else:
        try:
            values = read_json(Path(text), hint=hint, error=UsageError)
        except FileNotFoundError as error:
            raise UsageError(f"--model-args {text}: neither JSON text nor a readable file.", hint=hint) from error
    if not isinstance(values, dict):
        raise UsageError(f"{text[:80]}: must be a table of argument names and values.", hint=hint)
    return values


def parse_bytes(text: str) -> int:
    """Read ``4GiB``, ``512M`` or ``1073741824`` as bytes; UsageError otherwise."""
    from vimdeploy.tensorrt.options import parse_size

    return parse_size(text)


def parse_capabilities(names: list[str] | None) -> tuple[str, ...]:
    """Read ``sm_89,8.9`` and the like as ``sm_89``, each once."""
    digits = (
        part.removeprefix("sm_").removeprefix("sm").replace(".", "")
        for text in names or ()
        for part in text.replace(" ", "").lower().split(",")
    )
    return tuple(dict.fromkeys(f"sm_{number}" for number in digits))


class Group:
    """Options that several commands share, or that belong together: a dataclass with one field an option."""

    def given(self) -> list[str]:
        """Return the options that were given a value, as they are written."""
        said = []
        for f in fields(self):  # type: ignore[arg-type]
            if getattr(self, f.name) != f.default:
                said.append(f"--{_WRITTEN.get(f.name, f.name).replace('_', '-')}")
        return said

    def refuse(self, why: str, hint: str) -> None:
        """Raise UsageError where any of the options was given."""
        if given := self.given():
            raise UsageError(f"{', '.join(given)}: not used, {why}.", hint=hint)


_WRITTEN = {"module_checkpoint": "checkpoint", "inputs": "input"}
"""Fields whose option is written otherwise."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@dataclass(frozen=True)
class CheckpointGroup(Group):
    """What a checkpoint is and how it is exported: ``export``."""

    arch: Annotated[
        str | None, typer.Option(help="A recipe's model; without a checkpoint it gets random weights, to measure it.")
    ] = None
    recipe: Annotated[str | None, typer.Option(help="Name of a recipe (see `vimdeploy recipes`) or a TOML file.")] = (
        None
    )
    model_args: Annotated[
        dict[str, Any] | None,
        typer.Option(
            parser=parse_model_args,
            metavar="JSON",
            help="What shapes cannot tell, in the official constructor's names: JSON text or a JSON/TOML file.",
        ),
    ] = None
    weights: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Which weights of a training checkpoint: model, ema, or the name of an entry."
        ),
    ] = "model"
    prefix: Annotated[
        str | None,
        typer.Option(help="What stands before the model's keys in the checkpoint; default: found by itself."),
    ] = None
    img_size: Annotated[
        ImageSize | None,
        typer.Option(
            parser=parse_image_size,
            metavar="SIZE",
            help="Export at another image size, N or HxW in pixels; position embeddings are resized.",
        ),
    ] = None
    official_pos_resize: Annotated[
        bool, typer.Option("--official-pos-resize", help="Resize position embeddings as the official code does.")
    ] = False
    classes: Annotated[Path | None, typer.Option(help="Names of the classes, one a line.")] = None
    mean: Annotated[
        Numbers | None,
        typer.Option(
            parser=parse_numbers,
            metavar="R,G,B",
            help="Mean of the preprocessing, a number for each channel, of values from 0 to 1.",
        ),
    ] = None
    std: Annotated[
        Numbers | None,
        typer.Option(
            parser=parse_numbers,
            metavar="R,G,B",
            help="Standard deviation of the preprocessing, a number for each channel.",
        ),
    ] = None
    crop: Annotated[
        float | None, typer.Option(help="Share of the image's shorter side that is cut out, 0.05 to 1.")
    ] = None
    interpolation: Annotated[
        Interpolation | None, typer.Option(help="How images are resized: nearest, bilinear, bicubic or lanczos.")
    ] = None
    batch: Annotated[
        int | None, typer.Option(parser=parse_batch, metavar="N", help="A fixed batch size; default: any.")
    ] = None
    task: Annotated[
        Task | None,
        typer.Option(
            help="classify (logits), features (before the head), tokens, or dense (feature maps); "
            "default: dense for a backbone, else classify."
        ),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Return them as the API takes them."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen = {name: plain[name].value if plain[name] else None for name in ("task", "interpolation")}
        numbers = {name: plain[name].values if plain[name] else None for name in ("mean", "std")}
        return plain | chosen | numbers


@dataclass(frozen=True)
class HalfGroup(Group):
    """How a model goes down to half precision: ``convert`` and ``build-engine``."""

    io_dtype: Annotated[
        DType, typer.Option(help="Type of inputs and outputs: fp32 or the model's own half (fp16, bf16).")
    ] = DType.FP32
    keep: Annotated[
        list[str] | None, typer.Option(help="Keep nodes of this name in float32; a pattern as *scan*; may be repeated.")
    ] = None
    max_error: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Relative RMS error that half precision may cost; blocks that cost more stay float32. Default: the "
            "recipe's contract.",
        ),
    ] = None
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of images to measure on, as the model will see; default: synthetic images."),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Return them as the API takes them."""
        return {
            "io_dtype": self.io_dtype.value,
            "keep": tuple(self.keep or ()),
            "max_error": self.max_error,
            "images": self.images,
        }


@dataclass(frozen=True)
class EngineGroup(Group):
    """What TensorRT is told: :class:`vimdeploy.tensorrt.options.BuildOptions`."""

    min_batch: Annotated[int | None, typer.Option(help="Smallest batch; default from the recipe.")] = None
    opt_batch: Annotated[int | None, typer.Option(help="The batch to tune for.")] = None
    max_batch: Annotated[int | None, typer.Option(help="Largest batch.")] = None
    profile: Annotated[
        list[str] | None, typer.Option(help="Full profile NAME:MIN,OPT,MAX, as images:1x3x224x224,...; repeatable.")
    ] = None
    runtime: Annotated[Runtime, typer.Option(help="tensorrt, or rtx to build ahead of time without a GPU.")] = (
        Runtime.TENSORRT
    )
    compute_capability: Annotated[
        list[str] | None, typer.Option(help="With --runtime rtx: target GPUs, as sm_89; repeat or separate by commas.")
    ] = None
    plugin: Annotated[Path | None, typer.Option(help="Plugin library; default: found by itself.")] = None
    workspace: Annotated[
        int | None, typer.Option(parser=parse_bytes, metavar="SIZE", help="Most scratch memory, as 4GiB.")
    ] = None
    optimization_level: Annotated[int | None, typer.Option(help="0 (fast build) to 5 (fast engine).")] = None
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Plan runs in later TensorRT versions too.")
    ] = False
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Plan runs on every GPU from Ampere on.")
    ] = False
    same_compute_capability: Annotated[
        bool, typer.Option("--same-compute-capability", help="Plan runs on every GPU of this one's compute capability.")
    ] = False
    embed_plugin: Annotated[bool, typer.Option("--embed-plugin", help="Put the plugin library into the plan.")] = False
    tf32: Annotated[
        bool, typer.Option("--tf32", help="Let float32 products round their inputs to 10 bits; faster, less exact.")
    ] = False

    def options(self) -> Any:
        """Return them as :class:`vimdeploy.tensorrt.options.BuildOptions`."""
        from vimdeploy.tensorrt.api import Flavour
        from vimdeploy.tensorrt.options import BuildOptions

        return BuildOptions(
            flavour=Flavour(self.runtime.value),
            batch=(self.min_batch, self.opt_batch, self.max_batch),
            profiles=tuple(self.profile or ()),
            compute_capabilities=parse_capabilities(self.compute_capability),
            plugin=self.plugin,
            workspace=self.workspace,
            optimization_level=self.optimization_level,
            version_compatible=self.version_compatible,
            hardware_compatible=self.hardware_compatible,
            same_compute_capability=self.same_compute_capability,
            embed_plugin=self.embed_plugin,
            tf32=self.tf32,
        )


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take groups: a parameter annotated with a dataclass becomes one option for each of its fields."""
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        name: p.annotation for name, p in signature.parameters.items() if is_dataclass(p.annotation)
    }
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if name not in groups:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        hints = get_type_hints(groups[name], include_extras=True)
        parameters += [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
            for f in fields(groups[name])
        ]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        made = {name: group(**{f.name: values.pop(f.name) for f in fields(group)}) for name, group in groups.items()}
        command(**values, **made)

    # What Typer reads: one parameter an option.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def refuse_flags(why: str, hint: str, **flags: bool) -> None:
    """Raise UsageError for a flag that was given and would not be used."""
    if name := next((name for name, given in flags.items() if given), None):
        raise UsageError(f"--{name.replace('_', '-')}: not used, {why}.", hint=hint)


def refuse_with_json(as_json: bool, **tables: bool) -> None:
    """Raise UsageError for a table that was asked for together with JSON."""
    if as_json:
        refuse_flags("--json prints no table", "Leave one of them out.", **tables)


def one_precision(*, fp32: bool = False, fp16: bool = False, bf16: bool = False) -> str | None:
    """Return the precision whose flag was given, None without any; UsageError for two."""
    given = [name for name, flag in (("fp32", fp32), ("fp16", fp16), ("bf16", bf16)) if flag]
    if len(given) > 1:
        raise UsageError(f"--{given[0]} and --{given[1]} exclude each other.")
    return given[0] if given else None
