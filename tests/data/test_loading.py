"""Batches: the same for any number of workers, another order each epoch, every image once."""

import pickle
import random
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch

from imgcls.data.augment import AugmentConfig, evaluation_pipeline, training_pipeline
from imgcls.data.augment.presets import Preset
from imgcls.data.loading import Batch, Loader, resolve_num_workers

COUNT = 23
IMAGES = list(np.random.default_rng(0).integers(0, 256, (COUNT, 10, 9, 1), dtype=np.uint8))
LABELS = np.arange(COUNT, dtype=np.int64)


WRITTEN = AugmentConfig.model_validate(
    {
        "pipeline": [
            {"RandomResizedCrop": {"scale": [0.5, 1.0]}},
            "HorizontalFlip",
            {"OneOf": {"transforms": [{"GaussianBlur": {}}, {"GaussNoise": {}}, {"ElasticTransform": {}}], "p": 0.8}},
            {"SomeOf": {"transforms": ["RandomBrightnessContrast", {"GridDropout": {}}], "n": 1}},
        ]
    }
)
CONFIGS = {**{name: AugmentConfig(preset=name) for name in get_args(Preset)}, "written": WRITTEN}


def loader(
    *, num_workers: int = 0, shuffle: bool = True, batch_size: int = 4, count: int = COUNT, seed: int = 3
) -> Loader:
    config = AugmentConfig(preset="light")
    pipeline = training_pipeline(config, size=8, channels=1) if shuffle else evaluation_pipeline(8)
    return Loader(
        IMAGES[:count],
        LABELS[:count],
        pipeline,
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        num_workers=num_workers,
    )


def seen(batches: list[Batch]) -> list[int]:
    return [int(label) for batch in batches for label in batch.labels]


def equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.seed == b.seed
        for a, b in zip(first, second, strict=True)
    )


def test_batches_are_bit_identical_for_any_number_of_workers() -> None:
    epochs = {}
    for num_workers in (0, 1, 2):
        chosen = loader(num_workers=num_workers)
        epochs[num_workers] = [list(chosen.epoch(epoch)) for epoch in (1, 2, 1)]
    for num_workers in (1, 2):
        for mine, theirs in zip(epochs[0], epochs[num_workers], strict=True):
            assert equal(mine, theirs)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # more than there are cores
@pytest.mark.parametrize(("draw", "size"), [("shuffle", 8), ("oversample", 72)])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_pipeline_gives_bit_identical_batches_with_0_1_and_4_workers(name: str, draw: str, size: int) -> None:
    epochs = {}
    for num_workers in (0, 1, 4):
        chosen = Loader(
            IMAGES,
            LABELS,
            training_pipeline(CONFIGS[name], size=size, channels=1),
            batch_size=4,
            seed=3,
            shuffle=True,
            chances=np.linspace(1, 5, COUNT) if draw == "oversample" else None,
            num_workers=num_workers,
        )
        epochs[num_workers] = [list(chosen.epoch(epoch)) for epoch in (1, 2)]
    for num_workers in (1, 4):
        for mine, theirs in zip(epochs[0], epochs[num_workers], strict=True):
            assert equal(mine, theirs)
    assert not equal(*epochs[0])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_does_not_depend_on_what_the_pipeline_did_before(name: str) -> None:
    pipeline = training_pipeline(CONFIGS[name], size=8, channels=1)
    chosen = Loader(IMAGES, LABELS, pipeline, batch_size=4, shuffle=True)
    first = list(chosen.epoch(1))
    np.random.seed(7)
    random.seed(7)
    for image in IMAGES[:3]:
        pipeline(image)
    assert equal(list(chosen.epoch(1)), first)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_pipeline_that_was_sent_to_another_process_gives_the_same(name: str) -> None:
    pipeline = training_pipeline(CONFIGS[name], size=8, channels=1)
    sent = pickle.loads(pickle.dumps(pipeline))
    for seed in (1, 2):
        pipeline.seed(seed)
        sent.seed(seed)
        assert all(np.array_equal(pipeline(image), sent(image)) for image in IMAGES)


