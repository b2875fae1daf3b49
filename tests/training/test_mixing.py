"""MixUp and CutMix: what they make of a batch, that they repeat, and the loss against shares of labels."""

from typing import Any

import pytest
import torch

from imgcls.data.augment import AugmentConfig
from imgcls.training.losses import Loss
from imgcls.training.mixing import Mixing, build_mixing

LABELS = torch.tensor([0, 1, 2, 1, 0, 2])
INPUTS = LABELS.float()[:, None, None, None].expand(6, 2, 16, 16).contiguous()


def mixing(**fields: Any) -> Mixing:
    built = build_mixing(AugmentConfig(**fields), num_classes=3)
    assert built is not None
    return built


def test_nothing_is_built_where_nothing_is_asked_for() -> None:
    assert build_mixing(AugmentConfig(), num_classes=3) is None


@pytest.mark.parametrize("fields", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_labels_are_mixed_in_the_shares_of_the_pixels(fields: dict[str, float]) -> None:
    for seed in range(20):
        inputs, shares = mixing(**fields)(INPUTS, LABELS, seed=seed)
        assert inputs.shape == INPUTS.shape
        assert shares.shape == (6, 3)
        assert torch.allclose(shares.sum(1), torch.ones(6))
        # Every pixel of an image is its label, so the mean pixel is the mean label.
        assert torch.allclose(inputs.mean((1, 2, 3)), shares @ torch.arange(3.0), atol=1e-5)


def test_mixup_lays_images_over_each_other_and_cutmix_cuts_boxes() -> None:
    overlaid, _ = mixing(mixup=1.0)(INPUTS, LABELS, seed=3)
    assert all(image.min() == image.max() for image in overlaid)
    cut, _ = mixing(cutmix=1.0)(INPUTS, LABELS, seed=3)
    assert set(cut.flatten().tolist()) == {0.0, 1.0, 2.0}


def test_both_together_give_each_batch_one_of_them() -> None:
    both = mixing(mixup=1.0, cutmix=1.0)
    even = [image.min() == image.max() for image in (both(INPUTS, LABELS, seed=seed)[0][1] for seed in range(200))]
    assert 70 < sum(even) < 140  # some boxes are empty or hide the whole image


def test_the_rest_of_the_batches_is_left_as_it_is() -> None:
    chosen = mixing(mixup=1.0, mix_prob=0.3)
    left = 0
    for seed in range(200):
        inputs, labels = chosen(INPUTS, LABELS, seed=seed)
        if labels.ndim == 1:
            left += 1
            assert inputs is INPUTS
            assert labels is LABELS
    assert 115 < left < 165


def test_a_batch_is_mixed_by_its_seed_alone() -> None:
    chosen = mixing(mixup=1.0, cutmix=1.0)
    torch.manual_seed(1)
    first = chosen(INPUTS, LABELS, seed=7)
    torch.manual_seed(2)
    chosen(INPUTS, LABELS, seed=8)
    again = mixing(mixup=1.0, cutmix=1.0)(INPUTS, LABELS, seed=7)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], chosen(INPUTS, LABELS, seed=9)[1])


def test_mixing_draws_nothing_from_the_generator_of_dropout_and_leaves_the_batch() -> None:
    before, inputs = torch.get_rng_state(), INPUTS.clone()
    mixing(mixup=1.0, cutmix=1.0)(INPUTS, LABELS, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(INPUTS, inputs)


@pytest.mark.parametrize("weights", [None, torch.tensor([0.2, 1.0, 5.0])])
def test_one_hot_shares_have_the_loss_of_their_classes(weights: torch.Tensor | None) -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    shares = torch.nn.functional.one_hot(LABELS, 3).float()
    expected = torch.nn.CrossEntropyLoss(weights)(logits, LABELS)
    assert torch.equal(Loss().mean(logits, LABELS, weights), expected)
    assert Loss().mean(logits, shares, weights).item() == pytest.approx(expected.item(), rel=1e-6)


def test_half_precision_around_it_does_not_round_the_weights() -> None:
    logits, weights = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0.123, 1.01, 4.99])
    shares = torch.nn.functional.one_hot(LABELS, 3).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = Loss().mean(logits, shares, weights)
    assert found.item() == pytest.approx(Loss().mean(logits, LABELS, weights).item(), rel=1e-6)


def test_the_loss_of_shares_is_the_weighted_mean_by_hand() -> None:
    logits = torch.tensor([[1.0, -1.0], [0.5, 2.0]])
    shares = torch.tensor([[0.7, 0.3], [0.2, 0.8]])
    weights = torch.tensor([1.0, 3.0])
    logs = logits.log_softmax(1)
    each = [(shares[i, c] * weights[c] * -logs[i, c]).item() for i in range(2) for c in range(2)]
    total = sum((shares[i, c] * weights[c]).item() for i in range(2) for c in range(2))
    assert Loss().mean(logits, shares, weights).item() == pytest.approx(sum(each) / total)
