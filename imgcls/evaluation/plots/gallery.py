"""A gallery of images with a few lines of text below each, such as the most confident mistakes."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from imgcls.evaluation.plots.base import saying
from imgcls.evaluation.plots.sheet import LINE, Pixels, Sheet, side_for

MOST_IMAGES = 42
"""Images that a gallery can show readably."""
SIDE = 176
"""Pixels of a square for an image, and of the text below it."""
COLUMNS = 7


def gallery(items: Sequence[tuple[Pixels, Sequence[str]]], *, title: str) -> Figure:
    """Images in their order, each with its lines of text below, the first line in black and the others in orange.

    Of more than MOST_IMAGES the first are shown, and the title says so. A figure without any says that there is none.

    Args:
        items: N pairs of an (H, W, 1|3) image of any size and its lines, such as ("Siamese", "not Persian: 98 %").
        title: what the figure shows.
    """
    if not items:
        return saying(f"{title}: none")
    shown = items[:MOST_IMAGES]
    if len(items) > len(shown):
        title += f" (the first {len(shown)} of {len(items):,})"
    side = side_for([image for image, _ in shown], SIDE)
    lines = max(len(texts) for _, texts in shown)
    width, height = max(side, SIDE) + 14, side + lines * LINE + 16
    columns = min(COLUMNS, len(shown))
    sheet = Sheet(columns * width - 14, math.ceil(len(shown) / columns) * height, title=title)
    for place, (image, texts) in enumerate(shown):
        x, y = place % columns * width, place // columns * height
        sheet.tile(image, x, y, side)
        for number, line in enumerate(texts):
            colour = "black" if number == 0 else "#a34a00"
            sheet.text(line, x, y + side + 2 + number * LINE, width=width - 14, colour=colour)
    return sheet.figure()
