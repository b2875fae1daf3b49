"""Heat maps over images: where a network looked, and what it took the image for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from imgcls.evaluation.plots.base import GREY, saying
from imgcls.evaluation.plots.sheet import LINE, Pixels, Sheet, side_for

MOST_HEAT_MAPS = 32
"""Images that one figure can show readably."""
LARGE, SMALL = 220, 140
"""Pixels of a square for an image, and of the one beside it for its map: of four images or fewer, and of more."""
FEW = 4
COLUMNS = 4
GAP = 20
"""Pixels between two images."""
WRONG = "#a34a00"
"""Of the true class where another was predicted, as in a gallery."""
STRENGTH = 0.8
"""How much of the hottest place is the map's colour; the rest is the image."""


@dataclass(frozen=True)
class HeatMap:
    """One image, what speaks for a class in it, and what it was taken for.

    Attributes:
        pixels: (H, W, 1|3) uint8.
        heat: (H, W), 0..1: how much each place speaks for the class `label`.
        label: the class that the map is of.
        probability: of that class, 0..1.
        predicted: the most probable class.
        confidence: its probability, 0..1.
        true: the image's class; empty where it is unknown.
    """

    pixels: Pixels
    heat: npt.NDArray[np.floating]
    label: str
    probability: float
    predicted: str
    confidence: float
    true: str = ""


def heat_maps(items: Sequence[HeatMap], *, title: str) -> Figure:
    """Images in their order, each beside its heat map over its grey self, with classes and probabilities below.

    Of more than MOST_HEAT_MAPS the first are shown, and the title says so. A figure without any says that there is
    none.

    Args:
        items: the images and maps.
        title: what the figure shows.
    """
    if not items:
        return saying(f"{title}: none")
    shown = items[:MOST_HEAT_MAPS]
    if len(items) > len(shown):
        title += f" (the first {len(shown)} of {len(items):,})"
    side = side_for([item.pixels for item in shown], LARGE if len(shown) <= FEW else SMALL)
    captions = [_captions(item) for item in shown]
    columns = min(len(shown), 2 if len(shown) <= FEW else COLUMNS)
    # A caption keeps its width where images of few pixels are small.
    width = max(2 * side + 3, 240)
    height = side + max(len(lines) for lines in captions) * LINE + GAP
    rows = math.ceil(len(shown) / columns)
    sheet = Sheet(columns * (width + GAP) - GAP, rows * height + LINE, title=title)
    for place, (item, lines) in enumerate(zip(shown, captions, strict=True)):
        x, y = place % columns * (width + GAP), place // columns * height
        sheet.tile(item.pixels, x, y, side)
        sheet.tile(overlaid(item.pixels, item.heat), x + side + 3, y, side)
        for number, (line, colour) in enumerate(lines):
            sheet.text(line, x, y + side + 2 + number * LINE, width=width, colour=colour)
    _key(sheet, rows * height)
    return sheet.figure()


def overlaid(pixels: Pixels, heat: npt.NDArray[np.floating]) -> Pixels:
    """(H, W, 3): the (H, W, 1|3) image in grey, under colours that are the stronger the higher its (H, W) heat."""
    grey = pixels.astype(np.float64).mean(axis=2, keepdims=True)
    share = (np.clip(heat, 0, 1) * STRENGTH)[:, :, None]
    over: Pixels = np.round(grey * (1 - share) + _colours(heat) * share).astype(np.uint8)
    return over


def _colours(heat: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    # Its dark lower end would darken the image where the map says nothing.
    colours = matplotlib.colormaps["plasma"](0.25 + 0.75 * np.clip(heat, 0, 1))
    return np.asarray(colours, np.float64)[..., :3] * 255


def _captions(item: HeatMap) -> list[tuple[str, str]]:
    """Lines of text and their colours."""
    lines = [(f"{item.predicted} {_percent(item.confidence)}", "black")]
    if item.true:
        lines.append((f"true: {item.true}", GREY if item.true == item.predicted else WRONG))
    if item.label != item.predicted:
        lines.append((f"map of: {item.label} {_percent(item.probability)}", GREY))
    if not np.any(item.heat > 0):
        lines.append(("nothing speaks for it", GREY))
    return lines


def _percent(share: float) -> str:
    """Never rounded to all or nothing."""
    if 0 < share < 0.01:
        return "<1%"
    return ">99%" if 0.99 < share < 1 else f"{share:.0%}"


def _key(sheet: Sheet, y: int) -> None:
    """What the colours mean, in the line at y."""
    width, thick = 90, 10
    heat = np.repeat(np.linspace(0, 1, width)[None], thick, axis=0)
    sheet.tile(overlaid(np.full((thick, width, 3), 128, np.uint8), heat), 0, y - (width - thick) // 2 + 4, width)
    sheet.text("evidence in the image: none … most", width + 6, y, width=330, colour=GREY)
