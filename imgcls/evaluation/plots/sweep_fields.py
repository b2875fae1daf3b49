"""Figures of what a sweep's searched fields did: importance, parallel coordinates, a slice through each."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from imgcls.evaluation.leaderboard import fields_of, finished, is_minimised, values_of
from imgcls.evaluation.plots.base import COLOURS, GREY, fitting, plain, saying
from imgcls.evaluation.plots.marks import family_keys, family_styles, legend, num_trials, off_axis_key, points
from imgcls.evaluation.plots.scales import Scale, scale, shown_range
from imgcls.evaluation.plots.sweep import NOTHING_YET

Floats = npt.NDArray[np.float64]

MOST_BARRED = 3
"""Families whose importances stand as bars; more make a table of coloured cells."""


def importance(by_family: Mapping[str, Mapping[str, float]], evaluator: str) -> Figure:
    """How much each searched field mattered in each family.

    Args:
        by_family: family -> field -> share, 0..1 (a family's shares sum to 1); an empty one has too few trials.
        evaluator: what computed them, for others rank otherwise.
    """
    known = {family: shares for family, shares in by_family.items() if shares}
    if not known:
        return saying("Importance: too few trials are complete yet")
    fields = list(dict.fromkeys(field for shares in known.values() for field in shares))
    table = np.array([[known[family].get(field, np.nan) for family in known] for field in fields])
    order = np.argsort(-np.nanmean(table, axis=1), kind="stable")
    table, fields = table[order], [fields[k] for k in order]
    draw = _importance_bars if len(known) <= MOST_BARRED else _importance_cells
    figure = draw(table, fields, list(known))
    title = f"Importance of the searched fields ({evaluator})"
    if len(known) == 1:
        title += f"\n{fitting(next(iter(known)), 60)}"
    if missing := [fitting(family, 30) for family in by_family if family not in known]:
        title += f"\ntoo few complete trials: {', '.join(missing[:4])}{' …' if len(missing) > 4 else ''}"
    figure.suptitle(title, fontsize=11, parse_math=False)
    return figure


def _importance_bars(table: Floats, fields: list[str], names: list[str]) -> Figure:
    num = len(names)
    figure = Figure(figsize=(8.5, 1.9 + len(fields) * (0.22 + 0.2 * num)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / num
    for k, family in enumerate(names):
        places = np.arange(len(fields)) + (k - (num - 1) / 2) * height
        widths = np.nan_to_num(table[:, k])
        axes.barh(places, widths, height=height * 0.92, color=COLOURS[k], label=fitting(family, 36))
        for place, width, value in zip(places, widths, table[:, k], strict=True):
            text = "not searched" if np.isnan(value) else f"{value:.0%}"
            axes.annotate(
                text, (width, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8, color=GREY
            )  # fmt: skip
    axes.set_yticks(range(len(fields)), [fitting(field, 32) for field in fields], parse_math=False)
    axes.set_ylim(len(fields) - 0.45, -0.55)
    axes.set_xlim(0, min(1.12, 1.12 * float(np.nanmax(table)) + 0.04))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("share of the differences between the trials' values")
    plain(axes)
    if num > 1:
        for entry in figure.legend(loc="outside lower center", ncols=num, frameon=False).get_texts():
            entry.set_parse_math(False)
    return figure


def _importance_cells(table: Floats, fields: list[str], names: list[str]) -> Figure:
    figure = Figure(figsize=(3 + 1.05 * len(names), 2.6 + 0.36 * len(fields)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.nan_to_num(table), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        text, colour = ("–", GREY) if np.isnan(value) else (f"{value:.0%}", "white" if value > 0.55 else "black")
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    labels = [fitting(name, 28) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=30, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(len(fields)), [fitting(field, 32) for field in fields], parse_math=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def parallel_coordinates(table: pd.DataFrame, objective: str) -> Figure:
    """One line a complete trial through its values of all searched fields, coloured by the objective.

    Fields that span more than 20 times have a logarithmic axis, names one tick each; what a trial does not have (a
    field that is searched only beside another's value) goes through a tick of its own at the foot. The best trials are
    drawn last, over the others; the colours part the better half, what is far worse has the last colour.
    """
    done = finished(table, objective)
    if done.empty:
        return saying(f"Parallel coordinates: {NOTHING_YET}")
    values = values_of(done, objective)
    order = np.argsort(-values if is_minimised(objective) else values, kind="stable")
    done, values = done.iloc[order], values[order]
    columns = {field: done[field].tolist() for field in fields_of(table)}
    if table["family"].nunique() > 1:
        columns = {"family": done["family"].tolist(), **columns}
    scales = {name: scale(column) for name, column in columns.items()}
    low, high = shown_range(values, objective)
    norm = Normalize(max(low, values.min()), min(high, values.max()), clip=True)
    colours = "viridis_r" if is_minimised(objective) else "viridis"
    num = len(scales)
    figure = Figure(figsize=(max(7.5, 2.2 + 1.45 * num), 5.6), layout="constrained")
    axes = figure.subplots()
    heights = np.stack([item.spread(0.018) for item in scales.values()], axis=1)
    xs = np.arange(num)
    if num == 1:  # a line needs two ends
        xs, heights = np.array([0, 0.35]), np.repeat(heights, 2, axis=1)
    lines = LineCollection(
        [np.column_stack([xs, row]) for row in heights],
        array=values,
        norm=norm,
        cmap=colours,
        lw=1.5 if len(done) <= 100 else 0.8,
        alpha=0.75 if len(done) <= 100 else 0.5,
    )
    axes.add_collection(lines)
    best = heights[-1]
    axes.plot(xs, best, color="#c8324f", lw=2.2, zorder=4, label=f"the best: {values[-1]:.4g}")
    _draw_axes(axes, scales)
    if len(np.unique(values)) > 1:
        beyond = "max" if high < values.max() else "min" if low > values.min() else "neither"
        bar = figure.colorbar(lines, ax=axes, pad=0.02, fraction=0.05, extend=beyond, label=objective)
        if bar.solids is not None:
            bar.solids.set_alpha(1)
    axes.set_title(f"Parallel coordinates: {objective} of {num_trials(len(done))}", pad=12)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", frameon=False)
    return figure


def _draw_axes(axes: Axes, scales: Mapping[str, Scale]) -> None:
    """An upright axis for each field with its ticks, in place of the figure's own."""
    for x, item in enumerate(scales.values()):
        axes.plot([x, x], [0, 1], color="#444444", lw=1, zorder=5)
        for place, text in item.ticks.items():
            axes.plot([x - 0.025, x + 0.025], [place, place], color="#444444", lw=1, zorder=5)
            axes.text(
                x + 0.04, place, text, fontsize=8, va="center", zorder=6, parse_math=False,
                bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6},
            )  # fmt: skip
    names = [fitting(name, 26).replace(".", ".\n", 1) for name in scales]
    axes.set_xticks(range(len(names)), names, parse_math=False)
    axes.tick_params(axis="x", length=0)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_xlim(-0.15, len(names) - 1 + 0.6)
    axes.set_ylim(-0.2 if any(item.has_missing for item in scales.values()) else -0.05, 1.05)


def slices(table: pd.DataFrame, objective: str) -> Figure:
    """The objective of complete trials against each searched field, one small panel a field."""
    done = finished(table, objective)
    fields = fields_of(table)
    if done.empty or not fields:
        return saying(f"Slices: {NOTHING_YET}" if done.empty else "Slices: no field is searched")
    styles = family_styles(table)
    values = values_of(done, objective)
    limits = shown_range(values, objective)
    wide = min(len(fields), 4 if len(fields) != 6 else 3)
    rows = -(-len(fields) // wide)
    figure = Figure(figsize=(max(5.5, 3.3 * wide), 1.2 + 2.7 * rows), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, wide, sharey=True)).ravel()
    size = 26 if len(done) <= 120 else 12
    for k, (axes, field) in enumerate(zip(panels, fields, strict=False)):
        item = scale(done[field].tolist(), width=12)
        places = item.spread(0.03)
        for family, (colour, marker) in styles.items():
            own = (done["family"] == family).to_numpy()
            points(axes, places[own], values[own], limits, colour=colour, marker=marker, size=size, alpha=0.7)
        crowded = sum(len(text) for text in item.ticks.values()) > 26
        style = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
        axes.set_xticks(list(item.ticks), list(item.ticks.values()), fontsize=8, parse_math=False, **style)
        axes.set_xlim(-0.24 if item.has_missing else -0.08, 1.08)
        axes.set_ylim(limits)
        axes.set_xlabel(fitting(field, 32), parse_math=False)
        if k % wide == 0:
            axes.set_ylabel(objective)
        plain(axes)
    for axes in panels[len(fields) :]:
        axes.remove()
    figure.suptitle(f"{objective} against each searched field: {num_trials(len(done))}")
    keys = [*(family_keys(styles) if len(styles) > 1 else []), *off_axis_key(values, limits)]
    if keys:
        legend(figure, keys)
    return figure
