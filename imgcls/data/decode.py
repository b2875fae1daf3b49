"""From encoded bytes to pixels, the same way in training and in a served model."""

import io
import re
import threading
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from imgcls.errors import UserError

Pixels = npt.NDArray[np.uint8]

MOST_ELONGATED = 100
"""How often the shorter side may fit into the longer one: beyond, a small file would unfold to gigabytes of pixels."""


class DecodeError(UserError):
    """Bytes that are not an image this library can read. The message is the reason alone, without a name."""


class _QuietPillow:
    """Keeps Pillow from warning while any thread decodes; an image that is too large is an error instead.

    Warning filters belong to the process, so one `catch_warnings` in each of several threads would leave them
    changed for good. Here the first thread in sets them and the last one out puts them back.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                warnings.filterwarnings("ignore", category=UserWarning)
            self._inside += 1

    def __exit__(self, *_error: Any) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._caught.__exit__(None, None, None)


quiet_pillow = _QuietPillow()
"""Enter it around whatever opens images with Pillow."""


def decode(data: bytes, *, channels: int, short_side: int | None = None) -> Pixels:
    """Decode an image to (H, W, channels) uint8.

    The EXIF rotation is applied, transparency is laid over white, 16-bit grey is scaled to 8 bits, palettes
    and CMYK are converted. An image whose shorter side exceeds `short_side` is shrunk to it (area average,
    after the JPEG decoder's own power-of-two reduction).

    Raises:
        DecodeError: the bytes are no image, are truncated, are of an unsupported kind, would take more
            memory than Pillow's decompression-bomb limit allows, or have one side over 100 times the other.
    """
    if not data:
        raise DecodeError("the file is empty")
    try:
        with quiet_pillow, Image.open(io.BytesIO(data)) as image:
            if short_side is not None:
                image.draft(None, (short_side, short_side))
            return shrink(_to_array(image, channels), short_side)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DecodeError(f"it is too large to decode safely: {error}") from error
    except DecodeError:
        raise
    except Exception as error:  # Pillow's plug-ins raise whatever their parser happens to: struct.error, …
        why = re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", str(error))  # which says nothing to anybody
        raise DecodeError(f"it cannot be decoded ({type(error).__name__}: {why})") from error


def shrink(pixels: Pixels, short_side: int | None) -> Pixels:
    """Shrink (H, W, C) pixels so that the shorter side is at most `short_side`, keeping the aspect ratio.

    Raises:
        DecodeError: no pixels, or one side is over 100 times the other.
    """
    import cv2

    height, width = pixels.shape[:2]
    if max(height, width) > MOST_ELONGATED * min(height, width) or pixels.size == 0:
        raise DecodeError(f"it is {width} x {height} pixels; expected no side over 100 times the other")
    if short_side is None or min(height, width) <= short_side:
        return pixels
    scale = short_side / min(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8).reshape(size[1], size[0], pixels.shape[2])


def to_channels(pixels: Pixels, channels: int) -> Pixels:
    """(H, W), (H, W, 1) or (H, W, 3) uint8 as (H, W, channels); grey is ITU-R 601 luma.

    Raises:
        DecodeError: pixels of another shape.
    """
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise DecodeError(f"its pixels have the shape {pixels.shape}; expected (H, W), (H, W, 1) or (H, W, 3)")
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    return np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]


def _to_array(image: Image.Image, channels: int) -> Pixels:
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return to_channels(_wide_grey(image), channels)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    mode = "L" if channels == 1 else "RGB"
    return to_channels(np.array(image.convert(mode)), channels)


def _wide_grey(image: Image.Image) -> Pixels:
    """16-bit grey to 8 bits. Pillow itself would clip it to white."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise DecodeError(f"its pixels are of the kind {image.mode!r}, expected at most 16 bits a channel")
    return np.round(values.astype(np.float64) / 257).astype(np.uint8)
