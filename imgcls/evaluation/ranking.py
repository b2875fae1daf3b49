"""How well the probabilities of each class rank its images above all others: ROC AUC, average precision, curves."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imgcls.tables import Predictions

Floats = npt.NDArray[np.float64]
Weights = npt.NDArray[np.float32]

MOST_COMPARED = 64
"""Images of a class up to which each is compared with all others by one matrix product; of more, sorting is faster."""
MOST_CELLS = 4_000_000
"""Comparisons held at a time: 16 MB."""
GRID = np.unique(np.r_[np.linspace(0, 1, 201), np.geomspace(1e-5, 1, 101)])
"""Where a mean of curves is taken; close at 0, where the ROC curves of many classes rise."""


@dataclass(frozen=True)
class Curve:
    """A curve of one class, or the mean of several.

    Attributes:
        x, y: (P,) false-positive and true-positive rate, or recall and precision; x rises.
        area: the ROC AUC or the average precision.
    """

    x: Floats
    y: Floats
    area: float


def one_vs_rest(predictions: Predictions, weights: Weights | None = None) -> tuple[Floats, Floats]:
    """ROC AUC and average precision of each class against the rest, as scikit-learn's with sample weights.

    Images of equal probability count half in the AUC; in the average precision they share a threshold. Exact for
    weights that are whole numbers, such as how often a bootstrap draws an image, as long as they sum below 2^24.

    A class's sum over (image of it, any image) needs the weight that ranks above each of its own images alone. For
    classes of few images these are columns of a product of two matrices, (images of them, N) comparisons and (N, B)
    weights, which takes N² B multiplications for all classes together; a larger class is sorted once, for N B each.

    Args:
        predictions: of N images, all with a label.
        weights: (N, B) of each of B resamples, or None for a single one of weight 1 each.

    Returns:
        (C, B) AUC, NaN where a class has no image or all, and (C, B) average precision, NaN where it has none.
    """
    num_images, num_classes = predictions.probs.shape
    weights = np.ones((num_images, 1), np.float32) if weights is None else weights
    auc, ap = (np.full((num_classes, weights.shape[1]), np.nan) for _ in range(2))
    scores = np.ascontiguousarray(predictions.probs.T)
    support = np.bincount(predictions.labels, minlength=num_classes)
    by_class = np.argsort(predictions.labels, kind="stable")
    total = weights.sum(axis=0, dtype=np.float64)
    for classes in _batches(support, max(1, MOST_CELLS // num_images)):
        rows = by_class[np.isin(predictions.labels[by_class], classes)]
        own = predictions.labels[rows]
        found = _sorted(scores, rows, own, weights) if len(classes) == 1 else _compared(scores, rows, own, weights)
        starts = np.flatnonzero(np.r_[True, own[1:] != own[:-1]])
        auc[classes], ap[classes] = _areas(weights[rows].astype(np.float64), *found, total, starts)
    return auc, ap


def _batches(support: npt.NDArray[np.int64], most: int) -> Iterator[npt.NDArray[np.int64]]:
    """The classes that have images, those of many images alone, the others together up to `most` images."""
    for k in np.flatnonzero(support > MOST_COMPARED):
        yield np.array([k])
    small = np.flatnonzero((support > 0) & (support <= MOST_COMPARED))
    if len(small):
        numbers = (np.cumsum(support[small]) - 1) // most
        yield from np.split(small, np.flatnonzero(np.diff(numbers)) + 1)


Above = tuple[Floats, Floats, Floats]
"""For each of R images the weight of all images that its class ranks (equal or higher, higher), and of those of its own
class that it ranks equal or higher: each (R, B)."""


def _compared(
    scores: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], own: npt.NDArray[np.int64], weights: Weights
) -> Above:
    values = scores[own]
    marks = scores[own, rows][:, None]
    reaching = values >= marks
    reach = reaching.astype(np.float32) @ weights
    above = reach - weights[rows]
    tied = np.flatnonzero((values == marks).sum(axis=1) > 1)
    if len(tied):
        above[tied] = (values[tied] > marks[tied]).astype(np.float32) @ weights
    of_own = (reaching[:, rows] & (own[:, None] == own)).astype(np.float32) @ weights[rows]
    return reach.astype(np.float64), above.astype(np.float64), of_own.astype(np.float64)


def _sorted(
    scores: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], own: npt.NDArray[np.int64], weights: Weights
) -> Above:
    values = -scores[own[0]]
    order = np.argsort(values, kind="stable")
    marks = values[rows]
    before = np.zeros((len(order) + 1, weights.shape[1]), np.float32)
    np.cumsum(weights[order], axis=0, out=before[1:])
    reach = before[np.searchsorted(values[order], marks, side="right")]
    above = before[np.searchsorted(values[order], marks, side="left")]
    inside = np.argsort(marks, kind="stable")
    np.cumsum(weights[rows[inside]], axis=0, out=before[1 : len(rows) + 1])
    of_own = before[np.searchsorted(marks[inside], marks, side="right")]
    return reach.astype(np.float64), above.astype(np.float64), of_own.astype(np.float64)


def _areas(
    weights: Floats, reach: Floats, above: Floats, of_own: Floats, total: Floats, starts: npt.NDArray[np.intp]
) -> tuple[Floats, Floats]:
    """(classes, B) AUC and average precision from what ranks above each of the classes' own images."""
    positive = np.add.reduceat(weights, starts, axis=0)
    negative = total - positive
    # All pairs of images of the class itself, each of them once won and once lost, are taken away again.
    won = np.add.reduceat(weights * (total - (reach + above) / 2), starts, axis=0) - positive**2 / 2
    precision = np.divide(of_own, reach, out=np.zeros_like(reach), where=reach > 0)
    gained = np.add.reduceat(weights * precision, starts, axis=0)
    nothing = np.full_like(won, np.nan)
    auc = np.divide(won, positive * negative, out=nothing.copy(), where=positive * negative > 0)
    ap = np.divide(gained, positive, out=nothing, where=positive > 0)
    return auc, ap


