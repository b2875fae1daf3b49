"""Whether a model knows when it is right: the reliability diagram, and accuracy against coverage."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from imgcls.evaluation.confidence import coverage_curve, coverage_table, reliability_table
from imgcls.evaluation.intervals import labelled
from imgcls.evaluation.plots.base import BLUE, GREY, ORANGE, plain
from imgcls.tables import Predictions

NOTED = (0.5, 0.8, 0.9, 0.95, 0.99)
"""Confidences marked on the curve of coverage."""
FEWEST = 20
"""Images of which a mark, and the scale, is made; fewer say too little."""


def reliability(predictions: Predictions, *, title: str) -> Figure:
    """Accuracy by confidence, with 95 % intervals, above the number of images of each confidence.

    Bars below the diagonal: more sure than right. Images without a label are left out.

    Raises:
        UserError: no image has a label.
    """
    table = reliability_table(predictions)
    there = table[table["images"] > 0]
    width = float(table["high"][0] - table["low"][0])
    figure = Figure(figsize=(6.6, 7.6), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    middle = (there["low"] + there["high"]) / 2
    axes.bar(middle, there["accuracy"], width * 0.92, color=BLUE, alpha=0.75, label="accuracy")
    spread = np.array([there["accuracy"] - there["accuracy_low"], there["accuracy_high"] - there["accuracy"]])
    axes.errorbar(
        middle, there["accuracy"], np.maximum(spread, 0), color=GREY, linestyle="none", lw=1, capsize=2,
        label="95 % interval",
    )  # fmt: skip
    axes.plot([0, 1], [0, 1], color="black", lw=1, linestyle=":", label="as sure as right")
    axes.plot(
        there["confidence"],
        there["accuracy"],
        color=ORANGE,
        marker="o",
        ms=4,
        lw=0,
        label="the same at the mean confidence",
    )
    axes.set(ylabel="accuracy", ylim=(0, 1.02), xlim=(0, 1))
    shares = there["images"] / there["images"].sum()
    error = float(((there["accuracy"] - there["confidence"]).abs() * shares).sum())
    sure, right = float((there["confidence"] * shares).sum()), float((there["accuracy"] * shares).sum())
    about = f"ECE {error:.4f}; mean confidence {sure:.1%}, accuracy {right:.1%}"
    axes.set_title(f"{title}\n{about}", fontsize=11, parse_math=False)
    below.bar(middle, there["images"], width * 0.92, color=GREY)
    below.set(xlabel="confidence: probability of the predicted class", ylabel="images")
    below.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    for panel in (axes, below):
        plain(panel)
    # Below the axes, where it hides no bar.
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def coverage(predictions: Predictions, *, title: str) -> Figure:
    """The accuracy among the most confident images by how many are kept, some confidences marked.

    Images without a label are left out.

    Raises:
        UserError: no image has a label.
    """
    known = labelled(predictions)
    curve, table = coverage_curve(known), coverage_table(known)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve["coverage"], curve["accuracy"], color=BLUE, lw=1.8)
    total = float(curve["accuracy"].iloc[-1])
    axes.axhline(total, color=GREY, lw=1, linestyle=":")
    fewest = min(FEWEST, len(known.ids))
    marks = table[table["threshold"].isin(NOTED) & (table["images"] >= fewest)].drop_duplicates("images", keep="last")
    rows = marks.iterrows()
    axes.vlines(marks["coverage"], marks["accuracy_low"], marks["accuracy_high"], color=ORANGE, lw=1.2)
    axes.plot(marks["coverage"], marks["accuracy"], color=ORANGE, marker="o", lw=0)
    last = 2.0
    for _, row in rows:
        # The labels of marks too close together would cover each other; those come with falling coverage.
        if last - row["coverage"] >= 0.07:
            axes.annotate(
                f"≥ {row['threshold']:g}", (row["coverage"], row["accuracy_high"]), (0, 3),
                textcoords="offset points", ha="center", va="bottom", fontsize=9, color=ORANGE,
            )  # fmt: skip
            last = float(row["coverage"])
    # The first few images alone make the curve jump up and down; they do not set its scale.
    settled = curve["accuracy"][curve["images"] >= fewest]
    low = min(float(settled.min()), float(marks["accuracy_low"].min()) if len(marks) else 1.0)
    room = max(1 - low, 0.01)
    axes.set(xlim=(0, 1.015), ylim=(low - 0.06 * room, 1 + 0.09 * room))
    axes.set(xlabel="coverage: share of images kept, the most confident first", ylabel="accuracy among them")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    about = f"all {len(known.ids):,} images: {total:.2%}; marked: images of at least that confidence, 95 % intervals"
    axes.set_title(f"{title}\n{about}", fontsize=11, parse_math=False)
    plain(axes)
    return figure
