"""The verb `profile`: how fast a training is, how fast its parts could be, and what holds it up, as one MLflow run."""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import harmonic_mean

import pandas as pd

from imgcls.data.balance import LOSS_BALANCES
from imgcls.data.loading import num_cores
from imgcls.errors import UserError
from imgcls.jobs.console import Console
from imgcls.jobs.measuring import start_measuring
from imgcls.jobs.prepare import Prepared, prepare
from imgcls.jobs.profile_report import Diagnosis, Facts, Profile, as_json, as_text, diagnose, metrics
from imgcls.jobs.record import before_run, log_data, report_end, within_run
from imgcls.jobs.signals import Signals
from imgcls.recipe import Resolved
from imgcls.tracking import run as tracking
from imgcls.tracking.run import TrackedRun
from imgcls.training.fit import fit
from imgcls.training.keeper import LAST
from imgcls.training.mixing import build_mixing
from imgcls.training.throughput import Compute, Data, FirstBatches, Rates, loop_rate

SHOWS = "the table"
COMPUTE, DATA, LOOP, EVALUATION = 0.3, 0.15, 0.45, 0.1
"""Shares of a turn's time."""
LEAST_BATCHES = 3
"""Batches of the loop in a turn, at least."""


@dataclass(frozen=True)
class ProfileResult:
    """What a profile gives.

    Attributes:
        profile: what was measured.
        diagnosis: what holds the training up.
        run_id: the MLflow run.
        unsent: the folder with what the tracking server could not take, or None.
    """

    profile: Profile
    diagnosis: Diagnosis
    run_id: str
    unsent: Path | None


def run_profile(
    resolved: Resolved, console: Console, signals: Signals, *, seconds: float, turns: int, as_json_text: bool = False
) -> ProfileResult:
    """Profile the training of a recipe.

    Args:
        resolved: the recipe.
        console: where it is told.
        signals: how the job is asked to end.
        seconds: the time for measuring, beside that for preparing; more where a few batches take longer.
        turns: how often compute, data and the loop are measured in turn.
        as_json_text: print the result as JSON on the standard output.

    Raises:
        UserError: the recipe cannot be trained, or the store takes no run.
    """
    with before_run(console):
        prepared = prepare(resolved, console)
        if len(prepared.train) == 0:
            raise UserError(f"there are too few training images ({prepared.train.num_images}); expected two or more.")
        if prepared.num_views:
            console.say(
                "note: a training of this recipe keeps what the frozen stages give of the images and computes the rest "
                "alone, which is faster; what is measured here is one with --train.cache_features off"
            )
        signals.hold()
        recipe = prepared.recipe
        run = start_measuring("profile", prepared, console)
    with within_run(run, console, signals, shows=SHOWS), tracking.system_metrics(run):
        run.log_params({**recipe.flat(), "profile.seconds": seconds, "profile.turns": turns})
        log_data(run, recipe.data, prepared.manifest, context="profile")
        with signals.deferred(), prepared.plan.threaded():
            profile = measure(run, prepared, console, signals, seconds=seconds, turns=turns)
        signals.raise_if_requested()
        diagnosis = diagnose(profile)
        report = as_json(profile, diagnosis)
        _record(run, profile, diagnosis)
    if as_json_text:
        sys.stdout.write(json.dumps({**report, "run_id": run.run_id}, indent=1) + "\n")
    console.say(as_text(profile))
    report_end(run, console, f"bottleneck: {diagnosis.bottleneck}. {diagnosis.advice}", shows=SHOWS)
    return ProfileResult(profile, diagnosis, run.run_id, run.unsent)


