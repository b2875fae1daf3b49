"""The recall of the classes: all of them, or the hardest and the easiest."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from imgcls.evaluation.classes import easiest, hardest
from imgcls.evaluation.plots.base import BLUE, GREY, ORANGE, fitting, fonts, plain, saying

MOST_BARS = 30
"""Classes up to which all of them are shown."""
ENDS = 15
"""Of more, the hardest, and the easiest."""


def class_recalls(table: pd.DataFrame, *, title: str) -> Figure:
    """Bars of the classes' recall from the lowest, with 95 % intervals, support and the class most taken for.

    Of more than 30 classes the 15 hardest and the 15 easiest are shown. Classes without images are left out.

    Args:
        table: of `class_table`.
        title: what the figure shows.
    """
    known = table[table["support"] > 0]
    if known.empty:
        return saying(f"{title}: no class has an image")
    many = len(known) > MOST_BARS
    parts = [("hardest", hardest(table, ENDS)), ("easiest", easiest(table, ENDS))]
    parts = parts if many else [("", hardest(table, MOST_BARS))]
    rows = max(len(part) for _, part in parts)
    figure = Figure(figsize=(15.5 if many else 9.5, 1.5 + 0.3 * max(3, rows)))
    figure.set_layout_engine("constrained", wspace=0.08)
    for axes, (name, part) in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        _bars(axes, part, colour=BLUE if name == "easiest" else ORANGE if many else BLUE)
        if name:
            axes.set_title(f"The {len(part)} {name} of {len(known):,} classes", fontsize=11)
    empty = len(table) - len(known)
    about = f" ({empty:,} class{'es' * (empty > 1)} without images left out)" if empty else ""
    figure.suptitle(f"{title}{about}", parse_math=False)
    return figure


def _bars(axes: Axes, part: pd.DataFrame, *, colour: str) -> None:
    places = np.arange(len(part))
    axes.barh(places, part["recall"], height=0.72, color=colour, alpha=0.8)
    spread = np.array([part["recall"] - part["recall_low"], part["recall_high"] - part["recall"]])
    axes.errorbar(part["recall"], places, xerr=np.maximum(spread, 0), color=GREY, linestyle="none", lw=1, capsize=2)
    names = [fitting(name, 26) for name in part["class"]]
    axes.set_yticks(places, names, fontsize=9, fontfamily=fonts(), parse_math=False)
    axes.set_ylim(len(part) - 0.4, -0.6)
    columns = (part["support"], part["confused"], part["most_confused_with"])
    for place, (support, confused, other) in enumerate(zip(*columns, strict=True)):
        text = f"{support:,} image{'s' * (support != 1)}"
        if confused:
            text += f", {confused:,} as {fitting(other, 20)}"
        axes.text(
            1.02, place, text, va="center", fontsize=8, color=GREY, fontfamily=fonts(), parse_math=False,
            transform=axes.get_yaxis_transform(),
        )  # fmt: skip
    axes.set_xlim(0, 1.0)
    axes.set_xlabel("recall, and its 95 % interval")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    plain(axes)
    axes.grid(visible=False, axis="y")
