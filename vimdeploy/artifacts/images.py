"""Images in: files through a recipe's preprocessing, or synthetic samples for comparing models."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from vimdeploy.artifacts.recipe import InputSpec
from vimdeploy.errors import ImageError

FloatArray = npt.NDArray[np.float32]

_LOG = logging.getLogger(__name__)
SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff"}
    | {".webp"}
)
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_SCALED_TO_16_BIT = ("PNG", "PPM")
"""Formats whose 32-bit pixels hold 16-bit values in Pillow: they know no wider ones."""
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
"""Tags of a TIFF."""
_LONGEST_SIDE = 16
"""Of a resized image, in shorter sides."""
_LARGEST_DRAFT = 8
"""libjpeg decodes at 1/2, 1/4 or 1/8 of the size."""

# Larger images than Pillow's bound are refused here, in words; its warning would only stand beside them.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def find_images(folder: Path) -> list[Path]:
    """Return the image files of a folder and its subfolders, sorted; raises ImageError if there are none."""
    if not folder.is_dir():
        raise ImageError(f"{folder}: there is no such folder.", hint="Pass a folder of images with --images.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise ImageError(f"{folder}: holds no images ({', '.join(sorted(SUFFIXES))}).")
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

    Greyscale of 16 bits keeps its precision. The orientation that a camera noted (EXIF) is applied, transparency is
    dropped as the official transform does, and of several frames the first is taken, with a warning in the log.

    Args:
        file: its path, or its content.
        spec: what the model wants.
        name: what messages call it; needed where ``file`` is no path.

    Raises:
        ImageError: a file that is missing, damaged, no image, larger than ``PIL.Image.MAX_IMAGE_PIXELS``, or of values
            whose range is not known (floating point, 32-bit integers).

    """
    path = name or str(file)
    if spec.channels not in _MODES:
        raise ImageError(f"{path}: image files have 1, 3 or 4 channels, the model takes {spec.channels}.")
    try:
        with Image.open(file) as opened:
            _bound(opened, path)
            largest = _largest_value(opened, path)
            ImageOps.exif_transpose(opened, in_place=True)
            values = _values(opened, spec, largest)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{path}: there is no such file.") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: is too large to be read ({error}).", hint="Scale it down first.") from error
    except UnidentifiedImageError as error:
        raise _unidentified(file, path) from error
    except Exception as error:
        # Pillow's decoders meet damaged bytes at any depth and raise a dozen types, struct.error and SyntaxError too.
        raise ImageError(f"{path}: cannot be read as an image ({error}).") from error
    normalised = (values - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1), dtype=np.float32)


def _bound(image: Image.Image, path: str) -> None:
    """Refuse an image whose pixels would fill the memory; a large JPEG is decoded at a fraction of its size."""
    limit = Image.MAX_IMAGE_PIXELS or 0
    pixels = image.width * image.height
    if limit and pixels > limit and image.format == "JPEG":
        size = image.size
        divisor = next(d for d in (2, 4, _LARGEST_DRAFT) if pixels <= limit * d * d or d == _LARGEST_DRAFT)
        image.draft(image.mode, (size[0] // divisor, size[1] // divisor))
        _LOG.warning("%s: has %d megapixels; decoded at 1/%d of its size", path, pixels // 1_000_000, divisor)
        pixels = image.width * image.height
    if limit and pixels > limit:
        raise ImageError(
            f"{path}: has {pixels:,} pixels, more than the {limit:,} that are read.", hint="Scale it down first."
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a phone's photograph with a depth map beside it
        _LOG.warning("%s: has %d frames; the first is taken", path, frames)


def _largest_value(image: Image.Image, path: str) -> int:
    """Return what stands for white: 255 for everything that Pillow keeps in 8 bits, more for deep greyscale."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SCALED_TO_16_BIT):
        tags = getattr(image, "tag_v2", {})
        bits = tags.get(_BITS_PER_SAMPLE, (16,))
        if tags.get(_PHOTOMETRIC, 1) == 0:
            raise ImageError(f"{path}: is a TIFF in which 0 is white.", hint="Save it with 0 as black.")
        return (1 << int(bits[0] if isinstance(bits, tuple) else bits)) - 1
    if image.mode in ("I", "F"):
        kind = "floating-point" if image.mode == "F" else "32-bit or signed"
        raise ImageError(
            f"{path}: has {kind} values, whose range is not known.", hint="Save it with 8 or 16 bits per channel."
        )
    return 255


def _values(image: Image.Image, spec: InputSpec, largest: int) -> FloatArray:
    """Return (H, W, C) float32 in [0, 1], resized and cropped."""
    if largest == 255:
        resized = _resize_and_crop(image.convert(_MODES[spec.channels]), spec)
        values: FloatArray = np.asarray(resized, dtype=np.float32) / np.float32(255)
        return values[..., None] if values.ndim == 2 else values
    cut = _resize_and_crop(Image.fromarray(np.asarray(image).astype(np.float32)), spec)
    grey = np.asarray(cut, dtype=np.float32).clip(0, largest) / np.float32(largest)
    channels: FloatArray = np.stack([grey] * min(spec.channels, 3) + [np.ones_like(grey)] * (spec.channels == 4), -1)
    return channels


def _resize_and_crop(image: Image.Image, spec: InputSpec) -> Image.Image:
    """Resize the shorter side and cut the centre out; of a panorama, only what the crop shows is computed."""
    height, width = spec.size
    resampling = Image.Resampling[spec.interpolation.upper()]
    target_h, target_w = int(height / spec.crop_ratio), int(width / spec.crop_ratio)
    if target_h * image.width >= target_w * image.height:
        new_h, new_w = target_h, int(target_h * image.width / image.height)
    else:
        new_h, new_w = int(target_w * image.height / image.width), target_w
    new_h, new_w = max(new_h, height), max(new_w, width)
    left, top = round((new_w - width) / 2), round((new_h - height) / 2)
    if max(new_h / target_h, new_w / target_w) <= _LONGEST_SIDE:
        return image.resize((new_w, new_h), resampling).crop((left, top, left + width, top + height))
    # Up to the rounding of 8-bit intermediates the same; the whole of a 20000 x 2 image would take gigabytes.
    across, down = image.width / new_w, image.height / new_h
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    return image.resize((width, height), resampling, box=_inside(box, image.size))


def _inside(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return a box without what rounding put outside the image."""
    return max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(size[0])), min(box[3], float(size[1]))


def _unidentified(file: Path | BinaryIO, path: str) -> ImageError:
    """Return the error for a file that Pillow does not know, naming what reads it where that is known."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            start = opened.read(16)
    else:
        file.seek(0)
        start = file.read(16)
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS:
        return ImageError(
            f"{path}: is a HEIC image, which Pillow does not read.",
            hint="Convert it to JPEG or PNG, as with pillow-heif (pip install pillow-heif).",
        )
    return ImageError(f"{path}: cannot be read as an image: it is of no format that Pillow knows.")


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
