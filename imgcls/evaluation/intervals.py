"""How sure a figure is, and whether two models differ: 95 % intervals and paired tests on the same images."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from imgcls.errors import UserError
from imgcls.tables import Predictions

CONFIDENCE = 0.95
"""Of every interval here."""
NUM_RESAMPLES = 1000
MOST_CELLS = 2_000_000
"""Numbers in one array of a chunk of resamples: 16 MB."""

Interval = tuple[float, float]
Metric = Callable[[Predictions], float]
Metrics = Sequence[str] | Mapping[str, Metric]
"""Names out of `acc`, `f1` (macro) and `top<k>_acc`, or functions of predictions by their names."""
Draws = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_Sampled = Callable[[Draws], Floats]
"""(B, N) rows drawn for each of B resamples -> (B,) values."""


@dataclass(frozen=True)
class Difference:
    """How far one model is ahead of another on the same images.

    Attributes:
        difference: the first model's figure less the second's.
        low, high: the 95 % interval of the difference.
        p: two-sided, that there is none; never below 2 / (resamples + 1).
    """

    difference: float
    low: float
    high: float
    p: float


def bootstrap(
    predictions: Predictions, metrics: Metrics = ("acc", "f1"), *, num: int = NUM_RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """95 % intervals of figures, by drawing as many images again, with replacement (percentile bootstrap).

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13. Where all images are right, every
    resample is too, and the interval has no width: for a mere share of images `wilson` is the better one.

    Args:
        predictions: of N images; those without a label are left out.
        metrics: `acc`, `f1` (macro) and `top<k>_acc`, which are fast, or functions of predictions by their names, which
            are called once a resample.
        num: resamples.
        seed: of the draws; equal seeds draw the same images.

    Returns:
        name -> (low, high).

    Raises:
        UserError: an unknown name, or no image has a label.
    """
    known = labelled(predictions)
    sampled = _sampled(known, metrics)
    chunks = [{name: values(draws) for name, values in sampled.items()} for draws in resamples(known, num, seed)]
    return {name: _percentiles(np.concatenate([chunk[name] for chunk in chunks])) for name in sampled}


def paired_bootstrap(
    a: Predictions,
    b: Predictions,
    metric: str | Metric = "acc",
    *,
    num: int = NUM_RESAMPLES,
    seed: int = 0,
    against: float = 0.0,
) -> Difference:
    """How far `a` is ahead of `b`, from resamples that draw the same images of both.

    The p-value is twice the smaller share of resamples on one side of zero, those at zero counted on both sides, one
    added above and below the line (Davison and Hinkley, Bootstrap Methods and their Application, 1997, chapter 4).

    Args:
        a, b: predictions for the same images in the same order; those without a label are left out.
        metric: a name that `bootstrap` knows, or a function of predictions.
        num: resamples.
        seed: of the draws.
        against: the difference that the p-value is for, where that is not whether there is none.

    Raises:
        UserError: the images or their labels are not the same, none has a label, or the metric is unknown.
    """
    if a.ids != b.ids or not np.array_equal(a.labels, b.labels) or a.classes != b.classes:
        raise UserError(
            f"the two predictions are not of the same images in the same order with the same labels: found "
            f"{len(a.ids):,} and {len(b.ids):,} images. Give predictions of the same split of the same data set."
        )
    metrics: Metrics = [metric] if isinstance(metric, str) else {"metric": metric}
    known_a, known_b = labelled(a), labelled(b)
    [of_a], [of_b] = _sampled(known_a, metrics).values(), _sampled(known_b, metrics).values()
    gaps = np.concatenate([of_a(draws) - of_b(draws) for draws in resamples(known_a, num, seed)])
    # Sums of the same shares in another order differ in their last digits: that is no difference.
    gaps[np.abs(gaps) < 1e-12] = 0
    everything = np.arange(len(known_a.ids))[None]
    low, high = _percentiles(gaps)
    beyond = np.where(np.abs(gaps - against) < 1e-12, 0, gaps - against)
    extreme = min((beyond <= 0).sum(), (beyond >= 0).sum())
    p = min(1.0, 2 * float(1 + extreme) / (len(gaps) + 1))
    return Difference(float((of_a(everything) - of_b(everything))[0]), low, high, p)


def wilson(hits: int, n: int) -> Interval:
    """The 95 % interval of a share of `hits` in `n`, 0..1; (0, 1) of none.

    Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 22, 1927. It has a width
    at 0 and at 1 too, and covers what it says for small n.
    """
    assert 0 <= hits <= n, f"{hits} of {n}"
    if n == 0:
        return 0.0, 1.0
    from scipy import stats  # in the functions that need it, for it takes half a second

    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    share = hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if hits == 0 else float(max(0.0, centre - half))
    return low, 1.0 if hits == n else float(min(1.0, centre + half))


def mcnemar(a_right: npt.ArrayLike, b_right: npt.ArrayLike) -> float:
    """The two-sided p-value that two models are right equally often: the exact binomial test.

    Only images that one of them has right and the other wrong count (McNemar, Psychometrika 12, 1947).

    Args:
        a_right, b_right: (N,) whether each model is right about each image, the same images in the same order.
    """
    a, b = np.asarray(a_right, dtype=bool), np.asarray(b_right, dtype=bool)
    assert a.shape == b.shape, f"{a.shape} and {b.shape}"
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b == 0:
        return 1.0
    from scipy import stats

    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def holm(p_values: Sequence[float] | Floats) -> list[float]:
    """The p-values made larger for their number: what is below 0.05 then is so in all of them together.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6, 1979.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1, stepped)
    return [float(value) for value in adjusted]


