import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vimdeploy.artifacts.images import find_images, load_images, synthetic_images
from vimdeploy.artifacts.recipe import InputSpec
from vimdeploy.errors import ImageError

SPEC = InputSpec(size=(32, 48))


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def noise(height, width, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.tuples(st.integers(1, 64), st.integers(1, 64)),
    st.floats(0.3, 1),
)
def test_an_image_of_any_shape_becomes_one_of_the_size_asked_for(tmp_path, shape, size, crop_ratio):
    path = save(tmp_path / "image.png", noise(*shape))
    images = load_images([path], InputSpec(size=size, crop_ratio=crop_ratio))
    assert (images.shape, images.dtype) == ((1, 3, *size), np.float32)
    assert np.isfinite(images).all()
    assert images.flags.c_contiguous


def test_values_are_scaled_to_one_and_normalised_per_channel(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:] = (255, 0, 51)
    (image,) = load_images([save(tmp_path / "image.png", pixels)], SPEC)
    wanted = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(image, np.broadcast_to(np.reshape(wanted, (3, 1, 1)), image.shape), rtol=1e-5)


def test_an_image_of_exactly_the_size_is_left_as_it_is_without_a_crop(tmp_path):
    pixels = noise(32, 48)
    spec = InputSpec(size=(32, 48), crop_ratio=1, mean=(0, 0, 0), std=(1, 1, 1))
    (image,) = load_images([save(tmp_path / "image.png", pixels)], spec)
    np.testing.assert_allclose(image, pixels.transpose(2, 0, 1) / 255, atol=1e-6)


def test_the_centre_is_cut_out(tmp_path):
    pixels = np.zeros((256, 256, 3), np.uint8)
    pixels[16:-16, 16:-16] = 255
    spec = InputSpec(size=(224, 224), crop_ratio=0.875, mean=(0, 0, 0), std=(1, 1, 1))
    (image,) = load_images([save(tmp_path / "image.png", pixels)], spec)
    np.testing.assert_array_equal(image, np.ones_like(image))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_it_is_the_official_transform_resize_the_shorter_side_then_crop(tmp_path, interpolation):
    pixels = noise(100, 150)
    spec = InputSpec(size=(56, 56), crop_ratio=0.875, interpolation=interpolation, mean=(0, 0, 0), std=(1, 1, 1))
    (image,) = load_images([save(tmp_path / "image.png", pixels)], spec)
    resized = Image.fromarray(pixels).resize((96, 64), Image.Resampling[interpolation.upper()])
    cropped = np.asarray(resized.crop((20, 4, 76, 60)), np.float32) / 255
    np.testing.assert_allclose(image, cropped.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("stored", [1, 3, 4])
def test_a_file_is_converted_to_the_channels_of_the_model(tmp_path, channels, stored):
    path = save(tmp_path / "image.png", noise(40, 50, stored))
    spec = InputSpec(size=(32, 32), channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    assert load_images([path], spec).shape == (1, channels, 32, 32)


def test_other_channels_are_refused(tmp_path):
    path = save(tmp_path / "image.png", noise(40, 50))
    with pytest.raises(ImageError, match="the model takes 2"):
        load_images([path], InputSpec(size=(32, 32), channels=2, mean=(0, 0), std=(1, 1)))


def test_images_are_stacked_in_the_order_given(tmp_path):
    paths = [save(tmp_path / f"{i}.png", np.full((40, 50, 3), 20 * i, np.uint8)) for i in range(4)]
    means = load_images(paths[::-1], SPEC).mean(axis=(1, 2, 3))
    assert (np.diff(means) < 0).all()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from((".png", ".jpg", ".bmp", ".gif")), st.floats(0, 0.98))
def test_a_cut_file_is_refused_by_name_or_read_but_never_an_accident(tmp_path, suffix, where):
    whole = save(tmp_path / f"whole{suffix}", noise(40, 50)).read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[: int(where * len(whole))])
    try:
        images = load_images([path], SPEC)
    except ImageError as error:
        message = error.message
    else:
        message = str(path)
        assert images.shape == (1, 3, 32, 48)
    assert str(path) in message


@pytest.mark.parametrize("content", [None, b"", b"hello", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused_by_name(tmp_path, content):
    path = tmp_path / "image.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        load_images([path], SPEC)
    assert str(path) in caught.value.message


def test_a_folder_in_place_of_an_image_is_refused(tmp_path):
    with pytest.raises(ImageError, match="image"):
        load_images([tmp_path], SPEC)


def test_an_image_too_large_to_be_honest_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "bomb.png", noise(40, 50))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match=r"bomb\.png"):
        load_images([path], SPEC)


def test_images_of_a_folder_are_found_below_it_in_order(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("z.JPG", "a.png", "b/m.webp", "notes.txt", "c.npy"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert [str(p.relative_to(tmp_path)) for p in find_images(tmp_path)] == ["a.png", "b/m.webp", "z.JPG"]


def test_a_folder_that_is_missing_or_has_no_images_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ImageError) as caught:
            find_images(folder)
        assert str(folder) in caught.value.message


def test_synthetic_images_are_reproducible_differ_and_look_normalised():
    spec = InputSpec(size=(48, 32), channels=1, mean=(0.5,), std=(0.5,))
    images = synthetic_images(4, spec)
    assert (images.shape, images.dtype) == ((4, 1, 48, 32), np.float32)
    assert np.array_equal(images, synthetic_images(4, spec))
    assert np.array_equal(images[:2], synthetic_images(2, spec))
    assert not np.array_equal(images, synthetic_images(4, spec, seed=1))
    assert not np.allclose(images[0], images[1])
    assert 0.3 < images.std() < 2
    assert np.abs(images).max() < 6
