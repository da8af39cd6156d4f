"""What a report shows, measured or read: plain values, from which the page follows byte for byte."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vimdeploy.artifacts.manifest import Manifest
from vimdeploy.backends.base import Array, Backend, run_batched
from vimdeploy.backends.onnxruntime import OnnxBackend
from vimdeploy.errors import MissingDependencyError, VimdeployError
from vimdeploy.parity.half import HalfForm, half_form
from vimdeploy.parity.metrics import relative_rms
from vimdeploy.progress import SILENT, Reporter
from vimdeploy.reports.profile import Profile

if TYPE_CHECKING:
    import onnx

    from vimdeploy.parity.ladder import LadderReport

_THUMBNAIL = 128
_MOST_IMAGES = 8


@dataclass(frozen=True)
class Form:
    """One form of the model beside the reference, block by block."""

    name: str
    errors: tuple[float, ...]
    """Relative RMS to the reference, by place."""


@dataclass(frozen=True)
class Worst:
    """An image on which two forms differ most."""

    name: str
    thumbnail: str
    """PNG as a data address."""
    reference: str
    """What the reference says of it, in words."""
    candidate: str
    error: float
    same: bool
    """Whether both find the same class."""


@dataclass(frozen=True)
class ReportData:
    """Everything on the page."""

    title: str
    manifest: Manifest
    ladder: dict[str, Any]
    places: tuple[str, ...]
    reference: str
    forms: tuple[Form, ...]
    kept: tuple[tuple[str, str], ...]
    """Nodes and blocks that stay float32, each with the reason."""
    worst: tuple[Worst, ...]
    compared: tuple[str, str]
    """The two forms whose images are shown."""
    samples: int
    real_images: bool
    profile: Profile | None = None
    benchmark: Any = None
    notes: tuple[str, ...] = field(default_factory=tuple)


def collect(
    path: Path,
    model: onnx.ModelProto,
    manifest: Manifest,
    torch_model: Backend | None,
    ladder: LadderReport,
    images: Array,
    names: Sequence[str],
    reporter: Reporter = SILENT,
) -> ReportData:
    """Measure every form of a model block by block.

    Args:
        path: the exported float32 file.
        model: its content.
        manifest: of it.
        torch_model: the reference, with its inner values; None takes ONNX Runtime in float32.
        ladder: what became of every form at the output.
        images: (N, C, H, W) float32 that all forms see.
        names: of the images, empty for synthetic ones.
        reporter: told what begins.

    """
    from vimdeploy.artifacts.onnx_file import fixed_batch

    reporter.stage("Converting to fp16 for the blocks")
    batch = fixed_batch(model)
    half = half_form(model, manifest, images, "fp16", reporter=reporter)
    small = images[: batch or 4]
    reporter.stage("Comparing block by block")
    taps = [name for node in model.graph.node for name in node.output if name.startswith("block.")]
    backends: dict[str, Backend] = {"ONNX float32": OnnxBackend(model, taps=taps, ops="body")}
    notes = []
    try:
        backends["ONNX float32, native ops"] = OnnxBackend(model, taps=taps, ops="native")
    except MissingDependencyError as error:
        notes.append(f"Native ops were not run: {error.message}")
    backends["ONNX fp16, roundings emulated"] = OnnxBackend(half.emulated, taps=taps, ops="body")
    reference_name = "ONNX float32"
    if torch_model is not None:
        reference_name = "torch float32"
        reference = torch_model.run(small)
    else:
        reference = backends["ONNX float32"].run(small)
    forms, places = [], [*taps, manifest.outputs[0].name]
    for name, backend in backends.items():
        if name == reference_name:
            continue
        try:
            found = backend.run(small)
        except VimdeployError as error:
            notes.append(f"{name} was not run: {error.message}")
            continue
        forms.append(Form(name, tuple(_errors(found, reference, places))))
    plain, rounded = OnnxBackend(model, ops="body"), OnnxBackend(half.emulated, ops="body")
    return ReportData(
        title=path.name,
        manifest=manifest,
        ladder=ladder.to_dict(),
        places=tuple(place.removeprefix("block.").replace(".", " ") for place in places),
        reference=reference_name,
        forms=tuple(forms),
        kept=tuple(sorted(_kept(half))),
        worst=_worst(manifest, run_batched(plain, images), run_batched(rounded, images), images, names),
        compared=("ONNX float32", "ONNX fp16, roundings emulated"),
        samples=len(images),
        real_images=bool(names),
        notes=tuple(notes),
    )


def _errors(found: Mapping[str, Array], reference: Mapping[str, Array], places: Sequence[str]) -> list[float]:
    return [
        relative_rms(found[place], reference[place]) if place in found and place in reference else float("nan")
        for place in places
    ]


def _kept(half: HalfForm) -> list[tuple[str, str]]:
    by_reason: dict[str, list[str]] = {}
    for entry in half.report.kept:
        by_reason.setdefault(entry.reason, []).append(f"{entry.node} ({entry.op})")
    return [(n[0] if len(n) == 1 else f"{n[0]} and {len(n) - 1} more", reason) for reason, n in by_reason.items()]


def _worst(
    manifest: Manifest, a: Mapping[str, Array], b: Mapping[str, Array], images: Array, names: Sequence[str]
) -> tuple[Worst, ...]:
    output = manifest.outputs[0].name
    errors = [relative_rms(y[None], x[None]) for x, y in zip(a[output], b[output], strict=True)]
    order = np.argsort(-np.array(errors), kind="stable")[:_MOST_IMAGES]
    labels = manifest.classes.labels() or tuple(map(str, range(manifest.classes.count)))
    classes = manifest.model.task == "classify" and a[output].ndim == 2
    shown = []
    for index in map(int, order):
        first, second = (_words(y[output][index], labels) if classes else "" for y in (a, b))
        same = not classes or int(a[output][index].argmax()) == int(b[output][index].argmax())
        name = names[index] if names else f"synthetic image {index}"
        shown.append(Worst(name, _thumbnail(images[index], manifest), first, second, errors[index], same))
    return tuple(shown)


def _words(logits: Array, labels: Sequence[str]) -> str:
    exponentials = np.exp(logits - logits.max())
    best = int(logits.argmax())
    return f"{labels[best]} {exponentials[best] / exponentials.sum():.1%}"


def _thumbnail(image: Array, manifest: Manifest) -> str:
    """Return what the model sees, as a small PNG."""
    spec = manifest.preprocessing
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (spec.mean, spec.std)) if spec else (0.0, 1.0)
    pixels = np.clip((image * std + mean) * 255, 0, 255).round().astype(np.uint8).transpose(1, 2, 0)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels[..., :3])
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
