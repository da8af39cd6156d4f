"""`vimdeploy demo`: the main job, start to end, on a small model that was really trained.

A Vision Mamba for handwritten digits ships with the package, together with the digits it never saw in training
(``examples/train_digits.py`` made both). The demo exports it, compares PyTorch with ONNX Runtime on every one of those
digits, and classifies a few of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vimdeploy import needs
from vimdeploy.artifacts.images import load_images
from vimdeploy.backends.base import joined, run_batched
from vimdeploy.backends.onnxruntime import OnnxBackend
from vimdeploy.commands.predict import Prediction, predict
from vimdeploy.errors import ArtifactError, MissingDependencyError, VerificationError
from vimdeploy.parity.metrics import Metrics, compare
from vimdeploy.progress import SILENT, Reporter

if TYPE_CHECKING:
    from vimdeploy.commands.export import Exported

_PACKAGED = Path(__file__).parents[1] / "_demo"
_CHECKOUT = Path(__file__).parents[2] / "examples" / "digits"
_BATCH = 64
_PREDICTED = 5
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Demo:
    """Everything the demo found out, and where its files lie."""

    exported: Exported
    checkpoint: Path
    images: Path
    """Folder with the held-back digits as image files."""
    held_out: int
    """How many they are."""
    accuracy: dict[str, float]
    """Share of them that each backend classifies rightly."""
    agreement: float
    """Share of them on which the backends choose the same class."""
    metrics: Metrics
    predictions: tuple[Prediction, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "path": str(self.exported.path),
            "manifest_path": str(self.exported.manifest_path),
            "checkpoint": str(self.checkpoint),
            "images": str(self.images),
            "held_out": self.held_out,
            "accuracy": self.accuracy,
            "agreement": self.agreement,
            "metrics": self.metrics.to_dict(),
            "predictions": [p.to_dict() for p in self.predictions],
        }


def demo_folder() -> Path:
    """Return the folder with the trained model and its data: inside an installed package, or in a checkout.

    Raises:
        MissingDependencyError: a package that was built without it.

    """
    folder = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT
    if not (folder / "vim_digits.pth").is_file():
        raise MissingDependencyError(
            f"{folder}: the example model is not here.", hint="Install vimdeploy again, or run it in a checkout."
        )
    return folder


def run_demo(output: str | Path = "vimdeploy-demo", *, reporter: Reporter = SILENT) -> Demo:
    """Export the digits model into the folder ``output`` and prove it on the held-back digits.

    Args:
        output: Folder for the results: the ONNX file, its manifest, and the digits as image files.
        reporter: Told what the demo is at.

    Raises:
        VerificationError: the exported model departs from the PyTorch model.
        ArtifactError: ``output`` cannot be written.

    """
    needs.require("demo")
    from vimdeploy.backends.torch import TorchBackend
    from vimdeploy.commands.export import export

    source, output = demo_folder(), Path(output)
    reporter.stage("Unpacking the held-back digits")
    folder = output / "held_out"
    paths, labels = _unpack(source / "held_out.npz", folder)
    checkpoint = source / "vim_digits.pth"
    exported = export(checkpoint, output / "vim_digits.onnx", recipe="vim_digits", reporter=reporter)

    reporter.stage(f"Comparing on all {len(paths)} held-back digits")
    images = load_images(paths, exported.model.input)
    torch, onnx = TorchBackend(exported.model.model, "classify"), OnnxBackend(exported.path)
    expected = joined(run_batched(torch, images, _BATCH, reporter=reporter.part(0, 2)))
    found = joined(run_batched(onnx, images, _BATCH, reporter=reporter.part(1, 2)))
    metrics = compare(found, expected, exported.manifest.contract.fp32, classes=True)
    agreement = float(np.mean(found.argmax(1) == expected.argmax(1)))
    if metrics.violations or agreement < 1:
        wrong = "; ".join(metrics.violations) or f"the best class agrees on {agreement:.2%} only"
        raise VerificationError(f"{exported.path}: does not compute what PyTorch computes: {wrong}.")
    return Demo(
        exported=exported,
        checkpoint=checkpoint,
        images=folder,
        held_out=len(paths),
        accuracy={"torch": _accuracy(expected, labels), "onnxruntime": _accuracy(found, labels)},
        agreement=agreement,
        metrics=metrics,
        predictions=tuple(predict(exported.path, paths[:_PREDICTED], top=2)),
    )


def _unpack(archive: Path, folder: Path) -> tuple[list[Path], npt.NDArray[np.uint8]]:
    """Write the digits as image files that say what they show, and return them with their labels."""
    with np.load(archive) as file:
        images, labels, index = file["images"], file["labels"], file["index"]
    paths = [folder / f"{i:04d}_is_{label}.png" for i, label in zip(index, labels, strict=True)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, image in zip(paths, images, strict=True):
            Image.fromarray(image).save(path)
    except OSError as error:
        raise ArtifactError(
            f"{folder}: cannot be written: {error.strerror or error}.", hint="Choose another folder with --output."
        ) from error
    return paths, labels


def _accuracy(logits: Array, labels: npt.NDArray[np.uint8]) -> float:
    return float(np.mean(logits.argmax(1) == labels))
