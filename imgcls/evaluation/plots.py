"""Figures of a training and its predictions (a door to matplotlib; no pyplot, so no global state)."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imgcls.evaluation.metrics import Counts
from imgcls.tables import History

matplotlib.use("Agg", force=False)

BLUE, ORANGE, GREY = "#2a6fb0", "#d9730d", "#666666"
MOST_LABELS = 60
"""Classes up to which a confusion matrix names every one."""
MOST_NUMBERS = 20
"""Classes up to which a confusion matrix writes its counts."""


def curves(history: History, *, best_epoch: int) -> Figure:
    """Loss, accuracy and learning rate by epoch, the best epoch marked."""
    figure = Figure(figsize=(13, 3.9), layout="constrained")
    loss, acc, lr = figure.subplots(1, 3)
    table = history.frame
    for axes, name, title in ((loss, "loss", "Loss (cross-entropy)"), (acc, "acc", "Accuracy")):
        for part, colour in (("train", BLUE), ("val", ORANGE)):
            axes.plot(table["epoch"], table[f"{part}/{name}"], color=colour, label=part, marker=_marker(history))
        axes.axvline(best_epoch, color=GREY, linestyle=":", label=f"best epoch ({best_epoch})")
        axes.set_title(title)
    loss.legend(loc="upper right", frameon=False)
    acc.legend(loc="lower right", frameon=False)
    lr.plot(table["epoch"], table["lr"], color=BLUE, marker=_marker(history))
    lr.set_title("Learning rate at the end of the epoch")
    for axes in (loss, acc, lr):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _marker(history: History) -> str:
    return "o" if len(history) <= 15 else ""


def confusion(counts: Counts, classes: Sequence[str], *, title: str) -> Figure:
    """The confusion matrix, coloured by the share of each true class.

    Up to 20 classes every cell carries its count and up to 60 every class its name; beyond, the axes count
    classes in their order.
    """
    num_classes = len(classes)
    side = float(np.clip(2.6 + 0.42 * num_classes, 4.5, 15))
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, label="share of the true class")
    axes.set(xlabel="predicted", ylabel="true", title=title)
    if num_classes <= MOST_LABELS:
        names = [_short(name) for name in classes]
        size = 10 if num_classes <= MOST_NUMBERS else 7
        level = num_classes <= 12 and max(map(len, names)) <= 3
        axes.set_xticks(range(num_classes), names, rotation=0 if level else 90, fontsize=size)
        axes.set_yticks(range(num_classes), names, fontsize=size)
    if num_classes <= MOST_NUMBERS:
        _write_counts(axes, counts, shares)
    return figure


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _write_counts(axes: Axes, counts: Counts, shares: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.55 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
