"""The search for a batch size, with a fake memory; and that real steps take more memory with more images."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from imgcls.data.augment import Preprocessing
from imgcls.data.loading import Batch
from imgcls.training import batch_find
from imgcls.training.batch_find import Found, Tried, expected_memory, measurer, memory_free, peak_memory, search
from imgcls.training.fit import TrainConfig
from imgcls.training.optim import OptimConfig
from imgcls.training.plan import Plan

pytestmark = pytest.mark.slow

MIB = 2**20
STEPS = Preprocessing(3, 8, (0.5,) * 3, (0.25,) * 3)


class Machine:
    """Memory of 10 MiB and 1 MiB an image; what asks for more than there is fails. Larger batches are faster to 64."""

    def __init__(self, total: int) -> None:
        self.total, self.asked = total * MIB, list[int]()

    def measure(self, size: int) -> Tried:
        self.asked.append(size)
        memory = (10 + size) * MIB
        return Tried(size, min(size, 64) * 10.0, memory) if memory <= self.total else Tried(size, None, None)


def searched(total: int, *, predicts: bool, free: int | None = None, **options: object) -> tuple[Found, list[int]]:
    machine = Machine(total)
    free = (total if free is None else free) * MIB
    options = {"most": 4096, **options}
    return search(machine.measure, memory_free=free, predicts=predicts, **options), machine.asked  # type: ignore[arg-type]


def test_a_gpu_is_filled_until_memory_runs_out() -> None:
    found, asked = searched(300, predicts=False)
    assert asked == [8, 16, 32, 64, 128, 256, 512]
    assert (found.largest, found.fastest, found.ended) == (256, 64, "batches of 512 do not fit")
    assert found.tried[-1] == Tried(512, None, None)


def test_a_batch_that_fits_only_without_the_margin_is_not_taken() -> None:
    assert searched(300, predicts=False, free=200)[0].largest == 128


def test_on_a_cpu_nothing_is_tried_that_would_not_fit() -> None:
    found, asked = searched(300, predicts=True)
    assert asked == [8, 16, 32, 64, 128, 256]
    assert (found.largest, found.ended) == (256, "batches of 512 would take 522 MiB")


@pytest.mark.parametrize("predicts", [True, False])
def test_refining_looks_between_powers_of_two(predicts: bool) -> None:
    found, asked = searched(400, predicts=predicts, refine=True)
    assert found.largest == 384
    assert found.tried == sorted(found.tried, key=lambda one: one.batch_size)
    assert asked[-3:] == ([128, 256, 384] if predicts else [384, 448, 416])


def test_the_fastest_is_the_smallest_that_is_hardly_slower_than_the_best() -> None:
    rates = {8: 50.0, 16: 98.0, 32: 100.0, 64: 60.0}
    found = search(lambda size: Tried(size, rates[size], size), memory_free=1000, most=64)
    assert (found.fastest, found.largest) == (16, 64)


def test_where_not_even_the_smallest_fits_there_is_nothing_to_suggest() -> None:
    found, asked = searched(12, predicts=True)
    assert (found.largest, found.fastest, asked) == (None, None, [8])
    assert searched(12, predicts=True, refine=True)[0].largest is None


def test_no_more_images_are_tried_than_there_are() -> None:
    found, asked = searched(10_000, predicts=True, most=50)
    assert asked == [8, 16, 32, 50]
    assert (found.largest, found.ended) == (50, "batches of 50 were the largest to try")
    assert searched(10_000, predicts=True, most=5)[1] == [5]


def test_when_the_time_is_up_the_largest_is_estimated_on_a_cpu_alone() -> None:
    found, asked = searched(300, predicts=True, seconds=1.0)
    assert asked == [8, 16, 32, 64, 128], "of 256 a step is expected to take 0.4 s, and three of them are measured"
    assert found.largest == 256
    assert found.ended.startswith("the time was up")
    assert searched(300, predicts=False, seconds=0.0)[0].largest == 8


def test_a_stop_ends_the_search() -> None:
    asked = iter([False, False, True])
    assert searched(300, predicts=True, stop=lambda: next(asked))[1] == [8, 16]


def test_memory_is_expected_to_go_on_as_it_did() -> None:
    assert expected_memory([], 8) == 0
    assert expected_memory([Tried(8, 1.0, 80)], 16) == 160
    assert expected_memory([Tried(8, 1.0, 100), Tried(16, 1.0, 140)], 32) == 220
    assert expected_memory([Tried(8, 1.0, 100), Tried(16, 1.0, 90)], 32) == 90, "noise does not make it fall"
    assert expected_memory([Tried(8, 1.0, 80), Tried(16, None, None)], 16) == 160


def batch() -> Batch:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    return Batch(torch.from_numpy(images), torch.tensor([0, 1, 0, 1]), 0, 4)


def test_a_step_is_measured_on_a_copy_with_as_many_images_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_find, "LEAST_SECONDS", 0.0)
    sizes: list[int] = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(192, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            logits: torch.Tensor = self.head(images.flatten(1))
            return logits

    model = Counting()
    before = model.head.weight.clone()
    measure = measurer(
        model, batch(), config=TrainConfig(), optim=OptimConfig(), preprocessing=STEPS, plan=Plan("cpu", "fp32")
    )
    tried = measure(10)
    assert set(sizes[-2:]) == {10}
    assert tried.batch_size == 10
    assert tried.images_per_s is not None
    assert tried.images_per_s > 0
    assert torch.equal(model.head.weight, before)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError("you tried: not enough memory: 5 bytes")]
)
def test_running_out_of_memory_is_a_result(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> Tried:
        raise error

    monkeypatch.setattr(batch_find, "_measured", fail)
    measure = measurer(
        nn.Linear(1, 1),
        batch(),
        config=TrainConfig(),
        optim=OptimConfig(),
        preprocessing=STEPS,
        plan=Plan("cpu", "fp32"),
    )
    assert measure(16) == Tried(16, None, None)


def test_another_error_is_not_taken_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> Tried:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(batch_find, "_measured", fail)
    measure = measurer(
        nn.Linear(1, 1),
        batch(),
        config=TrainConfig(),
        optim=OptimConfig(),
        preprocessing=STEPS,
        plan=Plan("cpu", "fp32"),
    )
    with pytest.raises(RuntimeError, match="mat1"):
        measure(16)


def test_the_peak_of_memory_is_that_of_the_context() -> None:
    with peak_memory("cpu") as peak:
        block = np.ones(256 * MIB, np.uint8)
        for _ in range(20):
            block += 1
    # What tests before it left may be given back meanwhile.
    assert 128 * MIB < peak() < 400 * MIB


def test_some_but_not_all_memory_may_be_taken() -> None:
    import psutil

    assert 0 < memory_free("cpu") <= batch_find.SHARE * psutil.virtual_memory().total
    assert math.isfinite(memory_free("cpu"))
