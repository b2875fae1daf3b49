"""From images as they come to batches of pixels: decoded in threads, while the network computes if cores are free."""

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from imgcls.data.decode import DecodeError, Pixels

Load = Callable[[bytes | Pixels], Pixels]
Loaded = Pixels | DecodeError
"""An image's pixels, or why there are none."""

MOST_THREADS = 8
BATCHES, LEAST_BATCH = 4, 8
"""Images that would be one batch are made into four, of at least eight images, where that lets decoding run ahead."""
LARGE_BYTES = 2**12
"""Encoded images of at least so many bytes on average (pixels: 16 times as many) are worth a second thread: the
decoder lets other threads run, but the Python around it does not."""


def decoded(
    images: Sequence[bytes | Pixels], load: Load, *, batch_size: int, busy_cores: int
) -> Generator[list[Loaded], None, None]:
    """The images in batches, in their order, each as pixels or as the error that its bytes gave.

    Where the network leaves cores free, the next batch is decoded there while it computes; where it takes all of
    them, decoding takes all of them too, before it: in turn is faster than at once on the same cores.

    Args:
        images: encoded bytes or uint8 pixels.
        load: from one image to pixels; called from several threads.
        batch_size: images a batch, at most.
        busy_cores: cores that the network computes on; 0 where that is another device.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free, large = cores - busy_cores, _large(images)
    if free > 0 and large:
        batch_size = min(batch_size, max(LEAST_BATCH, -(-len(images) // BATCHES)))
    parts = [images[begin : begin + batch_size] for begin in range(0, len(images), batch_size)]
    threads = min(free if free > 0 else cores, MOST_THREADS) if large else 1
    ahead = free > 0 and len(parts) > 1
    if not ahead and (threads == 1 or len(images) == 1):
        yield from (_load_all(load, part) for part in parts)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="imgcls-decode") as pool:
        tasks = (_start(pool, load, part, threads) for part in parts)
        begun = [next(tasks)] if ahead else []
        for _ in parts:
            begun += islice(tasks, 1)
            yield _gathered(begun.pop(0))


def _large(images: Sequence[bytes | Pixels]) -> bool:
    total = sum(len(image) if isinstance(image, bytes) else image.nbytes / 16 for image in images)
    return total >= LARGE_BYTES * len(images)


def _start(
    pool: ThreadPoolExecutor, load: Load, part: Sequence[bytes | Pixels], threads: int
) -> list["Future[list[Loaded]]"]:
    """One task a thread, with every `threads`-th image: so many small tasks would cost more than they spread."""
    return [pool.submit(_load_all, load, part[first::threads]) for first in range(min(threads, len(part)))]


def _gathered(tasks: list["Future[list[Loaded]]"]) -> list[Loaded]:
    """What the tasks of one batch loaded, in the batch's order."""
    strands = [task.result() for task in tasks]
    return [strands[k % len(strands)][k // len(strands)] for k in range(sum(map(len, strands)))]


def _load_all(load: Load, images: Sequence[bytes | Pixels]) -> list[Loaded]:
    found: list[Loaded] = []
    for image in images:
        try:
            found.append(load(image))
        except DecodeError as error:
            found.append(error)
    return found