def measure(
    run: TrackedRun, prepared: Prepared, console: Console, signals: Signals, *, seconds: float, turns: int
) -> Profile:
    """Measure compute, data and the loop in turn, after a turn that is not counted.

    The loop is `fit` as `imgcls train` calls it, with progress, checkpoints and metrics sent to the run. Where an epoch
    takes too long, it goes through the first batches of each; what comes once an epoch then counts once in as many
    images as an epoch has.
    """
    recipe, whole = prepared.recipe, prepared.train
    class_weights = prepared.class_weights if recipe.data.balance in LOSS_BALANCES else None
    mixing = build_mixing(recipe.augment, num_classes=len(prepared.manifest.classes))
    compute = Compute(
        prepared.model,
        next(iter(whole.epoch(1))),
        config=recipe.train,
        optim=recipe.optim,
        preprocessing=prepared.preprocessing,
        plan=prepared.plan,
        class_weights=class_weights,
        mixing=mixing,
        stop=signals.stop,
    )
    data = Data(whole, preprocessing=prepared.preprocessing, device=prepared.plan.device, stop=signals.stop)
    a_turn = seconds / (turns + 1)
    compute.images_per_s(0)
    batches_per_s = min(compute.images_per_s(0.2 * a_turn), data.images_per_s(0.1 * a_turn)) / recipe.train.batch_size
    train = FirstBatches(whole, max(LEAST_BATCHES, round(LOOP * a_turn * batches_per_s)))
    assert prepared.val is not None
    val = FirstBatches(prepared.val, max(1, round(EVALUATION * a_turn * batches_per_s)))
    epochs = fit(
        prepared.model,
        train,
        val,
        config=recipe.train.model_copy(update={"epochs": turns + 1, "patience": None, "unfreeze": {}}),
        optim=recipe.optim,
        preprocessing=prepared.preprocessing,
        plan=prepared.plan,
        checkpoints=run.file(f"checkpoints/{LAST}").parent,
        class_weights=class_weights,
        mixing=mixing,
        stop=signals.stop,
        on_step=lambda step: console.step(step, epochs=turns + 1),
    )
    rates, overheads, evaluations = list[Rates](), list[float](), list[float]()
    for turn in range(turns + 1):
        # Half before the loop and half behind it: a machine that gets slower or faster changes all three alike.
        before, batches = compute.images_per_s(COMPUTE / 2 * a_turn), data.images_per_s(DATA * a_turn)
        begin = time.perf_counter()
        row = next(epochs, None)
        if row is None:
            break  # a signal, which the caller turns into the end of the job
        run.log_metrics({f"profile/loop/{name}": value for name, value in row.items()}, step=turn)
        overhead = time.perf_counter() - begin - row["seconds"]
        alone = harmonic_mean([before, compute.images_per_s(COMPUTE / 2 * a_turn)])
        if turn == 0:  # it grows memory and fills caches
            continue
        loop = loop_rate(images_per_epoch=whole.num_images, steps_images_per_s=row["images_per_s"], overhead_s=overhead)
        rates.append(Rates(alone, batches, loop))
        overheads.append(overhead)
        trained = _num_images(train, recipe.train.batch_size)
        evaluated = _num_images(val, recipe.train.batch_size)
        evaluations.append(evaluated / (row["seconds"] - trained / row["images_per_s"]))
    console.clear()
    signals.raise_if_requested()
    facts = Facts(
        device=prepared.plan.device,
        plan=str(prepared.plan),
        precision=prepared.plan.precision,
        cores=num_cores(),
        num_workers=whole.num_workers,
        decodes=whole.decodes,
        batch_size=recipe.train.batch_size,
        images_per_epoch=whole.num_images,
        steps_per_part=len(train),
    )
    return Profile(facts, rates, overheads, evaluations)


def _num_images(part: FirstBatches, batch_size: int) -> int:
    return min(len(part) * batch_size, part.num_images)


def _record(run: TrackedRun, profile: Profile, diagnosis: Diagnosis) -> None:
    run.log_metrics({f"profile/{name}": value for name, value in metrics(profile).items()})
    run.set_tags({"imgcls.bottleneck": diagnosis.bottleneck, "imgcls.advice": diagnosis.advice})
    report = as_json(profile, diagnosis)
    run.log_text(json.dumps(report, indent=1) + "\n", "profile.json")
    table = pd.DataFrame(report["turns"])
    table.insert(0, "turn", range(1, len(table) + 1))
    run.log_text(table.to_csv(index=False), "tables/profile.csv")
