"""Inputs to measure a model on: images of the user's, synthetic ones, or what was stored when a module was exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vimdeploy.artifacts.golden import Samples, read_golden
from vimdeploy.artifacts.images import sample_images
from vimdeploy.artifacts.manifest import Manifest
from vimdeploy.errors import UsageError

Inputs = npt.NDArray[np.float32]


def sample_inputs(manifest: Manifest, path: Path, folder: Path | None, count: int) -> Any:
    """Return inputs with the batch first: images (N, C, H, W), or the named inputs of a module.

    Args:
        manifest: of the file.
        path: of the file, beside which a module's golden inputs lie.
        folder: of image files; None takes synthetic images, or a module's golden inputs.
        count: how many synthetic images.

    Raises:
        UsageError: a folder of images for a module that takes none.
        ArtifactError: the golden inputs are missing or not the file's own.

    """
    if manifest.module is None or (folder is not None and manifest.preprocessing is not None):
        return sample_images(manifest.image_input(), folder, count)
    if folder is not None:
        raise UsageError(f"{path}: takes no images, so --images cannot be used.", hint="Leave it out.")
    inputs = read_golden(path, manifest.module.golden_sha256)[0].inputs
    arrays = list(inputs.arrays.values())
    return arrays[0] if len(arrays) == 1 and arrays[0].dtype == np.float32 else Samples(inputs.arrays)
