"""The speed of execution plans: training steps of the candidates are timed on copies of the model."""

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from imgcls.data.augment import Preprocessing
from imgcls.data.loading import Batch
from imgcls.training.optim import OptimConfig
from imgcls.training.plan import AUTO, Layout, Plan, PlanConfig, Precision, half_precision
from imgcls.training.trainer import Totals, Trainer

GAIN = 1.05
"""A candidate must be so many times as fast as a simpler one; less is noise."""
SHORT_JOB_S = 30.0
"""A training predicted to take less is not measured."""
SLOW, HOPELESS = 1.5, 3.0
"""A candidate is dropped whose step takes so many times as long as the fastest one's; and on few images, so many."""
PROBE_IMAGES = 8
MOST_STEPS = 6
LOSS_STEPS, LOSS_TOLERANCE = 3, 0.1
"""The mean loss of the first steps may differ so much from that in fp32: relative, or absolute where it is below 1."""
NO_TIME = "no time was left"


@dataclass(frozen=True)
class Job:
    """What is to be trained.

    Attributes:
        model: the network, its stages frozen as at the start; it is copied and never changed.
        optim: the recipe's `optim` section.
        preprocessing: from uint8 batches to inputs.
        image_size: pixels on each side of the images.
        batch_size: images a step.
        num_classes: width of the logits.
        num_steps: steps of the whole training.
        num_compiles: how often the training has to compile: once, and once more for every thaw.
    """

    model: nn.Module
    optim: OptimConfig
    preprocessing: Preprocessing
    image_size: int
    batch_size: int
    num_classes: int
    num_steps: int
    num_compiles: int = 1


@dataclass(frozen=True)
class Measured:
    """What became of a candidate.

    Attributes:
        plan: the candidate, as text.
        images_per_s: of the training step alone; nan where it was not measured to the end.
        loss: mean over the first steps; nan where there was none.
        compile_s: seconds that compiling took; 0 where nothing is compiled.
        steps: steps timed.
        note: why it is out, or "".
    """

    plan: str
    images_per_s: float
    loss: float
    compile_s: float
    steps: int
    note: str = ""


def fastest(rows: list[Measured], plan: Plan) -> Plan:
    """The fastest of the rows, of which a later one must be clearly faster than those before it; or else `plan`."""
    best: Measured | None = None
    for row in rows:
        if not math.isnan(row.images_per_s) and (best is None or row.images_per_s > GAIN * best.images_per_s):
            best = row
    return plan if best is None else Plan.parse(best.plan)


class _Failed(Exception):
    """A candidate's figures are not those of fp32."""


class Bench:
    """Times training steps on copies of a job's model."""

    def __init__(self, job: Job, device: str) -> None:
        self.job, self._device = job, device
        self._batches: dict[int, Batch] = {}
        self._references: dict[tuple[int, bool], float] = {}
        """(images, whether compiled) -> mean loss that the first steps with as many must have: that of fp32, or where
        compiled that of the same plan without."""
        self._probe_s = self._step_s = math.inf
        self._num_images = job.batch_size

    def predict(self, plan: Plan) -> float:
        """Seconds that an eager step of the job takes, at most; 0 where the model fails."""
        size = self.job.batch_size
        probe = min(PROBE_IMAGES, size)
        try:
            with self._stepping(replace(plan, compile=False)) as step:
                seconds = step(probe) * size / probe
                if seconds * self.job.num_steps >= SHORT_JOB_S:  # the first step of all is a slow one
                    seconds = min(seconds, step(probe) * size / probe)
                if seconds * self.job.num_steps >= SHORT_JOB_S and seconds < 1 and self.job.num_steps >= 200:
                    seconds = min(seconds, step(size), step(size))
                return seconds
        except Exception:  # the training will fail in the same way, and tell
            return 0.0

    def eager(self, config: PlanConfig, plan: Plan, budget: float, step_s: float) -> list[Measured]:
        """The candidates that fit the config, measured within a budget; the first is what others are held against.

        Args:
            config: the recipe's `train.plan`.
            plan: the plan without measuring.
            budget: seconds for all.
            step_s: what a step of the job is predicted to take.
        """
        deadline = time.perf_counter() + budget
        share = budget / 12  # for a step: four candidates of three
        self._num_images = min(self.job.batch_size, max(2, int(self.job.batch_size * share / step_s)))
        rows: list[Measured] = []
        candidates = _candidates(config, plan)
        for number, candidate in enumerate(candidates):
            left = deadline - time.perf_counter()
            if number and left < 2 * self._step_s:
                rows.append(Measured(str(candidate), math.nan, math.nan, 0.0, 0, NO_TIME))
            else:
                rows.append(self.measure(candidate, seconds=left / (len(candidates) - number)))
        best = fastest(rows, plan)
        threads = (best.threads or 1) // 2
        while config.threads == AUTO and threads >= 2 and deadline - time.perf_counter() > 4 * self._step_s:
            rows.append(self.measure(replace(best, threads=threads), seconds=deadline - time.perf_counter()))
            if fastest(rows, plan).threads != threads:
                break
            threads //= 2
        return rows

    def measure(self, plan: Plan, *, seconds: float) -> Measured:
        """One candidate, in about so many seconds but with its first steps in any case; a compiled one at the job's
        batch size."""
        end = time.perf_counter() + seconds
        count = self.job.batch_size if plan.compile else self._num_images
        probe = count if plan.compile else min(PROBE_IMAGES, count)
        loss, compile_s, nothing = math.nan, 0.0, math.nan
        try:
            if plan.compile:
                with self._stepping(replace(plan, compile=False)) as step:
                    self._references[count, True] = _mean_loss(step, count, end)[0]
            with self._stepping(plan) as step:
                loss, first_s, probe_s = _mean_loss(step, probe, end)
                compile_s = max(0.0, first_s - probe_s) if plan.compile else 0.0
                self._check(loss, probe, plan)
                if not plan.compile and probe_s > HOPELESS * self._probe_s:
                    return Measured(str(plan), nothing, loss, 0.0, 0, "slow")
                self._probe_s = min(self._probe_s, probe_s)
                times = [probe_s] if probe == count else []
                if probe < count:
                    step(count)  # what is made once for a shape
                self._time(step, count, end, times)
        except _Failed as error:
            return Measured(str(plan), nothing, loss, compile_s, 0, f"failed: {error}")
        except Exception as error:  # whatever a candidate does, the training goes on without it
            return Measured(str(plan), nothing, nothing, compile_s, 0, f"failed: {_in_a_line(error)}")
        self._step_s = min(self._step_s, *times)
        return Measured(str(plan), count / min(times), loss, compile_s, len(times))

    def _check(self, loss: float, num_images: int, plan: Plan) -> None:
        if not math.isfinite(loss):
            raise _Failed(f"its loss is {loss}")
        if plan.precision == "fp32" and not plan.compile:
            self._references[num_images, False] = loss
        right = self._references.get((num_images, plan.compile), loss)
        if abs(loss - right) > LOSS_TOLERANCE * max(1.0, abs(right)):
            raise _Failed(f"its loss is {loss:.4g} where {right:.4g} is right")

    def _time(self, step: Callable[..., float], count: int, end: float, times: list[float]) -> None:
        """Add the seconds of more steps to `times`, until there are enough or the candidate is clearly a slow one."""
        while len(times) < MOST_STEPS:
            if times and (time.perf_counter() + min(times) > end or min(times) > SLOW * self._step_s):
                return
            times.append(step(count))

    @contextlib.contextmanager
    def _stepping(self, plan: Plan) -> Iterator[Callable[..., float]]:
        """A function that does a training step on so many images, and gives the seconds that it took."""
        torch.manual_seed(0)
        job = self.job
        with plan.threaded():
            # Only the speed does not depend on the learning rate; with a low one the losses of all plans stay together.
            optim = job.optim.model_copy(update={"lr": job.optim.lr / 10})
            trainer = Trainer(
                copy.deepcopy(job.model), optim, job.preprocessing, plan,
                num_steps=max(job.num_steps, 2), batch_size=job.batch_size, class_weights=None, mixing=None,
            )  # fmt: skip

            def step(count: int, losses: list[float] | None = None) -> float:
                totals = Totals(plan.device)
                batch = self._batch(count)
                self._wait()
                begin = time.perf_counter()
                trainer.step(batch, steps_per_epoch=job.num_steps, totals=totals)
                self._wait()
                seconds = time.perf_counter() - begin
                if losses is not None:
                    losses.append(totals.means()[0])
                return seconds

            yield step

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()

    def _batch(self, count: int) -> Batch:
        if count not in self._batches:
            generator = np.random.default_rng(0)
            side, channels = self.job.image_size, self.job.preprocessing.channels
            images = torch.from_numpy(generator.integers(0, 256, (count, side, side, channels), dtype=np.uint8))
            labels = torch.from_numpy(generator.integers(0, self.job.num_classes, count))
            self._batches[count] = Batch(images, labels, 0, count)
        return self._batches[count]


def _in_a_line(error: Exception) -> str:
    """What an error says first; torch.compile's says first only that something else was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason given"]
    said = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    return f"{type(error).__name__}: {said}"[:300]


def _mean_loss(step: Callable[..., float], count: int, end: float) -> tuple[float, float, float]:
    """(mean loss of the first steps, seconds of the first, of the fastest of the others); two at least, even after
    the time `end`."""
    losses: list[float] = []
    times: list[float] = []
    while len(times) < 2 or (len(times) < LOSS_STEPS and time.perf_counter() < end):
        times.append(step(count, losses))
    return sum(losses) / len(losses), times[0], min(times[1:])


def _candidates(config: PlanConfig, plan: Plan) -> list[Plan]:
    """The eager plans worth measuring: the one without measuring first, then the one that most often wins."""
    half = config.precision if config.precision in ("bf16", "fp16") else half_precision(plan.device)
    pairs: list[tuple[Precision, Layout]] = [("fp32", "nhwc"), (half, "nhwc"), ("fp32", "nchw"), (half, "nchw")]
    if plan.device == "cuda":
        pairs = [(half, "nchw"), (half, "nhwc"), ("fp32", "nhwc"), ("fp32", "nchw")]
    return [
        replace(plan, compile=False, precision=precision, layout=layout)
        for precision, layout in pairs
        if config.precision in (AUTO, precision) and config.layout in (AUTO, layout)
    ]
