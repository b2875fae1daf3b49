"""One trial of a sweep: a training in a run of its own, nested in its study's, that may be pruned after any epoch."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from imgcls.jobs import train_log
from imgcls.jobs.console import Console
from imgcls.jobs.features import Source, open_features
from imgcls.jobs.prepare import Prepared, prepare
from imgcls.jobs.reading import Shelf
from imgcls.jobs.record import common_tags, within_run
from imgcls.jobs.signals import Signals
from imgcls.jobs.train import train_rows
from imgcls.recipe import Resolved
from imgcls.tables import History, Row
from imgcls.tracking import run as tracking
from imgcls.tracking.run import TrackedRun
from imgcls.training.keeper import LAST, best_row
from imgcls.training.processes import ALONE

STATE_TAG = "imgcls.trial_state"


@dataclass(frozen=True)
class Trial:
    """What a trial gave.

    Attributes:
        run_id: its MLflow run.
        best: the row of the best epoch; of the last one where it was pruned.
        pruned: it was stopped because others were better at the same epoch.
        train_s: seconds that went into training, and into features of frozen stages.
    """

    run_id: str
    best: Row
    pruned: bool
    train_s: float


def run_trial(
    resolved: Resolved,
    signals: Signals,
    *,
    parent: str,
    name: str,
    tags: Mapping[str, str],
    shelf: Shelf,
    on_run: Callable[[str], None],
    prunes: Callable[[Row], bool],
) -> Trial:
    """Train by a recipe in a run nested in another.

    The run has the params, metrics, curves, predictions and tables of `imgcls train`, but neither a model nor
    checkpoints nor a confusion matrix (which takes longer to draw than the rest of a small trial) nor the figures that
    are the same for all trials: the model comes from `imgcls refit`. Where outputs of
    frozen stages are kept, its predictions are made of those, in the precision that they were computed in: of the
    images they would take longer than the trial.

    Args:
        resolved: the recipe, with the trial's values and an execution plan in it.
        signals: how the trial is asked to end.
        parent: the run that it is nested in.
        name: its run's name.
        tags: its run's tags beside those that every run has.
        shelf: the data that earlier trials have read.
        on_run: told the run's id as soon as there is one.
        prunes: told every epoch's row; whether to end after it.

    Raises:
        UserError: the recipe does not work, or the training diverged; the run is FAILED then.
        Stopped: the job was asked to end; the run is KILLED.
    """
    console = Console(quiet=True)
    prepared = prepare(resolved, console, shelf=shelf)
    signals.hold()
    about = {"imgcls.family": prepared.recipe.model.family, "imgcls.plan": str(prepared.plan)}
    about |= common_tags("trial", resolved, prepared.manifest)
    run = tracking.start(Path(prepared.recipe.train.output_dir), name=name, tags={**about, **tags}, parent=parent)
    on_run(run.run_id)
    pruned: list[int] = []
    with within_run(
        run,
        console,
        signals,
        shows="",
        child=True,
        ends_as=lambda: ("KILLED", "pruned") if pruned else ("FINISHED", None),
    ):
        train_log.describe(run, prepared, whole=False)
        history, source, train_s = _train(run, prepared, signals, prunes, pruned)
        best = history.rows[-1] if pruned else best_row(history, prepared.recipe.train.monitor)
        run.log_metrics({f"best/{key.replace('/', '_')}": best[key] for key in ("val/acc", "val/f1", "val/loss")})
        run.log_metrics({"best/epoch": best["epoch"], "speed/train_s": train_s})
        if pruned:
            run.log_text(history.to_json(), "history.json")
        else:
            train_log.log_best(run, prepared, history, val=source.val, draws=False)
        run.set_tags({STATE_TAG: "pruned" if pruned else "complete"})
    return Trial(run.run_id, best, bool(pruned), train_s)


def _train(
    run: TrackedRun, prepared: Prepared, signals: Signals, prunes: Callable[[Row], bool], pruned: list[int]
) -> tuple[History, Source, float]:
    """The rows, where their batches came from, and the seconds that they took.

    The epoch after which the trial was pruned is put into `pruned`.
    """
    history, began = History([]), time.monotonic()
    with signals.deferred(), prepared.plan.threaded():
        source = open_features(prepared, Console(quiet=True))
        if source.about:
            run.set_tags({"imgcls.features": source.about})
        checkpoints = run.file(f"checkpoints/{LAST}").parent
        for row in train_rows(prepared, source, signals.stop, ALONE, None, checkpoints=checkpoints):
            history.rows.append(row)
            run.log_metrics(train_log.metrics(row), step=int(row["epoch"]))
            if prunes(row) and row["epoch"] < prepared.recipe.train.epochs:
                pruned.append(int(row["epoch"]))
                break
    signals.raise_if_requested()
    return history, source, time.monotonic() - began
