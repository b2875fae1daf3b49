"""The confusion matrix, whole and, of many classes, the part of it that is worth reading."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from imgcls.evaluation.classes import pairs_of, worst_block
from imgcls.evaluation.metrics import Counts
from imgcls.evaluation.plots.base import GREY, fitting, fonts, saying, short

Shares = npt.NDArray[np.float64]

MOST_LABELS = 60
"""Classes up to which a confusion matrix names every one, and writes its counts."""
MOST_LARGE = 20
"""Classes up to which it does so in an ordinary size."""
MOST_CELLS = 250
"""Cells on a side; of more classes neighbours share a cell, or a screen's pixels would swallow most of them."""
BLOCK = 16
"""Classes of the worst block."""
PAIRS = 25
"""Pairs of the list beside it."""


def confusion(counts: Counts, classes: Sequence[str], *, title: str, normalised: bool = False) -> Figure:
    """The confusion matrix, coloured by the share of each true class (on a root scale, so that few errors show).

    Up to 60 classes every cell carries its count and every class its name; beyond, the axes count classes in their
    order, and beyond 250 a cell stands for several neighbouring classes.

    Args:
        counts: (C, C); row: true class, column: predicted class.
        classes: the C class names.
        title: what the figure shows.
        normalised: write the share of the true class, in per cent, instead of the count; of more than 60 classes
            neither is written, and the figure is the same.
    """
    num_classes = len(classes)
    side = float(np.clip(2.6 + 0.42 * num_classes, 4.5, 15))
    figure = Figure(figsize=(side + 1.2, side), layout="compressed")
    axes = figure.subplots()
    group = -(-num_classes // MOST_CELLS)
    cells = _grouped(counts, group)
    shares = _shares(cells, cells.sum(1))
    image = _draw(axes, shares, end=len(cells) * group - 0.5)
    figure.colorbar(image, ax=axes, fraction=0.046, pad=0.02, label="share of the true class")
    kind = "" if num_classes <= MOST_LABELS else " class, by number"
    kind += f" ({group} neighbours a cell)" if group > 1 else ""
    axes.set(xlabel=f"predicted{kind}", ylabel=f"true{kind}")
    axes.set_title(title, parse_math=False)
    if num_classes <= MOST_LABELS:
        _write_names(axes, [short(name) for name in classes])
        _write_cells(axes, counts, shares, normalised=normalised)
    return figure


def most_confused(counts: Counts, classes: Sequence[str], *, title: str, normalised: bool = False) -> Figure:
    """The block of the classes that are confused most with each other, and the list of the most confused pairs.

    It is what stays readable of a matrix of any number of classes. The share is of all images of the true class, also
    of those taken for classes outside the block.

    Args:
        counts: (C, C); row: true class, column: predicted class.
        classes: the C class names.
        title: what the figure shows.
        normalised: write the share of the true class, in per cent, instead of the count.
    """
    block = worst_block(counts, BLOCK)
    if not block:
        return saying(f"{title}: no image is taken for another class")
    pairs = pairs_of(counts, tuple(classes), PAIRS)
    figure = Figure(figsize=(15.5, 7.6), layout="constrained")
    axes, beside = figure.subplots(1, 2, width_ratios=(1.15, 1))
    cells = counts[np.ix_(block, block)]
    shares = _shares(cells, counts.sum(1)[block])
    _draw(axes, shares, end=len(block) - 0.5)
    axes.set(xlabel="predicted", ylabel="true")
    few = "all" if len(block) == len(classes) else f"{len(block)} of {len(classes):,}"
    axes.set_title(f"The most confused classes ({few})", fontsize=11)
    _write_names(axes, [short(classes[k], 22) for k in block], size=9)
    _write_cells(axes, cells, shares, normalised=normalised)
    num_pairs = int(np.count_nonzero(counts)) - int(np.count_nonzero(np.diag(counts)))
    _list_pairs(beside, pairs, num_pairs)
    figure.suptitle(title, parse_math=False)
    return figure


def _list_pairs(axes: Axes, pairs: pd.DataFrame, num_pairs: int) -> None:
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(PAIRS + 0.5, -1.2))
    axes.set_title(f"The most confused pairs ({len(pairs)} of {num_pairs:,})", fontsize=11)
    style: dict[str, Any] = {"va": "center", "fontsize": 9, "fontfamily": fonts(), "parse_math": False}
    places = ((0.0, "left", "true"), (0.41, "left", "taken for"), (0.90, "right", "images"), (1.0, "right", "share"))
    for x, side, text in places:
        axes.text(x, -0.8, text, ha=side, color=GREY, **style)
    for row, pair in enumerate(pairs.itertuples(index=False)):
        texts = (fitting(str(pair.true), 26), fitting(str(pair.predicted), 26), f"{pair.images:,}", f"{pair.share:.0%}")
        for (x, side, _), text in zip(places, texts, strict=True):
            axes.text(x, row, text, ha=side, **style)


def _shares(cells: Counts, support: Counts) -> Shares:
    return np.asarray(cells / np.maximum(1, support)[:, None])


def _draw(axes: Axes, shares: Shares, *, end: float) -> AxesImage:
    return axes.imshow(
        shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest",
        extent=(-0.5, end, end, -0.5),
    )  # fmt: skip


def _grouped(counts: Counts, group: int) -> Counts:
    """(C, C) counts summed over blocks of (group, group)."""
    starts = np.arange(0, len(counts), group)
    return np.add.reduceat(np.add.reduceat(counts, starts, axis=0), starts, axis=1)


def _write_names(axes: Axes, names: list[str], *, size: int | None = None) -> None:
    numbers = range(len(names))
    level = len(names) <= 12 and max(map(len, names)) <= 3
    style: dict[str, Any] = {
        "fontsize": size or (10 if len(names) <= MOST_LARGE else 7),
        "fontfamily": fonts(),
        "parse_math": False,  # a class called $x_$ is no formula
    }
    axes.set_xticks(numbers, names, rotation=0 if level else 90, **style)
    axes.set_yticks(numbers, names, **style)


def _write_cells(axes: Axes, counts: Counts, shares: Shares, *, normalised: bool) -> None:
    size = 8 if len(counts) <= MOST_LARGE else 6
    for (row, column), count in np.ndenumerate(counts):
        if count:
            share = float(shares[row, column])
            colour = "white" if share > 0.3 else "black"
            text = _per_cent(share) if normalised else str(count)
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)


def _per_cent(share: float) -> str:
    """In whole per cent where that is not 0, nor 100 for less."""
    return "<1" if share < 0.005 else ">99" if 0.995 <= share < 1 else f"{100 * share:.0f}"
