"""The figure of a training: its curves."""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imgcls.evaluation.plots.base import BLUE, GREY, ORANGE
from imgcls.tables import History


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
