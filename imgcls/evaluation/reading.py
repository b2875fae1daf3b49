"""What a reading of a test set says: its figures, and how far they may be off for want of images or of seeds."""

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

import numpy as np

from imgcls.evaluation.metrics import summary
from imgcls.tables import Predictions

Z_95 = NormalDist().inv_cdf(0.975)
_T_975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
"""The 97.5 % quantiles of Student's t distribution with 1, 2, … 30 degrees of freedom."""


def log_loss(predictions: Predictions) -> float:
    """The mean cross-entropy of the true classes, in nats; a probability of 0 counts as the smallest of float32."""
    found = predictions.probs[np.arange(len(predictions.ids)), predictions.labels].astype(np.float64)
    return float(-np.log(np.maximum(found, np.finfo(np.float32).tiny)).mean())


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, 0..1, of which `hits` of `n` were seen (Wilson 1927, doi:10.2307/2276774)."""
    assert 0 <= hits <= n > 0
    share, z2 = hits / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean that two or more values are drawn around (Student 1908, doi:10.2307/2331554)."""
    assert len(values) >= 2
    freedom = len(values) - 1
    # Beyond the table, the first terms of Cornish and Fisher's expansion are right to four decimals.
    quantile = _T_975[freedom - 1] if freedom <= len(_T_975) else Z_95 + (Z_95**3 + Z_95) / (4 * freedom)
    half = quantile * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


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
        low, high = t_interval(values)
        found |= {f"{name}_mean": fmean(values), f"{name}_std": stdev(values)}
        found |= {f"{name}_low": low, f"{name}_high": high}
    return found
