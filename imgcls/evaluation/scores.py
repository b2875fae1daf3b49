"""Every figure of an evaluation, and its 95 % interval, from one set of predictions."""

import numpy as np
import numpy.typing as npt

from imgcls.errors import UserError
from imgcls.evaluation.confidence import NUM_BINS, confidence_bins
from imgcls.evaluation.intervals import CONFIDENCE, NUM_RESAMPLES, Draws, Interval, in_top, labelled, resamples
from imgcls.evaluation.ranking import MOST_COMPARED, one_vs_rest
from imgcls.evaluation.reading import true_class_loss
from imgcls.tables import Predictions

Floats = npt.NDArray[np.float64]
Columns = dict[str, Floats]
"""Figure -> (B,) its value in each resample."""

MOST_RANKED = 1e12
"""Multiplications for the intervals of AUC and average precision: beyond it all else would wait for these."""
MOST_WEIGHTS = 20_000_000
"""Images drawn, in the resamples that are ranked at a time: 80 MB."""
FEWEST_RESAMPLES = 200
"""Of any interval, however many images there are."""
TOP_K = 5


def scores(predictions: Predictions, *, top_k: int = TOP_K) -> dict[str, float]:
    """All figures of a labelled set of images; those without a label are left out.

    - `acc`, `top<k>_acc` (where there are more than k classes, and k is not 1): shares of images, 0..1.
    - `balanced_acc`: mean recall over the classes that have images, 0..1.
    - `precision`, `recall`, `f1`: means over the classes that occur among true or predicted labels, 0..1, and 0 for a
      class whose denominator is 0; `..._micro` over all images together (each equal to `acc` where an image has one
      class); `..._weighted` by the classes' images.
    - `kappa`: Cohen's, and `mcc`: Matthews' coefficient (Gorodkin 2004), -1..1; 0 where they are 0/0, which is where
      all true and all predicted labels are one class, and for `mcc` where either are.
    - `loss`: mean cross-entropy in nats, a probability of 0 counting as the smallest of float32.
    - `brier`: mean over images of the sum over classes of squared errors, 0..2 (Brier 1950; for two classes twice
      what counts one of them).
    - `ece`: expected calibration error of the predicted class in 15 bins of equal width, 0..1 (Guo et al. 2017).
    - `auc`, `ap`: mean over classes of the area under the ROC curve and the average precision of each against the
      rest, 0..1. Classes without images are left out, from `auc` also one that all images are of; the figure is left
      out where no class remains.

    They equal scikit-learn's: averages with its default labels and `zero_division=0`.

    Raises:
        UserError: no image has a label, or a probability is not a number.
    """
    known = _checked(predictions)
    everything = np.arange(len(known.ids))[None]
    columns = _Parts(known, top_k).values(_times(everything), everything) | _ranked(known, _times(everything))
    return {name: float(values[0]) for name, values in columns.items() if not np.isnan(values[0])}


def score_intervals(
    predictions: Predictions, num: int = NUM_RESAMPLES, seed: int = 0, *, top_k: int = TOP_K
) -> dict[str, Interval]:
    """95 % intervals of all figures of `scores`: the percentile bootstrap, with the same draws as `bootstrap`.

    A resample's figures are exactly what `scores` would give for the images drawn, as often as they are drawn; classes
    that it draws no image of are left out of its means. `auc` and `ap` use all resamples as long as they take fewer
    than 1e12 multiplications, about 22,000 images of many small classes, then fewer resamples, at least 200. 10,000
    images of 1,500 classes take all. The intervals of `ece`, and of `auc` and `ap` of classes with few images, may
    lie beside the figure itself: drawing with replacement makes these figures larger.

    Raises:
        UserError: no image has a label, or a probability is not a number.
    """
    known = _checked(predictions)
    parts = _Parts(known, top_k)
    left = most_ranked(known, num)
    chunks: list[Columns] = []
    waiting: list[Draws] = []
    for draws in resamples(known, num, seed):
        times = _times(draws)
        chunks.append(parts.values(times, draws))
        waiting.append(times[:left].astype(np.int32))
        left -= len(waiting[-1])
        # Comparing all images is done anew for each such chunk, so these are larger.
        if sum(map(len, waiting)) * len(known.ids) >= MOST_WEIGHTS:
            chunks.append(_ranked(known, np.concatenate(waiting)))
            waiting = []
    if sum(map(len, waiting)):
        chunks.append(_ranked(known, np.concatenate(waiting)))
    found = {}
    for name in scores(known, top_k=top_k):
        values = np.concatenate([chunk[name] for chunk in chunks if name in chunk])
        values = values[~np.isnan(values)]
        if len(values):
            low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
            found[name] = (float(low), float(high))
    return found


def most_ranked(predictions: Predictions, num: int) -> int:
    """How many of `num` resamples the intervals of `auc` and `ap` use."""
    support = np.bincount(predictions.labels[predictions.labels >= 0])
    compared = int(support[support <= MOST_COMPARED].sum()) + MOST_COMPARED * int((support > MOST_COMPARED).sum())
    work = 2.0 * len(predictions.ids) * max(1, compared)
    return min(num, max(FEWEST_RESAMPLES, int(MOST_RANKED / work)))