def test_every_batch_has_a_seed_of_its_own_that_workers_do_not_change() -> None:
    seeds = [[batch.seed for batch in loader(num_workers=workers).epoch(1)] for workers in (0, 2)]
    assert seeds[0] == seeds[1]
    assert len({*seeds[0], *(batch.seed for batch in loader().epoch(2))}) == 12


def test_an_epoch_that_was_left_in_the_middle_does_not_change_the_next() -> None:
    chosen = loader(num_workers=1)
    expected = list(loader().epoch(2))
    next(iter(chosen.epoch(1)))
    assert equal(list(chosen.epoch(2)), expected)


def test_equal_epochs_are_equal_and_others_differ_in_order_and_variation() -> None:
    chosen = loader()
    first, second, again = (list(chosen.epoch(epoch)) for epoch in (1, 2, 1))
    assert equal(first, again)
    assert seen(first) != seen(second)
    by_label = {int(batch.labels[k]): batch.images[k] for batch in first for k in range(len(batch.labels))}
    varied = [
        not torch.equal(by_label[int(batch.labels[k])], batch.images[k])
        for batch in second
        for k in range(len(batch.labels))
    ]
    assert sum(varied) > COUNT // 2


def test_another_seed_gives_another_epoch() -> None:
    assert seen(list(loader(seed=1).epoch(1))) != seen(list(loader(seed=2).epoch(1)))


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_image_comes_exactly_once(shuffle: bool) -> None:
    chosen = loader(shuffle=shuffle)
    batches = list(chosen.epoch(5))
    assert sorted(seen(batches)) == list(range(COUNT))
    assert len(batches) == len(chosen) == 6
    assert chosen.num_images == COUNT
    assert {batch.images.dtype for batch in batches} == {torch.uint8}
    assert [tuple(batch.images.shape) for batch in batches] == [(4, 8, 8, 1)] * 5 + [(3, 8, 8, 1)]


def test_evaluation_keeps_the_order_and_pairs_images_with_their_labels() -> None:
    batches = list(loader(shuffle=False).epoch(0))
    assert seen(batches) == list(range(COUNT))
    pipeline = evaluation_pipeline(8)
    expected: npt.NDArray[np.uint8] = np.stack([pipeline(image) for image in IMAGES])
    assert np.array_equal(np.concatenate([batch.images.numpy() for batch in batches]), expected)


@pytest.mark.parametrize(
    ("shuffle", "count", "batch_size", "sizes"),
    [
        (True, 9, 4, [4, 4]),
        (False, 9, 4, [4, 4, 1]),
        (True, 10, 4, [4, 4, 2]),
        (True, 8, 4, [4, 4]),
        (True, 3, 1, [1, 1, 1]),
        (True, 1, 4, [1]),
        (True, 3, 100, [3]),
        (False, 0, 4, []),
    ],
)
def test_only_training_drops_a_last_batch_of_one(shuffle: bool, count: int, batch_size: int, sizes: list[int]) -> None:
    chosen = loader(shuffle=shuffle, count=count, batch_size=batch_size)
    assert [len(batch.labels) for batch in chosen.epoch(1)] == sizes
    assert len(chosen) == len(sizes)


def test_an_image_that_one_epoch_drops_comes_in_others() -> None:
    chosen = loader(count=9)
    dropped = {(set(range(9)) - set(seen(list(chosen.epoch(epoch))))).pop() for epoch in range(12)}
    assert len(dropped) > 2


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_epoch_draws_nothing_from_the_generator_that_dropout_uses(num_workers: int) -> None:
    chosen = loader(num_workers=num_workers)
    before = torch.get_rng_state()
    list(chosen.epoch(1))
    list(chosen.epoch(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_are_as_asked_or_none_beside_a_cpu_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_num_workers(3, device="cpu") == 3
    assert resolve_num_workers("auto", device="cpu") == 0
    for cores, workers in [(1, 1), (2, 1), (6, 5), (64, 8), (None, 1)]:
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert resolve_num_workers("auto", device="cuda") == workers
