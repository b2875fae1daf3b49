"""What training minimises."""

import torch
from torch import nn


def training_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Cross-entropy, the mean over the batch, in which a label counts as much as its class weighs.

    torch divides by the sum of the labels' weights where labels are classes, but by the number of images where they are
    shares of classes; here both are divided by the weights, so that one-hot shares give the loss of their classes.

    Args:
        logits: (B, C) float.
        labels: (B,) int64 classes, or (B, C) float shares of classes.
        weights: (C,) weight of each class, above 0; None weighs all alike.
    """
    if labels.ndim == 1 or weights is None:
        return nn.functional.cross_entropy(logits, labels, weight=weights)
    total = nn.functional.cross_entropy(logits, labels, weight=weights, reduction="sum")
    return total / (labels * weights).sum()  # no matrix product, which autocast would round to half precision


def loss_weight(labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """() What `training_loss` divides by: how much these labels count beside others.

    Args:
        labels: (B,) int64 classes, or (B, C) float shares of classes.
        weights: (C,) weight of each class, or None.
    """
    if weights is None:
        return torch.tensor(float(len(labels)), device=labels.device)
    return weights[labels].sum() if labels.ndim == 1 else (labels * weights).sum()
