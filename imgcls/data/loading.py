"""Batches of an epoch, whose randomness depends on (seed, epoch, batch) and never on the number of workers."""

import math
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

# Tensors of some MiB come in large pages, where the kernel has them: touching a new batch of floats page by page takes
# longer than computing it. torch reads this when it makes its first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from imgcls.data.augment import Pipeline
from imgcls.data.images import DecodedImages, Gatherable, Images
from imgcls.errors import UserError

_WORKER = "DataLoader worker"
"""What torch's errors for a worker that died have in them."""


class Batch(NamedTuple):
    """A batch: images (B, S, S, C) uint8, or what frozen stages gave of them; labels (B,) int64; the seed of its
    randomness; and of how many images it is a part, where several processes share a batch. An evaluation's last batch
    may leave a process no image."""

    images: torch.Tensor
    labels: torch.Tensor
    seed: int
    total: int

    @property
    def is_features(self) -> bool:
        """Whether `images` are what frozen stages gave of the images, which the network takes as it is."""
        return self.images.is_floating_point()


class Batches(Protocol):
    """Where a training takes its batches from.

    Attributes:
        num_images: images that there are.
    """

    num_images: int

    def __len__(self) -> int:
        """Batches an epoch."""

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from the batch `start` (from 0) on."""


class _Key(NamedTuple):
    """What makes a batch: the seed of its randomness, its rows, and how many images all processes' parts have."""

    seed: int
    rows: tuple[int, ...]
    total: int


class _Failed(NamedTuple):
    """What a worker sends in place of a batch: torch would wrap the error's own message in a traceback."""

    reason: str


class _BatchDataset(Dataset["Batch | _Failed"]):
    def __init__(self, images: Images, labels: npt.NDArray[np.int64], pipeline: Pipeline) -> None:
        self.images, self._labels, self._pipeline = images, labels, pipeline
        self._block: Gatherable | None = None
        if isinstance(images, Gatherable) and images.size is not None and pipeline.keeps(*images.size):
            self._block = images

    def batch(self, key: _Key) -> Batch:
        labels = self.labels(key.rows)
        if self._block is not None and key.rows:
            return Batch(torch.from_numpy(self._block.gather(key.rows)), labels, key.seed, key.total)
        if not key.rows:
            return Batch(_empty(0, 0, 0, 0), labels, key.seed, key.total)
        self._pipeline.seed(key.seed)
        first = self._pipeline(self.images[key.rows[0]])
        images = _empty(len(key.rows), *first.shape)
        # Each is copied while it is still in the processor's cache.
        pixels = images.numpy()
        pixels[0] = first
        for k, row in enumerate(key.rows[1:], 1):
            pixels[k] = self._pipeline(self.images[row])
        return Batch(images, labels, key.seed, key.total)

    def labels(self, rows: Sequence[int]) -> torch.Tensor:
        return torch.from_numpy(self._labels[np.asarray(rows, np.int64)])

    def __getitem__(self, key: _Key) -> Batch | _Failed:
        try:
            return self.batch(key)
        except UserError as error:
            return _Failed(str(error))


def _empty(*shape: int) -> torch.Tensor:
    """A uint8 tensor; in a worker it lies in shared memory from the start, as in torch's own collating."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storages: Any = torch.UntypedStorage  # torch's own annotations leave these out
    empty: Any = torch.empty(0, dtype=torch.uint8)
    shared: torch.Tensor = empty.set_(storages._new_shared(math.prod(shape)), 0, shape)
    return shared


def part_of(count: int, *, rank: int, processes: int) -> slice:
    """Which of a batch's images are one process's: one stretch, no longer than another's by more than one."""
    each, more = divmod(count, processes)
    begin = rank * each + min(rank, more)
    return slice(begin, begin + each + (rank < more))


def num_training_batches(num_images: int, batch_size: int, *, processes: int = 1) -> int:
    """Batches of a training's epoch.

    A last batch of one image for a process would break batch normalisation; it waits for another epoch.
    """
    whole, rest = divmod(num_images, batch_size)
    return whole + (rest >= (2 * processes if whole else 1))


