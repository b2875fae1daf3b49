"""Figures of a training and its predictions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imgcls.evaluation.metrics import Counts
from imgcls.evaluation.plots.base import BLUE, GREY, ORANGE, fonts, short
from imgcls.tables import History

MOST_LABELS = 60
"""Classes up to which a confusion matrix names every one."""
MOST_NUMBERS = 20
"""Classes up to which a confusion matrix writes its counts."""
MOST_CELLS = 250
"""Cells on a side; of more classes neighbours share a cell, or a screen's pixels would swallow most of them."""


def curves(history: History, *, best_epoch: int) -> Figure:
    """Loss, accuracy and learning rate by epoch, the best epoch marked; of a training without validation, which has
    none, only the training's."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    loss, acc, lr = figure.subplots(1, 3)
    table = history.frame
    for axes, name, title in ((loss, "loss", "Loss (cross-entropy)"), (acc, "acc", "Accuracy")):
        for part, colour in (("train", BLUE), ("val", ORANGE)):
            if f"{part}/{name}" in table:
                axes.plot(table["epoch"], table[f"{part}/{name}"], color=colour, label=part, marker=_marker(history))
        if "val/loss" in table:
            axes.axvline(best_epoch, color=GREY, linestyle=":", label=f"best epoch ({best_epoch})")
        axes.set_title(title)
    lr.plot(table["epoch"], table["lr"], color=BLUE, marker=_marker(history))
    lr.set_title("Learning rate at the end of the epoch")
    for axes in (loss, acc, lr):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(history) == 1:
            axes.set_xlim(0.5, 1.5)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    # Beside the axes, where it hides no curve.
    figure.legend(*loss.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def _marker(history: History) -> str:
    return "o" if len(history) <= 15 else ""


def confusion(counts: Counts, classes: Sequence[str], *, title: str) -> Figure:
    """The confusion matrix, coloured by the share of each true class (on a root scale, so that few errors show).

    Up to 20 classes every cell carries its count and up to 60 every class its name; beyond, the axes count
    classes in their order, and beyond 250 a cell stands for several neighbouring classes.
    """
    num_classes = len(classes)
    side = float(np.clip(2.6 + 0.42 * num_classes, 4.5, 15))
    figure = Figure(figsize=(side + 1.2, side), layout="compressed")
    axes = figure.subplots()
    group = -(-num_classes // MOST_CELLS)
    cells = _grouped(counts, group)
    shares = cells / np.maximum(1, cells.sum(1, keepdims=True))
    end = len(cells) * group - 0.5
    image = axes.imshow(
        shares,
        cmap="Blues",
        norm=PowerNorm(0.5, vmin=0, vmax=1),
        interpolation="nearest",
        extent=(-0.5, end, end, -0.5),
    )
    figure.colorbar(image, ax=axes, fraction=0.046, pad=0.02, label="share of the true class")
    kind = "" if num_classes <= MOST_LABELS else " class, by number"
    kind += f" ({group} neighbours a cell)" if group > 1 else ""
    axes.set(xlabel=f"predicted{kind}", ylabel=f"true{kind}", title=title)
    if num_classes <= MOST_LABELS:
        _write_names(axes, [short(name) for name in classes])
    if num_classes <= MOST_NUMBERS:
        _write_counts(axes, counts, shares)
    return figure


def _grouped(counts: Counts, group: int) -> Counts:
    """(C, C) counts summed over blocks of (group, group)."""
    starts = np.arange(0, len(counts), group)
    return np.add.reduceat(np.add.reduceat(counts, starts, axis=0), starts, axis=1)


def _write_names(axes: Axes, names: list[str]) -> None:
    numbers = range(len(names))
    level = len(names) <= 12 and max(map(len, names)) <= 3
    style: dict[str, Any] = {
        "fontsize": 10 if len(names) <= MOST_NUMBERS else 7,
        "fontfamily": fonts(),
        "parse_math": False,  # a class called $x_$ is no formula
    }
    axes.set_xticks(numbers, names, rotation=0 if level else 90, **style)
    axes.set_yticks(numbers, names, **style)


def _write_counts(axes: Axes, counts: Counts, shares: npt.NDArray[np.float64]) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.3 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
