"""Optimisers take steps, schedules have their shapes, and settings that contradict each other are refused."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.optim import lr_scheduler

from imgcls.models.family import StagedModel
from imgcls.models.plaincnn import PlainCNNConfig, build_plaincnn
from imgcls.training.optim import SCHEDULES, OptimConfig, Plateau, learning_rate, momentum
from imgcls.training.optimizers import (
    OPTIMIZERS,
    build_optimizer,
    parameter_groups,
    set_learning_rate,
)


def rates(config: OptimConfig, *, epochs: int, steps_per_epoch: int) -> list[float]:
    total = epochs * steps_per_epoch
    return [learning_rate(config, step=k, num_steps=total, steps_per_epoch=steps_per_epoch) for k in range(total)]


@pytest.mark.parametrize("schedule", SCHEDULES.names())
@pytest.mark.parametrize("optimizer", OPTIMIZERS.names())
def test_every_optimizer_learns_under_every_schedule(optimizer: str, schedule: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    inputs = torch.randn(64, 4)
    targets = inputs @ torch.tensor([[1.0], [-2.0], [0.5], [0.0]])
    milestones = [3.0] if schedule == "multistep" else []
    lr = 0.5 if optimizer == "muon" else 0.1
    config = OptimConfig(optimizer=optimizer, schedule=schedule, lr=lr, weight_decay=0, milestones=milestones)
    stepper = build_optimizer(config, model)
    losses = []
    for step in range(60):
        set_learning_rate(stepper, learning_rate(config, step=step, num_steps=60, steps_per_epoch=10))
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        stepper.zero_grad()
        torch.autograd.backward(loss)
        stepper.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_the_settings_reach_the_optimizers() -> None:
    model = torch.nn.Linear(2, 2)
    sgd = build_optimizer(OptimConfig(optimizer="sgd", momentum=0.7, nesterov=True, weight_decay=0.3, lr=2), model)
    assert isinstance(sgd, torch.optim.SGD)
    assert {key: sgd.defaults[key] for key in ("lr", "momentum", "nesterov", "weight_decay")} == {
        "lr": 2,
        "momentum": 0.7,
        "nesterov": True,
        "weight_decay": 0.3,
    }
    adamw = build_optimizer(OptimConfig(optimizer="adamw", momentum=0.7, weight_decay=0.3, lr=2), model)
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.defaults["betas"], adamw.defaults["weight_decay"], adamw.defaults["lr"]) == ((0.7, 0.999), 0.3, 2)


def test_frozen_weights_are_not_updated() -> None:
    model = torch.nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    (group,) = build_optimizer(OptimConfig(), model).param_groups
    assert [id(p) for p in group["params"]] == [id(model.bias)]


def test_the_warm_up_rises_in_equal_steps_to_lr() -> None:
    found = rates(OptimConfig(lr=0.5, warmup_epochs=2, schedule="constant"), epochs=4, steps_per_epoch=2)
    assert found == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5])


def test_the_warm_up_may_be_a_part_of_an_epoch_or_nothing() -> None:
    assert rates(OptimConfig(lr=1, warmup_epochs=0), epochs=1, steps_per_epoch=4)[0] == 1
    part = rates(OptimConfig(lr=1, warmup_epochs=0.5, schedule="constant"), epochs=1, steps_per_epoch=4)
    assert part == pytest.approx([1 / 3, 2 / 3, 1, 1])


@pytest.mark.parametrize("ratio", [0.0, 0.1])
def test_cosine_falls_from_lr_to_near_the_final_ratio(ratio: float) -> None:
    config = OptimConfig(lr=2, warmup_epochs=1, final_lr_ratio=ratio)
    found = rates(config, epochs=11, steps_per_epoch=100)
    assert found[100] == max(found) == 2
    assert all(later < earlier for earlier, later in itertools.pairwise(found[100:]))
    assert found[600] == pytest.approx(2 * (ratio + (1 - ratio) / 2))
    assert found[-1] == pytest.approx(2 * ratio, abs=1e-4)
    assert found[350] == pytest.approx(2 * (ratio + (1 - ratio) * 0.5 * (1 + math.cos(math.pi / 4))))


def test_the_constant_schedule_stays_at_lr() -> None:
    config = OptimConfig(lr=0.3, schedule="constant", warmup_epochs=0)
    assert set(rates(config, epochs=3, steps_per_epoch=5)) == {0.3}


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_warm_up_longer_than_the_training_still_reaches_lr(epochs: int) -> None:
    found = rates(OptimConfig(lr=1, warmup_epochs=50), epochs=epochs, steps_per_epoch=5)
    assert found == sorted(found)
    assert found[0] > 0
    assert found[-1] == 1


def test_a_training_of_one_step_uses_lr() -> None:
    assert rates(OptimConfig(lr=0.25), epochs=1, steps_per_epoch=1) == [0.25]


UNREAD: list[tuple[dict[str, Any], str]] = [
    ({"nesterov": True}, "nesterov is true with optimizer 'adamw', which does not read it; it is for sgd. Set "
     "optim.nesterov to false or optim.optimizer to sgd"),
    ({"optimizer": "sgd", "beta2": 0.9}, "beta2 is 0.9 with optimizer 'sgd', which does not read it; it is for adam, "
     "adamw, muon or nadam. Set optim.beta2 to 0.999 or optim.optimizer to adam, adamw, muon or nadam"),
    ({"alpha": 0.5}, "it is for rmsprop"),
    ({"optimizer": "sgd", "eps": 1e-3}, "it is for adam, adamw, muon, nadam or rmsprop"),
    ({"schedule": "constant", "final_lr_ratio": 0.1}, "it is for cosine, one-cycle, plateau or polynomial"),
    ({"gamma": 0.5}, "gamma is 0.5 with schedule 'cosine', which does not read it; it is for exponential, multistep, "
     "plateau or step. Set optim.gamma to null"),
    ({"milestones": [1.0]}, r"milestones is \[1.0\] with schedule 'cosine'.* Set optim.milestones to \[\]"),
    ({"step_epochs": 3}, "it is for step"),
    ({"power": 2.0}, "it is for polynomial"),
    ({"cycle_rise": 0.5}, "it is for one-cycle"),
    ({"cycle_start": 0.5}, "it is for one-cycle"),
    ({"cycle_anneal": "linear"}, "cycle_anneal is linear with schedule 'cosine'"),
    ({"cycle_momentum": 0.5}, "Set optim.cycle_momentum to null or optim.schedule to one-cycle"),
    ({"plateau_monitor": "val/acc"}, "Set optim.plateau_monitor to val/loss or optim.schedule to plateau"),
    ({"plateau_patience": 2}, "it is for plateau"),
    ({"optimizer": "sgd", "momentum": 0.0, "nesterov": True}, "nesterov is true with momentum 0"),
    ({"schedule": "multistep"}, r"milestones is \[\]; expected the epochs .* such as to \[16, 21\]"),
    ({"schedule": "multistep", "milestones": [3.0, 2.0]}, "expected rising numbers of epochs"),
    ({"schedule": "multistep", "milestones": [2.0, 2.0]}, "each once"),
    ({"schedule": "one-cycle", "cycle_momentum": 0.95}, "expected the first to be the lower one"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), UNREAD)
def test_fields_that_nothing_would_read_or_that_contradict_each_other_are_refused(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        OptimConfig(**fields)


@pytest.mark.parametrize(
    ("field", "known"), [("optimizer", "adam, adamw, muon, nadam, rmsprop, sgd"), ("schedule", "constant, cosine, exp")]
)
def test_an_unknown_name_lists_the_known_ones(field: str, known: str) -> None:
    with pytest.raises(ValidationError, match=f"'adamm'; known: {known}"):
        OptimConfig.model_validate({field: "adamm"})


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", 0), ("lr", 101), ("lr", math.nan), ("lr", "0.1"), ("momentum", 1.0), ("weight_decay", -1), ("rate", 1)],
)
def test_values_out_of_range_and_unknown_fields_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        OptimConfig.model_validate({field: value})


def torchs(
    make: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler], *, lr: float, steps: int, every: int
) -> list[float]:
    """The rates of one of torch's schedulers that advances after so many steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
    scheduler = make(optimizer)
    found = []
    for step in range(1, steps + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step % every == 0 and step < steps:
            scheduler.step()
    return found


EPOCHS, EVERY = 7, 6
STEPS = EPOCHS * EVERY
TORCHS: list[tuple[dict[str, Any], Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler], int]] = [
    ({"schedule": "step", "step_epochs": 2, "gamma": 0.5}, lambda o: lr_scheduler.StepLR(o, 2, 0.5), EVERY),
    (
        {"schedule": "multistep", "milestones": [2, 5], "gamma": 0.9},
        lambda o: lr_scheduler.MultiStepLR(o, [2, 5], 0.9),
        EVERY,
    ),
    ({"schedule": "exponential"}, lambda o: lr_scheduler.ExponentialLR(o, 0.95 ** (1 / EVERY)), 1),
    ({"schedule": "cosine"}, lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS), 1),
    ({"schedule": "cosine", "final_lr_ratio": 0.1}, lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, 0.03), 1),
    ({"schedule": "polynomial", "power": 2.5}, lambda o: lr_scheduler.PolynomialLR(o, STEPS, 2.5), 1),
    (
        {"schedule": "one-cycle", "final_lr_ratio": 0.04 / 1e4},
        lambda o: lr_scheduler.OneCycleLR(o, 0.3, STEPS, cycle_momentum=False),
        1,
    ),
    (
        {"schedule": "one-cycle", "cycle_start": 0.1, "cycle_rise": 0.45, "cycle_anneal": "linear"},
        lambda o: lr_scheduler.OneCycleLR(
            o, 0.3, STEPS, div_factor=10, final_div_factor=math.inf, pct_start=0.45, anneal_strategy="linear"
        ),
        1,
    ),
]