class _EpochKeys(Sampler[_Key]):
    """The keys of one epoch's batches; the loader sets `epoch`, `start` and `once_each` before each."""

    def __init__(
        self,
        count: int,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        chances: npt.NDArray[np.float64] | None,
        rank: int,
        processes: int,
    ) -> None:
        self._count, self._batch_size, self._seed, self._shuffle = count, batch_size, seed, shuffle
        self._rank, self._processes = rank, processes
        self._chances = None if chances is None else chances / chances.sum()
        self.epoch = self.start = 0
        self.once_each = False

    def __len__(self) -> int:
        if self._shuffle:
            return num_training_batches(self._count, self._batch_size, processes=self._processes)
        return math.ceil(self._count / self._batch_size)

    def __iter__(self) -> Iterator[_Key]:
        return self.each_once(self.epoch) if self.once_each else self.of(self.epoch, self.start)

    def of(self, epoch: int, start: int) -> Iterator[_Key]:
        """The keys of that epoch, from the batch `start` (from 0) on."""
        order = np.arange(self._count)
        generator = np.random.default_rng([self._seed, epoch])
        if self._chances is not None:
            order = generator.choice(self._count, self._count, p=self._chances)
        elif self._shuffle:
            order = generator.permutation(self._count)
        for batch in range(start, len(self)):
            yield self._key(order, epoch, batch)

    def each_once(self, epoch: int) -> Iterator[_Key]:
        """The keys of a pass over every image once, in the order and with the randomness of an epoch without chances.

        Epoch 0, which no training has, is in the images' own order.
        """
        generator = np.random.default_rng([self._seed, epoch])
        order = generator.permutation(self._count) if self._shuffle and epoch else np.arange(self._count)
        for batch in range(math.ceil(self._count / self._batch_size)):
            yield self._key(order, epoch, batch)

    def _key(self, order: npt.NDArray[np.int64], epoch: int, batch: int) -> _Key:
        rows = order[batch * self._batch_size : (batch + 1) * self._batch_size]
        # The first process has the seed of one alone.
        sources = [self._seed, epoch, batch] + [self._rank] * (self._rank > 0)
        seed = int(np.random.SeedSequence(sources).generate_state(1)[0])
        part = rows[part_of(len(rows), rank=self._rank, processes=self._processes)]
        return _Key(seed, tuple(int(row) for row in part), len(rows))


class Loader:
    """Images in batches, epoch by epoch.

    Args:
        images: the images.
        labels: (N,) their labels.
        pipeline: applied to each image; must give images of one size.
        batch_size: images a batch, of all processes together; the last batch may be smaller.
        seed: seed of the order and of the pipeline.
        shuffle: True for training: another order each epoch.
        chances: (N,) for training: an epoch draws N images with replacement, each in proportion to its chance.
        num_workers: processes that make batches; 0 makes them in this one.
        prefetch: batches that each process makes ahead.
        pin_memory: page-lock the batches for asynchronous copies to a GPU.
        rank: which of the processes that share each batch this is. The order is the same in all, and the randomness of
            a part depends on (seed, epoch, batch, rank).
        processes: how many they are; a training batch must have two images at least for each.

    Attributes:
        num_images: the images of an epoch.
        num_workers: as given.
        batch_size: as given.
        decodes: images are decoded anew in every epoch, for want of a store.
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
        prefetch: int = 2,
        pin_memory: bool = False,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.num_images, self.num_workers, self.batch_size = len(images), num_workers, batch_size
        self._subject = (images, labels, pipeline)
        self._options: dict[str, Any] = {
            "seed": seed, "shuffle": shuffle, "chances": chances, "num_workers": num_workers, "prefetch": prefetch,
            "pin_memory": pin_memory, "rank": rank, "processes": processes,
        }  # fmt: skip
        self.decodes = isinstance(images, DecodedImages)
        self._keys = _EpochKeys(
            len(images),
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            chances=chances,
            rank=rank,
            processes=processes,
        )
        self._dataset = _BatchDataset(images, labels, pipeline)
        self._pin_memory = pin_memory
        self._loader: DataLoader[Batch | _Failed] | None = None
        if num_workers > 0:
            self._loader = DataLoader(
                self._dataset,
                batch_size=None,
                sampler=self._keys,
                num_workers=num_workers,
                prefetch_factor=prefetch,
                pin_memory=pin_memory,
                persistent_workers=True,
                worker_init_fn=_init_worker,
                # Its own, or an epoch would draw from the generator of dropout, more often without workers than with.
                generator=torch.Generator(),
                multiprocessing_context="fork" if sys.platform == "linux" else None,
            )

    @property
    def images(self) -> Images:
        """The images, as they come before the pipeline."""
        return self._dataset.images

    def rebatched(self, batch_size: int) -> "Loader":
        """A loader of the same images in batches of another size, and so in another random variation."""
        return Loader(*self._subject, batch_size=batch_size, **self._options)

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self._keys)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from the batch `start` (from 0) on; equal epochs give bit-identical batches.

        Raises:
            UserError: while it is read: an image cannot be read any more, or a process that makes batches has died.
        """
        if self._loader is None:
            return self._here(self._keys.of(epoch, start))
        return self._from_workers(epoch, start, self._loader)

    def epoch_of(
        self, epoch: int, gather: Callable[[Sequence[int]], torch.Tensor], *, start: int = 0
    ) -> Iterator[Batch]:
        """The same batches with what `gather` gives of their rows in place of the images, of which none is read."""
        for key in self._keys.of(epoch, start):
            batch = Batch(gather(key.rows), self._dataset.labels(key.rows), key.seed, key.total)
            yield self._pinned(batch)

    def each_once(self, epoch: int) -> Iterator[tuple[tuple[int, ...], Batch]]:
        """(rows, batch) of a pass over every image once, also where an epoch draws by chance or leaves one over.

        Where it does not, these are the epoch's batches and the image that was left over. Epoch 0, which no training
        has, is in the images' own order.

        Raises:
            UserError: as `epoch`.
        """
        if self._loader is None:
            batches = self._here(self._keys.each_once(epoch))
        else:
            batches = self._from_workers(epoch, 0, self._loader, once_each=True)
        for key, batch in zip(self._keys.each_once(epoch), batches, strict=True):
            yield key.rows, batch

    def each_once_of(
        self, epoch: int, gather: Callable[[Sequence[int]], torch.Tensor]
    ) -> Iterator[tuple[tuple[int, ...], Batch]]:
        """As `each_once`, with what `gather` gives of the rows in place of the images, of which none is read."""
        for key in self._keys.each_once(epoch):
            yield key.rows, Batch(gather(key.rows), self._dataset.labels(key.rows), key.seed, key.total)

    def _here(self, keys: Iterator[_Key]) -> Iterator[Batch]:
        for key in keys:
            yield self._pinned(self._dataset.batch(key))

    def _pinned(self, batch: Batch) -> Batch:
        if not self._pin_memory or batch.images.is_cuda:
            return batch
        return batch._replace(images=batch.images.pin_memory(), labels=batch.labels.pin_memory())

    def _from_workers(
        self, epoch: int, start: int, loader: "DataLoader[Batch | _Failed]", *, once_each: bool = False
    ) -> Iterator[Batch]:
        try:
            self._keys.epoch, self._keys.start, self._keys.once_each = epoch, start, once_each
            batches = iter(loader)
            _note_deaths()
            for batch in batches:
                if isinstance(batch, _Failed):
                    raise UserError(batch.reason)
                yield batch
        except (RuntimeError, ConnectionError, FileNotFoundError, EOFError) as error:
            # The latter where it died with a batch half-way. "Caught": the worker lives, and tells of a bug.
            if str(error).startswith("Caught ") or (type(error) is RuntimeError and _WORKER not in str(error)):
                raise
            raise _dead_worker(str(error) or type(error).__name__) from error


