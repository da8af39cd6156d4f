"""Images in: files through a recipe's preprocessing, or synthetic samples for comparing models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from vimdeploy.artifacts.recipe import InputSpec
from vimdeploy.errors import ImageError

FloatArray = npt.NDArray[np.float32]

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def find_images(folder: Path) -> list[Path]:
    """Return the image files of a folder and its subfolders, sorted; raises ImageError if there are none."""
    if not folder.is_dir():
        raise ImageError(f"{folder}: there is no such folder.", hint="Pass a folder of images with --images.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not paths:
        raise ImageError(f"{folder}: holds no images ({', '.join(sorted(_SUFFIXES))}).")
    return paths


def load_images(paths: Sequence[Path], spec: InputSpec) -> FloatArray:
    """Read image files as the model wants them: (B, C, H, W) float32.

    As the official evaluation transform: the shorter side is resized to size / crop_ratio, the centre is cut out, and
    values are scaled to [0, 1] and normalised.

    Raises:
        ImageError: a file that is missing or no image.

    """
    return np.stack([load_image(path, spec) for path in paths])


def load_image(file: Path | BinaryIO, spec: InputSpec, *, name: str = "") -> FloatArray:
    """Read one image file, by its path or opened, as (C, H, W) float32; see :func:`load_images`.

    Args:
        file: its path, or its content.
        spec: what the model wants.
        name: what messages call it; needed where ``file`` is no path.

    """
    path = name or file
    if spec.channels not in _MODES:
        raise ImageError(f"{path}: image files have 1, 3 or 4 channels, the model takes {spec.channels}.")
    try:
        with Image.open(file) as opened:
            image = opened.convert(_MODES[spec.channels])
    except FileNotFoundError as error:
        raise ImageError(f"{path}: there is no such file.") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: cannot be read as an image: its content is none.") from error
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: cannot be read as an image ({error}).") from error
    image = _resize_and_crop(image, spec)
    values = np.asarray(image, dtype=np.float32) / 255
    values = values[..., None] if values.ndim == 2 else values
    normalised = (values - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1), dtype=np.float32)


def _resize_and_crop(image: Image.Image, spec: InputSpec) -> Image.Image:
    height, width = spec.size
    resampling = Image.Resampling[spec.interpolation.upper()]
    target_h, target_w = int(height / spec.crop_ratio), int(width / spec.crop_ratio)
    if target_h * image.width >= target_w * image.height:
        new_h, new_w = target_h, int(target_h * image.width / image.height)
    else:
        new_h, new_w = int(target_w * image.height / image.width), target_w
    image = image.resize((max(new_w, width), max(new_h, height)), resampling)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def sample_images(spec: InputSpec, folder: Path | None, count: int) -> FloatArray:
    """Return images (B, C, H, W) to measure a model on: the files of a folder, or ``count`` synthetic ones.

    Raises:
        ImageError: there is no such folder, or no image in it.

    """
    return synthetic_images(count, spec) if folder is None else load_images(find_images(folder), spec)


def synthetic_images(count: int, spec: InputSpec, seed: int = 0) -> FloatArray:
    """Return (count, C, H, W) reproducible images in the range of normalised ones: smooth waves and noise."""
    random = np.random.default_rng(seed)
    height, width = spec.size
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    images = np.empty((count, spec.channels, height, width), dtype=np.float32)
    for image in images.reshape(-1, height, width):
        waves = [
            np.sin(2 * np.pi * (fy * y + fx * x + phase))
            for fy, fx, phase in random.uniform((0.5, 0.5, 0), (6, 6, 1), size=(3, 3))
        ]
        image[:] = 0.6 * np.sum(waves, axis=0) + 0.5 * random.standard_normal((height, width))
    return images
