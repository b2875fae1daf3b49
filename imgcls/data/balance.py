"""Weights that make up for classes of different sizes, for the sampler or for the loss."""

from typing import Literal

import numpy as np
import numpy.typing as npt

Balance = Literal["none", "oversample", "class_weights", "effective_number"]
LOSS_BALANCES: tuple[Balance, ...] = ("class_weights", "effective_number")
"""Those that weigh the loss; `oversample` changes what is drawn."""
Weights = npt.NDArray[np.float64]


DEFAULT_BETA = 0.999


def class_weights(counts: npt.NDArray[np.int64], balance: Balance, *, beta: float | None = None) -> Weights:
    """(C,) the weight of each class, above 0, with a mean of 1 over the images.

    Args:
        counts: (C,) training images of each class, each at least 1.
        balance: `none`: 1 for every class. `oversample` and `class_weights`: inverse to the class's size.
            `effective_number`: inverse to (1 - beta^n) / (1 - beta), the effective number of n images (Cui et al. 2019,
            arXiv:1901.05555).
        beta: 0 to below 1, 0.999 where None; the share of an image that the others of its class show already.
    """
    assert counts.min() > 0
    beta = DEFAULT_BETA if beta is None else beta
    if balance == "none":
        return np.ones(len(counts))
    if balance == "effective_number":
        # expm1 keeps the digits that 1 - beta**n loses where beta is near 1.
        effective = np.expm1(counts * np.log(beta)) / (beta - 1) if beta > 0 else np.ones(len(counts))
        weights = 1 / effective
    else:
        weights = 1 / counts
    scaled: Weights = weights * counts.sum() / (weights * counts).sum()
    return scaled
