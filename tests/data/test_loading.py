"""Batches: the same for any number of workers, another order each epoch, every image once."""

import multiprocessing as mp
import os
import pickle
import random
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch

from imgcls.data.augment import AugmentConfig, Pipeline, evaluation_pipeline, training_pipeline
from imgcls.data.augment.presets import Preset
from imgcls.data.images import open_images
from imgcls.data.loading import Batch, Loader, _dead_worker, resolve_num_workers, resolve_prefetch
from imgcls.data.source import scan
from imgcls.data.sources.folder import FolderConfig
from imgcls.errors import UserError

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


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # torch's opinion where cores are few
def test_batches_are_bit_identical_for_any_number_of_workers() -> None:
    epochs = {}
    for num_workers in (0, 1, 4):
        chosen = loader(num_workers=num_workers)
        epochs[num_workers] = [list(chosen.epoch(epoch)) for epoch in (1, 2, 1)]
    for num_workers in (1, 4):
        for mine, theirs in zip(epochs[0], epochs[num_workers], strict=True):
            assert equal(mine, theirs)


@pytest.mark.slow
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


def test_epochs_read_side_by_side_do_not_mix() -> None:
    chosen = loader()
    both = list(zip(chosen.epoch(1), chosen.epoch(2), strict=True))
    assert equal([first for first, _ in both], list(loader().epoch(1)))
    assert equal([second for _, second in both], list(loader().epoch(2)))


class Counting:
    """Images of one size that come in batches, and note how."""

    def __init__(self, size: tuple[int, int] | None) -> None:
        self.size = size
        self.gathered = 0
        self._pixels: npt.NDArray[np.uint8] = np.random.default_rng(1).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
        one: npt.NDArray[np.uint8] = self._pixels[index]
        return one

    def gather(self, rows: Sequence[int]) -> npt.NDArray[np.uint8]:
        self.gathered += 1
        return self._pixels[list(rows)]


UNCHANGED = AugmentConfig(preset="none", horizontal_flip=False)


@pytest.mark.parametrize("pipeline", [evaluation_pipeline(8), training_pipeline(UNCHANGED, size=8, channels=3)])
def test_batches_that_the_pipeline_leaves_as_they_are_come_straight_from_the_images(pipeline: Pipeline) -> None:
    quick, slow = Counting((8, 8)), Counting(None)
    labels = np.arange(9)
    batches = [
        list(Loader(images, labels, pipeline, batch_size=4, seed=1, shuffle=True).epoch(1)) for images in (quick, slow)
    ]
    assert equal(*batches)
    assert (quick.gathered, slow.gathered) == (2, 0)


@pytest.mark.parametrize(
    "pipeline",
    [evaluation_pipeline(7), evaluation_pipeline(9), training_pipeline(AugmentConfig(), size=8, channels=3),
     training_pipeline(AugmentConfig(preset="none"), size=8, channels=3)],
)  # fmt: skip
def test_a_pipeline_that_changes_images_is_never_left_out(pipeline: Pipeline) -> None:
    images = Counting((8, 8))
    list(Loader(images, np.arange(9), pipeline, batch_size=4).epoch(1))
    assert images.gathered == 0


def test_above_small_sizes_evaluation_changes_even_images_of_its_own_size() -> None:
    assert evaluation_pipeline(64).keeps(64, 64)
    assert not evaluation_pipeline(64).keeps(64, 65)
    assert not evaluation_pipeline(224).keeps(224, 224)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # torch's opinion where cores are few
@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_images_of_a_store_give_the_batches_that_files_give(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "cache"))
    manifest = scan(FolderConfig(root=str(make_folder(classes=2, images=4, size=(8, 8)))))
    batches = []
    for budget in (0, 2**20):
        images = open_images(manifest, channels=3, short_side=10, budget=budget)
        for pipeline in (training_pipeline(AugmentConfig(), size=8, channels=3), evaluation_pipeline(8)):
            chosen = Loader(images, manifest.labels, pipeline, batch_size=3, shuffle=True, num_workers=num_workers)
            batches.append(list(chosen.epoch(1)))
    assert equal(batches[0], batches[2])
    assert equal(batches[1], batches[3])
    assert not equal(batches[0], batches[1])