def t_interval(values: Sequence[float] | Floats) -> tuple[float, float, float]:
    """(mean, low, high) of figures that differ by their seed alone: Student's 95 % interval of the mean.

    Of one value the bounds are NaN: it says nothing about its spread.

    Raises:
        UserError: there is no value.
    """
    if len(values) == 0:
        raise UserError("found no value to take the mean of; expected one a seed, two or more for an interval.")
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) == 1:
        return mean, float("nan"), float("nan")
    from scipy import stats

    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array)))
    return mean, mean - half, mean + half


def labelled(predictions: Predictions) -> Predictions:
    """The predictions of the images whose label is known.

    Raises:
        UserError: there is none.
    """
    known = predictions.labels >= 0
    if not known.any():
        raise UserError(
            f"none of the {len(known):,} images has a label; expected labelled ones, for there is nothing to measure."
        )
    return predictions if known.all() else _rows(predictions, np.flatnonzero(known))


def _rows(predictions: Predictions, rows: Draws) -> Predictions:
    ids = [predictions.ids[row] for row in rows]
    return replace(predictions, ids=ids, probs=predictions.probs[rows], labels=predictions.labels[rows])


def resamples(predictions: Predictions, num: int, seed: int) -> Iterator[Draws]:
    """(B, N) rows of the images of each resample, in chunks; the same for every C."""
    assert num > 0
    rng = np.random.default_rng(seed)
    num_images, num_classes = predictions.probs.shape
    most = max(1, MOST_CELLS // max(num_images, num_classes))
    for done in range(0, num, most):
        yield rng.integers(num_images, size=(min(most, num - done), num_images))


def _percentiles(values: Floats) -> Interval:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _sampled(predictions: Predictions, metrics: Metrics) -> dict[str, _Sampled]:
    """Each metric as a function of draws, with what is the same in every resample computed once."""
    if isinstance(metrics, Mapping):
        return {name: partial(_called, predictions, metric) for name, metric in metrics.items()}
    found: dict[str, _Sampled] = {}
    for name in metrics:
        if name == "f1":
            found[name] = partial(_macro_f1, predictions.labels, predictions.predicted, len(predictions.classes))
        elif name == "acc":
            found[name] = partial(_share, predictions.predicted == predictions.labels)
        elif (top := re.fullmatch(r"top([1-9]\d*)_acc", name)) is not None:
            found[name] = partial(_share, in_top(predictions, int(top[1])))
        else:
            raise UserError(f"found the metric {name!r}; expected acc, f1, top<k>_acc (such as top5_acc) or functions.")
    return found


def in_top(predictions: Predictions, k: int) -> Bools:
    """(N,) whether the true class is among the k most probable ones."""
    k = min(k, len(predictions.classes))
    best = np.argpartition(-predictions.probs, k - 1, axis=1)[:, :k]
    hits: Bools = (best == predictions.labels[:, None]).any(axis=1)
    return hits


def _called(predictions: Predictions, metric: Metric, draws: Draws) -> Floats:
    return np.array([metric(_rows(predictions, rows)) for rows in draws], dtype=np.float64)


def _share(hits: Bools, draws: Draws) -> Floats:
    shares: Floats = hits[draws].mean(axis=1)
    return shares


def _macro_f1(
    labels: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], num_classes: int, draws: Draws
) -> Floats:
    """Macro F1 of each resample; it needs three counts a class, and no confusion matrix."""
    size = len(draws) * num_classes
    offsets = np.arange(len(draws))[:, None] * num_classes
    true, named = labels[draws] + offsets, predicted[draws] + offsets
    both = np.bincount(true.ravel(), minlength=size) + np.bincount(named.ravel(), minlength=size)
    hits = np.bincount(true[true == named], minlength=size)
    f1 = np.divide(2.0 * hits, both, out=np.zeros(size), where=both > 0).reshape(-1, num_classes)
    present = (both > 0).reshape(-1, num_classes).sum(axis=1)
    values: Floats = f1.sum(axis=1) / present
    return values
