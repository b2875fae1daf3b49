"""Curves of several trainings laid over each other."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imgcls.evaluation.plots.base import COLOURS, fitting, fonts, plain, saying
from imgcls.tables import History

MOST_ROWS = 12
"""Runs up to which the legend has one column."""
_LINES = ("-", "--", ":")
PANELS = (
    ("train/loss", "Training loss"),
    ("val/loss", "Validation loss"),
    ("train/acc", "Training accuracy"),
    ("val/acc", "Validation accuracy"),
)


def compared_curves(histories: Mapping[str, History]) -> Figure:
    """Loss and accuracy of training and validation by epoch, one colour a run; a dot at its best val/acc.

    The legend names the runs from the best validation accuracy to the worst; of more than ten, lines are dashed too.

    Args:
        histories: name of the run -> what it logged; one without an epoch is named as such.
    """
    drawn = {name: history for name, history in histories.items() if len(history)}
    if not drawn:
        return saying("Curves: none of the runs has an epoch to show")
    num = len(histories)
    figure = Figure(figsize=(12.5, 7), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True).ravel()
    for axes, (column, title) in zip(panels, PANELS, strict=True):
        for k, (name, history) in enumerate(histories.items()):
            if name in drawn:
                _curve(axes, history, column, k=k, thin=num > 8)
        axes.set_title(title, fontsize=11)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        plain(axes)
        if column.endswith("loss"):
            _keep_in_sight(axes, [history.frame[column].to_numpy(dtype=float) for history in drawn.values()])
    if max(len(history) for history in drawn.values()) == 1:
        panels[0].set_xlim(0.5, 1.5)
    for axes in panels[2:]:
        axes.set_xlabel("epoch")
    best = {name: float(np.nanmax([*_accuracies(histories[name]), -1.0])) for name in histories}
    handles = dict(zip(drawn, panels[3].get_lines()[: len(drawn)], strict=True))
    order = sorted(drawn, key=lambda name: -best[name])
    width = 30 if num > 1 else 60
    labels = [f"{best[name]:.4f}  {fitting(name, width)}" for name in order]
    entries = figure.legend(
        [handles[name] for name in order], labels,
        title="best val/acc, run", loc="outside right upper", frameon=False, fontsize=9 if num <= MOST_ROWS else 8,
        alignment="left", prop={"family": fonts(), "size": 9 if num <= MOST_ROWS else 8},
    )  # fmt: skip
    for entry in entries.get_texts():
        entry.set_parse_math(False)
    missing = [fitting(name, 30) for name in histories if name not in drawn]
    if missing:
        figure.supxlabel(f"without an epoch: {', '.join(missing)}", fontsize=9, parse_math=False)
    return figure


def _accuracies(history: History) -> list[float]:
    return [row["val/acc"] for row in history.rows]


def _curve(axes: Axes, history: History, column: str, *, k: int, thin: bool) -> None:
    table = history.frame
    colour, style = COLOURS[k % len(COLOURS)], _LINES[k // len(COLOURS) % len(_LINES)]
    marker = "o" if len(history) == 1 else ""
    axes.plot(
        table["epoch"], table[column], color=colour, linestyle=style, lw=1.2 if thin else 1.8, alpha=0.9, marker=marker
    )  # fmt: skip
    accuracies = np.array(_accuracies(history))
    if column == "val/acc" and not np.isnan(accuracies).all():
        row = int(np.nanargmax(accuracies))
        axes.scatter(table["epoch"].iloc[row], accuracies[row], color=colour, s=16 if thin else 28, zorder=4)


def _keep_in_sight(axes: Axes, losses: list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]) -> None:
    """Cut the axis where one run's loss leaves those of all others a line's width."""
    finite = np.concatenate([values[np.isfinite(values)] for values in losses])
    if not len(finite):
        return
    low, usual, high = float(finite.min()), float(np.quantile(finite, 0.9)), float(finite.max())
    if high - low > 4 * (usual - low) > 0:
        axes.set_ylim(low - 0.05 * (usual - low), low + 1.5 * (usual - low))
        axes.annotate(
            f"up to {high:.3g}", (0.99, 0.97), xycoords="axes fraction", ha="right", va="top", fontsize=8
        )  # fmt: skip