@pytest.mark.parametrize(("fields", "make", "every"), TORCHS)
def test_every_step_has_the_rate_that_torchs_scheduler_gives_it(
    fields: dict[str, Any],
    make: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler],
    every: int,
) -> None:
    found = rates(OptimConfig(lr=0.3, warmup_epochs=0, **fields), epochs=EPOCHS, steps_per_epoch=EVERY)
    assert found == pytest.approx(torchs(make, lr=0.3, steps=STEPS, every=every), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "exponential", "polynomial", "one-cycle"])
def test_the_schedule_behind_a_warm_up_is_that_of_the_remaining_steps(schedule: str) -> None:
    config = OptimConfig(lr=1, schedule=schedule, warmup_epochs=2)
    found = rates(config, epochs=6, steps_per_epoch=5)
    alone = rates(config.model_copy(update={"warmup_epochs": 0}), epochs=4, steps_per_epoch=5)
    assert found[10:] == pytest.approx(alone)
    assert found[:10] == pytest.approx([alone[0] * (k + 1) / 11 for k in range(10)])


def test_one_cycle_has_no_other_warm_up_where_none_is_asked_for() -> None:
    assert rates(OptimConfig(lr=1, schedule="one-cycle"), epochs=5, steps_per_epoch=4)[0] == pytest.approx(0.04)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("schedule", SCHEDULES.names())
