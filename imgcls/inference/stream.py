"""A model's probabilities for any number of images, one after the other, in bounded memory."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from imgcls.data.augment import Preprocessing
from imgcls.data.decode import Pixels
from imgcls.errors import UserError
from imgcls.evaluation.ensemble import combine
from imgcls.inference.classifier import Classifier, exact_convolutions
from imgcls.inference.ensemble import Ensemble, Model, members_of
from imgcls.inference.views import ONE, ViewMaker, Views

Probabilities = npt.NDArray[np.float32]
BATCH_SIZE = 64
"""Images a batch, of all views together, where nothing else is asked for."""
MOST_THREADS = 16


class Item(NamedTuple):
    """An image to be looked at.

    Attributes:
        name: its id; random views are drawn from it.
        read: gives encoded bytes, or (H, W[, C]) uint8 pixels.
    """

    name: str
    read: Callable[[], bytes | Pixels]


class Seen(NamedTuple):
    """What a model says of an image.

    Attributes:
        name: its id.
        probs: (C,) probabilities; None where it cannot be read.
        error: why it cannot be read; "" where it can.
    """

    name: str
    probs: Probabilities | None
    error: str


@dataclass(frozen=True)
class _Loaded:
    name: str
    views: dict[Preprocessing, Pixels]
    """(V, S, S, C) for each preprocessing that a member has."""
    error: str


def stream(
    model: Model,
    items: Iterable[Item],
    *,
    views: Views = ONE,
    device: str = "cpu",
    batch_size: int = BATCH_SIZE,
    num_threads: int | None = None,
) -> Generator[Seen]:
    """What the model says of each image, in their order; computed in fp32, as a served model computes it.

    While one batch is computed, the next ones are read and decoded by threads. At most three batches are in memory.

    Args:
        model: a classifier or an ensemble; it is moved to the device, put into evaluation mode, and stays so.
        items: the images; read when their turn comes.
        views: what is looked at of each.
        device: where to compute.
        batch_size: images that are computed together, of all views, 1 or more.
        num_threads: that read images; None: one for each core, up to 16.

    Raises:
        UserError: views are those of a training that is not known.
    """
    members = members_of(model)
    distinct = dict.fromkeys(member.preprocessing for member in members)
    for member in members:
        member.module.to(device).eval()
    for steps in distinct:
        ViewMaker(steps, views)  # fails here, and not in a thread
    size = max(1, batch_size // views.num)
    makers = threading.local()

    def load(item: Item) -> _Loaded:
        if not hasattr(makers, "each"):
            makers.each = {steps: ViewMaker(steps, views) for steps in distinct}
        try:
            image = item.read()
            return _Loaded(item.name, {steps: maker(image, item.name) for steps, maker in makers.each.items()}, "")
        except (UserError, OSError) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return _Loaded(item.name, {}, why)

    waiting: deque[list[Future[_Loaded]]] = deque()
    source = iter(items)
    pool = ThreadPoolExecutor(num_threads or min(MOST_THREADS, os.cpu_count() or 1))
    try:
        while True:
            while len(waiting) < 3 and (some := list(islice(source, size))):
                waiting.append([pool.submit(load, item) for item in some])
            if not waiting:
                return
            yield from _batch(model, [future.result() for future in waiting.popleft()], views, batch_size)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batch(model: Model, loaded: list[_Loaded], views: Views, batch_size: int) -> Iterator[Seen]:
    good = [item for item in loaded if not item.error]
    found: Iterator[Probabilities] = iter(())
    if good:
        pixels = {steps: np.concatenate([item.views[steps] for item in good]) for steps in good[0].views}
        each = [_member(member, pixels[member.preprocessing], views, batch_size) for member in members_of(model)]
        found = iter(model.combined(each) if isinstance(model, Ensemble) else each[0])
    for item in loaded:
        yield Seen(item.name, None if item.error else next(found), item.error)


def _member(member: Classifier, pixels: Pixels, views: Views, batch_size: int) -> Probabilities:
    """(N, C) probabilities of N times V (S, S, C) views, those of an image next to each other."""
    with exact_convolutions():
        probs = np.concatenate(
            [member.of_pixels(pixels[k : k + batch_size]) for k in range(0, len(pixels), batch_size)]
        )
    if views.num == 1:
        return probs
    by_view = probs.reshape(-1, views.num, probs.shape[1])
    return combine([by_view[:, number] for number in range(views.num)], how=views.combine).astype(np.float32)
