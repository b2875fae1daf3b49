"""ROC and precision-recall curves: the mean over the classes, and all classes or the worst and best of them."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from imgcls.evaluation.intervals import labelled
from imgcls.evaluation.plots.base import COLOURS, fitting, fonts, plain, saying
from imgcls.evaluation.ranking import Curve, mean_pr, mean_roc, one_vs_rest, pr_curve, roc_curve
from imgcls.tables import Predictions

MOST_CURVES = 10
"""Classes up to which each has its curve."""
ENDS = 4
"""Of more classes, curves of the worst, and of the best."""
ENLARGED = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""False-positive rates up to which the left end of ROC curves is drawn again, larger."""


def roc(predictions: Predictions, *, title: str) -> Figure:
    """The ROC curve of each class against the rest, and their mean; images without a label are left out.

    Of more than 10 classes, the four with the lowest and the four with the highest AUC are drawn beside the mean.

    Raises:
        UserError: no image has a label.
    """
    known = labelled(predictions)
    mean = mean_roc(known)
    if mean is None:
        return saying(f"{title}: no ROC curve, for all images are of one class")
    figure, axes = _square(title)
    axes.plot([0, 1], [0, 1], color="#bbbbbb", lw=1, linestyle=":")
    _curves(axes, known, one_vs_rest(known)[0][:, 0], roc_curve, mean)
    _magnify(axes, mean)
    axes.set(xlabel="false-positive rate: share of the other classes' images", ylabel="true-positive rate (recall)")
    _legend(figure, axes, "area under the curve (AUC)")
    return figure


def precision_recall(predictions: Predictions, *, title: str) -> Figure:
    """Precision against recall of each class against the rest, and their mean; images without a label are left out.

    Of more than 10 classes, the four with the lowest and the four with the highest average precision are drawn beside
    the mean.

    Raises:
        UserError: no image has a label.
    """
    known = labelled(predictions)
    figure, axes = _square(title)
    _curves(axes, known, one_vs_rest(known)[1][:, 0], _from_zero, mean_pr(known))
    axes.set(xlabel="recall", ylabel="precision")
    _legend(figure, axes, "average precision (AP)")
    return figure


def _from_zero(predictions: Predictions, k: int) -> Curve:
    """The steps of a precision-recall curve, begun at recall 0."""
    curve = pr_curve(predictions, k)
    first = int(np.argmax(curve.x > 0))
    return Curve(np.r_[0, curve.x[first:]], np.r_[curve.y[first], curve.y[first:]], curve.area)


def _square(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9.6, 6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.015, 1.015), ylim=(-0.015, 1.015), aspect="equal")
    axes.set_title(title, fontsize=11, parse_math=False)
    plain(axes)
    return figure, axes


def _curves(
    axes: Axes,
    known: Predictions,
    areas: npt.NDArray[np.float64],
    curve_of: Callable[[Predictions, int], Curve],
    mean: Curve,
) -> None:
    numbers = np.flatnonzero(~np.isnan(areas))
    support = np.bincount(known.labels, minlength=len(areas))
    order = numbers[np.lexsort((support[numbers], areas[numbers]))]
    many = len(order) > MOST_CURVES
    style = "steps-pre" if curve_of is _from_zero else "default"
    axes.plot(
        [], [], label=f"{mean.area:.4f}  mean of {len(order):,} class{'es' * (len(order) != 1)}", color="black", lw=2.6
    )
    drawn = [*order[:ENDS], *order[-ENDS:]] if many else [*order]
    for number, k in enumerate(drawn):
        is_dashed = many and number >= ENDS
        name = fitting(known.classes[k], 30)
        if many and number % ENDS == 0:
            axes.plot([], [], linestyle="none", label=f"the {'best' if number else 'worst'} {ENDS}:")
        curve = curve_of(known, int(k))
        axes.plot(
            curve.x, curve.y, color=COLOURS[number % len(COLOURS)], lw=1.3, alpha=0.85, drawstyle=style,
            linestyle="--" if is_dashed else "-", label=f"{curve.area:.4f}  {name}",
        )  # fmt: skip
    axes.plot(mean.x, mean.y, color="black", lw=2.6)


def _magnify(axes: Axes, mean: Curve) -> None:
    """Draw the left end again, larger, where the mean has risen within it: most of the figure is empty then."""
    risen = float(mean.x[np.argmax(mean.y >= 0.95)])
    end = next((end for end in ENLARGED if end >= 2 * risen), None)
    if end is None:
        return
    inner = axes.inset_axes((0.3, 0.1, 0.66, 0.66))
    for line in axes.get_lines():
        if len(np.asarray(line.get_xdata())) > 2:
            inner.plot(
                line.get_xdata(), line.get_ydata(), color=line.get_color(), lw=line.get_linewidth(),
                linestyle=line.get_linestyle(), alpha=line.get_alpha(),
            )  # fmt: skip
    inner.set(xlim=(-0.02 * end, end), ylim=(-0.015, 1.015))
    inner.set_title(f"enlarged: up to {end:g}", fontsize=9)
    inner.tick_params(labelsize=8)
    inner.xaxis.set_major_locator(MaxNLocator(5))
    inner.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    plain(inner)


def _legend(figure: Figure, axes: Axes, title: str) -> None:
    handles, labels = axes.get_legend_handles_labels()
    entries = figure.legend(
        handles, labels, title=title, loc="outside right upper", frameon=False, alignment="left",
        prop={"family": fonts(), "size": 9},
    )  # fmt: skip
    for entry in entries.get_texts():
        entry.set_parse_math(False)
