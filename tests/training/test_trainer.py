"""Steps: parts of a batch, a memory that is too small, and going on from a saved state bit by bit."""

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from imgcls.data.augment import AugmentConfig, Preprocessing, evaluation_pipeline
from imgcls.data.loading import Batch, Loader
from imgcls.errors import UserError
from imgcls.models.family import StagedModel
from imgcls.training.averaging import Averages
from imgcls.training.losses import Loss
from imgcls.training.mixing import build_mixing
from imgcls.training.optim import SCHEDULES, OptimConfig
from imgcls.training.optimizers import OPTIMIZERS
from imgcls.training.plan import Plan
from imgcls.training.trainer import Totals, Trainer

SIZE, CLASSES, STEPS = 4, 3, 12
PREPROCESSING = Preprocessing(1, SIZE, (0.5,), (0.25,))
WEIGHTS = np.array([0.5, 1.0, 3.0])


class Scarce(nn.Module):
    """Runs out of memory with more images than it holds, after it has drawn random numbers and changed statistics."""

    def __init__(self, inner: nn.Module, holds: int) -> None:
        super().__init__()
        self.inner, self.holds = inner, holds
        self.seen: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(images)
        self.seen.append(len(images))
        if len(images) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        return logits


def staged(*, norm: bool = True, dropout: float = 0.3) -> StagedModel:
    torch.manual_seed(0)
    stem: list[nn.Module] = [nn.Conv2d(1, 4, 3, bias=False), *([nn.BatchNorm2d(4)] if norm else [])]
    stages = {
        "stem": nn.Sequential(*stem, nn.ReLU(), nn.Flatten()),
        "hidden": nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Dropout(dropout)),
    }
    head = nn.Linear(8, CLASSES)
    return StagedModel(stages, pool=nn.Identity(), head=head, num_features=8, cam_stage=None, min_image_size=4)


def batches(count: int, size: int = 7) -> list[Batch]:
    generator = torch.Generator().manual_seed(3)
    return [
        Batch(
            torch.randint(0, 256, (size, SIZE, SIZE, 1), generator=generator, dtype=torch.uint8),
            torch.randint(0, CLASSES, (size,), generator=generator),
            seed,
            size,
        )
        for seed in range(count)
    ]


def trainer(model: nn.Module, optim: OptimConfig | None = None, **more: Any) -> Trainer:
    settings: dict[str, Any] = {"num_steps": STEPS, "batch_size": 6, "class_weights": None, "mixing": None, **more}
    return Trainer(model, optim or OptimConfig(lr=0.01), PREPROCESSING, Plan("cpu", "fp32"), **settings)


def run(some: Trainer, what: list[Batch], steps_per_epoch: int = 3) -> Totals:
    totals = Totals("cpu")
    for batch in what:
        some.step(batch, steps_per_epoch=steps_per_epoch, totals=totals)
    return totals


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def row(value: float) -> dict[str, float]:
    return {"val/loss": value}


def options(optimizer: str, schedule: str) -> OptimConfig:
    special: dict[str, dict[str, Any]] = {
        "multistep": {"milestones": [1.0, 3.0]},
        "one-cycle": {"cycle_momentum": 0.5},
        "plateau": {"plateau_patience": 1},
    }
    fields = special.get(schedule, {})
    return OptimConfig(
        optimizer=optimizer, schedule=schedule, lr=0.02, l1=1e-3, clip_norm=0.5, layer_decay=0.7, **fields
    )


