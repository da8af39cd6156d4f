"""Kinds of images that people bring: each is read as what it shows, or refused in words."""

from __future__ import annotations

import io
import logging
import struct
import subprocess
import sys
import zlib
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from vimdeploy.artifacts.images import find_images, load_image
from vimdeploy.artifacts.recipe import InputSpec
from vimdeploy.errors import ImageError

SPEC = InputSpec(size=(32, 48), crop_ratio=1, mean=(0, 0, 0), std=(1, 1, 1))
GREY = InputSpec(size=(32, 48), crop_ratio=1, channels=1, mean=(0,), std=(1,))
ROWS, COLUMNS = np.mgrid[0:32, 0:48].astype(np.float64)
RAMP = (ROWS / 31 + 2 * COLUMNS / 47) / 3
"""What the pictures of this file show, in [0, 1]: brighter to the right and below, and no two corners alike."""
EIGHT = np.round(RAMP * 255).astype(np.uint8)
COLOUR = np.stack([EIGHT, EIGHT[:, ::-1], 255 - EIGHT], axis=-1)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def png(pixels, **options):
    return encoded(Image.fromarray(pixels), "PNG", **options)


def deep(dtype):
    return np.round(RAMP * np.iinfo(dtype).max).astype(dtype)


def tiff_12_bit():
    """A little-endian TIFF of 12 bits per sample, packed, as microscopes write it."""
    values = np.round(RAMP * 4095).astype(np.uint16).reshape(-1, 2)
    pairs = [(int(a) >> 4, (int(a) & 15) << 4 | int(b) >> 8, int(b) & 255) for a, b in values]
    data = bytes(byte for pair in pairs for byte in pair)
    entries = [(256, 48), (257, 32), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 32), (279, len(data))]
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries) + struct.pack("<I", 0)
    return io.BytesIO(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory)


@dataclass(frozen=True)
class Kind:
    """A picture of the ramp, and how far what is read may be off."""

    file: io.BytesIO
    tolerance: float = 1 / 255
    spec: InputSpec = GREY


SHOWN = {
    "8 bit": lambda: Kind(png(EIGHT)),
    "16 bit PNG": lambda: Kind(png(deep(np.uint16)), 1e-4),
    "16 bit PNG for a model of colour": lambda: Kind(png(deep(np.uint16)), 1e-4, SPEC),
    "16 bit TIFF": lambda: Kind(encoded(Image.fromarray(deep(np.uint16)), "TIFF"), 1e-4),
    "12 bit TIFF": lambda: Kind(tiff_12_bit(), 5e-4),
    "16 bit PGM": lambda: Kind(io.BytesIO(b"P5\n48 32\n65535\n" + deep(np.uint16).astype(">u2").tobytes()), 1e-4),
    "10 bit PGM": lambda: Kind(
        io.BytesIO(b"P5\n48 32\n1023\n" + np.round(RAMP * 1023).astype(">u2").tobytes()), 1 / 1023
    ),
    "palette": lambda: Kind(encoded(Image.fromarray(EIGHT).quantize(256), "PNG"), 4 / 255, SPEC),
    "grey with transparency": lambda: Kind(encoded(Image.fromarray(EIGHT).convert("LA"), "PNG")),
    "CMYK": lambda: Kind(
        encoded(Image.fromarray(EIGHT).convert("RGB").convert("CMYK"), "JPEG", quality=100), 6 / 255, SPEC
    ),
    **{
        f"turned by the camera, EXIF {n}": lambda n=n, back=back: Kind(
            encoded(Image.fromarray(EIGHT).transpose(back), "PNG", exif=oriented(n))
        )
        for n, back in {
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_90,
            8: Image.Transpose.ROTATE_270,
        }.items()
    },
    "16 bit, turned by the camera": lambda: Kind(
        encoded(Image.fromarray(deep(np.uint16)).transpose(Image.Transpose.ROTATE_90), "TIFF", exif=oriented(6)), 1e-4
    ),
}


def oriented(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif.tobytes()


@pytest.mark.parametrize("kind", SHOWN)
def test_an_image_is_read_as_what_it_shows(kind):
    found = SHOWN[kind]()
    image = load_image(found.file, found.spec, name="image")
    for channel in image:
        np.testing.assert_allclose(channel, RAMP, atol=found.tolerance + 1e-6)


def test_colours_keep_their_places_in_every_container_without_loss():
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("PPM", {})):
        image = load_image(encoded(Image.fromarray(COLOUR), kind, **options), SPEC, name=kind)
        np.testing.assert_allclose(image, COLOUR.transpose(2, 0, 1) / 255, atol=1e-6, err_msg=kind)


def test_sixteen_bits_are_more_than_eight():
    """Two pictures that differ by less than 1/255 stay two pictures."""
    dim, dimmer = (load_image(png(np.full((32, 48), v, np.uint16)), GREY, name="image") for v in (300, 310))
    np.testing.assert_allclose((dimmer - dim).mean(), 10 / 65535, rtol=1e-3)


