"""What a reading of a test set says: its figures, and how far they may be off for want of images or of seeds."""

from collections.abc import Sequence
from statistics import stdev

import numpy as np
import numpy.typing as npt

from imgcls.evaluation.intervals import t_interval, wilson
from imgcls.evaluation.metrics import summary
from imgcls.tables import Predictions


def true_class_loss(predictions: Predictions) -> npt.NDArray[np.float64]:
    """(N,) the cross-entropy of each image's true class, in nats; a probability of 0 counts as float32's smallest."""
    found = predictions.probs[np.arange(len(predictions.ids)), predictions.labels].astype(np.float64)
    losses: npt.NDArray[np.float64] = -np.log(np.maximum(found, np.finfo(np.float32).tiny))
    return losses


def log_loss(predictions: Predictions) -> float:
    """The mean of `true_class_loss`."""
    return float(true_class_loss(predictions).mean())


def read_out(predictions: Predictions, *, top_k: int) -> dict[str, float]:
    """acc, f1 (macro), top<k>_acc where there are more than k classes, loss, and acc_low and acc_high of `wilson`."""
    hits = int((predictions.predicted == predictions.labels).sum())
    low, high = wilson(hits, len(predictions.ids))
    figures = summary(predictions, top_k=top_k)
    return {**figures, "loss": log_loss(predictions), "acc_low": low, "acc_high": high}


def over_seeds(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of acc and f1 of several trainings: <name>_mean, _std (of a sample), and _low and _high of `t_interval`."""
    found: dict[str, float] = {}
    for name in ("acc", "f1"):
        values = [row[name] for row in figures]
        mean, low, high = t_interval(values)
        found |= {f"{name}_mean": mean, f"{name}_std": stdev(values)}
        found |= {f"{name}_low": low, f"{name}_high": high}
    return found
