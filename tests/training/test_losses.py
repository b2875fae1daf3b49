"""Losses against formulas written out by hand, and sums over parts of a batch."""

import itertools

import pytest
import torch
from torch import nn

from imgcls.training.losses import Loss

B, C = 5, 3
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(B, C, generator=GENERATOR)
CLASSES = torch.tensor([0, 2, 1, 1, 0])
SHARES = torch.rand(B, C, generator=GENERATOR).softmax(1)
WEIGHTS = torch.tensor([0.5, 1.0, 4.0])
LOSSES = [Loss(), Loss(smoothing=0.1), Loss("focal"), Loss("focal", 0.5), Loss("focal", 1.5, 0.2)]
CASES = list(itertools.product(LOSSES, [CLASSES, SHARES], [None, WEIGHTS]))


def by_hand(loss: Loss, labels: torch.Tensor, weights: torch.Tensor | None) -> float:
    total, weight = 0.0, 0.0
    for i in range(B):
        probs = [(LOGITS[i, c].exp() / LOGITS[i].exp().sum()).item() for c in range(C)]
        for c in range(C):
            share = labels[i, c].item() if labels.ndim == 2 else float(labels[i] == c)
            each = 1.0 if weights is None else weights[c].item()
            weight += share * each
            smooth = (1 - loss.smoothing) * share + loss.smoothing / C
            focus = (1 - probs[c]) ** loss.gamma if loss.name == "focal" else 1.0
            total += smooth * each * focus * -torch.tensor(probs[c]).log().item()
    return total / weight


@pytest.mark.parametrize(("loss", "labels", "weights"), CASES)
def test_a_loss_is_the_weighted_mean_of_its_formula(
    loss: Loss, labels: torch.Tensor, weights: torch.Tensor | None
) -> None:
    assert loss.mean(LOGITS, labels, weights).item() == pytest.approx(by_hand(loss, labels, weights), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_one_hot_shares_have_the_loss_of_their_classes(loss: Loss, weights: torch.Tensor | None) -> None:
    shares = nn.functional.one_hot(CLASSES, C).float()
    expected = loss.mean(LOGITS, CLASSES, weights).item()
    assert loss.mean(LOGITS, shares, weights).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("loss", "labels", "weights"), CASES)
def test_the_parts_of_a_batch_add_up_to_its_loss(
    loss: Loss, labels: torch.Tensor, weights: torch.Tensor | None
) -> None:
    total = loss.total(labels, weights)
    parts = [loss.sum(LOGITS[part], labels[part], weights) / total for part in (slice(0, 2), slice(2, 3), slice(3, B))]
    assert sum(parts).item() == pytest.approx(loss.mean(LOGITS, labels, weights).item(), rel=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_smoothing_of_classes_is_torchs(weights: torch.Tensor | None) -> None:
    expected = nn.functional.cross_entropy(LOGITS, CLASSES, weight=weights, label_smoothing=0.3)
    assert Loss(smoothing=0.3).mean(LOGITS, CLASSES, weights).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_the_focal_loss_of_what_is_certain_has_a_finite_gradient(gamma: float) -> None:
    logits = torch.tensor([[90.0, -90.0, 0.0], [90.0, -90.0, 0.0]], requires_grad=True)
    torch.autograd.backward(Loss("focal", gamma).mean(logits, torch.tensor([0, 1]), None))
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[1].abs().max() > 0.4
