"""How batches are parted, and what happens where the memory does not hold a part."""

import pytest
import torch
from torch import nn

from imgcls.errors import UserError
from imgcls.training.microbatch import MicroBatch

PLAIN = nn.Linear(1, 1)


def normed(training: bool = True) -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(1)).train(training)


def sizes(size: int | None, count: int, model: nn.Module = PLAIN) -> list[int]:
    parts = MicroBatch(size, model, lambda _text: None).parts(count)
    assert [k for part in parts for k in range(count)[part]] == list(range(count))
    return [part.stop - part.start for part in parts]


@pytest.mark.parametrize(
    ("size", "count", "expected"),
    [
        (None, 9, [9]), (9, 9, [9]), (10, 9, [9]), (4, 9, [3, 3, 3]), (4, 8, [4, 4]), (3, 10, [2, 3, 2, 3]),
        (1, 3, [1, 1, 1]), (2, 3, [1, 2]), (5, 1, [1]),
    ],
)  # fmt: skip
def test_parts_are_of_nearly_the_same_size(size: int | None, count: int, expected: list[int]) -> None:
    assert sizes(size, count) == expected


@pytest.mark.parametrize(("size", "count", "expected"), [(2, 3, [3]), (2, 5, [2, 3]), (2, 1, [1]), (3, 7, [2, 2, 3])])
def test_batch_norm_never_gets_a_single_image_of_several(size: int, count: int, expected: list[int]) -> None:
    assert sizes(size, count, normed()) == expected


def test_one_image_at_a_time_is_an_error_for_a_batch_norm_that_trains() -> None:
    with pytest.raises(UserError, match=r"train\.micro_batch is 1, .* Set train\.micro_batch to 2"):
        MicroBatch(1, normed(), lambda _text: None)
    assert sizes(1, 2, normed(training=False)) == [1, 1]


@pytest.mark.parametrize(("limit", "expected"), [(16, None), (15, 8), (7, 4), (3, 2), (1, 1)])
def test_the_size_halves_until_the_memory_holds_it(limit: int, expected: int | None) -> None:
    told: list[str] = []
    undone = []
    micro = MicroBatch(None, PLAIN, told.append)

    def attempt(parts: list[slice]) -> int:
        if max(part.stop - part.start for part in parts) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried 1 GiB.\nmore")
        return len(parts)

    assert micro.run(16, attempt, lambda: undone.append(1)) == 16 // (expected or 16)
    assert micro.size == expected
    assert len(told) == len(undone) == [None, 8, 4, 2, 1].index(expected)
    if told:
        assert told[0] == (
            "out of memory with 16 images at a time: from now on 8, whose gradients are summed up to the same batch; "
            "set train.micro_batch to 8 to begin so (CUDA out of memory. Tried 1 GiB.)"
        )


@pytest.mark.parametrize(("model", "least"), [(PLAIN, "1 image at"), (normed(), "2 images at")])
def test_what_the_memory_holds_not_even_one_of_is_an_error(model: nn.Module, least: str) -> None:
    def attempt(_parts: list[slice]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(UserError, match=rf"out of memory with {least} a time.*Lower augment\.image_size"):
        MicroBatch(None, model, lambda _text: None).run(8, attempt)


def test_a_memory_that_does_not_hold_a_batch_normalised_by_all_processes_is_an_error() -> None:
    attempts = []

    def attempt(parts: list[slice]) -> None:
        attempts.append(parts)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    model = nn.Sequential(nn.SyncBatchNorm(1))
    with pytest.raises(UserError, match=r"out of memory with 8 images .* Lower train\.batch_size"):
        MicroBatch(None, model, lambda _text: None).run(8, attempt)
    assert len(attempts) == 1, "the other processes would not know of another"