@pytest.mark.parametrize("schedule", SCHEDULES.names())
@pytest.mark.parametrize("optimizer", OPTIMIZERS.names())
def test_every_optimizer_under_every_schedule_goes_on_from_its_state_bit_by_bit(optimizer: str, schedule: str) -> None:
    averages = Averages("ema" if len(optimizer) % 2 else "swa", start=0.2)
    made = {"averages": averages, "micro_batch": 4, "loss": Loss("focal", 1.5, 0.1)}
    what = batches(STEPS)
    mixing = build_mixing(AugmentConfig(mixup=0.5), num_classes=CLASSES)

    def fresh() -> tuple[StagedModel, Trainer]:
        model = staged()
        model.freeze(2)
        made_of_it = trainer(model, options(optimizer, schedule), class_weights=WEIGHTS, mixing=mixing, **made)
        return model, made_of_it

    def part(of: Trainer, start: int, stop: int) -> None:
        for number in range(start, stop):
            if number == 3:
                of.thaw(0)
            run(of, what[number : number + 1])
            if number % 3 == 2:
                of.end_epoch(what[:2], lambda: False)
                of.observe(row(1.0 + number))

    model, whole = fresh()
    part(whole, 0, 8)
    state = copy.deepcopy((model.state_dict(), whole.state_dict(), torch.get_rng_state()))
    part(whole, 8, STEPS)
    again, resumed = fresh()
    resumed.thaw(0)
    again.load_state_dict(state[0])
    resumed.load_state_dict(state[1])
    torch.set_rng_state(state[2])
    part(resumed, 8, STEPS)
    assert all(torch.equal(a, again.state_dict()[name]) for name, a in model.state_dict().items())
    one, two = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(a, two["averaging"]["mean"][name]) for name, a in one["averaging"]["mean"].items())
    floats = {name for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    assert one["averaging"]["mean"].keys() == floats, "what has thawed is averaged too"
    assert one["averaging"]["count"] == two["averaging"]["count"] > 0
    assert (one["step"], one["plateau"], one["micro_batch"]) == (two["step"], two["plateau"], two["micro_batch"])
    assert (one["step"], whole.lr) == (STEPS, resumed.lr)
    assert (one["plateau"]["scale"] < 1) is (schedule == "plateau")


MIXED = [None, AugmentConfig(mixup=1, cutmix=1)]
PARTED = list(itertools.product([None, WEIGHTS], [Loss(), Loss("focal"), Loss(smoothing=0.1)], MIXED, [1, 3, 6]))


@pytest.mark.parametrize(("weights", "loss", "mixed", "micro"), PARTED)
def test_the_gradients_of_the_parts_add_up_to_that_of_the_batch(
    weights: Any, loss: Loss, mixed: AugmentConfig | None, micro: int
) -> None:
    mixing = None if mixed is None else build_mixing(mixed, num_classes=CLASSES)
    found, losses = [], []
    for size in (None, micro):
        model = staged(norm=False, dropout=0)
        some = trainer(model, class_weights=weights, loss=loss, mixing=mixing, micro_batch=size)
        losses.append(run(some, batches(1)).means())
        found.append(gradients(model))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for whole, parts in zip(*found, strict=True):
        assert torch.allclose(whole, parts, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("holds", [6, 4, 2])
def test_a_step_that_the_memory_does_not_hold_is_redone_in_parts_from_the_same_state(holds: int) -> None:
    expected = {6: 3, 4: 3, 2: 1}[holds]
    told: list[str] = []
    norm = holds > 2
    scarce, plenty = Scarce(staged(norm=norm), holds), Scarce(staged(norm=norm), 99)
    torch.manual_seed(5)
    short = trainer(scarce, on_note=told.append)
    totals = run(short, batches(2))
    torch.manual_seed(5)
    long = trainer(plenty, micro_batch=expected)
    assert totals.means() == run(long, batches(2)).means()
    for name, tensor in plenty.state_dict().items():
        assert torch.equal(tensor, scarce.state_dict()[name])
    assert short.state_dict()["micro_batch"] == expected
    assert len(told) == (2 if expected == 1 else 1)
    assert scarce.seen[-len(plenty.seen) :] == plenty.seen
    assert max(plenty.seen) <= holds


def test_a_memory_that_holds_no_image_is_an_error() -> None:
    with pytest.raises(UserError, match="out of memory with 1 image at a time"):
        run(trainer(Scarce(staged(norm=False), 0)), batches(1))


def test_evaluation_goes_in_parts_where_the_memory_does_not_hold_a_batch() -> None:
    images = list(np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 1), dtype=np.uint8))
    loader = Loader(images, np.arange(8, dtype=np.int64) % CLASSES, evaluation_pipeline(SIZE), batch_size=8)
    scarce = Scarce(staged(), 3)
    found = trainer(scarce).evaluate(loader, lambda: False)
    assert found == pytest.approx(trainer(Scarce(staged(), 8)).evaluate(loader, lambda: False))
    assert scarce.seen == [8, 4, 2, 2, 2, 2]


