"""What training minimises: cross-entropy or focal loss of classes or of shares of classes."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

LossName = Literal["cross_entropy", "focal"]
_LEAST_MISS = 1e-12
"""Below this the derivative of a power of a miss is no number any more."""


@dataclass(frozen=True)
class Loss:
    """A loss that is the sum over images divided by the sum of what they weigh.

    The two are apart so that a batch can be gone through in parts: the sums of the parts over the total of the batch
    add up to the loss of the batch. torch divides by the sum of the labels' weights where labels are classes, but by
    the number of images where they are shares of classes; here both are divided by the weights, so that one-hot shares
    give the loss of their classes.

    Attributes:
        name: `cross_entropy`, or `focal` (Lin et al. 2017, arXiv:1708.02002), here over all classes: the term of a
            class with probability p is weighed by (1 - p)^gamma.
        gamma: of `focal`, 0 or more; 0 is cross-entropy.
        smoothing: the share of every label that is dealt out evenly to all classes, 0 to below 1 (Szegedy et al. 2015,
            arXiv:1512.00567).
    """

    name: LossName = "cross_entropy"
    gamma: float = 2.0
    smoothing: float = 0.0

    def sum(self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        """The sum of the images' losses, each weighed by the class it is the loss of.

        Args:
            logits: (B, C) float32.
            labels: (B,) int64 classes, or (B, C) float shares of classes.
            weights: (C,) weight of each class, above 0; None weighs all alike.
        """
        if self.name == "cross_entropy":
            return nn.functional.cross_entropy(
                logits, labels, weight=weights, reduction="sum", label_smoothing=self.smoothing
            )
        num_classes = logits.shape[1]
        shares = labels if labels.ndim == 2 else nn.functional.one_hot(labels, num_classes).to(logits.dtype)
        shares = (1 - self.smoothing) * shares + self.smoothing / num_classes
        logs = nn.functional.log_softmax(logits, 1)
        missed = (-torch.expm1(logs)).clamp(min=_LEAST_MISS)
        terms = -shares * missed**self.gamma * logs
        return (terms if weights is None else terms * weights).sum()

    @staticmethod
    def total(labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor | float:
        """What the images weigh together: their number, or the sum of the weights of their labels before smoothing."""
        if weights is None:
            return float(len(labels))
        # No matrix product of shares and weights, which autocast would round to half precision.
        return weights[labels].sum() if labels.ndim == 1 else (labels * weights).sum()

    def mean(self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        """The loss of a batch; see `sum` for the arguments."""
        return self.sum(logits, labels, weights) / self.total(labels, weights)
