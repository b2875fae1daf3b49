"""The verb `refit`: a training again on its validation images as well, for as long as they said, and one test."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from imgcls.data.loading import num_training_batches
from imgcls.errors import UserError
from imgcls.evaluation.reading import over_seeds
from imgcls.inference.classifier import Classifier
from imgcls.jobs import resume as resuming
from imgcls.jobs import train_log
from imgcls.jobs.console import Console
from imgcls.jobs.prepare import Prepared, prepare
from imgcls.jobs.reading import pooled, read_data, split_data
from imgcls.jobs.record import before_run, report_end, run_name, training_tags, within_run
from imgcls.jobs.signals import Signals, Stopped
from imgcls.jobs.test_reading import Reading, count_read, read_test
from imgcls.jobs.train import train_epochs
from imgcls.recipe import Recipe, Resolved, diff, resolve
from imgcls.tables import History, Manifest
from imgcls.tracking import run as tracking
from imgcls.tracking.run import TrackedRun
from imgcls.tracking.store import artifact
from imgcls.tracking.trained import Trained, find_trained
from imgcls.training.processes import ALONE, is_joined
from imgcls.training.rescale import rescale

FREE = (*resuming.FREE, "evaluate.top_k", "train.plan")
"""Fields of the recipe that may be other ones; all else is what is refitted."""
SHOWS = "the figures of the test set and the model"
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Refitted:
    """One network that was trained on all but the test images.

    Attributes:
        seed: of its training.
        run_id: its MLflow run.
        history: one row an epoch, without figures of validation.
        reading: what it gives of the test set.
        classifier: the network with its preprocessing and class names, on the CPU, in evaluation mode.
    """

    seed: int
    run_id: str
    history: History
    reading: Reading
    classifier: Classifier


@dataclass(frozen=True)
class RefitResult:
    """What a refit gives.

    Attributes:
        run_id: the MLflow run; with several seeds that above theirs.
        experiment_id: its experiment.
        tracking_uri: the store it is in.
        refit_of: the run that it repeats.
        recipe: the resolved recipe; with several seeds that of the first.
        test: the figures of the test set: acc, f1, loss, … and acc_low and acc_high, the 95 % interval; with several
            seeds acc_mean, acc_std, acc_low and acc_high, and the same of f1.
        reads: how often the test set has been read, this time included; None where that could not be counted.
        networks: one for each seed.
        unsent: a folder with what the tracking server could not take, or None where all is complete.
    """

    run_id: str
    experiment_id: str
    tracking_uri: str
    refit_of: str
    recipe: Recipe
    test: dict[str, float]
    reads: int | None
    networks: tuple[Refitted, ...]
    unsent: Path | None


def refit(
    target: str,
    *,
    seeds: int = 1,
    overrides: Mapping[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
    quiet: bool = False,
) -> RefitResult:
    """Train a finished run's recipe again on its training and validation images, and read the test set once.

    The training lasts as many steps as the run's best epoch came after, in whole epochs. A run's figures of validation
    were seen while its recipe was chosen; those of the test images were not, as long as nobody reads them again: each
    read of a test set is counted in the store, and the number is told.

    Args:
        target: the id of a finished training (also runs:/<id>), or that of a sweep, whose best trial it is then.
        seeds: trainings, with the recipe's seed, the one after it, and so on. From two on each is a run below one that
            has their mean and its 95 % interval. All their readings together count as one read of the test set.
        overrides: dotted field names to values, of fields that do not change the result, such as data.root.
        texts: the same with values as typed on a command line, read as YAML.
        quiet: print nothing.

    Raises:
        UserError: there is no such run, or its data are other ones now or have no test split, or what `train` raises.
            No run is made then, or it is FAILED where the training diverged.
        KeyboardInterrupt: Ctrl-C; the runs are KILLED.
    """
    try:
        with Signals() as signals:
            return run_refit(target, Console(quiet=quiet), signals, seeds=seeds, overrides=overrides, texts=texts)
    except Stopped as stopped:
        raise KeyboardInterrupt(str(stopped)) from stopped


@dataclass(frozen=True)
class _Task:
    """What is to be done.

    Attributes:
        trained: the training that is repeated.
        resolved: its recipe, for each seed.
        manifest: its images, split as it had them.
        num_epochs: epochs to train.
        repeat: the command that does it.
    """

    trained: Trained
    resolved: list[Resolved]
    manifest: Manifest
    num_epochs: int
    repeat: str

    @property
    def tags(self) -> dict[str, str]:
        found = {"imgcls.refit_of": self.trained.run_id}
        return found if self.trained.sweep is None else {**found, "imgcls.refit_of_sweep": self.trained.sweep}

    @property
    def params(self) -> dict[str, Any]:
        return {
            "refit.of": self.trained.run_id,
            "refit.best_epoch": self.trained.best_epoch,
            "refit.epochs": self.num_epochs,
            "refit.seeds": len(self.resolved),
        }


def run_refit(
    target: str,
    console: Console,
    signals: Signals,
    *,
    seeds: int = 1,
    overrides: Mapping[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
) -> RefitResult:
    """`refit` with its surroundings given."""
    with before_run(console):
        task = _task(target, console, seeds, overrides, texts)
        prepared = prepare(task.resolved[0], console, refits=task.manifest)
        signals.hold()
        run = _start(prepared, task, name=run_name(prepared.recipe, prefix="refit-"))
    if seeds == 1:
        with _within(run, console, signals):
            counting = _Counting(run, prepared, console)
            networks, runs = [_refit(run, prepared, task, console, signals, counting)], [run]
            test = networks[0].reading.figures
            run.describe(_headline(test, networks))
    else:
        with within_run(run, console, signals, shows=SHOWS):
            counting = _Counting(run, prepared, console)
            networks, runs = _refit_each(run, prepared, task, console, signals, counting)
            test = _log_seeds(run, networks)
            run.describe(_headline(test, networks))
    report_end(run, console, _headline(test, networks), shows=SHOWS)
    return RefitResult(
        run_id=run.run_id,
        experiment_id=run.experiment_id,
        tracking_uri=run.store.uri,
        refit_of=task.trained.run_id,
        recipe=prepared.recipe,
        test=test,
        reads=counting.reads,
        networks=tuple(networks),
        unsent=next((one.unsent for one in runs if one.unsent is not None), None),
    )


class _Counting:
    """Counts the read of the test set, just before the first network reads it and not before."""

    def __init__(self, run: TrackedRun, prepared: Prepared, console: Console) -> None:
        self._run, self._manifest, self._console = run, prepared.manifest, console
        self._done = False
        self.reads: int | None = None

    def before_read(self) -> None:
        if not self._done:
            self._done, self.reads = True, count_read(self._run, self._manifest, self._console)


def _task(
    target: str,
    console: Console,
    seeds: int,
    overrides: Mapping[str, Any] | None,
    texts: Mapping[str, str] | None,
) -> _Task:
    """Find the training, hold its images against those that are there, and count its epochs anew."""
    if not 1 <= seeds <= MOST_SEEDS:
        raise UserError(f"found {seeds} seeds; expected a number from 1 to {MOST_SEEDS}.")
    if is_joined() and os.environ["WORLD_SIZE"] != "1":
        raise UserError(
            f"{os.environ['WORLD_SIZE']} processes were started (WORLD_SIZE), but a refit is trained by one. Start one."
        )
    trained = find_trained(target)
    if trained.sweep is not None:
        console.say(f"the best trial of the sweep {trained.sweep} is the run {trained.run_id}")
    resolved = _recipe(trained, overrides, texts)
    manifest = _images(trained, resolved.recipe, console)
    recipe, num_epochs = _rescaled(trained, resolved.recipe, manifest, console)
    first = recipe.train.seed
    repeat = f"imgcls refit {trained.run_id}" + (f" --seeds {seeds}" if seeds > 1 else "")
    each = [
        Resolved(recipe.replace({"train.seed": first + k}), trained.recipe, () if k else resolved.notices)
        for k in range(seeds)
    ]
    return _Task(trained, each, manifest, num_epochs, repeat)


def _recipe(trained: Trained, overrides: Mapping[str, Any] | None, texts: Mapping[str, str] | None) -> Resolved:
    """The run's recipe, split as the run was, with overrides that do not change what it gives."""
    with artifact(trained.run_id, "recipe.yaml") as path:
        own, resolved = resolve(path), resolve(path, overrides, texts=texts)
    changed = [name for name, _, _ in diff(own.recipe, resolved.recipe) if name not in FREE]
    if changed:
        raise UserError(
            f"{changed[0]} cannot be another one in a refit, which repeats what was validated. Train a run with it "
            f"(imgcls train RECIPE --{changed[0]} VALUE) and refit that. Only these may be other: {', '.join(FREE)}."
        )
    recipe = resolved.recipe.replace({"data.fold": None, "data.split_from": trained.run_id})
    return Resolved(recipe, trained.recipe, resolved.notices)


