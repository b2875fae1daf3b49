"""Optimisers take steps, schedules have their shapes, and settings that contradict each other are refused."""

import itertools
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from imgcls.models.family import StagedModel
from imgcls.models.plaincnn import PlainCNNConfig, build_plaincnn
from imgcls.training.optim import (
    OPTIMIZERS,
    SCHEDULES,
    OptimConfig,
    build_optimizer,
    learning_rate,
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
    config = OptimConfig(optimizer=optimizer, schedule=schedule, lr=0.05, weight_decay=0)
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


@pytest.mark.parametrize("fields", [{"optimizer": "adamw"}, {"optimizer": "sgd", "momentum": 0.0}])
def test_nesterov_without_sgds_momentum_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="it needs sgd and a momentum above 0"):
        OptimConfig(nesterov=True, **fields)


@pytest.mark.parametrize(("field", "known"), [("optimizer", "adamw, sgd"), ("schedule", "constant, cosine")])
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


def staged() -> StagedModel:
    return build_plaincnn(PlainCNNConfig(num_blocks=2, channels=2), num_classes=2, in_channels=1, image_size=8)


def test_by_default_all_parameters_are_in_one_group_in_the_models_order() -> None:
    model = staged()
    (group,) = parameter_groups(OptimConfig(weight_decay=0.1), model)
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    assert (group["lr_scale"], group["weight_decay"]) == (1, 0.1)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.names())
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
