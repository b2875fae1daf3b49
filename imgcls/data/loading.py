"""Batches of an epoch, whose randomness depends on (seed, epoch, batch) and never on the number of workers."""

import os
import sys
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from imgcls.data.augment import Pipeline
from imgcls.data.images import Images


class Batch(NamedTuple):
    """A batch: images (B, S, S, C) uint8, labels (B,) int64, and the seed of its randomness."""

    images: torch.Tensor
    labels: torch.Tensor
    seed: int


class _Key(NamedTuple):
    """What makes a batch: the seed of its randomness and its rows."""

    seed: int
    rows: tuple[int, ...]


class _BatchDataset(Dataset[Batch]):
    def __init__(self, images: Images, labels: npt.NDArray[np.int64], pipeline: Pipeline) -> None:
        self._images, self._labels, self._pipeline = images, labels, pipeline

    def __getitem__(self, key: _Key) -> Batch:
        self._pipeline.seed(key.seed)
        pixels = np.stack([self._pipeline(self._images[row]) for row in key.rows])
        return Batch(torch.from_numpy(pixels), torch.from_numpy(self._labels[list(key.rows)]), key.seed)


class _EpochKeys(Sampler[_Key]):
    """The keys of one epoch's batches; the loader sets `epoch` before each."""

    def __init__(
        self, count: int, *, batch_size: int, seed: int, shuffle: bool, chances: npt.NDArray[np.float64] | None
    ) -> None:
        self._count, self._batch_size, self._seed, self._shuffle = count, batch_size, seed, shuffle
        self._chances = None if chances is None else chances / chances.sum()
        self.epoch = 0

    def __len__(self) -> int:
        # A last training batch of one image would break batch normalisation, so it waits for another epoch.
        whole, rest = divmod(self._count, self._batch_size)
        return whole + (rest > (1 if self._shuffle and whole else 0))

    def __iter__(self) -> Iterator[_Key]:
        order = np.arange(self._count)
        generator = np.random.default_rng([self._seed, self.epoch])
        if self._chances is not None:
            order = generator.choice(self._count, self._count, p=self._chances)
        elif self._shuffle:
            order = generator.permutation(self._count)
        for batch in range(len(self)):
            rows = order[batch * self._batch_size : (batch + 1) * self._batch_size]
            seed = int(np.random.SeedSequence([self._seed, self.epoch, batch]).generate_state(1)[0])
            yield _Key(seed, tuple(int(row) for row in rows))


class Loader:
    """Images in batches, epoch by epoch.

    Args:
        images: the images.
        labels: (N,) their labels.
        pipeline: applied to each image; must give images of one size.
        batch_size: images a batch; the last batch may be smaller.
        seed: seed of the order and of the pipeline.
        shuffle: True for training: another order each epoch.
        chances: (N,) for training: an epoch draws N images with replacement, each in proportion to its chance.
        num_workers: processes that make batches; 0 makes them in this one.
        pin_memory: page-lock the batches for asynchronous copies to a GPU.
    """

    def __init__(
        self,
        images: Images,
        labels: npt.NDArray[np.int64],
        pipeline: Pipeline,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        chances: npt.NDArray[np.float64] | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.num_images = len(images)
        self._keys = _EpochKeys(len(images), batch_size=batch_size, seed=seed, shuffle=shuffle, chances=chances)
        self._loader = DataLoader(
            _BatchDataset(images, labels, pipeline),
            batch_size=None,
            sampler=self._keys,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            worker_init_fn=_init_worker,
            # Its own, or an epoch would draw from the generator of dropout, more often without workers than with.
            generator=torch.Generator(),
            multiprocessing_context="fork" if num_workers > 0 and sys.platform == "linux" else None,
        )

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self._keys)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch; equal epochs give bit-identical batches."""
        self._keys.epoch = epoch
        return iter(self._loader)


def _init_worker(_worker: int) -> None:
    import signal

    import cv2

    cv2.setNumThreads(0)
    # A Ctrl-C reaches the whole process group; the training process decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def resolve_num_workers(asked: int | Literal["auto"], *, device: str) -> int:
    """Worker processes: as asked; `auto` is 0 beside a CPU model (the cores are busy), up to 8 beside a GPU."""
    if asked != "auto":
        return asked
    return 0 if device == "cpu" else min(8, max(1, (os.cpu_count() or 2) - 1))