def _checked(predictions: Predictions) -> Predictions:
    known = labelled(predictions)
    bad = np.flatnonzero(~np.isfinite(known.probs.sum(axis=1)))
    if len(bad):
        raise UserError(
            f"found probabilities that are not numbers for {len(bad):,} of {len(known.ids):,} images, the first "
            f"{known.ids[bad[0]]!r}; expected numbers in 0..1. The model's weights or its precision are at fault."
        )
    return known


class _Parts:
    """What is the same in every resample, computed once."""

    def __init__(self, known: Predictions, top_k: int) -> None:
        self._known = known
        self._predicted = known.predicted
        right = self._predicted == known.labels
        probs = known.probs
        squares = np.einsum("nc,nc->n", probs, probs, dtype=np.float64)
        means: Columns = {"acc": right.astype(np.float64)}
        if 1 < top_k < len(known.classes):
            means[f"top{top_k}_acc"] = in_top(known, top_k).astype(np.float64)
        means["loss"] = true_class_loss(known)
        means["brier"] = squares - 2.0 * probs[np.arange(len(right)), known.labels] + 1
        self._names = list(means)
        gaps = np.zeros((len(right), NUM_BINS))
        gaps[np.arange(len(right)), confidence_bins(known)] = right - probs.max(axis=1).astype(np.float64)
        self._by_image = np.column_stack([*means.values(), gaps])

    def values(self, times: Draws, draws: Draws) -> Columns:
        """All figures but those of ranking, of (B, N) draws and how often they draw each image."""
        sums = times.astype(np.float64) @ self._by_image / draws.shape[1]
        found = dict(zip(self._names, sums.T, strict=False))
        found["ece"] = np.abs(sums[:, len(self._names) :]).sum(axis=1)
        return found | self._of_classes(draws)

    def _of_classes(self, draws: Draws) -> Columns:
        num_classes = len(self._known.classes)
        shape = (len(draws), num_classes)
        offsets = np.arange(len(draws))[:, None] * num_classes
        true, named = self._known.labels[draws] + offsets, self._predicted[draws] + offsets
        support, predicted, hits = (
            np.bincount(values.ravel(), minlength=shape[0] * shape[1]).reshape(shape)
            for values in (true, named, true[true == named])
        )
        return _rates(support, predicted, hits)


def _times(draws: Draws) -> Draws:
    """(B, N) how often each of N images is among the (B, N) draws."""
    num, size = draws.shape
    offsets = np.arange(num)[:, None] * size
    return np.bincount((draws + offsets).ravel(), minlength=num * size).reshape(num, size)


def _ranked(known: Predictions, times: npt.NDArray[np.integer]) -> Columns:
    """The figures of ranking, of (B, N) how often each image is drawn."""
    auc, ap = one_vs_rest(known, np.ascontiguousarray(times.T, dtype=np.float32))
    return {"auc": _nan_mean(auc.T), "ap": _nan_mean(ap.T)}


def _rates(support: Draws, predicted: Draws, hits: Draws) -> Columns:
    """The figures that three (B, C) counts determine: true and predicted labels of each class, and right ones."""
    total = support.sum(axis=1)
    by_class = {
        "precision": _share(hits, predicted),
        "recall": _share(hits, support),
        "f1": _share(2 * hits, support + predicted),
    }
    there = support + predicted > 0
    acc = hits.sum(axis=1) / total
    found: Columns = {"balanced_acc": by_class["recall"].sum(axis=1) / (support > 0).sum(axis=1)}
    for name, values in by_class.items():
        found[name] = np.where(there, values, 0).sum(axis=1) / there.sum(axis=1)
        found[f"{name}_micro"] = acc
        found[f"{name}_weighted"] = (values * support).sum(axis=1) / total
    # Of shares rather than counts, which would overflow beyond two thousand million images squared.
    true, named = support / total[:, None], predicted / total[:, None]
    chance = (true * named).sum(axis=1)
    spread = (1 - (true**2).sum(axis=1)) * (1 - (named**2).sum(axis=1))
    found["kappa"] = _share(acc - chance, 1 - chance)
    found["mcc"] = _share(acc - chance, np.sqrt(np.maximum(spread, 0)))
    return found


def _share(above: npt.NDArray[np.generic], below: npt.NDArray[np.generic]) -> Floats:
    """above / below, and 0 where below is 0 (or off it by rounding alone)."""
    tops, bottoms = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    return np.divide(tops, bottoms, out=np.zeros_like(tops), where=bottoms > 1e-12)


def _nan_mean(values: Floats) -> Floats:
    """The mean of each row's numbers, NaN where it has none."""
    known = ~np.isnan(values)
    num = known.sum(axis=1)
    sums = np.where(known, values, 0).sum(axis=1)
    means: Floats = np.divide(sums, num, out=np.full(len(values), np.nan), where=num > 0)
    return means
