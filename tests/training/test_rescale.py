"""How many epochs a refit has, and that its schedule is the same in steps."""

from typing import Any

import pytest

from imgcls.training.fit import TrainConfig
from imgcls.training.optim import SCHEDULES, OptimConfig, learning_rate
from imgcls.training.rescale import Rescaled, rescale


def rescaled(best: int, then: int, now: int, optim: OptimConfig | None = None, **train: Any) -> Rescaled:
    config = TrainConfig(**{"epochs": 30, **train})
    return rescale(config, optim or OptimConfig(), best_epoch=best, steps_then=then, steps_now=now)


@pytest.mark.parametrize(
    ("best", "then", "now", "epochs", "schedule"),
    [
        (18, 100, 118, 15, 25),  # round(15.25) of round(25.4)
        (30, 100, 118, 25, 25),
        (1, 100, 300, 1, 10),  # a third of an epoch is one
        (2, 3, 4, 2, 22),  # round(1.5) of round(22.5), both to even
        (7, 50, 50, 7, 30),
    ],
)
def test_epochs_scale_with_the_number_of_steps(best: int, then: int, now: int, epochs: int, schedule: int) -> None:
    found = rescaled(best, then, now)
    assert (found.num_epochs, found.schedule_epochs) == (epochs, schedule)


def test_with_as_many_steps_as_before_nothing_of_the_recipe_changes() -> None:
    assert rescaled(7, 50, 50, unfreeze={5: 1}).values == {}


def test_thaws_come_after_as_many_steps_as_before() -> None:
    found = rescaled(20, 80, 100, unfreeze={2: 3, 6: 2, 11: 0})
    assert found.values["train.unfreeze"] == {2: 3, 5: 2, 9: 0}
    assert found.values["train.epochs"] == 24


def test_of_thaws_that_fall_together_the_last_counts_and_those_after_the_end_are_left_out() -> None:
    assert rescaled(30, 1, 10, unfreeze={2: 3, 6: 2, 30: 0}).values["train.unfreeze"] == {2: 2}
    assert TrainConfig(epochs=3, unfreeze={2: 2}).unfreeze == {2: 2}


OPTIONS: dict[str, dict[str, Any]] = {"multistep": {"milestones": [5, 12.5]}, "step": {"step_epochs": 5}}


@pytest.mark.parametrize("schedule", SCHEDULES.names())
@pytest.mark.parametrize("warmup", [None, 2.0])
def test_the_learning_rate_is_the_same_after_as_many_steps(schedule: str, warmup: float | None) -> None:
    """With 40 steps an epoch of 20, and 50 of 16."""
    optim = OptimConfig(schedule=schedule, warmup_epochs=warmup, **OPTIONS.get(schedule, {}))
    found = rescaled(20, 40, 50, optim, epochs=20)
    fields = {name.partition(".")[2]: value for name, value in found.values.items() if name.startswith("optim.")}
    now = OptimConfig(**{**optim.model_dump(), **fields})
    assert found.schedule_epochs == 16
    for step in range(0, 800, 7):
        expected = learning_rate(optim, step=step, num_steps=800, steps_per_epoch=40)
        assert learning_rate(now, step=step, num_steps=800, steps_per_epoch=50) == pytest.approx(expected), step


def test_the_patience_of_a_plateau_is_at_least_an_epoch() -> None:
    optim = OptimConfig(schedule="plateau", plateau_patience=10)
    assert rescaled(5, 4, 10, optim).values["optim.plateau_patience"] == 4
    assert rescaled(5, 1, 100, optim).values["optim.plateau_patience"] == 1
