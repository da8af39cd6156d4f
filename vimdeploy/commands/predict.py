"""Classify image files with an exported model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vimdeploy.artifacts.images import load_images
from vimdeploy.artifacts.manifest import PLAN_SUFFIXES, Manifest, read_manifest
from vimdeploy.backends.session import SessionBackend
from vimdeploy.errors import ArtifactError, UsageError
from vimdeploy.runtime.session import load


@dataclass(frozen=True)
class ClassScore:
    """One class and its softmax probability."""

    index: int
    label: str
    """The class name, or its index where names are not known."""
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The best classes of one image, best first."""

    image: str
    classes: tuple[ClassScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def predict(model: Path, images: Sequence[Path], top: int = 5, *, ops: str = "auto") -> list[Prediction]:
    """Return the ``top`` classes of each image file.

    Args:
        model: ONNX file or plan with its manifest, exported with the task ``classify``.
        images: image files; one batch each, so that any batch profile serves.
        top: how many classes.
        ops: what computes the custom ops of an ONNX file; see :func:`vimdeploy.runtime.ort.open_session`.

    Raises:
        ArtifactError: model or manifest is missing or corrupt.
        UsageError: the model gives no logits.
        ImageError: an image cannot be read.

    """
    if not model.exists():
        raise ArtifactError(f"{model}: there is no such file.")
    manifest = _manifest(model)
    if manifest.model.task != "classify" or manifest.classes.count == 0:
        raise UsageError(
            f"{model}: gives {manifest.outputs[0].name}, not logits.", hint="Export it with --task classify."
        )
    tensors = [load_images([path], manifest.preprocessing) for path in images]
    labels = manifest.classes.labels() or tuple(map(str, range(manifest.classes.count)))
    options: dict[str, Any] = {} if model.suffix in PLAN_SUFFIXES else {"ops": ops}
    with load(model, **options) as session:
        backend = SessionBackend(session)
        outputs = [next(iter(backend.run(tensor).values()))[0] for tensor in tensors]
    predictions = []
    for path, logits in zip(images, outputs, strict=True):
        if logits.ndim != 1:
            raise UsageError(f"{model}: gives logits of shape {logits.shape} per image, one per token.")
        if len(logits) != manifest.classes.count:
            raise ArtifactError(
                f"{model}: gives {len(logits)} logits, its manifest says {manifest.classes.count} classes.",
                hint="Export the model again.",
            )
        exponentials = np.exp(logits - logits.max())
        probabilities = exponentials / exponentials.sum()
        best = np.argsort(-probabilities, kind="stable")[:top]
        scores = tuple(ClassScore(int(i), labels[i], float(probabilities[i])) for i in best)
        predictions.append(Prediction(str(path), scores))
    return predictions


def _manifest(model: Path) -> Manifest:
    """Return the manifest of an ONNX file, or of the one that a plan was built from."""
    from vimdeploy.artifacts.engine_manifest import read_engine_manifest

    if model.suffix not in PLAN_SUFFIXES:
        return read_manifest(model)
    source = read_engine_manifest(model).source
    if source is None:
        raise ArtifactError(
            f"{model}: was built from a file without a manifest: its preprocessing and classes are not known.",
            hint="Build it again from a file that `vimdeploy export` wrote, with its manifest beside it.",
        )
    return source
