"""How a sweep's figures mark trials: a colour and a shape a family, hollow or solid, and the legend of them."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from imgcls.evaluation.plots.base import COLOURS, GREY, fitting

Floats = npt.NDArray[np.float64]

_MARKERS = ("o", "s", "D", "P", "X", "*", "p", "h")
"""No triangles: those are what lies beyond an axis."""
EDGE = 0.045
"""How far within the axis what is beyond it is drawn, as a share of its length."""


def family_styles(table: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """family -> (colour, marker), the same in all figures of the sweep: in the order of their first trial."""
    names = [str(name) for name in dict.fromkeys(table["family"])]
    return {name: (COLOURS[k % len(COLOURS)], _MARKERS[k % len(_MARKERS)]) for k, name in enumerate(names)}


def num_trials(num: int) -> str:
    """So many complete trials, in words."""
    return f"{num} complete trial{'' if num == 1 else 's'}"


def points(
    axes: Axes,
    x: npt.NDArray[np.generic],
    values: Floats,
    limits: tuple[float, float],
    *,
    colour: str,
    marker: str,
    size: float,
    hollow: bool = False,
    sideways: bool = False,
    alpha: float = 0.8,
) -> None:
    """Draw values within the limits as markers, those beyond as triangles on the edge; sideways along the x-axis."""
    low, high = limits
    room = EDGE * (high - low)
    inside = (values >= low) & (values <= high)
    faces = "none" if hollow else colour
    y = np.where(inside, values, np.clip(values, low + room, high - room))
    for kept, shape in (
        (inside, marker),
        (values < low, "<" if sideways else "v"),
        (values > high, ">" if sideways else "^"),
    ):
        across, up = (y[kept], x[kept]) if sideways else (x[kept], y[kept])
        axes.scatter(across, up, marker=shape, s=size, facecolors=faces, edgecolors=colour, lw=1, alpha=alpha, zorder=3)


def key(label: str, colour: str, marker: str, *, hollow: bool = False) -> Line2D:
    """An entry of a legend: a marker."""
    return Line2D(
        [], [], linestyle="none", marker=marker, color=colour, label=label, markerfacecolor="none" if hollow else colour
    )


def family_keys(styles: dict[str, tuple[str, str]]) -> list[Line2D]:
    """An entry of a legend for each family."""
    return [key(fitting(family, 30), colour, marker) for family, (colour, marker) in styles.items()]


def off_axis_key(values: Floats, limits: tuple[float, float], *, sideways: bool = False) -> list[Line2D]:
    """An entry of a legend for the triangles of values beyond the limits, where there are any."""
    below, above = bool((values < limits[0]).any()), bool((values > limits[1]).any())
    shape = ("<" if below else ">") if sideways else ("v" if below else "^")
    return [key("off the axis", GREY, shape)] if below or above else []


def legend(figure: Figure, keys: list[Line2D]) -> None:
    """Below the axes, where it hides no trial, in as few rows as the figure's width allows."""
    lengths = [len(str(key.get_label())) for key in keys]
    columns = next(k for k in range(len(keys), 0, -1) if k == 1 or _width(lengths, k) <= 11.5 * figure.get_figwidth())
    for entry in figure.legend(handles=keys, loc="outside lower center", ncols=columns, frameon=False).get_texts():
        entry.set_parse_math(False)


def _width(lengths: list[int], columns: int) -> int:
    """Characters of all columns of a legend, which are filled one after the other, the first ones a row longer."""
    rows, longer = divmod(len(lengths), columns)
    total = begin = 0
    for column in range(columns):
        end = begin + rows + (column < longer)
        total += max(lengths[begin:end]) + 7
        begin = end
    return total
