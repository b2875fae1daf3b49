"""From encoded bytes to pixels: kinds of images, damage, size."""

import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from imgcls.data.decode import DecodeError, decode, shrink, to_channels

Array = npt.NDArray[Any]


def encoded(image: Image.Image | Array, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int = 12, width: int = 20, channels: int = 3) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_kinds_give_the_very_pixels(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode(encoded(noise(), kind, **options), channels=3)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, noise())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_has_its_size_and_about_its_colour(channels: int) -> None:
    decoded = decode(encoded(Image.new("RGB", (20, 12), (200, 100, 50)), "JPEG"), channels=channels)
    assert decoded.shape == (12, 20, channels)
    expected = [200, 100, 50] if channels == 3 else [round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)]
    assert np.abs(decoded.astype(int) - expected).max() <= 2


ROTATIONS: dict[int, Any] = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x.transpose(1, 0, 2), 2),
    8: lambda x: np.rot90(x, 1),
}


@pytest.mark.parametrize("orientation", ROTATIONS)
def test_the_exif_rotation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode(encoded(noise(), exif=exif), channels=3), ROTATIONS[orientation](noise()))


def test_transparency_is_laid_over_white() -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[..., 3] = [[0, 255], [128, 64]]
    decoded = decode(encoded(rgba), channels=3)
    assert decoded[:, :, 0].tolist() == [[255, 0], [127, 191]]
    assert np.array_equal(decoded, decoded[:, :, :1].repeat(3, 2))


def test_grey_with_alpha_is_laid_over_white() -> None:
    pixels = np.array([[[100, 255], [100, 0]]], np.uint8)
    decoded = decode(encoded(Image.frombytes("LA", (2, 1), pixels.tobytes())), channels=1)
    assert decoded[0, :, 0].tolist() == [100, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(kind: str) -> None:
    values = np.array([[0, 257, 32768, 65278, 65535]], np.uint16)
    decoded = decode(encoded(values, kind), channels=3)
    assert decoded[0, :, 0].tolist() == [0, 1, 128, 254, 255]
    assert decoded.shape == (1, 5, 3)


def test_floating_point_pixels_are_an_error_that_says_what_is_expected() -> None:
    with pytest.raises(DecodeError, match="kind 'F', expected at most 16 bits"):
        decode(encoded(np.ones((3, 3), np.float32), "TIFF"), channels=1)


def test_a_palette_becomes_its_colours_and_its_transparent_entry_white() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 0])
    picture.putpixel((1, 0), 1)
    assert decode(encoded(picture), channels=3)[0].tolist() == [[10, 20, 30], [200, 100, 0]]
    assert decode(encoded(picture, transparency=1), channels=3)[0].tolist() == [[10, 20, 30], [255, 255, 255]]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_red_green_blue(kind: str) -> None:
    picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    decoded = decode(encoded(picture, kind), channels=3)
    assert np.abs(decoded.astype(int) - [255, 0, 0]).max() <= 3


def test_one_bit_images_are_black_and_white() -> None:
    picture = Image.fromarray(np.array([[0, 255, 0, 255]], np.uint8)).convert("1")
    assert decode(encoded(picture), channels=1)[0, :, 0].tolist() == [0, 255, 0, 255]


def test_of_an_animation_the_first_picture_counts() -> None:
    black, white = Image.new("L", (4, 4), 0), Image.new("L", (4, 4), 255)
    data = encoded(black, "WEBP", save_all=True, append_images=[white], lossless=True)
    assert decode(data, channels=1).max() == 0


@pytest.mark.parametrize("keep", [0.95, 0.5, 0.2, 0.02])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_image_is_an_error(kind: str, keep: float) -> None:
    data = encoded(noise(60, 60), kind)
    with pytest.raises(DecodeError, match="it cannot be decoded"):
        decode(data[: int(len(data) * keep)], channels=3)


def test_zero_bytes_are_an_error() -> None:
    with pytest.raises(DecodeError, match="the file is empty"):
        decode(b"", channels=3)


@pytest.mark.parametrize("data", [b"x", b"hello, I am a text", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0" * 9])
def test_what_is_no_image_is_an_error(data: bytes) -> None:
    with pytest.raises(DecodeError, match="it cannot be decoded"):
        decode(data, channels=3)


@pytest.mark.parametrize("width", [15, 40])
def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    data = encoded(noise(10, width))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DecodeError, match="too large to decode safely"):
        decode(data, channels=3)


def test_a_thread_of_pixels_is_refused_before_it_unfolds_to_gigabytes() -> None:
    with pytest.raises(DecodeError, match="301 x 3 pixels; expected no side over 100 times the other"):
        decode(encoded(noise(3, 301)), channels=3)
    assert decode(encoded(noise(3, 300)), channels=3).shape == (3, 300, 3)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(90, 60, (45, 30)), (60, 90, (30, 45)), (31, 900, (30, 871))]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_shrinking_keeps_the_aspect_ratio(height: int, width: int, expected: tuple[int, int], channels: int) -> None:
    assert shrink(noise(height, width, channels), 30).shape == (*expected, channels)


def test_small_images_are_not_enlarged() -> None:
    pixels = noise(20, 30)
    assert shrink(pixels, 20) is pixels
    assert shrink(pixels, None) is pixels


def test_shrinking_averages_areas() -> None:
    pixels = np.array([[0, 100], [100, 200]], np.uint8).repeat(4, 0).repeat(4, 1)[:, :, None]
    assert shrink(pixels, 2)[:, :, 0].tolist() == [[0, 100], [100, 200]]
    assert shrink(pixels, 1)[:, :, 0].tolist() == [[100]]


@pytest.mark.parametrize("size", [(800, 400), (401, 803)])
def test_a_large_jpeg_is_shrunk_to_the_asked_shorter_side(size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", size, (10, 200, 30)), "JPEG")
    decoded = decode(data, channels=3, short_side=50)
    assert min(decoded.shape[:2]) == 50
    assert decoded.shape[1] / decoded.shape[0] == pytest.approx(size[0] / size[1], rel=0.02)


def test_grey_is_luma_and_colour_of_grey_has_three_equal_channels() -> None:
    colour = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert to_channels(colour, 1)[0, :, 0].tolist() == [76, 150, 29]
    grey = noise(4, 5, 1)
    assert np.array_equal(to_channels(grey[:, :, 0], 3), grey.repeat(3, 2))
    assert to_channels(colour, 3) is colour


@pytest.mark.parametrize("shape", [(5,), (4, 4, 4), (4, 4, 2), (1, 4, 4, 3)])
def test_pixels_of_another_shape_are_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(DecodeError, match="its pixels have the shape"):
        to_channels(np.zeros(shape, np.uint8), 3)


def test_no_pixels_are_an_error() -> None:
    with pytest.raises(DecodeError, match="0 x 4 pixels"):
        shrink(np.zeros((4, 0, 3), np.uint8), 2)


def test_decoding_in_threads_leaves_the_warning_filters_of_the_process_alone() -> None:
    good, bad = encoded(noise(200, 200), "JPEG"), b"no image"

    def attempt(data: bytes) -> bool:
        try:
            decode(data, channels=3)
        except DecodeError:
            return False
        return True

    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(attempt, [good, good, bad] * 60))
    assert done == [True, True, False] * 60
    assert list(warnings.filters) == before


def test_the_reason_names_no_address_in_memory() -> None:
    with pytest.raises(DecodeError) as caught:
        decode(b"no image", channels=3)
    assert str(caught.value) == "it cannot be decoded (UnidentifiedImageError: cannot identify image file)"