ISOBMFF = b"\0\0\0\x18ftyp%b\0\0\0\0mif1heic"
REFUSED = {
    "floating point TIFF": (lambda: encoded(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), "floating-point"),
    "floating point TIFF of 0 to 255": (
        lambda: encoded(Image.fromarray((RAMP * 255).astype(np.float32)), "TIFF"),
        "floating-point",
    ),
    "32 bit TIFF": (lambda: encoded(Image.fromarray((RAMP * 1e6).astype(np.int32)), "TIFF"), "32-bit"),
    "HEIC named .jpg": (lambda: io.BytesIO(ISOBMFF % b"heic"), "pillow-heif"),
    "HEIC sequence": (lambda: io.BytesIO(ISOBMFF % b"hevc"), "pillow-heif"),
    "HEIF": (lambda: io.BytesIO(ISOBMFF % b"mif1"), "pillow-heif"),
    "a web page": (lambda: io.BytesIO(b"<!DOCTYPE html><html></html>"), "no format"),
    "nothing": (io.BytesIO, "no format"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_as_what_it_shows_is_refused_in_words(kind):
    make, words = REFUSED[kind]
    with pytest.raises(ImageError) as caught:
        load_image(make(), SPEC, name="photo.jpg")
    assert "photo.jpg" in caught.value.message
    assert words in str(caught.value)


def test_of_an_animation_the_first_frame_is_taken_and_the_log_says_so(caplog):
    frames = [Image.fromarray(np.full((32, 48), v, np.uint8)) for v in (200, 10, 20)]
    for kind in ("GIF", "WEBP", "TIFF", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        file = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            image = load_image(file, GREY, name=f"moving.{kind}")
        np.testing.assert_allclose(image, 200 / 255, atol=2 / 255, err_msg=kind)
        assert f"moving.{kind}: has 3 frames; the first is taken" in caplog.text


def test_one_picture_is_no_reason_for_a_word(caplog):
    load_image(png(EIGHT), GREY, name="image")
    assert caplog.text == ""


@pytest.mark.parametrize("shape", [(2, 3000), (3000, 2), (1, 1), (1, 700)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
def test_a_thin_image_is_cut_as_if_the_whole_had_been_resized(shape, interpolation):
    smooth = np.cumsum(np.random.default_rng(0).normal(size=shape), axis=int(shape[1] > shape[0]))
    smooth = 255 * (smooth - smooth.min()) / max(np.ptp(smooth), 1)
    image = Image.fromarray(smooth.astype(np.uint8))
    spec = InputSpec(size=(24, 24), channels=1, mean=(0,), std=(1,), interpolation=interpolation)
    shorter = int(24 / spec.crop_ratio)
    scale = shorter / min(image.size)
    size = int(scale * image.width), int(scale * image.height)
    whole = image.resize(size, Image.Resampling[interpolation.upper()])
    left, top = round((whole.width - 24) / 2), round((whole.height - 24) / 2)
    wanted = np.asarray(whole.crop((left, top, left + 24, top + 24)), np.float32) / 255
    np.testing.assert_allclose(load_image(encoded(image, "PNG"), spec, name="thin")[0], wanted, atol=3 / 255)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_large_jpeg_is_decoded_smaller_and_the_log_says_so(monkeypatch, caplog):
    file = encoded(Image.fromarray(EIGHT).resize((480, 320), Image.Resampling.BICUBIC), "JPEG", quality=95)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    with caplog.at_level(logging.WARNING):
        image = load_image(file, GREY, name="large.jpg")
    np.testing.assert_allclose(image[0], RAMP, atol=0.05)
    assert "large.jpg: has 0 megapixels; decoded at 1/2 of its size" in caplog.text


MEMORY = """
import io, resource, struct, sys, zlib
from vimdeploy.artifacts.images import load_image
from vimdeploy.artifacts.recipe import InputSpec
from vimdeploy.errors import ImageError
def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
def png(width, height):
    pack = zlib.compressobj(1)
    rows = height if width * height < 50_000_000 else 0
    data = b"".join(pack.compress(bytes(width + 1)) for _ in range(rows)) + pack.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    return b"\\x89PNG\\r\\n\\x1a\\n" + b"".join(
        (chunk(b"IHDR", header), chunk(b"PLTE", bytes(768)), chunk(b"IDAT", data), chunk(b"IEND", b"")))
spec = InputSpec(size=(224, 224))
load_image(io.BytesIO(png(9, 9)), spec, name="warm")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for width, height in ((20000, 2), (2, 20000), (60000, 1), (5000, 5000), (60000, 60000), (13000, 13000)):
    try:
        load_image(io.BytesIO(png(width, height)), spec, name="image")
        print("read")
    except ImageError as error:
        print(error.message.partition("image: ")[2][:6])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_no_image_of_a_few_kilobytes_takes_gigabytes():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    *outcomes, megabytes = done.stdout.split("\n")[:-1]
    assert outcomes[:4] == ["read"] * 4
    assert outcomes[4:] == ["is too", "has 16"]
    assert int(megabytes) < 400


def test_images_of_phones_in_a_folder_are_not_passed_over(tmp_path):
    for name in ("a.heic", "b.HEIF", "c.jfif", "d.avif", "e.pgm"):
        (tmp_path / name).write_bytes(b"")
    assert len(find_images(tmp_path)) == 5


def test_a_damaged_orientation_is_an_error_in_words_or_none():
    for cut in range(4, 30):
        file = png(EIGHT, exif=oriented(6))
        data = bytearray(file.getvalue())
        place = data.index(b"eXIf") + cut
        data[place] ^= 0xFF
        crc = data.index(b"eXIf") - 4
        length = struct.unpack(">I", data[crc : crc + 4])[0]
        body = bytes(data[crc + 4 : crc + 8 + length])
        data[crc + 8 + length : crc + 12 + length] = struct.pack(">I", zlib.crc32(body))
        try:
            load_image(io.BytesIO(bytes(data)), GREY, name="image")
        except ImageError as error:
            assert "image" in error.message  # noqa: PT017 - either outcome is right, an accident is not