def _images(trained: Trained, recipe: Recipe, console: Console) -> Manifest:
    """The run's images, split as they were.

    Raises:
        UserError: they are other ones now, or none of them is for the test.
    """
    manifest = read_data(recipe.data, console)
    if manifest.digest != trained.data_digest:
        raise UserError(
            f"the images are not those of the run {trained.run_id}: found the digest {manifest.digest} in "
            f"{recipe.data.origin}, expected {trained.data_digest}. Put back what was changed, or name the folder with "
            "the images of then (--data.root); on other images train a new run, and refit that."
        )
    manifest = split_data(manifest, recipe.data)
    if not manifest.counts()["test"]:
        raise UserError(
            f"the images of the run {trained.run_id} have no test split, which a refit is measured on once. Train a "
            "run with one: images that its source gives as test (such as a folder test/ beside train/), or, where it "
            "gives no split, data.test_fraction above 0. Then refit that run."
        )
    return manifest


def _rescaled(trained: Trained, recipe: Recipe, manifest: Manifest, console: Console) -> tuple[Recipe, int]:
    """The recipe for more images, and the epochs that are to be trained of it, which is told."""
    config, images = recipe.train, pooled(manifest).counts()["train"]
    then = num_training_batches(manifest.counts()["train"], config.batch_size)
    now = num_training_batches(images, config.batch_size)
    scaled = rescale(config, recipe.optim, best_epoch=trained.best_epoch, steps_then=then, steps_now=now)
    console.say(
        f"the run {trained.run_id} was best after epoch {trained.best_epoch} of {config.epochs}, of {then:,} steps "
        f"each. With its validation images there are {images:,} to train on, {now:,} steps an epoch: "
        f"{scaled.num_epochs} epoch{'s' * (scaled.num_epochs != 1)} of a schedule over {scaled.schedule_epochs}"
    )
    if config.processes not in (1, "auto"):
        console.say(f"note: train.processes is {config.processes}, but a refit is trained by one, with whole batches")
    return recipe.replace({**scaled.values, "train.processes": 1}), scaled.num_epochs