def test_a_training_of_a_few_steps_has_rates_up_to_lr(schedule: str, steps: int) -> None:
    milestones = [1.0] if schedule == "multistep" else []
    found = rates(OptimConfig(lr=1, schedule=schedule, milestones=milestones), epochs=1, steps_per_epoch=steps)
    assert all(0 <= rate <= 1 for rate in found)
    assert max(found) > 0


def test_milestones_are_counted_from_the_start_and_may_be_parts_of_epochs() -> None:
    config = OptimConfig(lr=1, schedule="multistep", milestones=[1.5, 3], gamma=0.5, warmup_epochs=1)
    found = rates(config, epochs=4, steps_per_epoch=2)
    assert found == pytest.approx([1 / 3, 2 / 3, 1, 0.5, 0.5, 0.5, 0.25, 0.25])


def test_the_momentum_cycles_against_the_rate_as_in_torch() -> None:
    config = OptimConfig(lr=0.3, schedule="one-cycle", momentum=0.95, cycle_momentum=0.85)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3, momentum=0.9)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.3, STEPS)
    for step in range(STEPS):
        found = momentum(config, step=step, num_steps=STEPS, steps_per_epoch=EVERY)
        assert found == pytest.approx(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        if step < STEPS - 1:
            scheduler.step()
    assert momentum(OptimConfig(momentum=0.7), step=3, num_steps=9, steps_per_epoch=3) == 0.7


@pytest.mark.parametrize("monitor", ["val/loss", "val/acc"])
def test_a_plateau_lowers_the_rate_as_torch_does(monitor: Any) -> None:
    config = OptimConfig(schedule="plateau", plateau_monitor=monitor, plateau_patience=2, gamma=0.5, final_lr_ratio=0.2)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    mode: Any = "min" if monitor == "val/loss" else "max"
    # Its patience is the epochs that are forgiven, one fewer than those after which something is done.
    theirs = lr_scheduler.ReduceLROnPlateau(optimizer, mode, factor=0.5, patience=1, threshold=0, min_lr=0.2)
    ours = Plateau()
    for value in [5, 4, 4, 4.5, 3, 3, 3, 3, 3, 2, 9, math.nan, 9, 9, 9, 1]:
        ours.observe(config, value)
        theirs.step(value)
        assert ours.scale == optimizer.param_groups[0]["lr"]
    rate = learning_rate(config, step=50, num_steps=100, steps_per_epoch=10, scale=ours.scale)
    assert rate == config.lr * ours.scale


def staged() -> StagedModel:
    return build_plaincnn(PlainCNNConfig(num_blocks=2, channels=2), num_classes=2, in_channels=1, image_size=8)


def test_by_default_all_parameters_are_in_one_group_in_the_models_order() -> None:
    model = staged()
    (group,) = parameter_groups(OptimConfig(weight_decay=0.1), model)
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    assert (group["lr_scale"], group["weight_decay"]) == (1, 0.1)


@pytest.mark.parametrize("optimizer", sorted({*OPTIMIZERS.names()} - {"muon"}))
def test_norms_and_biases_are_spared_the_decay_where_that_is_asked_for(optimizer: str) -> None:
    model = staged()
    config = OptimConfig(optimizer=optimizer, weight_decay=0.1, decay_norms_and_biases=False)
    decay = {
        id(p): group["weight_decay"] for group in build_optimizer(config, model).param_groups for p in group["params"]
    }
    for module in model.modules():
        norm = isinstance(module, torch.nn.BatchNorm2d)
        for name, parameter in module.named_parameters(recurse=False):
            assert decay.pop(id(parameter)) == (0 if norm or name == "bias" else 0.1)
    assert decay == {}


def test_each_stage_learns_at_a_share_of_the_next_ones_rate() -> None:
    model = staged()
    optimizer = build_optimizer(OptimConfig(layer_decay=0.5), model)
    set_learning_rate(optimizer, 0.8)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, expected in [("block1", 0.2), ("block2", 0.4), ("head", 0.8)]:
        assert [rate[id(p)] for p in model.stage(name).parameters()] == pytest.approx(
            [expected] * len(list(model.stage(name).parameters()))
        )


def test_a_frozen_stage_changes_no_other_stages_rate() -> None:
    model = staged()
    model.freeze(1)
    assert [group["lr_scale"] for group in parameter_groups(OptimConfig(layer_decay=0.5), model)] == [0.5, 1]


@pytest.mark.parametrize("value", [0, 1.1, -1])
def test_a_layer_decay_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(ValidationError):
        OptimConfig(layer_decay=value)
