"""What a build may be told, checked against the TensorRT at hand before any work is done."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vimdeploy.artifacts.tensors import Profile
from vimdeploy.errors import UsageError, nearest
from vimdeploy.tensorrt.api import Flavour, TensorRt

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


_JETSON = ("sm_53", "sm_62", "sm_72", "sm_87", "sm_101", "sm_110")
"""Compute capabilities of Nano, TX2, Xavier, Orin and Thor: integrated GPUs."""


@dataclass(frozen=True)
class BuildOptions:
    """Options of ``vimdeploy build-engine``; sizes in bytes, None for TensorRT's or the recipe's choice."""

    flavour: Flavour = Flavour.TENSORRT
    batch: tuple[int | None, int | None, int | None] = (None, None, None)
    """Smallest, best and largest batch; None takes the recipe's."""
    profiles: tuple[str, ...] = ()
    """Profiles in full, instead of ``batch``: see :func:`parse_profile`."""
    compute_capabilities: tuple[str, ...] = ()
    plugin: Path | None = None
    workspace: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    embed_plugin: bool = False
    same_compute_capability: bool = False
    tf32: bool = False
    """Let products of float32 tensors round their inputs to 10 bits, as TensorRT does by itself."""


def check_options(options: BuildOptions, owner: TensorRt) -> None:
    """Raise UsageError for an option that this TensorRT does not have, or two that exclude each other."""
    rtx = owner.flavour is Flavour.RTX
    plain = {
        "--version-compatible": options.version_compatible,
        "--hardware-compatible": options.hardware_compatible,
        "--same-compute-capability": options.same_compute_capability,
        "--embed-plugin": options.embed_plugin,
        "--plugin": options.plugin is not None,
    }
    given = [name for name, value in plain.items() if value]
    if rtx and given:
        raise UsageError(
            f"{given[0]} does not exist for --runtime rtx",
            hint="TensorRT-RTX plans take no plugins and are made per compute capability: leave it out.",
        )
    if options.same_compute_capability and options.hardware_compatible:
        raise UsageError(
            "--same-compute-capability and --hardware-compatible exclude each other",
            hint="--hardware-compatible serves every GPU from Ampere on and is slower; take one of them.",
        )
    if options.same_compute_capability and not owner.knows_same_compute_capability:
        raise UsageError(
            f"--same-compute-capability is unknown to TensorRT {owner.version}",
            hint="Upgrade TensorRT, or leave it out and build on each GPU.",
        )
    if len(options.profiles) > 1:
        raise UsageError(
            f"--profile is given {len(options.profiles)} times, a plan of vimdeploy has one profile",
            hint="Name every input in one --profile, separated by ';', and give the range that serves all batches.",
        )
    if rtx and not options.compute_capabilities:
        raise UsageError(
            "--runtime rtx builds ahead of time and has to know for which GPUs",
            hint=f"Add --compute-capability, one or several of {', '.join(owner.known_compute_capabilities)}.",
        )
    if not rtx and options.compute_capabilities:
        raise UsageError(
            "--compute-capability is for --runtime rtx; TensorRT builds for the GPU of this machine",
            hint="Leave it out, or add --hardware-compatible to serve all GPUs from Ampere on.",
        )
    for name in options.compute_capabilities:
        if name in _JETSON and name not in owner.known_compute_capabilities:
            raise UsageError(
                f"TensorRT-RTX is not made for {name}, the GPU of a Jetson",
                hint="Build on the device with TensorRT itself, without --runtime rtx: see docs/jetson.md.",
            )
        if name not in owner.known_compute_capabilities:
            raise UsageError(
                f"unknown compute capability '{name}'", hint=nearest(name, owner.known_compute_capabilities)
            )
    if options.embed_plugin and not options.version_compatible:
        raise UsageError(
            "--embed-plugin needs --version-compatible",
            hint="TensorRT puts plugins into version-compatible plans only: add it, or ship the library with the plan.",
        )
    level = options.optimization_level
    if level is not None and not 0 <= level <= 5:
        raise UsageError(f"--optimization-level {level} is not between 0 and 5", hint="3 is TensorRT's default.")
    if options.profiles and any(b is not None for b in options.batch):
        raise UsageError(
            "--profile and --min-batch/--opt-batch/--max-batch say the same thing", hint="Use one of them."
        )


