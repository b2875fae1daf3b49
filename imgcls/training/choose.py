"""Choosing the execution plan: what is given is taken, what is auto is measured once and remembered."""

import contextlib
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
from imgcls.training.measure import GAIN, NO_TIME, SHORT_JOB_S, Bench, Job, Measured, fastest
from imgcls.training.plan import AUTO, Plan, PlanConfig, default_plan

MOST_SHARE, MOST_S = 0.03, 8.0
"""What measuring may take: a share of the predicted training, and seconds."""
COMPILE_S, COMPILE_LAYER_S = 20.0, 1.0
"""What compiling is taken to cost before it is tried: seconds, and seconds for each layer with weights."""
COMPILE_SHARE = 0.05
"""Compiling is tried where that is at most this share of the training that is left."""
KIND = "plans"


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
    with _generators_kept(device):
        bench = Bench(job, device)
        rows, lines = _measured(bench, plan, config)
        if rows:
            plan = fastest(rows, plan)
        if config.compile is not False:
            plan, compiled, line = _compiled(bench, plan, config, rows)
            rows, lines = [*rows, *compiled], [*lines, *line]
    return Choice(plan, tuple(rows), tuple(lines))


def given_plan(job: Job, plan: Plan) -> Choice:
    """A plan that was chosen elsewhere; eager, which a line says, where it is compiled and this machine cannot do that.

    Args:
        job: what is to be trained.
        plan: as an earlier part of the training had it.
    """
    if not plan.compile:
        return Choice(plan)
    with _generators_kept(plan.device):
        chosen, rows, lines = _compiled(Bench(job, plan.device), plan, PlanConfig(**plan.as_config()), [])
    return Choice(chosen, tuple(rows) if lines else (), tuple(lines))


def _measured(bench: Bench, plan: Plan, config: PlanConfig) -> tuple[list[Measured], list[str]]:
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
        chosen, first = str(fastest(rows, plan)), next(iter(rates))
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


def _num_layers(model: nn.Module) -> int:
    return sum(bool(module._parameters) for module in model.modules())


def _compiled(
    bench: Bench, plan: Plan, config: PlanConfig, rows: list[Measured]
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


class _Unfinished(Exception):
    """Not all candidates could be measured."""


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
def _generators_kept(device: str) -> Iterator[None]:
    """The generators of torch, of the GPU in use, of numpy and of Python are put back as they were."""
    here, there = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([torch.cuda.current_device()] if device == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(here)
            np.random.set_state(there)
