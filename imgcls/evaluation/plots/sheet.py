"""A sheet of small images and lines of text at pixel positions: one drawing, however many images are on it."""

import textwrap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from imgcls.evaluation.plots.base import DPI, fitting, fonts, is_wide

Pixels = npt.NDArray[np.uint8]

MARGIN = 14
"""Pixels around a sheet."""
LINE = 17
"""Pixels that a line of text takes."""
FRAME = 205
"""Grey of the line around an image, so that a white one has an edge."""
TITLE_SIZE, TEXT_SIZE = 11.0, 8.0


class Sheet:
    """A page of images, each at its own pixels, under a title.

    Args:
        width, height: pixels of the page below the title; positions count from its upper left corner.
        title: wrapped to the width.
    """

    def __init__(self, width: int, height: int, *, title: str) -> None:
        columns = _columns(width, TITLE_SIZE)
        # A page too narrow for a short line of title is widened; the images stay at its left.
        if columns < 40:
            width, columns = round(40 * _character(TITLE_SIZE)), 40
        if any(is_wide(letter) for letter in title):
            columns //= 2
        lines = textwrap.wrap(title, columns)
        self._top = MARGIN + round(len(lines) * 1.4 * LINE) + 6
        self._title = "\n".join(lines)
        self._texts: list[tuple[float, float, str, str]] = []
        self._pixels = np.full((self._top + height + MARGIN, width + 2 * MARGIN, 3), 255, np.uint8)

    def tile(self, image: Pixels, x: int, y: int, side: int) -> None:
        """Put an (H, W, 1|3) image into the middle of the square with the upper left corner (x, y)."""
        shown = fitted(image, side)
        height, width = shown.shape[:2]
        top, left = self._top + y + (side - height) // 2, MARGIN + x + (side - width) // 2
        self._pixels[top - 1 : top + height + 1, left - 1 : left + width + 1] = FRAME
        self._pixels[top : top + height, left : left + width] = shown

    def text(self, text: str, x: int, y: int, *, width: int, colour: str = "black") -> None:
        """Write one line below (x, y), its middle left out where it does not fit the width."""
        line = fitting(text, _columns(width, TEXT_SIZE))
        self._texts.append((MARGIN + x, self._top + y, line, colour))

    def figure(self) -> Figure:
        """The sheet; saved, one pixel of it is one pixel of the file."""
        height, width = self._pixels.shape[:2]
        # The hundredth keeps the division from ending just below a whole pixel, which would be cut off.
        figure = Figure(figsize=((width + 0.01) / DPI, (height + 0.01) / DPI))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.imshow(self._pixels, extent=(0, width, height, 0), interpolation="nearest", aspect="auto")
        family = fonts()
        axes.text(
            MARGIN, MARGIN, self._title, va="top", fontsize=TITLE_SIZE, fontfamily=family, parse_math=False,
            linespacing=1.2,
        )  # fmt: skip
        for x, y, line, colour in self._texts:
            axes.text(
                x, y + 2, line, va="top", fontsize=TEXT_SIZE, color=colour, fontfamily=family, parse_math=False
            )  # fmt: skip
        return figure


def fitted(image: Pixels, side: int) -> Pixels:
    """An (H, W, 1|3) image as (H', W', 3), its longer side at most `side`.

    A larger image is averaged down. A smaller one is enlarged a whole number of times with its pixels as they are, so
    that what a network of 8 or 32 pixels sees is neither blurred nor uneven.
    """
    height, width = image.shape[:2]
    rgb = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    longest = max(height, width)
    if longest <= side:
        times = side // longest
        return rgb.repeat(times, axis=0).repeat(times, axis=1)
    size = (max(1, round(width * side / longest)), max(1, round(height * side / longest)))
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BOX))


def side_for(images: Sequence[Pixels], most: int) -> int:
    """Pixels of a square for these images: up to `most`, a multiple of their median longer side where that fits."""
    if not images:
        return most
    usual = round(float(np.median([max(image.shape[:2]) for image in images])))
    return most if usual > most else usual * (most // usual)


def _character(size: float) -> float:
    """Pixels of an ordinary character at a font size in points."""
    return size * DPI / 72 * 0.62


def _columns(width: int, size: float) -> int:
    return int(width / _character(size))
