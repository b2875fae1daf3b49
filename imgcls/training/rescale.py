"""The same training, counted in steps, on more images: what a refit trains of a recipe whose best epoch is known."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imgcls.training.fit import TrainConfig
from imgcls.training.optim import SCHEDULES, OptimConfig


@dataclass(frozen=True)
class Rescaled:
    """A training whose epochs have another number of steps.

    Attributes:
        num_epochs: epochs to train.
        schedule_epochs: epochs that the schedules run over, at least as many.
        values: the recipe's fields that are other ones, by dotted name.
    """

    num_epochs: int
    schedule_epochs: int
    values: Mapping[str, Any]


def rescale(train: TrainConfig, optim: OptimConfig, *, best_epoch: int, steps_then: int, steps_now: int) -> Rescaled:
    """What comes nearest, in whole epochs, to `best_epoch` epochs of the training that `train` and `optim` describe.

    With S steps an epoch then and S' now, e epochs of T become max(1, round(e S / S')) of max(1, round(T S / S')). What
    the schedule and `unfreeze` count in epochs scales with them, so that the learning rate and the frozen stages are
    after as many steps what they were.

    Args:
        train, optim: the recipe's sections.
        best_epoch: the epoch whose weights were the best, from 1.
        steps_then: steps of an epoch of that training.
        steps_now: steps of an epoch from now on.
    """
    assert 1 <= best_epoch <= train.epochs
    factor = steps_then / steps_now
    schedule_epochs = max(1, round(train.epochs * factor))
    num_epochs = max(1, round(best_epoch * factor))
    if steps_then == steps_now:
        return Rescaled(num_epochs, schedule_epochs, {})
    thaws = {1 + max(1, round((epoch - 1) * factor)): train.unfreeze[epoch] for epoch in sorted(train.unfreeze)}
    values: dict[str, Any] = {
        "train.epochs": schedule_epochs,
        # One that comes after the schedule's end comes after the training's, too.
        "train.unfreeze": {epoch: depth for epoch, depth in thaws.items() if epoch <= schedule_epochs},
    }
    return Rescaled(num_epochs, schedule_epochs, values | _schedule(optim, factor))


def _schedule(optim: OptimConfig, factor: float) -> dict[str, Any]:
    """The fields of the schedule that count epochs; one that is left out has a default of so many epochs, too."""
    found: dict[str, Any] = {}
    reads = SCHEDULES.get(optim.schedule).reads
    if optim.warmup_epochs is not None or optim.schedule != "one-cycle":
        found["optim.warmup_epochs"] = factor * (1.0 if optim.warmup_epochs is None else optim.warmup_epochs)
    if "step_epochs" in reads:
        found["optim.step_epochs"] = max(1, round(factor * optim.step_epochs))
    if "milestones" in reads:
        found["optim.milestones"] = [factor * milestone for milestone in optim.milestones]
    if "plateau_patience" in reads:
        found["optim.plateau_patience"] = max(1, round(factor * optim.plateau_patience))
    if optim.schedule == "exponential":
        found["optim.gamma"] = (0.95 if optim.gamma is None else optim.gamma) ** (1 / factor)
    return found
