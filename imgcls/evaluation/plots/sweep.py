"""Figures of how a sweep went: its history, its families, and what it traded for what.

All take a sweep's table of trials (see `evaluation.leaderboard`) at any time of the sweep: as long as no trial is
complete, the figure says so.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from imgcls.evaluation import leaderboard
from imgcls.evaluation.leaderboard import finished, is_minimised, values_of
from imgcls.evaluation.plots.base import GREY, fitting, plain, saying
from imgcls.evaluation.plots.marks import family_keys, family_styles, key, legend, num_trials, off_axis_key, points
from imgcls.evaluation.plots.scales import jitter, shown_range

Floats = npt.NDArray[np.float64]

NOTHING_YET = "no trial is complete yet"
MOST_NAMED = 12
"""Trials of a front that are named."""


def optimisation_history(table: pd.DataFrame, objective: str) -> Figure:
    """Each trial's value in the order in which they ended, with the best so far of each family as a step line.

    Pruned trials are hollow, at the last value they reported; failed ones are crosses on the edge, on the worse
    side. What lies far behind the others is drawn as a triangle there.
    """
    ended = table[table["state"].isin(["complete", "pruned", "failed"])]
    ended = ended.assign(_end=ended["started"].astype(float) + ended["seconds"].astype(float))
    ended = ended.sort_values("_end", kind="stable").reset_index(drop=True)
    if finished(ended, objective).empty:
        return saying(f"Optimisation history: {NOTHING_YET}")
    styles = family_styles(table)
    order, values, states = np.arange(1, len(ended) + 1), _reached(ended, objective), ended["state"].to_numpy()
    complete = (states == "complete") & ~np.isnan(values)
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    axes = figure.subplots()
    low, high = shown_range(values[complete], objective)
    size = 34 if len(ended) <= 120 else 14
    foot = 0.98 if is_minimised(objective) else 0.02
    for family, (colour, marker) in styles.items():
        own = (ended["family"] == family).to_numpy()
        kept = own & complete
        points(axes, order[kept], values[kept], (low, high), colour=colour, marker=marker, size=size)
        pruned = own & (states == "pruned") & ~np.isnan(values)
        points(axes, order[pruned], values[pruned], (low, high), colour=colour, marker=marker, size=size, hollow=True)
        failed = own & (states == "failed")
        axes.scatter(
            order[failed], np.full(failed.sum(), foot), marker="x", s=size, color=colour, lw=1.4, clip_on=False,
            transform=axes.get_xaxis_transform(), zorder=4,
        )  # fmt: skip
        if kept.any():
            best = _accumulated(values[kept], objective)
            x, y = np.append(order[kept], len(ended) + 0.5), np.append(best, best[-1])
            axes.step(x, y, where="post", color=colour, lw=1.8, alpha=0.9)
    axes.set_ylim(low, high)
    axes.set_xlim(0.5, len(ended) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="trials, in the order in which they ended", ylabel=objective)
    axes.set_title(f"Optimisation history: best {objective} {_best(values[complete], objective):.4g}")
    plain(axes)
    kinds = [
        Line2D([], [], color=GREY, lw=1.8, label="best so far"),
        *([key("pruned", GREY, "o", hollow=True)] if (states == "pruned").any() else []),
        *([key("failed", GREY, "x")] if (states == "failed").any() else []),
        *off_axis_key(values[states != "failed"], (low, high)),
    ]
    legend(figure, [*family_keys(styles), *kinds])
    return figure


def _reached(table: pd.DataFrame, objective: str) -> Floats:
    """(N,) values; of a pruned trial without one the last that it reported, which is of the first objective."""
    values = values_of(table, objective)
    if objective != leaderboard.objectives_of(table)[0]:
        return values
    last = np.array([curve[-1] if len(curve) else np.nan for curve in table["curve"]], dtype=np.float64)
    pruned = (table["state"] == "pruned").to_numpy() & np.isnan(values) & np.isfinite(last)
    found: Floats = np.where(pruned, last, values)
    return found


def families(table: pd.DataFrame, objective: str) -> Figure:
    """Left: each family's best value against the seconds its trials have taken. Right: its complete trials' values."""
    done = finished(table, objective)
    if done.empty:
        return saying(f"Families: {NOTHING_YET}")
    styles = family_styles(table)
    figure = Figure(figsize=(12, max(4.2, 1.6 + 0.5 * len(styles))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    values = values_of(done, objective)
    limits = shown_range(values, objective)
    unit, seconds_a_unit = _time_unit(table)
    rows: list[str] = []
    for k, (family, (colour, marker)) in enumerate(styles.items()):
        own = table[(table["family"] == family) & table["seconds"].notna()]
        own = own.assign(_end=own["started"].astype(float) + own["seconds"].astype(float)).sort_values("_end")
        used = own["seconds"].astype(float).cumsum().to_numpy() / seconds_a_unit
        complete = own.index.isin(done.index)
        shown = values_of(own[complete], objective)
        rows.append(f"{fitting(family, 30)} ({len(shown)})")
        if not len(shown):
            continue
        best = _accumulated(shown, objective)
        # To the end of what it used: time spent after the best value has bought nothing more.
        x, y = np.append(used[complete], used[-1]), np.append(best, best[-1])
        left.step(x, y, where="post", color=colour, lw=1.8)
        improved = np.flatnonzero(np.diff(best, prepend=np.nan) != 0)
        inside = improved[(best[improved] >= limits[0]) & (best[improved] <= limits[1])]
        left.scatter(x[inside], best[inside], color=colour, marker=marker, s=26, zorder=3)
        shifts = k + jitter(len(shown), 0.2)
        points(right, shifts, shown, limits, colour=colour, marker=marker, size=22, sideways=True, alpha=0.65)
        right.plot([np.median(shown)] * 2, [k - 0.34, k + 0.34], color=colour, lw=2.4, zorder=4)
    left.set(xlabel=f"{unit} used by the family's trials", ylabel=f"best {objective}", ylim=limits)
    left.set_xlim(left=0)
    left.set_title("Best value against time")
    right.set_yticks(range(len(rows)), rows, parse_math=False)
    right.set(xlabel=objective, xlim=limits, ylim=(len(rows) - 0.4, -0.6))
    right.set_title("Complete trials (their number); line: median")
    for axes in (left, right):
        plain(axes)
    legend(figure, [*family_keys(styles), *off_axis_key(values, limits, sideways=True)])
    return figure


def pareto(table: pd.DataFrame, objectives: Sequence[str]) -> Figure:
    """Each pair of objectives against each other, the trials that no other one beats joined and numbered."""
    assert len(objectives) > 1, "one objective has a best trial and no front"
    done = finished(table, *objectives)
    if done.empty:
        return saying(f"Pareto front: {NOTHING_YET}")
    styles = family_styles(table)
    pairs = list(combinations(objectives, 2))
    figure = Figure(figsize=(8 * len(pairs) if len(pairs) < 3 else 6 * len(pairs), 5.4), layout="constrained")
    for axes, (first, second) in zip(np.atleast_1d(figure.subplots(1, len(pairs))), pairs, strict=True):
        front = leaderboard.pareto(table, [first, second])
        on_front = done.index.isin(front.index)
        for family, (colour, marker) in styles.items():
            own = (done["family"] == family).to_numpy()
            for kept, size, alpha in ((own & ~on_front, 22, 0.4), (own & on_front, 64, 1.0)):
                x, y = values_of(done[kept], second), values_of(done[kept], first)
                axes.scatter(x, y, color=colour, marker=marker, s=size, alpha=alpha, zorder=2 + alpha, lw=0)
        axes.set(xlim=_around(done, front, second), ylim=_around(done, front, first))
        _front(axes, front, first, second)
        off = _num_outside(done, first, axes.get_ylim()) + _num_outside(done, second, axes.get_xlim())
        axes.set(xlabel=_arrow(second), ylabel=_arrow(first))
        axes.set_title("some trials are far behind, off the axes" if off else "", fontsize=9, color=GREY)
        plain(axes)
    num = len(leaderboard.pareto(table, objectives))
    figure.suptitle(f"Pareto front: {num} of {num_trials(len(done))} that no other one beats")
    legend(figure, family_keys(styles))
    return figure


def _around(done: pd.DataFrame, front: pd.DataFrame, objective: str) -> tuple[float, float]:
    """The range of an axis: that of `shown_range`, and all of the front, with room for its numbers."""
    low, high = shown_range(values_of(done, objective), objective)
    on_front = values_of(front, objective)
    low, high = min(low, float(on_front.min())), max(high, float(on_front.max()))
    room = 0.04 * (high - low)
    return low - room, high + room


def _num_outside(done: pd.DataFrame, objective: str, limits: tuple[float, float]) -> int:
    values = values_of(done, objective)
    return int(((values < limits[0]) | (values > limits[1])).sum())


def _front(axes: Axes, front: pd.DataFrame, first: str, second: str) -> None:
    """The line of the front, and its trials' numbers where they are few and far enough apart to be read."""
    x, y = values_of(front, second), values_of(front, first)
    axes.step(x, y, where="pre", color=GREY, lw=1, zorder=1)
    if len(front) > MOST_NAMED:
        return
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    named: list[tuple[float, float]] = []
    for place, height, number in zip(x, y, front["number"], strict=True):
        across, up = (place - left) / (right - left), (height - low) / (high - low)
        for below in (False, True):
            here = up - 0.06 * below
            if all(abs(across - other) > 0.055 or abs(here - level) > 0.045 for other, level in named):
                named.append((across, here))
                axes.annotate(
                    f"{int(number):03d}", (place, height), xytext=(0, -7 if below else 7), textcoords="offset points",
                    fontsize=8, ha="center", va="top" if below else "bottom",
                )  # fmt: skip
                break


def _arrow(objective: str) -> str:
    return f"{objective} ({'less' if is_minimised(objective) else 'more'} is better)"


def _accumulated(values: Floats, objective: str) -> Floats:
    found: Floats = (np.minimum if is_minimised(objective) else np.maximum).accumulate(values)
    return found


def _best(values: Floats, objective: str) -> float:
    return float(values.min() if is_minimised(objective) else values.max())


def _time_unit(table: pd.DataFrame) -> tuple[str, float]:
    longest = float(table.groupby("family")["seconds"].sum().max())
    return ("hours", 3600.0) if longest > 2 * 3600 else ("minutes", 60.0) if longest > 120 else ("seconds", 1.0)
