"""Choosing the execution plan: the candidates' training steps are timed on copies of the model, and remembered."""

import contextlib
import copy
import hashlib
import json
import math
import os
import platform
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from imgcls.data import cache
from imgcls.data.augment import Preprocessing
from imgcls.data.loading import Batch
from imgcls.training.optim import OptimConfig
from imgcls.training.plan import AUTO, Layout, Plan, PlanConfig, Precision, default_plan, half_precision
from imgcls.training.trainer import Totals, Trainer

SHORT_JOB_S = 30.0
"""A training predicted to take less is not measured."""
MOST_SHARE, MOST_S = 0.03, 8.0
"""What measuring may take: a share of the predicted training, and seconds."""
GAIN = 1.05
"""A candidate must be so many times as fast as a simpler one; less is noise."""
SLOW, HOPELESS = 1.5, 3.0
"""A candidate is dropped whose step takes so many times as long as the fastest one's; and on few images, so many."""
PROBE_IMAGES = 8
MOST_STEPS = 6
LOSS_STEPS, LOSS_TOLERANCE = 3, 0.1
"""The mean loss of the first steps may differ so much from that in fp32: relative, or absolute where it is below 1."""
COMPILE_S, COMPILE_LAYER_S = 20.0, 1.0
"""What compiling is taken to cost before it is tried: seconds, and seconds for each layer with weights."""
COMPILE_SHARE = 0.05
"""Compiling is tried where that is at most this share of the training that is left."""
KIND = "plans"
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


@dataclass(frozen=True)
class Choice:
    """The plan, and what it was chosen by.

    Attributes:
        plan: the plan.
        rows: the candidates measured, in turn; none where nothing was.
        lines: sentences for a person: why this plan, and what failed.
    """

    plan: Plan
    rows: tuple[Measured, ...] = ()
    lines: tuple[str, ...] = ()


def choose_plan(job: Job, device: str, config: PlanConfig) -> Choice:
    """The plan for a training: what is given as it is given, what is `auto` by measuring.

    The candidates' training steps (forward, backward, optimiser) are timed on noise of the job's shape and on copies of
    its model; weights, buffers and torch's, numpy's and Python's generators are as before afterwards. At most
    `MOST_SHARE` of the predicted training is spent, and `MOST_S` seconds; compiling comes on top, where it is tried
    (see `COMPILE_SHARE`). What was measured is kept in the cache folder by model, shapes, versions and hardware.
    A candidate that fails is left out, and a line says so. Nothing is raised for what a candidate does.

    Args:
        job: what is to be trained.
        device: `cpu` or `cuda`.
        config: the recipe's `train.plan`.
    """
    plan = default_plan(device, config)
    with _generators_kept():
        bench = _Bench(job, device)
        rows, lines = _measured(bench, plan, config)
        if rows:
            plan = _fastest(rows, plan)
        if config.compile is not False:
            plan, compiled, line = _compiled(bench, plan, config, rows)
            rows, lines = [*rows, *compiled], [*lines, *line]
    return Choice(plan, tuple(rows), tuple(lines))


def _measured(bench: "_Bench", plan: Plan, config: PlanConfig) -> tuple[list[Measured], list[str]]:
    """The eager candidates, from the cache or measured where the training is long enough; and lines about them."""
    if AUTO not in (config.precision, config.layout, config.compile, config.threads if plan.device == "cpu" else ""):
        return [], []
    key, budget, seconds = _key(bench.job, plan.device, config), 0.0, 0.0
    if not _is_remembered(key):
        seconds = bench.predict(plan)
        predicted = seconds * bench.job.num_steps
        if predicted < SHORT_JOB_S:
            return [], []
        budget = min(MOST_S, MOST_SHARE * predicted)
    rows, how = _remembered(key, lambda: bench.eager(config, plan, budget, seconds))
    lines = _failures(rows)
    rates = {row.plan: row.images_per_s for row in rows if not math.isnan(row.images_per_s)}
    if len(rows) > 1 and rates:
        chosen, first = str(_fastest(rows, plan)), next(iter(rates))
        if len(rates) == 1 and not lines:
            lines.append(f"plan: {chosen}; no time was left to measure others ({rates[chosen]:,.0f} images/s)")
        elif chosen == first:
            lines.append(f"plan: {chosen}, the fastest of {len(rates)} ({rates[chosen]:,.0f} images/s, {how})")
        else:
            lines.append(
                f"plan: {chosen}, {rates[chosen] / rates[first]:.1f} times as fast as {first} ({rates[chosen]:,.0f} "
                f"against {rates[first]:,.0f} images/s, {how})"
            )
    return rows, lines


def _failures(rows: list[Measured]) -> list[str]:
    return [f"plan: {row.plan} is left out: it {row.note}" for row in rows if row.note.startswith("failed")]


