"""How many images a second the parts of a training could do alone, and the bounds that follow for the whole."""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from imgcls.data.augment import Preprocessing
from imgcls.data.loading import Batch, Loader
from imgcls.training.fit import TrainConfig, build_trainer
from imgcls.training.mixing import Mixing
from imgcls.training.optim import OptimConfig
from imgcls.training.plan import Plan
from imgcls.training.trainer import Totals


class FirstBatches(Loader):
    """The first batches of each epoch of a loader, as a loader.

    Args:
        whole: the loader.
        num_batches: how many, at most as many as it has.
    """

    def __init__(self, whole: Loader, num_batches: int) -> None:
        self._whole, self._num_batches = whole, min(num_batches, len(whole))
        self.num_images, self.num_workers, self.decodes = whole.num_images, whole.num_workers, whole.decodes

    def __len__(self) -> int:
        """Batches an epoch."""
        return self._num_batches

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """The first batches of the epoch, from the batch `start` on."""
        return islice(self._whole.epoch(epoch, start=start), self._num_batches - start)


class Compute:
    """Training steps on one batch over and over: forward, backward and update as in the loop, without its data.

    Args:
        model: copied, and left as it is.
        batch: the batch.
        config: the recipe's section.
        optim: the recipe's section.
        preprocessing: of the recipe.
        plan: where and how to compute.
        class_weights: (C,) weight of each class in the loss.
        mixing: of images with each other.
        stop: when true, a measurement ends early.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        config: TrainConfig,
        optim: OptimConfig,
        preprocessing: Preprocessing,
        plan: Plan,
        class_weights: npt.NDArray[np.float64] | None = None,
        mixing: Mixing | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._stop = stop
        self._batch, self._device = batch, plan.device
        self._trainer = build_trainer(
            copy.deepcopy(model), config, optim, preprocessing, plan, class_weights, mixing,
            num_steps=1_000_000, batch_size=len(batch.labels),
        )  # fmt: skip
        self._totals = Totals(plan.device)

    def images_per_s(self, seconds: float) -> float:
        """Images a second over about so many seconds, two steps at least."""
        begin, steps = time.perf_counter(), 0
        while steps < 2 or (time.perf_counter() - begin < seconds and not self._stop()):
            self._trainer.step(self._batch, steps_per_epoch=1000, totals=self._totals)
            if self._device == "cpu" or steps % 20 == 19:
                self._totals.means()  # as the loop reads them; on a GPU this waits for what it was given
            steps += 1
        self._totals.means()
        return steps * len(self._batch.labels) / (time.perf_counter() - begin)


class Data:
    """Batches made and brought to the network's input, without a network.

    Args:
        train: the training batches.
        preprocessing: of the recipe.
        device: where the input is wanted.
        stop: when true, a measurement ends early.
    """

    def __init__(
        self, train: Loader, *, preprocessing: Preprocessing, device: str, stop: Callable[[], bool] = lambda: False
    ) -> None:
        self._stop = stop
        self._train, self._preprocessing, self._device = train, preprocessing, device
        self._epochs = count(1)

    def images_per_s(self, seconds: float) -> float:
        """Images a second over about so many seconds, from the begin of an epoch on and two batches at least."""
        begin, batches, images = time.perf_counter(), 0, 0
        while True:
            for batch in self._train.epoch(next(self._epochs)):
                self._preprocessing.to_input(batch.images.to(self._device, non_blocking=True))
                batches, images = batches + 1, images + len(batch.labels)
                if batches >= 2 and (time.perf_counter() - begin >= seconds or self._stop()):
                    if self._device == "cuda":
                        torch.cuda.synchronize()
                    return images / (time.perf_counter() - begin)


@dataclass(frozen=True)
class Rates:
    """Images a second of one turn.

    Attributes:
        compute: of training steps alone.
        data: of making batches alone.
        loop: of the real loop, evaluation left out.
    """

    compute: float
    data: float
    loop: float

    @property
    def bound(self) -> float:
        """min(compute, data): what the loop could reach were both done at once on hardware of their own."""
        return min(self.compute, self.data)

    @property
    def serial_bound(self) -> float:
        """What the loop could reach where batches are made and then trained on in turn."""
        return 1 / (1 / self.compute + 1 / self.data)


def loop_rate(*, images_per_epoch: int, steps_images_per_s: float, overhead_s: float) -> float:
    """Images a second of whole epochs.

    Args:
        images_per_epoch: training images.
        steps_images_per_s: of the steps of an epoch, or of a part of one.
        overhead_s: seconds once an epoch for the checkpoint and the log.
    """
    return images_per_epoch / (images_per_epoch / steps_images_per_s + overhead_s)