def test_clipping_bounds_the_gradient_and_tells_its_norm() -> None:
    model, free = staged(norm=False, dropout=0), staged(norm=False, dropout=0)
    run(trainer(free), batches(1))
    before = math.sqrt(sum(g.square().sum().item() for g in gradients(free)))
    totals = run(trainer(model, OptimConfig(lr=0.01, clip_norm=before / 4)), batches(1))
    assert totals.grad_norm() == {"train/grad_norm": pytest.approx(before, rel=1e-5)}
    after = math.sqrt(sum(g.square().sum().item() for g in gradients(model)))
    assert after == pytest.approx(before / 4, rel=1e-4)
    assert run(trainer(free), batches(1)).grad_norm() == {}


def test_a_step_whose_scaled_gradient_overflows_is_counted_and_has_no_norm() -> None:
    model = staged(norm=False, dropout=0)
    optim = OptimConfig(lr=0.01, clip_norm=1.0)
    some = Trainer(
        model, optim, PREPROCESSING, Plan("cpu", "fp16"), num_steps=STEPS, batch_size=6, class_weights=None, mixing=None
    )
    some._scaler.scale(torch.zeros(()))  # it makes its scale when it is first used
    assert some._scaler._scale is not None
    before, totals, (first, second) = copy.deepcopy(model.state_dict()), Totals("cpu"), batches(2)
    some._scaler._scale.fill_(2.0**120)
    some.step(first, steps_per_epoch=3, totals=totals)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert totals.num_left_out == 1
    assert math.isnan(totals.grad_norm()["train/grad_norm"]), "there was none yet"
    some._scaler._scale.fill_(1.0)
    some.step(second, steps_per_epoch=3, totals=totals)
    assert 0 < totals.grad_norm()["train/grad_norm"] < math.inf
    again = Totals("cpu")
    again.load_state_dict(totals.state_dict())
    assert (again.num_left_out, again.grad_norm()) == (1, totals.grad_norm())


@pytest.mark.parametrize("name", ["ema", "swa"])
def test_validation_and_the_best_weights_are_those_of_the_average(name: Any) -> None:
    images = list(np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 1), dtype=np.uint8))
    loader = Loader(images, np.arange(8, dtype=np.int64) % CLASSES, evaluation_pipeline(SIZE), batch_size=8)
    model, twin = staged(), staged()
    some = trainer(model, OptimConfig(lr=0.1), averages=Averages(name, start=0))
    for number in range(3):
        run(some, batches(3))
        before = torch.get_rng_state()
        some.end_epoch(batches(2), lambda: False)
        assert torch.equal(torch.get_rng_state(), before), number
    found = some.evaluate(loader, lambda: False)
    averaged = some.averaged_weights()
    assert averaged is not None
    twin.load_state_dict(averaged)
    assert found == trainer(twin).evaluate(loader, lambda: False)
    assert not torch.equal(model.state_dict()["head.weight"], twin.state_dict()["head.weight"])
    assert trainer(staged()).averaged_weights() is None


def test_a_stop_ends_the_counting_of_statistics() -> None:
    some = trainer(staged(), averages=Averages("swa", start=0))
    run(some, batches(1))
    asked = iter([False, True])
    some.end_epoch(batches(9), lambda: next(asked))
    assert next(asked, None) is None
