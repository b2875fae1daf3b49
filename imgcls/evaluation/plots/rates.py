"""The figure of a learning-rate range test."""

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from imgcls.evaluation.plots.base import BLUE, GREY, ORANGE

Values = npt.NDArray[np.float64]
ROOM = 1.5
"""How many times the range between the lowest loss and the first one the figure shows; what diverges leaves it."""


def range_test(
    lrs: Values, losses: Values, smoothed: Values, *, lr: float | None, tenth: float | None, title: str
) -> Figure:
    """Loss against learning rate, on a logarithmic axis, with what is suggested marked.

    Args:
        lrs: (N,) learning rates.
        losses: (N,) loss of each step; what is infinite or not a number is left out.
        smoothed: (N,) the same without most of the noise.
        lr: the suggestion, or None.
        tenth: a tenth of the rate with the lowest loss, or None.
        title: what was tested.
    """
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(lrs, losses, color=BLUE, alpha=0.35, lw=1, label="loss of each step")
    axes.plot(lrs, smoothed, color=BLUE, lw=2, label="smoothed")
    if lr is not None:
        axes.axvline(lr, color=ORANGE, lw=1.5, label=f"steepest descent: {lr:.1e}")
        place = float(np.interp(np.log(lr), np.log(lrs), smoothed))
        axes.plot([lr], [place], color=ORANGE, marker="o", linestyle="none")
    if tenth is not None:
        axes.axvline(tenth, color=GREY, linestyle=":", label=f"a tenth of the lowest loss's rate: {tenth:.1e}")
    axes.set_xscale("log")
    finite = smoothed[np.isfinite(smoothed)]
    if len(finite):
        low, first = float(losses[np.isfinite(losses)].min()), float(finite[0])
        room = max(first - low, 0.05 * abs(first), 1e-6)
        axes.set_ylim(low - 0.1 * room, low + ROOM * room)
    axes.set(xlabel="learning rate (logarithmic)", ylabel="training loss")
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure
