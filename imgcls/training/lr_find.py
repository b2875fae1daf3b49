"""The learning-rate range test: which rates a network learns at, before a training is spent on finding out."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from imgcls.data.augment import Preprocessing
from imgcls.data.loading import Batch, Loader
from imgcls.errors import UserError
from imgcls.training.fit import TrainConfig, build_trainer, seed_all
from imgcls.training.mixing import Mixing
from imgcls.training.optim import OptimConfig
from imgcls.training.plan import Plan
from imgcls.training.trainer import Totals

LOWEST, HIGHEST, STEPS = 1e-6, 10.0, 100
"""What is tested by default: seven powers of ten, about 14 steps for each."""
SMOOTHING = 0.8
"""Weight of what came before in the moving averages of the loss."""
DIVERGED = 4.0
"""How many times its lowest value the smoothed loss reaches where the test ends, as in fastai."""
LEAST_FALL = 0.05
"""Share of the first loss that the loss must fall by, or there is no descent to read a rate from."""
FEWEST = 10
"""Steps below which a curve says nothing."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RangeTest:
    """What a range test measured, a value a step.

    Attributes:
        lrs: (N,) learning rates, rising.
        losses: (N,) loss of each step's batch before the step; only the last may be infinite or not a number.
        passes: how often the images were gone through.
        diverged: the test ended because the loss rose away, not because the highest rate was reached.
    """

    lrs: Values
    losses: Values
    passes: float
    diverged: bool

    @property
    def smoothed(self) -> Values:
        """(N,) losses without most of the noise from batch to batch; see `smooth`."""
        return smooth(self.losses)


@dataclass(frozen=True)
class Suggestion:
    """Learning rates read from a range test, or why there are none.

    Attributes:
        lr: the one to take, that of the steepest descent; None where the loss did not fall.
        tenth: a tenth of the rate with the lowest loss, the other common rule.
        reason: why there is none; empty where there is one.
    """

    lr: float | None
    tenth: float | None
    reason: str = ""


def smooth(losses: Values) -> Values:
    """Exponential moving averages of the losses, forwards and then backwards, so that the curve is not shifted.

    A plain moving average lags behind, which at rates that rise by the step would mean towards higher rates. What is
    infinite or not a number is left out of both and stays as it is.
    """
    finite = np.isfinite(losses)
    smoothed = losses.copy()
    smoothed[finite] = _average(_average(losses[finite])[::-1])[::-1]
    return smoothed


def _average(values: Values) -> Values:
    """Moving averages with the weight of the missing past taken out (Kingma and Ba 2014, arXiv:1412.6980)."""
    averages, total = np.empty_like(values), 0.0
    for k, value in enumerate(values):
        total = SMOOTHING * total + (1 - SMOOTHING) * value
        averages[k] = total / (1 - SMOOTHING ** (k + 1))
    return averages


def check_range(lowest: float, highest: float, num_steps: int) -> None:
    """Refuse what makes no test.

    Raises:
        UserError: the rates do not rise, or there are too few steps.
    """
    if not 0 < lowest < highest <= 100:
        raise UserError(f"the rates go from {lowest:g} to {highest:g}; expected them to rise, above 0 and up to 100.")
    if num_steps < FEWEST:
        raise UserError(f"{num_steps} steps are asked for; expected {FEWEST} or more, {STEPS} is usual.")


def range_test(
    model: nn.Module,
    train: Loader,
    *,
    config: TrainConfig,
    optim: OptimConfig,
    preprocessing: Preprocessing,
    plan: Plan,
    class_weights: npt.NDArray[np.float64] | None = None,
    mixing: Mixing | None = None,
    lowest: float = LOWEST,
    highest: float = HIGHEST,
    num_steps: int = STEPS,
    stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[int, float, float], None] = lambda _step, _lr, _loss: None,
) -> RangeTest:
    """Train a copy of the model at rates that rise from step to step, as far as the loss stays in sight.

    Smith 2015 (arXiv:1506.01186) with rates that rise exponentially, as in fastai's `lr_find`. The model, and torch's
    random numbers, are left as they were; the same seed gives the same losses on a CPU.

    Args:
        model: what is to be trained.
        train: training batches; gone through again where there are fewer than steps.
        config: the recipe's section, whose loss is tested; its seed is that of what is random in the network.
        optim: the recipe's section; its rate and schedule do not count.
        preprocessing: of the recipe.
        plan: where and how to compute.
        class_weights: (C,) weight of each class in the loss.
        mixing: of training images with each other.
        lowest: the first rate.
        highest: the last rate.
        num_steps: steps, which is batches.
        stop: asked before each step; true ends the test early.
        on_step: told the number of each step, its rate and its loss.

    Raises:
        UserError: the rates or the steps make no test, or there are no training batches.
    """
    check_range(lowest, highest, num_steps)
    if len(train) == 0 or train.num_images < 2:
        raise UserError(f"there are too few training images ({train.num_images}); expected two or more.")
    devices = [torch.cuda.current_device()] if plan.device == "cuda" else []
    rates, losses, lowest_yet, average = np.geomspace(lowest, highest, num_steps), list[float](), math.inf, 0.0
    num_images, diverged = 0, False
    with torch.random.fork_rng(devices):
        seed_all(config.seed)
        trainer = build_trainer(
            copy.deepcopy(model), config, optim, preprocessing, plan, class_weights, mixing,
            num_steps=num_steps, batch_size=min(config.batch_size, train.num_images),
        )  # fmt: skip
        for step, batch in enumerate(islice(_batches(train), num_steps)):
            if stop():
                break
            totals = Totals(plan.device)
            trainer.step(batch, steps_per_epoch=len(train), totals=totals, lr=float(rates[step]))
            loss, _ = totals.means()
            losses.append(loss)
            num_images += len(batch.labels)
            on_step(step, float(rates[step]), loss)
            average = SMOOTHING * average + (1 - SMOOTHING) * loss
            unbiased = average / (1 - SMOOTHING ** (step + 1))
            lowest_yet = min(lowest_yet, unbiased)
            if diverged := not math.isfinite(loss) or unbiased > DIVERGED * lowest_yet:
                break
    return RangeTest(rates[: len(losses)], np.array(losses), num_images / train.num_images, diverged)


def _batches(train: Loader) -> Iterator[Batch]:
    for epoch in count(1):
        yield from train.epoch(epoch)


def suggest(test: RangeTest) -> Suggestion:
    """The rate at which the smoothed loss falls most steeply against the logarithm of the rate, up to its lowest point.

    This is the rule of fastai's `steep`; beside it stands a tenth of the rate with the lowest loss, its `minimum`.
    """
    finite = np.isfinite(test.losses)
    if not finite[:1].all() or finite.sum() < FEWEST:
        return Suggestion(
            None, None,
            f"the loss diverged within {len(test.losses)} steps, at a learning rate of {test.lrs[-1]:.1e}. Begin lower "
            "(--lowest), or set train.precision to fp32; look at the data where that does not help.",
        )  # fmt: skip
    lrs, losses = test.lrs[finite], test.smoothed[finite]
    bottom = int(losses.argmin())
    if bottom < 2 or losses[0] - losses[bottom] < LEAST_FALL * abs(losses[0]):
        return Suggestion(
            None, None,
            f"the loss did not fall by {LEAST_FALL:.0%} at any rate from {test.lrs[0]:.1e} to {test.lrs[-1]:.1e} (it "
            f"began at {losses[0]:.3g}, its lowest was {losses[bottom]:.3g}). Take more steps (--steps) or higher "
            "rates (--highest); a network that is trained already has nothing to learn here.",
        )  # fmt: skip
    slopes = np.gradient(losses, np.log10(lrs))[: bottom + 1]
    return Suggestion(float(lrs[slopes.argmin()]), float(lrs[bottom] / 10))
