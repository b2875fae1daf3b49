"""The axes of a sweep's figures: where a field's values stand on one, and the range of an objective that is shown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from imgcls.evaluation.leaderboard import is_minimised
from imgcls.evaluation.markdown import is_number, value_text
from imgcls.evaluation.plots.base import fitting

Floats = npt.NDArray[np.float64]

SPAN = 20
"""How many times its least value the largest of a field may be before its axis is logarithmic."""
MOST_TICKS = 8
"""Different numbers up to which each has a tick."""
MISSING = -0.14
"""Where what is missing stands, below (or left of) the axis that goes from 0 to 1."""
NONE = "not set"


@dataclass(frozen=True)
class Scale:
    """Where a field's values stand.

    Attributes:
        places: (N,) in 0..1; MISSING for what is missing.
        ticks: place -> text, by rising place.
        is_category: whether values are names (or truth values), which have no distance.
    """

    places: Floats
    ticks: dict[float, str]
    is_category: bool

    @property
    def has_missing(self) -> bool:
        """Whether any value is missing."""
        return bool((self.places == MISSING).any())

    def spread(self, width: float) -> Floats:
        """The places, those that many values may share a little apart, so that they do not hide each other."""
        shifts = jitter(len(self.places), width)
        if self.is_category or len(np.unique(self.places)) <= MOST_TICKS:
            return self.places + shifts
        return np.where(self.places == MISSING, self.places + shifts, self.places)


def scale(values: Sequence[object], *, width: int = 18) -> Scale:
    """The scale of a field's values: logarithmic where they are positive, span more than 20 times and are crowded at
    the low end, by name where they are no numbers.

    Args:
        values: N values; None where missing.
        width: characters of a name.
    """
    missing = np.array([_is_missing(value) for value in values], dtype=bool)
    there = [value for value, gone in zip(values, missing, strict=True) if not gone]
    places = np.full(len(missing), MISSING)
    ticks: dict[float, str] = {}
    is_category = not all(is_number(value) for value in there)
    if is_category:
        names = sorted({str(value) for value in there})
        where = {name: _even(k, len(names)) for k, name in enumerate(names)}
        places[~missing] = [where[str(value)] for value in there]
        ticks = {place: fitting(name, width) for name, place in where.items()}
    elif there:
        numbers = np.array([float(str(value)) for value in there])
        places[~missing], ticks = _numeric(numbers)
    if missing.any():
        ticks = {MISSING: NONE, **ticks}
    return Scale(places, ticks, is_category)


def _is_missing(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _even(k: int, num: int) -> float:
    return 0.5 if num == 1 else k / (num - 1)


def _numeric(numbers: Floats) -> tuple[Floats, dict[float, str]]:
    low, high = float(numbers.min()), float(numbers.max())
    if low == high:
        return np.full(len(numbers), 0.5), {0.5: value_text(low, digits=3)}
    logarithmic = low > 0 and high / low > SPAN and _is_skewed(numbers, low, high)

    def place(number: float | Floats) -> Floats:
        if logarithmic:
            return np.asarray(np.log(np.asarray(number) / low) / math.log(high / low))
        return (np.asarray(number) - low) / (high - low)

    marks: Floats = np.asarray(np.unique(numbers), dtype=np.float64)
    if len(marks) > MOST_TICKS:
        marks = _decades(low, high) if logarithmic else _round_numbers(low, high)
    ticks = {float(place(mark)): value_text(float(mark), digits=3) for mark in marks}
    return place(numbers), _apart(ticks)


def _is_skewed(numbers: Floats, low: float, high: float) -> bool:
    """Whether a logarithmic axis has the median nearer to its middle: a dropout drawn evenly from 0.001 to 0.5 is to
    have a linear one."""
    median = float(np.median(numbers))
    by_logarithm = math.log(median / low) / math.log(high / low)
    return abs(by_logarithm - 0.5) <= abs((median - low) / (high - low) - 0.5)


def _apart(ticks: dict[float, str]) -> dict[float, str]:
    """Without those that would be written over each other; the two ends stay."""
    kept: dict[float, str] = {}
    last = max(ticks)
    for place, text in sorted(ticks.items()):
        if place == last or ((not kept or place - max(kept) > 0.06) and last - place > 0.06):
            kept[place] = text
    return kept


def _decades(low: float, high: float) -> Floats:
    """Powers of ten between the two, with numbers between them where there are few."""
    powers = [10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    factors = (1, 2, 5) if high / low < 50 else (1, 3) if high / low < 1000 else (1,)
    marks = np.array(sorted(power * factor for power in powers for factor in factors))
    return marks[(marks >= low * 0.999) & (marks <= high * 1.001)]


def _round_numbers(low: float, high: float) -> Floats:
    raw = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw)
    marks = np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1) * step
    return np.array([float(f"{mark:.6g}") for mark in marks])


def jitter(num: int, width: float) -> Floats:
    """(N,) small shifts within +-width, the same every time, that keep equal places apart."""
    golden = (np.arange(1, num + 1) * 0.6180339887498949) % 1
    return np.asarray((2 * golden - 1) * width, dtype=np.float64)


def shown_range(values: Floats, objective: str) -> tuple[float, float]:
    """(low, high) of an objective's axis: all of the better half, of the worse one what is not far off.

    A trial that diverged would leave the good ones a line's width.
    """
    low, median, high = float(values.min()), float(np.median(values)), float(values.max())
    best = low if is_minimised(objective) else high
    quarter = float(np.quantile(values, 0.75 if is_minimised(objective) else 0.25))
    reach = 2.5 * max(abs(quarter - best), abs(median - best))
    if reach > 0:
        low, high = (low, min(high, best + reach)) if is_minimised(objective) else (max(low, best - reach), high)
    room = 0.05 * (high - low) or 0.05 * max(abs(high), 1e-3)
    return low - room, high + room
