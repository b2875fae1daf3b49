"""The largest batch that memory holds, and the one that is fastest, found by training on batches of each size."""

import copy
import gc
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn

from imgcls.data.augment import Preprocessing
from imgcls.data.loading import Batch
from imgcls.training.fit import TrainConfig, build_trainer
from imgcls.training.optim import OptimConfig
from imgcls.training.plan import Plan
from imgcls.training.trainer import Totals

SMALLEST = 8
"""The first size that is tried."""
SHARE = 0.8
"""Of the memory that is free, so much may be taken; the rest is a margin for what else a training holds."""
STEADY = 0.03
"""A size counts as fastest where no larger one is faster by more than this share: smaller batches learn in more
steps."""
LEAST_STEPS, LEAST_SECONDS = 2, 0.5
"""How long a size is measured at least, after one step that is not counted."""


@dataclass(frozen=True)
class Tried:
    """What training on batches of one size took.

    Attributes:
        batch_size: images.
        images_per_s: of forward, backward and update; None where memory ran out.
        memory: bytes that a step took at its highest, beside what was there before; None where it ran out.
    """

    batch_size: int
    images_per_s: float | None
    memory: int | None


@dataclass(frozen=True)
class Found:
    """What a search gives.

    Attributes:
        tried: the sizes, smallest first.
        largest: the largest size that memory holds, measured or, where `ended` says so, estimated; None: not even the
            smallest.
        fastest: the size to take for speed; None likewise.
        memory_free: bytes that a step may take.
        ended: why no larger size was tried.
    """

    tried: list[Tried]
    largest: int | None
    fastest: int | None
    memory_free: int
    ended: str


def search(
    measure: Callable[[int], Tried],
    *,
    memory_free: int,
    most: int,
    seconds: float = math.inf,
    refine: bool = False,
    predicts: bool = True,
    stop: Callable[[], bool] = lambda: False,
    on_tried: Callable[[Tried], None] = lambda _tried: None,
) -> Found:
    """Double the batch until it does not fit, or would not, or takes too long.

    Args:
        measure: trains on batches of a size.
        memory_free: bytes that a step may take.
        most: the largest size to try.
        seconds: no size is begun that would end later than this; one step is expected to take time in proportion.
        refine: halve the gap between the largest that fits and the smallest that does not, three times.
        predicts: do not try a size whose memory, going on as from the last size to this, would exceed `memory_free`;
            for a CPU, where trying it would swap or have this process killed.
        stop: asked before each size; true ends the search.
        on_tried: told each size.
    """
    tried: list[Tried] = []
    begin = time.monotonic()
    size, limit, ended = min(SMALLEST, most), most + 1, ""
    while not ended:
        expected = expected_memory(tried, size) if predicts else 0
        if stop():
            ended = "stopped"
        elif expected > memory_free:
            limit, ended = size, f"batches of {size:,} would take {expected / 2**20:,.0f} MiB"
        elif tried and time.monotonic() - begin + _expected_seconds(tried, size) > seconds:
            ended = "the time was up"
        else:
            result = measure(size)
            tried.append(result)
            on_tried(result)
            if result.memory is None or result.memory > memory_free:
                limit, ended = size, f"batches of {size:,} do not fit"
            elif size == most:
                ended = f"batches of {most:,} were the largest to try"
        size = min(2 * size, most)
    fitting = [one for one in tried if one.batch_size < limit]
    if refine and fitting and limit <= most and not stop():
        _refine(measure, tried, limit, memory_free, predicts, on_tried)
        fitting = [one for one in tried if one.memory is not None and one.memory <= memory_free]
    largest = max((one.batch_size for one in fitting), default=None)
    if ended == "the time was up" and predicts and (estimate := _estimate(tried, memory_free, most)):
        largest, ended = estimate, "the time was up; the largest is estimated from the memory that an image takes"
    return Found(sorted(tried, key=lambda one: one.batch_size), largest, _fastest(fitting), memory_free, ended)


def _refine(
    measure: Callable[[int], Tried],
    tried: list[Tried],
    limit: int,
    memory_free: int,
    predicts: bool,
    on_tried: Callable[[Tried], None],
) -> None:
    low, high = max(one.batch_size for one in tried if one.batch_size < limit), limit
    for _ in range(3):
        size = (low + high) // 2
        if size == low:
            return
        if predicts and expected_memory(tried, size) > memory_free:
            high = size
            continue
        result = measure(size)
        tried.append(result)
        on_tried(result)
        low, high = (low, size) if result.memory is None or result.memory > memory_free else (size, high)


