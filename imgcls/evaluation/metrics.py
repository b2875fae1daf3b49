"""Counts and rates of right and wrong predictions."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from imgcls.sections import Section
from imgcls.tables import Predictions

Counts = npt.NDArray[np.int64]


class EvaluateConfig(Section):
    """What is measured on a trained model."""

    top_k: int = Field(5, ge=1, le=1000)
    """Classes that the model names for an image, and the k of the top-k accuracy (at most the number of classes)."""


def confusion_matrix(labels: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], num_classes: int) -> Counts:
    """(C, C) counts; row: true class, column: predicted class."""
    pairs = np.bincount(labels * num_classes + predicted, minlength=num_classes * num_classes)
    return pairs.reshape(num_classes, num_classes).astype(np.int64)


def accuracy(confusion: Counts) -> float:
    """Share of images whose predicted class is the true one, 0..1."""
    return float(np.trace(confusion) / max(1, confusion.sum()))


def per_class(confusion: Counts) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(precision, recall, F1) of each class, each (C,) in 0..1; 0 where the denominator is 0, as scikit-learn does."""
    hits = np.diag(confusion).astype(np.float64)
    predicted, support = confusion.sum(0), confusion.sum(1)
    precision = np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0)
    recall = np.divide(hits, support, out=np.zeros_like(hits), where=support > 0)
    total = predicted + support
    f1 = np.divide(2 * hits, total, out=np.zeros_like(hits), where=total > 0)
    return precision, recall, f1


def macro_f1(confusion: Counts) -> float:
    """Mean F1 over the classes that occur among the true or the predicted labels, 0..1."""
    present = (confusion.sum(0) + confusion.sum(1)) > 0
    return float(per_class(confusion)[2][present].mean()) if present.any() else 0.0


def top_k_accuracy(predictions: Predictions, k: int) -> float:
    """Share of images whose true class is among the k most probable, 0..1; k is cut to the number of classes."""
    k = min(k, len(predictions.classes))
    best = np.argpartition(-predictions.probs, k - 1, axis=1)[:, :k]
    return float((best == predictions.labels[:, None]).any(axis=1).mean())


def per_class_table(predictions: Predictions) -> pd.DataFrame:
    """One row a class: class, support, precision, recall, f1, most_confused_with ("" none), confused (images)."""
    confusion = confusion_matrix(predictions.labels, predictions.predicted, len(predictions.classes))
    precision, recall, f1 = per_class(confusion)
    errors = confusion - np.diag(np.diag(confusion))
    worst = errors.argmax(1)
    confused = errors.max(1)
    return pd.DataFrame(
        {
            "class": predictions.classes,
            "support": confusion.sum(1),
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "most_confused_with": [predictions.classes[k] if n else "" for k, n in zip(worst, confused, strict=True)],
            "confused": confused,
        }
    )


def summary(predictions: Predictions, *, top_k: int) -> dict[str, float]:
    """acc, f1 (macro) and, for more than k classes, top<k>_acc."""
    confusion = confusion_matrix(predictions.labels, predictions.predicted, len(predictions.classes))
    figures = {"acc": accuracy(confusion), "f1": macro_f1(confusion)}
    if 1 < top_k < len(predictions.classes):
        figures[f"top{top_k}_acc"] = top_k_accuracy(predictions, top_k)
    return figures