class Broken:
    """Images of which one does what it is told when it is read."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
        if index == 17:
            self._act()
        return np.zeros((8, 8, 1), np.uint8)


def _vanish() -> None:
    raise UserError("cannot read the image a.png: No such file or directory. Mend or remove the file.")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_vanished_is_told_in_the_same_words_with_and_without_workers(num_workers: int) -> None:
    chosen = Loader(
        Broken(_vanish), np.zeros(30, np.int64), evaluation_pipeline(8), batch_size=4, num_workers=num_workers
    )
    with pytest.raises(UserError) as caught:
        list(chosen.epoch(1))
    assert str(caught.value) == "cannot read the image a.png: No such file or directory. Mend or remove the file."


def _stumble() -> None:
    raise RuntimeError("a bug")


def test_a_bug_in_a_worker_keeps_its_traceback() -> None:
    chosen = Loader(Broken(_stumble), np.zeros(30, np.int64), evaluation_pipeline(8), batch_size=4, num_workers=1)
    with pytest.raises(RuntimeError, match=r"(?s)Caught RuntimeError.*in _stumble.*a bug"):
        list(chosen.epoch(1))


def _kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_epoch_with_advice_in_seconds() -> None:
    chosen = Loader(Broken(_kill_me), np.zeros(30, np.int64), evaluation_pipeline(8), batch_size=4, num_workers=2)
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"a process that makes batches died: .+ memory ran out: lower"):
        list(chosen.epoch(1))
    assert time.monotonic() - begin < 20


@pytest.mark.slow
def test_a_worker_that_is_killed_interrupts_nothing_but_the_wait_for_its_batches() -> None:
    others = mp.active_children()
    chosen = Loader(IMAGES, LABELS, evaluation_pipeline(8), batch_size=4, num_workers=1)
    batches = chosen.epoch(1)
    next(batches)
    (worker,) = set(mp.active_children()) - set(others)
    worker.kill()
    worker.join(10)
    time.sleep(0.1)  # here torch's own handler would raise
    with pytest.raises(UserError, match="a process that makes batches died"):
        list(batches)


@pytest.mark.slow
def test_in_a_thread_that_gets_no_signals_a_killed_worker_is_told_too() -> None:
    chosen = Loader(Broken(_kill_me), np.zeros(30, np.int64), evaluation_pipeline(8), batch_size=4, num_workers=1)
    with ThreadPoolExecutor(1) as pool, pytest.raises(UserError, match="a process that makes batches died"):
        pool.submit(lambda: list(chosen.epoch(1))).result()


def test_full_shared_memory_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.getsignal", lambda _number: signal.SIG_DFL)
    text = "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are …"
    assert str(_dead_worker(text)).startswith(
        "a process that makes batches died: DataLoader worker (pid 7) is killed by signal: Bus error. Shared memory"
    )


@pytest.mark.parametrize(
    ("device", "workers"),
    [("cpu", {1: 0, 2: 0, 8: 0, 16: 2, 32: 4, 96: 4}), ("cuda", {1: 1, 2: 1, 6: 5, 64: 8})],
)
def test_workers_are_as_asked_or_suit_the_cores(
    monkeypatch: pytest.MonkeyPatch, device: str, workers: dict[int, int]
) -> None:
    assert resolve_num_workers(3, device=device) == 3
    for cores, expected in workers.items():
        monkeypatch.setattr("os.sched_getaffinity", lambda _pid, cores=cores: set(range(cores)), raising=False)
        assert resolve_num_workers("auto", device=device) == expected


def test_prefetch_is_as_asked_or_fits_the_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=64 * 2**20))
    assert resolve_prefetch(5, num_workers=8, batch_bytes=2**30) == 5
    assert resolve_prefetch("auto", num_workers=8, batch_bytes=2**20) == 2
    assert resolve_prefetch("auto", num_workers=8, batch_bytes=9 * 2**20) == 1
    assert resolve_prefetch("auto", num_workers=0, batch_bytes=2**40) == 2


def test_where_there_is_no_shared_memory_to_ask_prefetch_is_the_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_path: str) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("shutil.disk_usage", missing)
    assert resolve_prefetch("auto", num_workers=8, batch_bytes=2**40) == 2


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_processes_share_every_batch_without_loss_or_repetition(processes: int, shuffle: bool) -> None:
    for count in [*range(1, 40), 101]:
        for batch_size in (2 * processes, 4 * processes, 12 * processes):
            labels = np.arange(count)  # which tell the rows
            images = [np.zeros((8, 8, 1), np.uint8)] * count
            one, *parts = [
                Loader(
                    images, labels, evaluation_pipeline(8), batch_size=batch_size, seed=5, shuffle=shuffle,
                    rank=rank, processes=size,
                )
                for rank, size in [(0, 1), *((rank, processes) for rank in range(processes))]
            ]  # fmt: skip
            whole = list(one.epoch(1))
            for number, mine in enumerate(zip(*(part.epoch(1) for part in parts), strict=True)):
                assert torch.cat([part.labels for part in mine]).tolist() == whole[number].labels.tolist()
                sizes = [len(part.labels) for part in mine]
                assert max(sizes) - min(sizes) <= 1
                assert {part.total for part in mine} == {sum(sizes)}
                assert not shuffle or count < 2 * processes or min(sizes) >= 2, "or batch normalisation would fail"
                seeds = [part.seed for part in mine]
                assert len(set(seeds)) == processes
                assert seeds[0] == whole[number].seed
            left_out = len(whole) - len(parts[0])
            assert {len(part) for part in parts} == {len(parts[0])}
            if left_out:
                assert (left_out, shuffle) == (1, True)
                assert len(whole[-1].labels) < 2 * processes


def test_processes_share_stored_images_and_those_of_workers() -> None:
    for num_workers in (0, 1):
        parts = [
            Loader(
                IMAGES[:5], LABELS[:5], evaluation_pipeline(8), batch_size=4, num_workers=num_workers,
                rank=rank, processes=2,
            )
            for rank in range(2)
        ]  # fmt: skip
        assert [[len(batch.images) for batch in part.epoch(0)] for part in parts] == [[2, 1], [2, 0]]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_pass_over_each_image_once_is_an_epoch_and_what_that_leaves_over(num_workers: int) -> None:
    batches = loader(num_workers=num_workers, count=13)
    once, epoch = list(batches.each_once(2)), list(batches.epoch(2))
    assert sorted(row for rows, _ in once for row in rows) == list(range(13))
    assert (len(epoch), [len(rows) for rows, _ in once]) == (3, [4, 4, 4, 1])
    for (rows, batch), usual in zip(once, epoch, strict=False):
        assert torch.equal(batch.images, usual.images)
        assert (batch.seed, batch.labels.tolist()) == (usual.seed, list(rows))
    assert [batch.seed for batch in batches.epoch(2)] == [batch.seed for batch in epoch]  # as before


def test_a_pass_in_the_images_own_order_is_epoch_0() -> None:
    assert [row for rows, _ in loader().each_once(0) for row in rows] == list(range(COUNT))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_epoch_can_start_inside(num_workers: int) -> None:
    batches = loader(num_workers=num_workers)
    whole, rest = list(batches.epoch(2)), list(batches.epoch(2, start=3))
    assert [batch.seed for batch in rest] == [batch.seed for batch in whole[3:]]
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[3:], rest, strict=True))


def test_an_epoch_of_something_else_has_the_same_rows_labels_and_seeds() -> None:
    batches = loader()
    found = list(batches.epoch_of(2, lambda rows: torch.tensor([float(row) for row in rows]), start=1))
    for batch, usual in zip(found, list(batches.epoch(2))[1:], strict=True):
        assert (batch.images.tolist(), batch.labels.tolist()) == (usual.labels.tolist(), usual.labels.tolist())
        assert (batch.seed, batch.is_features, usual.is_features) == (usual.seed, True, False)