def expected_memory(tried: list[Tried], size: int) -> int:
    """Bytes for a batch of `size`, on the line through the two largest sizes that were measured; 0 before those."""
    known = sorted((one.batch_size, one.memory) for one in tried if one.memory is not None)
    if not known:
        return 0
    count, memory = known[-1]
    if len(known) == 1:
        return int(memory * size / count)
    before, less = known[-2]
    per_image = max(0.0, (memory - less) / (count - before))
    return int(memory + per_image * (size - count))


def _expected_seconds(tried: list[Tried], size: int) -> float:
    rate = tried[-1].images_per_s
    return 0.0 if rate is None else max((1 + LEAST_STEPS) * size / rate, size / rate + LEAST_SECONDS)


def _estimate(tried: list[Tried], memory_free: int, most: int) -> int | None:
    """The largest power of two, from what was tried on, whose expected memory is free; None where no size is known."""
    fits = [one.batch_size for one in tried if one.memory is not None]
    if len(fits) < 2:
        return None
    size = max(fits)
    while 2 * size <= most and expected_memory(tried, 2 * size) <= memory_free:
        size *= 2
    return size


def _fastest(fitting: list[Tried]) -> int | None:
    rates = {one.batch_size: one.images_per_s for one in fitting if one.images_per_s is not None}
    best = max(rates.values(), default=0.0)
    return min((size for size, rate in rates.items() if rate >= (1 - STEADY) * best), default=None)


def measurer(
    model: nn.Module, batch: Batch, *, config: TrainConfig, optim: OptimConfig, preprocessing: Preprocessing, plan: Plan
) -> Callable[[int], Tried]:
    """A function that trains a copy of the model on batches of a size, made of the images of `batch` over and over."""
    warm = False

    def measure(size: int) -> Tried:
        nonlocal warm
        if not warm:  # what the first step of a process takes besides would pass for memory of its images
            warm = True
            measure(2)
        repeats = -(-size // len(batch.labels))
        images = batch.images.repeat(repeats, 1, 1, 1)[:size]
        larger = Batch(images, batch.labels.repeat(repeats)[:size], batch.seed, size)
        try:
            return _measured(model, larger, config, optim, preprocessing, plan)
        except (torch.OutOfMemoryError, MemoryError):
            return Tried(size, None, None)
        except RuntimeError as error:  # what torch's allocator of the CPU raises
            if "not enough memory" not in str(error):
                raise
            return Tried(size, None, None)
        finally:
            gc.collect()
            if plan.device == "cuda":
                torch.cuda.empty_cache()

    return measure


def _measured(
    model: nn.Module,
    batch: Batch,
    config: TrainConfig,
    optim: OptimConfig,
    preprocessing: Preprocessing,
    plan: Plan,
) -> Tried:
    def refuse_parts(reason: str) -> None:
        raise torch.OutOfMemoryError(reason)

    with peak_memory(plan.device) as peak:
        whole = config.model_copy(update={"micro_batch": "auto"})
        trainer = build_trainer(
            copy.deepcopy(model), whole, optim, preprocessing, plan, None, None,
            num_steps=1_000_000, batch_size=len(batch.labels), on_note=refuse_parts,
        )  # fmt: skip
        totals = Totals(plan.device)

        def step() -> None:
            trainer.step(batch, steps_per_epoch=1000, totals=totals)

        step()
        totals.means()  # waits for a GPU
        begin, steps = time.perf_counter(), 0
        while steps < LEAST_STEPS or time.perf_counter() - begin < LEAST_SECONDS:
            step()
            totals.means()
            steps += 1
        seconds = time.perf_counter() - begin
    return Tried(len(batch.labels), steps * len(batch.labels) / seconds, peak())


@contextmanager
def peak_memory(device: str) -> Iterator[Callable[[], int]]:
    """A context that gives the highest memory in it, in bytes beside what was taken when it began.

    On a GPU torch's own count; on a CPU the process's resident memory, looked at every few milliseconds.
    """
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_reserved()
        yield lambda: max(0, torch.cuda.max_memory_reserved() - before)
        return
    process = psutil.Process()
    begin = highest = process.memory_info().rss
    over = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not over.wait(0.005):
            highest = max(highest, process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True, name="imgcls-memory")
    thread.start()
    try:
        yield lambda: highest - begin
    finally:
        over.set()
        thread.join()


def memory_free(device: str) -> int:
    """Bytes that a training may take: `SHARE` of what the device has free, within the container's limit."""
    if device == "cuda":
        free, _total = torch.cuda.mem_get_info()
        return int(SHARE * (free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()))
    free = psutil.virtual_memory().available
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # no such file, or "max"
            root = Path("/sys/fs/cgroup")
            free = min(free, int((root / limit).read_text()) - int((root / used).read_text()))
    return int(SHARE * max(0, free))
