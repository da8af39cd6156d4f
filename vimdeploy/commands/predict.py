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
from vimdeploy.progress import SILENT, Reporter
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


def predict(
    model: str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    top: int = 5,
    ops: str = "auto",
    reporter: Reporter = SILENT,
) -> list[Prediction]:
    """Classify image files with an exported model.

    Args:
        model: ONNX file or plan with its manifest beside it, exported with the task classify.
        images: Image files; one batch each, so that any batch profile serves.
        top: How many classes to show.
        ops: What computes the custom ops: native, body, or auto (native where it is here).
        reporter: Told about finished images.

    Returns:
        The best classes of each image, in the order of the images.

    Raises:
        MissingDependencyError: onnxruntime, or for a plan TensorRT or a GPU, is missing.
        ArtifactError: model or manifest is missing or corrupt.
        UsageError: the model gives no logits.
        ImageError: an image cannot be read.

    """
    path = Path(model)
    paths = [Path(images)] if isinstance(images, str | Path) else [Path(image) for image in images]
    if not path.exists():
        raise ArtifactError(f"{path}: there is no such file.")
    manifest = _manifest(path)
    if manifest.model.task != "classify" or manifest.classes.count == 0:
        raise UsageError(
            f"{path}: gives {manifest.outputs[0].name}, not logits.", hint="Export it with --task classify."
        )
    tensors = [load_images([image], manifest.preprocessing) for image in paths]
    labels = manifest.classes.labels() or tuple(map(str, range(manifest.classes.count)))
    with load(path, ops=ops) as session:
        backend = SessionBackend(session)
        outputs = []
        for done, tensor in enumerate(tensors, 1):
            outputs.append(next(iter(backend.run(tensor).values()))[0])
            reporter.progress(done, len(tensors))
    predictions = []
    for image, logits in zip(paths, outputs, strict=True):
        if logits.ndim != 1:
            raise UsageError(f"{path}: gives logits of shape {logits.shape} per image, one per token.")
        if len(logits) != manifest.classes.count:
            raise ArtifactError(
                f"{path}: gives {len(logits)} logits, its manifest says {manifest.classes.count} classes.",
                hint="Export the model again.",
            )
        exponentials = np.exp(logits - logits.max())
        probabilities = exponentials / exponentials.sum()
        best = np.argsort(-probabilities, kind="stable")[:top]
        scores = tuple(ClassScore(int(i), labels[i], float(probabilities[i])) for i in best)
        predictions.append(Prediction(str(image), scores))
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