def _fastest(rows: list[Measured], plan: Plan) -> Plan:
    """The fastest of the rows, of which a later one must be clearly faster than those before it; or else `plan`."""
    best: Measured | None = None
    for row in rows:
        if not math.isnan(row.images_per_s) and (best is None or row.images_per_s > GAIN * best.images_per_s):
            best = row
    return plan if best is None else Plan.parse(best.plan)


def _compiled(
    bench: "_Bench", plan: Plan, config: PlanConfig, rows: list[Measured]
) -> tuple[Plan, list[Measured], list[str]]:
    """The plan compiled, where that is asked for or pays, and works."""
    job = bench.job
    eager, compiled = replace(plan, compile=False), replace(plan, compile=True)
    num_images = job.num_steps * job.batch_size
    rate = next((row.images_per_s for row in rows if row.plan == str(eager)), math.inf)
    expected = (COMPILE_S + COMPILE_LAYER_S * _num_layers(job.model)) * job.num_compiles
    if config.compile == AUTO and expected > COMPILE_SHARE * num_images / rate:
        return eager, [], []
    key = _key(job, plan.device, config, str(compiled))
    found, how = _remembered(key, lambda: [bench.measure(compiled, seconds=MOST_S)])
    if found[0].note:
        return eager, found, _failures(found)
    if config.compile is True:
        return compiled, found, []
    fast, cost = found[0].images_per_s, found[0].compile_s * job.num_compiles
    figures = f"{fast:,.0f} against {rate:,.0f} images/s, {cost:.0f} s to compile, {how}"
    if (num_images / fast + cost) * GAIN < num_images / rate:
        return compiled, found, [f"plan: {compiled}, for compiling pays ({figures})"]
    return eager, found, [f"plan: {eager}, for compiling would not pay ({figures})"]


class _Failed(Exception):
    """A candidate's figures are not those of fp32."""


class _Unfinished(Exception):
    """Not all candidates could be measured."""


class _Bench:
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
        best = _fastest(rows, plan)
        threads = (best.threads or 1) // 2
        while config.threads == AUTO and threads >= 2 and deadline - time.perf_counter() > 4 * self._step_s:
            rows.append(self.measure(replace(best, threads=threads), seconds=deadline - time.perf_counter()))
            if _fastest(rows, plan).threads != threads:
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
            self._batches[count] = Batch(images, labels, 0)
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


def _num_layers(model: nn.Module) -> int:
    return sum(bool(module._parameters) for module in model.modules())


def _is_remembered(key: str) -> bool:
    return (cache.cache_dir() / KIND / key).is_dir()


def _remembered(key: str, measure: Callable[[], list[Measured]]) -> tuple[list[Measured], str]:
    """The rows that the cache has under this key, or that are measured now; and which of both, in words.

    Two processes measure one after the other, and the second takes what the first found. What time was too short for is
    not kept, for a longer training has more.
    """
    fresh: list[Measured] = []
    seconds = 0.0

    def timed() -> list[Measured]:
        nonlocal seconds
        begin = time.perf_counter()
        fresh.extend(measure())
        seconds = time.perf_counter() - begin
        return fresh

    def build(folder: Path) -> None:
        if any(row.note == NO_TIME for row in timed()):
            raise _Unfinished
        (folder / "rows.json").write_text(json.dumps([asdict(row) for row in fresh]), encoding="utf-8")

    try:
        folder = cache.entry(KIND, key, build, about="speed of execution plans")
        rows = [Measured(**row) for row in json.loads((folder / "rows.json").read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, _Unfinished):  # without the cache it costs time and nothing else
        rows = fresh or timed()
    return rows, f"measured in {seconds:.1f} s" if fresh else "as measured before"


def _key(job: Job, device: str, config: PlanConfig, what: str = "eager") -> str:
    """What the figures depend on: the network, the shapes, the optimiser, the versions and the hardware."""
    layers = [(name, list(p.shape), p.requires_grad) for name, p in job.model.named_parameters()]
    about: list[Any] = [
        what, repr(job.model), layers, job.optim.optimizer, job.batch_size, job.image_size, job.num_classes,
        job.preprocessing.channels, config.model_dump(mode="json"), torch.__version__, _hardware(device),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]


def _hardware(device: str) -> list[Any]:
    if device == "cuda":
        return [torch.cuda.get_device_name(), torch.version.cuda]
    described = [platform.machine(), platform.processor(), torch.backends.cpu.get_cpu_capability()]
    with contextlib.suppress(OSError):  # not Linux
        wanted = ("model name", "flags", "Features")
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
        described += [line for line in lines if line.startswith(wanted)]
    return [*described, torch.get_num_threads(), os.cpu_count()]


@contextlib.contextmanager
def _generators_kept() -> Iterator[None]:
    """The generators of torch, of its GPU, of numpy and of Python are put back as they were."""
    here, there = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(here)
            np.random.set_state(there)