def _start(prepared: Prepared, task: _Task, *, name: str, parent: str | None = None) -> TrackedRun:
    folder = Path(prepared.recipe.train.output_dir)
    return tracking.start(folder, name=name, tags={**training_tags("refit", prepared), **task.tags}, parent=parent)


@contextmanager
def _within(run: TrackedRun, console: Console, signals: Signals, *, child: bool = False) -> Iterator[None]:
    """The run of one network."""
    rescue = partial(train_log.log_checkpoints, run)
    with (
        within_run(run, console, signals, shows=SHOWS, child=child, rescue=rescue),
        tracking.system_metrics(run),
    ):
        yield


def _refit(
    run: TrackedRun, prepared: Prepared, task: _Task, console: Console, signals: Signals, counting: _Counting
) -> Refitted:
    """Train one network, log it, and read the test set with it."""
    train_log.describe(run, prepared, repeat=task.repeat)
    run.log_params(task.params)
    history = train_epochs(run, prepared, console, signals, ALONE, None, num_epochs=task.num_epochs)
    train_log.load_best(run, prepared)
    train_log.log_history(run, history, best_epoch=len(history))
    train_log.log_checkpoints(run)
    classifier = train_log.log_classifier(run, prepared, console)
    counting.before_read()
    reading = read_test(run, prepared)
    return Refitted(prepared.recipe.train.seed, run.run_id, history, reading, classifier)


def _refit_each(
    parent: TrackedRun, first: Prepared, task: _Task, console: Console, signals: Signals, counting: _Counting
) -> tuple[list[Refitted], list[TrackedRun]]:
    """A network for each seed, in a run of its own below the parent; the runs are the parent's and theirs."""
    train_log.log_recipe(parent, first, repeat=task.repeat)
    parent.log_params(task.params)
    networks, runs = list[Refitted](), [parent]
    for resolved in task.resolved:
        seed = resolved.recipe.train.seed
        console.say(f"seed {seed}")
        prepared = prepare(resolved, Console(quiet=True), refits=task.manifest) if networks else first
        signals.hold()
        run = _start(prepared, task, name=f"seed {seed}", parent=parent.run_id)
        with _within(run, console, signals, child=True):
            networks.append(_refit(run, prepared, task, console, signals, counting))
        runs.append(run)
        figures = networks[-1].reading.figures
        console.say(f"seed {seed}: test acc {figures['acc']:.4f}, f1 {figures['f1']:.4f}    run {run.run_id}")
    return networks, runs


def _log_seeds(parent: TrackedRun, networks: list[Refitted]) -> dict[str, float]:
    """Log what the networks have in common; their figures."""
    test = over_seeds([network.reading.figures for network in networks])
    parent.log_metrics({f"test/{name}": value for name, value in test.items()})
    rows = [{"seed": n.seed, "run_id": n.run_id, **n.reading.figures} for n in networks]
    parent.log_text(pd.DataFrame(rows).to_csv(index=False), "tables/seeds.csv")
    return test


def _headline(test: Mapping[str, float], networks: list[Refitted]) -> str:
    images = f"{len(networks[0].reading.predictions.ids):,} images"
    if len(networks) == 1:
        return (
            f"test acc {test['acc']:.4f} (95 % interval {test['acc_low']:.4f} to {test['acc_high']:.4f}), "
            f"f1 {test['f1']:.4f}, loss {test['loss']:.4f}, of {images}"
        )
    figures = [
        f"{name} {test[f'{name}_mean']:.4f} ± {test[f'{name}_std']:.4f} (95 % interval of the mean "
        f"{test[f'{name}_low']:.4f} to {test[f'{name}_high']:.4f})"
        for name in ("acc", "f1")
    ]
    return f"test of {len(networks)} seeds on {images}: {', '.join(figures)}"
