"""The range test leaves what it tests alone, repeats, and reads a rate only from a curve that has one."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from imgcls.data.augment import AugmentConfig, Preprocessing, training_pipeline
from imgcls.data.loading import Loader
from imgcls.errors import UserError
from imgcls.training.fit import TrainConfig
from imgcls.training.lr_find import RangeTest, range_test, smooth, suggest
from imgcls.training.optim import OptimConfig
from imgcls.training.plan import Plan

COUNT = 40
LABELS = np.arange(COUNT, dtype=np.int64) % 2
NOISE = np.random.default_rng(0).normal(0, 30, (COUNT, 8, 8, 1))
IMAGES = list(np.clip(NOISE + 60 + 130 * LABELS[:, None, None, None], 0, 255).astype(np.uint8))
STEPS = Preprocessing(1, 8, (0.5,), (0.25,))
RATES = np.geomspace(1e-6, 10, 100)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 2))


def swept(model: nn.Module | None = None, *, count: int = COUNT, seed: int = 0, **more: float) -> RangeTest:
    varied = training_pipeline(AugmentConfig(preset="light"), size=8, channels=1)
    train = Loader(IMAGES[:count], LABELS[:count], varied, batch_size=8, shuffle=True)
    options: dict[str, float] = {"num_steps": 60, **more}
    return range_test(
        network() if model is None else model, train,
        config=TrainConfig(seed=seed), optim=OptimConfig(optimizer="sgd", lr=0.5, warmup_epochs=3),
        preprocessing=STEPS, plan=Plan("cpu", "fp32"), **options,  # type: ignore[arg-type]
    )  # fmt: skip


def curve(bottom: float, *, noise: float = 0.0) -> RangeTest:
    """Flat, then falling most steeply a power of ten before `bottom`, then rising."""
    place = np.log10(RATES / bottom)
    falls = 2.3 - 1.8 / (1 + np.exp(-5 * (place + 1)))
    losses = falls + np.where(place > 0, 5 * place**2, 0)
    return RangeTest(RATES, losses + np.random.default_rng(0).normal(0, noise, 100), 1.0, True)


@pytest.mark.parametrize("bottom", [1e-3, 1e-2, 0.3])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_the_suggestion_is_where_the_loss_falls_most_steeply(bottom: float, noise: float) -> None:
    found = suggest(curve(bottom, noise=noise))
    assert found.lr is not None
    assert found.tenth is not None
    assert abs(math.log10(found.lr) - math.log10(bottom / 10)) < 0.25
    assert abs(math.log10(found.tenth) - math.log10(bottom / 10)) < 0.5
    assert found.reason == ""


def test_a_loss_that_does_not_fall_gives_no_suggestion() -> None:
    flat = RangeTest(RATES, 2.3 + np.random.default_rng(0).normal(0, 0.03, 100), 1.0, False)
    rising = RangeTest(RATES, np.geomspace(2.3, 40, 100), 1.0, True)
    for test in (flat, rising):
        found = suggest(test)
        assert (found.lr, found.tenth) == (None, None)
        assert "did not fall by 5%" in found.reason


@pytest.mark.parametrize("losses", [[math.nan], [2.3, math.inf], [2.3, 2.2, 50.0]])
def test_a_loss_that_diverges_at_once_gives_no_suggestion(losses: list[float]) -> None:
    found = suggest(RangeTest(RATES[: len(losses)], np.array(losses), 1.0, True))
    assert found.lr is None
    assert f"diverged within {len(losses)} steps" in found.reason


def test_smoothing_keeps_a_line_and_removes_noise() -> None:
    noise = np.random.default_rng(0).normal(0, 1, 400)
    assert smooth(np.full(50, 3.0)) == pytest.approx(3.0)
    assert smooth(noise).std() < 0.4
    middle = np.arange(100.0)
    assert smooth(middle)[30:70] == pytest.approx(middle[30:70], abs=0.1)  # not shifted
    with_nan = smooth(np.array([1.0, 1.0, math.nan]))
    assert with_nan[:2] == pytest.approx(1.0)
    assert math.isnan(with_nan[2])


def test_the_test_leaves_the_model_and_the_random_numbers_as_they_were() -> None:
    model = network()
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    test = swept(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(test.lrs) == len(test.losses) > 10


def test_the_test_repeats_with_its_seed() -> None:
    first = swept()
    torch.rand(7)
    assert swept().losses.tolist() == first.losses.tolist()
    assert swept(seed=1).losses.tolist() != first.losses.tolist()


def test_the_rates_rise_by_equal_factors_and_are_what_is_trained_with() -> None:
    test = swept(lowest=1e-4, highest=1e-1, num_steps=31)
    assert test.lrs == pytest.approx(np.geomspace(1e-4, 1e-1, 31))
    assert not test.diverged
    assert test.passes == pytest.approx(31 * 8 / COUNT)
    still = swept(lowest=1e-9, highest=1e-8, num_steps=31)
    assert test.losses[-5:].mean() < still.losses[-5:].mean() / 2


def test_it_ends_when_the_loss_rises_away() -> None:
    test = swept(lowest=1e-3, highest=100, num_steps=200)
    assert test.diverged
    assert len(test.lrs) < 200


def test_it_ends_when_it_is_stopped() -> None:
    train = Loader(IMAGES, LABELS, training_pipeline(AugmentConfig(preset="light"), size=8, channels=1), batch_size=8)
    asked = iter([False] * 12 + [True])
    test = range_test(
        network(), train, config=TrainConfig(), optim=OptimConfig(), preprocessing=STEPS, plan=Plan("cpu", "fp32"),
        stop=lambda: next(asked),
    )  # fmt: skip
    assert len(test.losses) == 12


def test_the_suggested_rate_learns_better_than_rates_far_from_it() -> None:
    found = suggest(swept(num_steps=100))
    assert found.lr is not None

    def end(lr: float) -> float:
        return float(swept(lowest=lr, highest=lr * 1.001, num_steps=40).losses[-5:].mean())

    assert end(found.lr) < end(found.lr / 1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lowest": 0.0}, "rates go from 0 to 10; expected them to rise"),
        ({"lowest": 1.0, "highest": 1.0}, "rates go from 1 to 1"),
        ({"highest": 1000.0}, "above 0 and up to 100"),
        ({"lowest": math.nan}, "rates go from nan"),
        ({"num_steps": 3}, "3 steps are asked for; expected 10 or more"),
        ({"count": 1}, r"too few training images \(1\); expected two or more"),
    ],
)
def test_what_makes_no_test_is_an_error(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        swept(**options)  # type: ignore[arg-type]
