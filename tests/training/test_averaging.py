"""Averages of weights against values computed by hand, and what they leave alone."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from imgcls.models.family import StagedModel
from imgcls.models.plaincnn import PlainCNNConfig, build_plaincnn
from imgcls.training.averaging import STATISTICS_BATCHES, Averages, Averaging


def single(value: float = 1.0) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def put(model: nn.Linear, value: float) -> None:
    nn.init.constant_(model.weight, value)


def averaged(averaging: Averaging, model: nn.Linear) -> float:
    with averaging.applied():
        return model.weight.item()


def staged(depth: int = 0) -> StagedModel:
    torch.manual_seed(0)
    model = build_plaincnn(
        PlainCNNConfig(num_blocks=2, channels=2, convs_per_block=1), num_classes=2, in_channels=1, image_size=8
    )
    model.freeze(depth)
    return model


def test_an_ema_is_the_moving_average_by_hand() -> None:
    model = single(1.0)
    averaging = Averaging(Averages("ema", decay=0.2), model)
    expected = 1.0
    for count, value in enumerate([3.0, -2.0, 5.0, 0.5], 1):
        put(model, value)
        averaging.after_step()
        decay = min(0.2, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * value
        assert averaged(averaging, model) == pytest.approx(expected)
        assert model.weight.item() == value
    assert decay == 0.2


def test_swa_is_the_mean_of_the_last_epochs_and_takes_each_once() -> None:
    model = single(9.0)
    averaging = Averaging(Averages("swa", start=0.5), model)
    for step, value in [(2, 7.0), (4, 8.0), (6, 1.0), (6, 1.0), (8, 4.0), (8, 4.0)]:
        put(model, value)
        averaging.after_step()
        assert averaging.after_epoch(step, 8) is False  # no batch norm
        assert averaging.is_on is (step > 4)
    assert averaged(averaging, model) == 2.5


def test_without_averaging_there_is_nothing_to_keep() -> None:
    model = single()
    averaging = Averaging(Averages(), model)
    averaging.after_step()
    assert not averaging.after_epoch(8, 8)
    assert averaging.state_dict() == {"mean": {}, "count": 0, "last_step": 0}
    assert torch.equal(averaging.weights()["weight"], model.weight)


@pytest.mark.parametrize("name", ["ema", "swa"])
def test_what_is_frozen_is_not_kept_and_joins_when_it_thaws(name: str) -> None:
    model = staged(depth=1)
    averaging = Averaging(Averages(name, start=0), model)  # type: ignore[arg-type]
    kept = averaging.state_dict()["mean"].keys()
    assert kept
    assert not any(key.startswith("stages.block1") for key in kept)
    model.freeze(0)
    averaging.track()
    floats = {key for key, tensor in model.state_dict().items() if tensor.is_floating_point()}
    assert averaging.state_dict()["mean"].keys() == floats


def test_an_ema_of_a_batch_norm_averages_its_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1))
    averaging = Averaging(Averages("ema", decay=0.1), model)
    nn.init.constant_(model[0].running_mean, 10.0)  # type: ignore[arg-type]
    averaging.after_step()
    with averaging.applied():
        assert model[0].running_mean.item() == pytest.approx(9.0)  # type: ignore[operator]
    assert averaging.weights()["0.running_mean"].item() == pytest.approx(9.0)
    assert model[0].running_mean.item() == 10  # type: ignore[operator]


def test_swa_counts_the_statistics_of_batch_norm_anew_and_leaves_the_model() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    averaging = Averaging(Averages("swa", start=0), model)
    for step, value in enumerate([1.0, 3.0], 1):
        put(model[0], value)  # type: ignore[arg-type]
        assert averaging.after_epoch(step, 2)
    before = copy.deepcopy(model.state_dict())
    batches = [torch.tensor([[1.0], [2.0]]), torch.tensor([[5.0], [8.0]])]
    averaging.count_statistics(None for batch in batches if model(batch) is not None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model[1].momentum == 0.1
    found = averaging.weights()
    assert found["0.weight"].item() == 2
    assert found["1.running_mean"].item() == pytest.approx((3 + 13) / 2)
    assert found["1.running_var"].item() == pytest.approx((2.0 + 18.0) / 2)


def test_statistics_are_counted_on_so_many_batches_at_most() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1))
    averaging = Averaging(Averages("swa", start=0), model)
    averaging.after_epoch(1, 1)
    taken = 0

    def forwards() -> Iterator[None]:
        nonlocal taken
        while True:
            taken += 1
            model(torch.randn(4, 1))
            yield

    averaging.count_statistics(forwards())
    assert taken == STATISTICS_BATCHES


def test_statistics_of_frozen_stages_stay() -> None:
    model = staged(depth=1)
    averaging = Averaging(Averages("swa", start=0), model)
    averaging.after_epoch(1, 1)
    before = copy.deepcopy(model.state_dict())
    averaging.count_statistics(None for _ in range(3) if model(torch.rand(4, 1, 8, 8)) is not None)
    changed = {name for name, tensor in averaging.weights().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("stages.block2") and "running_" in name for name in changed)


def test_an_average_goes_on_from_its_state() -> None:
    models, results = [single(), single()], []
    first, second = (Averaging(Averages("ema", decay=0.5), model) for model in models)
    put(models[0], 2.0)
    first.after_step()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for averaging, model in ((first, models[0]), (second, models[1])):
        put(model, 4.0)
        averaging.after_step()
        results.append(averaged(averaging, model))
    assert results[0] == results[1]
