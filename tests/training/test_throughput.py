"""The parts of a training are measured as they are, on copies, and the bounds follow from their rates."""

import time

import numpy as np
import pytest
import torch
from torch import nn

from imgcls.data.augment import Preprocessing, evaluation_pipeline
from imgcls.data.loading import Loader
from imgcls.training.fit import TrainConfig
from imgcls.training.optim import OptimConfig
from imgcls.training.plan import Plan
from imgcls.training.throughput import Compute, Data, FirstBatches, Rates, loop_rate

IMAGES = list(np.random.default_rng(0).integers(0, 256, (22, 8, 8, 3), dtype=np.uint8))
LABELS = np.arange(22, dtype=np.int64) % 2
STEPS = Preprocessing(3, 8, (0.5,) * 3, (0.25,) * 3)


def loader() -> Loader:
    return Loader(IMAGES, LABELS, evaluation_pipeline(8), batch_size=4, shuffle=True)


class Slow(nn.Module):
    """Takes 20 ms a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, 2)
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        logits: torch.Tensor = self.head(images.flatten(1))
        return logits


def test_the_first_batches_of_an_epoch_are_those_of_the_whole() -> None:
    whole = loader()
    part = FirstBatches(whole, 2)
    assert (len(part), len(FirstBatches(whole, 99)), part.num_images) == (2, 6, 22)
    first, second = list(part.epoch(3))
    expected = list(whole.epoch(3))
    assert torch.equal(first.images, expected[0].images)
    assert torch.equal(second.labels, expected[1].labels)
    assert not torch.equal(first.images, next(iter(part.epoch(4))).images)


def test_the_rate_of_compute_is_that_of_its_steps_and_leaves_the_model_alone() -> None:
    model = Slow()
    before = model.head.weight.clone()
    batch = next(iter(loader().epoch(1)))
    compute = Compute(
        model, batch, config=TrainConfig(), optim=OptimConfig(), preprocessing=STEPS, plan=Plan("cpu", "fp32")
    )
    assert 10 < compute.images_per_s(0.2) < 4 / 0.02
    assert torch.equal(model.head.weight, before)


def test_the_rate_of_data_goes_on_over_the_end_of_an_epoch() -> None:
    asked: list[int] = []

    class Counting(Loader):
        def epoch(self, epoch: int) -> object:  # type: ignore[override]
            asked.append(epoch)
            time.sleep(0.05)
            return super().epoch(epoch)

    train = Counting(IMAGES, LABELS, evaluation_pipeline(8), batch_size=4, shuffle=True)
    data = Data(train, preprocessing=STEPS, device="cpu")
    rate = data.images_per_s(0.12)
    assert asked == list(range(1, len(asked) + 1))
    assert len(asked) >= 2
    assert 10 < rate < 22 / 0.05


def test_the_bounds_of_a_loop() -> None:
    rates = Rates(compute=100.0, data=300.0, loop=60.0)
    assert rates.bound == 100
    assert rates.serial_bound == pytest.approx(75)
    assert loop_rate(images_per_epoch=1000, steps_images_per_s=100.0, overhead_s=2.5) == pytest.approx(80)