def parse_size(text: str) -> int:
    """Read ``4GiB``, ``512M`` or ``1073741824`` as bytes; UsageError otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?)(?:i?b)?\s*", text, re.IGNORECASE)
    if not match:
        raise UsageError(f"'{text}' is not a size", hint="Write 4GiB, 512MiB or a number of bytes.")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def batch_profile(
    inputs: dict[str, tuple[int | None, ...]],
    batch: tuple[int | None, int | None, int | None],
    recipe: tuple[int, int, int],
) -> Profile:
    """Build the profile of a model whose only free dimension is the batch.

    Args:
        inputs: shape of every input, None where free.
        batch: smallest, best and largest batch as given; None where not.
        recipe: the recipe's, for those not given.

    Raises:
        UsageError: the three do not fit each other or the model.

    """
    if all(None not in shape for shape in inputs.values()):
        fixed = {shape[0] for shape in inputs.values()}
        if any(b is not None and {b} != fixed for b in batch):
            raise UsageError(
                f"this model was exported for a batch of {', '.join(str(b) for b in fixed)} only",
                hint="Export it again with --batch dynamic (the default), or leave the batch options out.",
            )
        return {}
    least, best, most = batch
    if least is None:
        least = min([recipe[0], *(b for b in (best, most) if b is not None)])
    if most is None:
        most = max(recipe[2], least, best or 1)
    if best is None:
        best = min(max(recipe[1], least), most)
    if not 1 <= least <= best <= most:
        raise UsageError(
            f"a batch profile of {least}, {best}, {most} is not 1 <= min <= opt <= max",
            hint="Give --min-batch, --opt-batch and --max-batch in rising order.",
        )
    sizes = (least, best, most)
    return {name: _three([_at(name, shape, size) for size in sizes]) for name, shape in inputs.items()}


def _at(name: str, shape: tuple[int | None, ...], batch: int) -> tuple[int, ...]:
    rest = [d for d in shape[1:] if d is not None]
    if len(rest) != len(shape) - 1:
        raise UsageError(
            f"input '{name}' has free dimensions beyond the batch", hint=f"Give --profile {name}:MIN,OPT,MAX in full."
        )
    return (batch if shape[0] is None else shape[0], *rest)


def _three(shapes: list[tuple[int, ...]]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    least, best, most = shapes
    return least, best, most


def parse_profile(text: str, inputs: dict[str, tuple[int | None, ...]]) -> Profile:
    """Read ``images:1x3x224x224,8x3x224x224,64x3x224x224``; several inputs are separated by ``;``.

    Raises:
        UsageError: not of that form, an unknown input, or dimensions that contradict the model.

    """
    profile: Profile = {}
    for part in filter(None, text.split(";")):
        name, _, shapes = part.strip().partition(":")
        if name not in inputs:
            raise UsageError(
                f"--profile names input '{name}', which the model does not have", hint=nearest(name, inputs)
            )
        rows = [row.strip() for row in shapes.split(",")]
        if len(rows) != 3 or not all(re.fullmatch(r"\d+(x\d+)*", row) for row in rows):
            raise UsageError(
                f"--profile '{part}' is not NAME:MIN,OPT,MAX",
                hint="For example images:1x3x224x224,8x3x224x224,64x3x224x224",
            )
        parsed = [tuple(int(d) for d in row.split("x")) for row in rows]
        for shape in parsed:
            _fits(name, shape, inputs[name])
        if not all(a <= b <= c for a, b, c in zip(*parsed, strict=True)):
            raise UsageError(f"--profile '{part}' does not rise from MIN over OPT to MAX")
        profile[name] = _three(parsed)
    if missing := [name for name in inputs if name not in profile]:
        raise UsageError(f"--profile says nothing about input '{missing[0]}'", hint="Separate inputs by ';'.")
    return profile


def _fits(name: str, shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> None:
    if len(shape) != len(wanted) or any(w is not None and w != d for d, w in zip(shape, wanted, strict=True)):
        model = "x".join("N" if d is None else str(d) for d in wanted)
        raise UsageError(
            f"--profile gives input '{name}' the shape {'x'.join(map(str, shape))}, the model takes {model}",
            hint="Only dimensions shown as N are free.",
        )
