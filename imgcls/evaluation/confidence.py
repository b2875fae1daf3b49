"""Whether a model knows when it is right: reliability, accuracy against coverage, and its worst mistakes."""

from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from imgcls.evaluation.intervals import labelled, wilson
from imgcls.evaluation.reading import true_class_loss
from imgcls.tables import Predictions

NUM_BINS = 15
"""Bins of equal width of the confidence, as Guo et al. 2017 have them."""
THRESHOLDS = (0.0, *(k / 20 for k in range(1, 20)), 0.98, 0.99, 0.999)
"""Confidences at which coverage is told."""


def confidence_bins(predictions: Predictions) -> npt.NDArray[np.int64]:
    """(N,) the bin of each image's confidence, 0 to NUM_BINS - 1; bin k holds what is above k/15 up to (k + 1)/15."""
    confidence = predictions.probs.max(axis=1).astype(np.float64)
    edges = np.linspace(0, 1, NUM_BINS + 1)[1:-1]
    bins: npt.NDArray[np.int64] = np.searchsorted(edges, confidence, side="left").astype(np.int64)
    return bins


def reliability_table(predictions: Predictions) -> pd.DataFrame:
    """One row a bin: low, high, images, confidence (mean), accuracy, and accuracy_low and accuracy_high (`wilson`).

    Images without a label are left out; of an empty bin all but its bounds and its 0 images is NaN.

    Raises:
        UserError: no image has a label.
    """
    known = labelled(predictions)
    bins, right = confidence_bins(known), known.predicted == known.labels
    images = np.bincount(bins, minlength=NUM_BINS).astype(np.int64)
    hits = np.bincount(bins, weights=right, minlength=NUM_BINS)
    sums = np.bincount(bins, weights=known.probs.max(axis=1), minlength=NUM_BINS)
    bounds = [wilson(int(hit), int(num)) if num else (np.nan, np.nan) for hit, num in zip(hits, images, strict=True)]
    return pd.DataFrame(
        {
            "low": np.arange(NUM_BINS) / NUM_BINS,
            "high": np.arange(1, NUM_BINS + 1) / NUM_BINS,
            "images": images,
            "confidence": _over(sums, images),
            "accuracy": _over(hits, images),
            "accuracy_low": [low for low, _ in bounds],
            "accuracy_high": [high for _, high in bounds],
        }
    )


def _over(sums: npt.ArrayLike, images: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    shares: npt.NDArray[np.float64] = np.divide(sums, images, out=np.full(len(images), np.nan), where=images > 0)
    return shares


def coverage_table(predictions: Predictions) -> pd.DataFrame:
    """What is gained by leaving images of low confidence to a person: one row a threshold.

    Columns: threshold (images of at least this confidence are kept), images (kept), coverage (their share), accuracy
    (among them), accuracy_low and accuracy_high (`wilson`); the accuracies are NaN where none is kept. Images without a
    label are left out.

    Raises:
        UserError: no image has a label.
    """
    known = labelled(predictions)
    confidence, right = known.probs.max(axis=1), known.predicted == known.labels
    rows = []
    for threshold in THRESHOLDS:
        kept = confidence >= threshold
        num, hits = int(kept.sum()), int(right[kept].sum())
        low, high = wilson(hits, num) if num else (np.nan, np.nan)
        rows.append([threshold, num, num / len(kept), hits / num if num else np.nan, low, high])
    return pd.DataFrame(rows, columns=["threshold", "images", "coverage", "accuracy", "accuracy_low", "accuracy_high"])


def coverage_curve(predictions: Predictions) -> pd.DataFrame:
    """The accuracy of the most confident images by how many are kept, one row a different confidence, falling.

    Columns: threshold, images, coverage, accuracy. Images without a label are left out.

    Raises:
        UserError: no image has a label.
    """
    known = labelled(predictions)
    confidence, right = known.probs.max(axis=1), known.predicted == known.labels
    order = np.argsort(-confidence, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(confidence[order])), len(order) - 1]
    images = last + 1
    return pd.DataFrame(
        {
            "threshold": confidence[order][last],
            "images": images,
            "coverage": images / len(order),
            "accuracy": np.cumsum(right[order])[last] / images,
        }
    )


def mistakes(predictions: Predictions, num: int, *, by: Literal["confidence", "loss"]) -> pd.DataFrame:
    """The images of a gallery: the wrong ones of highest confidence (false positives), or those of highest loss.

    Columns: row (in `predictions`), id, label, predicted (class names), confidence (of the predicted class, 0..1),
    probability (of the true class, 0..1), loss (in nats); the worst first, ties in the predictions' order.

    Args:
        predictions: those without a label are left out.
        num: rows at most.
        by: `confidence`, wrong images only, or `loss`, in which a right image can be, too.

    Raises:
        UserError: no image has a label.
    """
    known = labelled(predictions)
    rows = np.flatnonzero(predictions.labels >= 0)
    loss, confidence, predicted = true_class_loss(known), known.probs.max(axis=1), known.predicted
    worth = loss if by == "loss" else np.where(predicted == known.labels, -np.inf, confidence)
    worst = np.argsort(-worth, kind="stable")[:num]
    worst = worst[np.isfinite(worth[worst])]
    return pd.DataFrame(
        {
            "row": rows[worst],
            "id": [known.ids[k] for k in worst],
            "label": [known.classes[k] for k in known.labels[worst]],
            "predicted": [known.classes[k] for k in predicted[worst]],
            "confidence": confidence[worst],
            "probability": known.probs[worst, known.labels[worst]],
            "loss": loss[worst],
        }
    )