def roc_curve(predictions: Predictions, k: int) -> Curve:
    """True-positive rate against false-positive rate of class k, from (0, 0) to (1, 1); it needs images on both sides.

    Args:
        predictions: of images that all have a label.
        k: the class's index.
    """
    hits, others = _counts(predictions, k)
    x, y = np.r_[0, others / others[-1]], np.r_[0, hits / hits[-1]]
    return Curve(x, y, float(np.trapezoid(y, x)))


def pr_curve(predictions: Predictions, k: int) -> Curve:
    """Precision against recall of class k, by rising recall; it needs an image of the class.

    Args:
        predictions: of images that all have a label.
        k: the class's index.
    """
    hits, others = _counts(predictions, k)
    recall, precision = hits / hits[-1], hits / (hits + others)
    return Curve(recall, precision, float((np.diff(recall, prepend=0) * precision).sum()))


def _counts(predictions: Predictions, k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Images of the class and others down to each different probability, from the highest."""
    scores = predictions.probs[:, k]
    order = np.argsort(-scores, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(scores[order])), len(order) - 1]
    hits = np.cumsum(predictions.labels[order] == k)[last]
    return hits, last + 1 - hits


def mean_roc(predictions: Predictions) -> Curve | None:
    """The mean true-positive rate over the classes at each false-positive rate of GRID, each class counting the same.

    None where no class has images on both sides. The area is the macro AUC itself, not that of the drawn grid.
    """
    support = np.bincount(predictions.labels, minlength=len(predictions.classes))
    known = np.flatnonzero((support > 0) & (support < len(predictions.ids)))
    if not len(known):
        return None
    curves = [roc_curve(predictions, int(k)) for k in known]
    rates = [np.interp(GRID, curve.x, curve.y) for curve in curves]
    # A curve that rises at 0 has two values there; the upper one belongs to it.
    mean = np.r_[0, np.mean(rates, axis=0)]
    return Curve(np.r_[0, GRID], mean, float(np.mean([curve.area for curve in curves])))


def mean_pr(predictions: Predictions) -> Curve:
    """The mean precision over the classes that have images, at each recall of GRID, each class counting the same."""
    known = np.flatnonzero(np.bincount(predictions.labels, minlength=len(predictions.classes)))
    curves = [pr_curve(predictions, int(k)) for k in known]
    # The precision with which a recall is first reached holds for the recalls just below it.
    places = [np.searchsorted(curve.x, GRID - 1e-12, side="left") for curve in curves]
    mean = np.mean([curve.y[place] for curve, place in zip(curves, places, strict=True)], axis=0)
    return Curve(GRID, mean, float(np.mean([curve.area for curve in curves])))