class _Deaths:
    """In place of torch's handler of SIGCHLD: notes why a worker died.

    torch's raises in whatever this process is doing at that moment, which may be the closing of the run. The loader
    notices by itself, some seconds later at most, when it waits for that worker's batch.
    """

    def __init__(self, handler: Callable[[int, FrameType | None], object]) -> None:
        self._handler = handler
        self.last = ""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self._handler(number, frame)
        except RuntimeError as error:
            self.last = str(error)


def _note_deaths() -> None:
    handler = signal.getsignal(signal.SIGCHLD)
    in_main = threading.current_thread() is threading.main_thread()
    if isinstance(handler, _Deaths):
        handler.last = ""
    elif in_main and callable(handler):
        signal.signal(signal.SIGCHLD, _Deaths(handler))


def _dead_worker(found: str) -> UserError:
    """The error for a worker that died: most often the kernel killed it for want of memory."""
    handler = signal.getsignal(signal.SIGCHLD)
    found = (handler.last if isinstance(handler, _Deaths) else "") or found
    found = found.split(" It is possible")[0].rstrip(". ")
    if "Bus error" in found:
        return UserError(
            f"a process that makes batches died: {found}. Shared memory (/dev/shm) is most likely full: enlarge it "
            "(docker run --shm-size=8g), or lower data.prefetch, data.num_workers or train.batch_size; "
            "--data.num_workers 0 needs none."
        )
    return UserError(
        f"a process that makes batches died: {found}. Where nobody killed it, memory ran out: lower data.num_workers "
        "(0 makes batches in the training process), data.prefetch or train.batch_size."
    )


def _init_worker(_worker: int) -> None:
    import cv2

    cv2.setNumThreads(0)
    # A Ctrl-C reaches the whole process group; the training process decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def resolve_num_workers(asked: int | Literal["auto"], *, device: str, processes: int = 1) -> int:
    """Worker processes: as asked, or what suits the cores that this process may use, beside others like it.

    `auto` beside a GPU is one less than there are, 8 at most. On a CPU the network itself keeps the cores busy, so a
    worker pays only where one in eight can be spared: none below 16 cores, and 4 at most.
    """
    if asked != "auto":
        return asked
    cores = num_cores() // processes
    if device == "cpu":
        return 0 if cores < 16 else min(4, cores // 8)
    return min(8, max(1, cores - 1))


def num_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # a scheduler may have given this process some of the machine's cores
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 2


def resolve_prefetch(asked: int | Literal["auto"], *, num_workers: int, batch_bytes: int) -> int:
    """Batches that each worker makes ahead: as asked; `auto` is 2, or 1 where they would fill half of /dev/shm.

    Containers often have 64 MiB of it, and a worker that finds it full dies.
    """
    if asked != "auto":
        return asked
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:  # not Linux
        return 2
    return 2 if 2 * num_workers * batch_bytes <= free // 2 else 1
