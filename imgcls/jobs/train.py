"""The verb `train`: from a recipe to a complete MLflow run with a model in it."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from imgcls.data.balance import LOSS_BALANCES
from imgcls.errors import UserError
from imgcls.inference.classifier import Classifier
from imgcls.jobs import resume as resuming
from imgcls.jobs import train_log
from imgcls.jobs.console import Console
from imgcls.jobs.features import Source, open_features
from imgcls.jobs.launch import handover, run_processes
from imgcls.jobs.prepare import Prepared, prepare_together
from imgcls.jobs.record import before_run, reason_of, report_end, run_name, training_tags, within_run
from imgcls.jobs.resume import Resumption
from imgcls.jobs.signals import Signals, Stopped
from imgcls.models.family import StagedModel, num_parameters
from imgcls.models.freezing import in_words
from imgcls.recipe import Recipe, Resolved, resolve
from imgcls.tables import History, Predictions, Row
from imgcls.tracking import run as tracking
from imgcls.tracking.resume import interrupted
from imgcls.tracking.run import TrackedRun, end_for
from imgcls.training.checkpoint import Checkpoint
from imgcls.training.fit import TrainConfig, fit, micro_batch_of
from imgcls.training.keeper import LAST, best_row
from imgcls.training.loop import Step
from imgcls.training.mixing import build_mixing
from imgcls.training.plan import resolve_device
from imgcls.training.processes import (
    ALONE,
    Ballot,
    Group,
    OthersGone,
    check_shares,
    from_first,
    is_joined,
    join,
    resolve_processes,
)

SHOWS = "curves, tables and the model"
RECIPE_AND_RESUME = "found the recipe {!r} beside a run to go on with, which has its own. Leave the recipe out."


@dataclass(frozen=True)
class TrainResult:
    """What a training gives.

    Attributes:
        run_id: the MLflow run.
        experiment_id: its experiment.
        tracking_uri: the store it is in.
        history: one row an epoch.
        predictions: of the best epoch's weights on the validation split.
        module: the network with the best epoch's weights, on the CPU, in evaluation mode.
        classifier: the network with its preprocessing and class names.
        recipe: the resolved recipe.
        unsent: the folder with what the tracking server could not take, or None where the run is complete.
    """

    run_id: str
    experiment_id: str
    tracking_uri: str
    history: History
    predictions: Predictions
    module: StagedModel
    classifier: Classifier
    recipe: Recipe
    unsent: Path | None


def train(
    recipe: str | Path | Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    texts: Mapping[str, str] | None = None,
    resume: str | Path | None = None,
    quiet: bool = False,
) -> TrainResult:
    """Train a classifier as one MLflow run, or go on with one that was interrupted.

    Args:
        recipe: a recipe file, a built-in recipe's name, or sections as a mapping; None is `folder` where
            `data.root`, `data.table` or `data.parquet` is overridden and `digits` elsewhere.
        overrides: dotted field names to values, such as {"optim.lr": 0.01}.
        texts: the same with values as typed on a command line, read as YAML.
        resume: a run id, a run's work folder or a checkpoint in it: that run is gone on with, with its own recipe, of
            which only what does not change the result can be overridden. On a CPU it ends bit by bit as it would have
            without the interruption.
        quiet: print nothing.

    Raises:
        UserError: the recipe, the data, the device, the output folder or the tracking store is not as it must be, or
            there is no such run to go on with; no run is made or changed then. Or the training diverged; the run is
            FAILED then.
        KeyboardInterrupt: Ctrl-C; the run is KILLED, with its last checkpoint. (The command line gets `Stopped`.)
    """
    try:
        with Signals() as signals:
            console = Console(quiet=quiet)
            if resume is None:
                return run_training(resolve(recipe, overrides, texts=texts), console, signals)
            if recipe is not None:
                raise UserError(RECIPE_AND_RESUME.format(recipe))
            return resume_training(str(resume), console, signals, overrides=overrides, texts=texts)
    except Stopped as stopped:
        raise KeyboardInterrupt(str(stopped)) from stopped


def run_training(
    resolved: Resolved,
    console: Console,
    signals: Signals,
    *,
    resumption: Resumption | None = None,
    on_run: Callable[[TrackedRun], None] = lambda _run: None,
) -> TrainResult:
    """`train` with its surroundings given.

    Args:
        resolved: the recipe.
        console: where to tell of it.
        signals: how it is asked to end.
        resumption: the run to go on with, whose recipe it is; None for a new run.
        on_run: gets the run as soon as there is one.

    Raises:
        SystemExit: 0, at the end of a training by several processes, in all but the first.
    """
    config = resolved.recipe.train
    with before_run(console):
        processes = resolve_processes(config.processes, device=config.device)
        if not is_joined() and processes > 1:
            return _train_in_processes(processes, resolved, console, signals, resumption)
    if not is_joined():
        result = _train_in(ALONE, resolved, console, signals, resumption, on_run)
    else:
        if os.environ["RANK"] != "0":  # the first one tracks, and tells
            os.environ.pop("MLFLOW_RUN_ID", None)
            console, signals.quiet = Console(quiet=True), True
        with before_run(console), _joined(config) as group:
            result = _train_in(group, resolved, console, signals, resumption, on_run)
    if result is None:
        raise SystemExit(0)
    return result


def _joined(config: TrainConfig) -> AbstractContextManager[Group]:
    """The processes that torchrun or a scheduler started."""
    started, asked = os.environ["WORLD_SIZE"], str(config.processes)
    if asked not in ("1", "auto", started):
        raise UserError(
            f"train.processes is {asked}, but {started} were started (WORLD_SIZE). Set train.processes to auto or "
            f"{started}, or start {asked}."
        )
    return join(on_gpu=resolve_device(config.device, config.plan) == "cuda")


def _train_in_processes(
    processes: int, resolved: Resolved, console: Console, signals: Signals, resumption: Resumption | None
) -> TrainResult:
    """Train in processes of their own, started here."""
    config = resolved.recipe.train
    on_gpu = resolve_device(config.device, config.plan) == "cuda"
    check_shares(
        processes,
        batch_size=config.batch_size,
        sync_batch_norm=config.sync_batch_norm,
        on_gpu=on_gpu,
        micro_batch=micro_batch_of(config),
    )
    with handover() as between:
        try:
            run_processes(between, processes, resolved, resumption, signals, quiet=console.is_quiet)
        except (Exception, Stopped) as error:
            if between.take("result") is None:  # else it was done, and only its end was not as it should be
                _end_run(between.take("run"), error, console)
                raise
        classifier = Classifier.load(between.folder / "classifier")
        return TrainResult(**between.take("result"), classifier=classifier, module=classifier.module)


def _end_run(found: tuple[str, Path] | None, error: Exception | Stopped, console: Console) -> None:
    """End the run that processes left behind, and see to it that it tells the reason of the one that failed first."""
    if found is None:
        return
    if isinstance(error, Stopped):
        run, headline = end_for(*found, "KILLED", str(error)), f"{error}; the run is KILLED"
    else:
        run, headline = end_for(*found, "FAILED", reason_of(error)), "the run is FAILED"
    if run is not None:
        report_end(run, console, headline, shows=SHOWS)


def _train_in(
    group: Group,
    resolved: Resolved,
    console: Console,
    signals: Signals,
    resumption: Resumption | None,
    on_run: Callable[[TrackedRun], None],
) -> TrainResult | None:
    """Train as one of the processes of a group; None in all but the first."""
    with before_run(console):
        prepared = prepare_together(resolved, console, group, plan=None if resumption is None else resumption.plan)
        checkpoint = None if resumption is None else resumption.checkpoint
        if not group.is_first:
            _follow(prepared, signals, group, checkpoint)
            return None
        run = group.agree(lambda: _begin(prepared, console, signals, resumption))
        on_run(run)
    try:
        return _tracked(run, prepared, console, signals, group, checkpoint)
    finally:
        group.announce("ended")


def _begin(prepared: Prepared, console: Console, signals: Signals, resumption: Resumption | None) -> TrackedRun:
    """The run: a new one, or the one to go on with."""
    if resumption is not None:
        resuming.check(resumption, prepared, console)
        signals.hold()
        run = resumption.reattach()
        done = resumption.checkpoint
        console.say(f"going on with the run {run.run_id} after epoch {done.epoch} and {done.batch} batches")
        return run
    output_dir = Path(prepared.recipe.train.output_dir)
    for run_id in interrupted(output_dir)[-1:]:
        console.say(f"note: the run {run_id} was interrupted; to go on with it: imgcls train --resume {run_id}")
    signals.hold()
    return tracking.start(output_dir, name=run_name(prepared.recipe), tags=training_tags("train", prepared))


def _follow(prepared: Prepared, signals: Signals, group: Group, checkpoint: Checkpoint | None) -> None:
    """Train along with the first process, which tracks, and end after it."""
    group.agree(lambda: None)
    ballot = Ballot(group, lambda: signals.requested or 0)
    with signals.deferred(), prepared.plan.threaded():
        for _ in train_rows(prepared, Source(prepared.train, prepared.val), ballot, group, checkpoint):
            pass
        with suppress(OthersGone):  # it has ended then, too
            group.wait_for("ended")
    if ballot.signum:
        raise Stopped(ballot.signum)
    signals.raise_if_requested()


def resume_training(
    target: str,
    console: Console,
    signals: Signals,
    *,
    overrides: Mapping[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
) -> TrainResult:
    """`train(resume=target)` with its surroundings given; see `run_training`."""
    if is_joined() and os.environ["RANK"] != "0":  # the first one looks, and tells
        os.environ.pop("MLFLOW_RUN_ID", None)
        console, signals.quiet = Console(quiet=True), True
    with before_run(console):
        find = partial(resuming.find, target, overrides, texts=texts)
        resumption = from_first(find) if is_joined() else find()
    return run_training(resumption.resolved, console, signals, resumption=resumption)


def _tracked(
    run: TrackedRun,
    prepared: Prepared,
    console: Console,
    signals: Signals,
    group: Group,
    checkpoint: Checkpoint | None,
) -> TrainResult:
    """All that happens within the run, from its beginning or from the checkpoint on."""
    with (
        within_run(
            run,
            console,
            signals,
            shows=SHOWS,
            rescue=lambda: train_log.log_checkpoints(run),
            can_resume=lambda: run.file(f"checkpoints/{LAST}").exists(),
        ),
        tracking.system_metrics(run),
    ):
        if checkpoint is None:
            train_log.describe(run, prepared)
        history = train_epochs(run, prepared, console, signals, group, checkpoint)
        best = best_row(history, prepared.recipe.train.monitor)
        figures = {f"best/val_{name}": best[f"val/{name}"] for name in ("acc", "f1", "loss")}
        run.log_metrics({"best/epoch": best["epoch"], **figures})
        predictions, classifier = train_log.conclude(run, prepared, history, console)
        headline = f"best epoch {best['epoch']:.0f}: val acc {best['val/acc']:.4f}, f1 {best['val/f1']:.4f}"
        how = "" if prepared.manifest.counts()["test"] else " --split val"
        run.describe(f"{headline}. Next: `imgcls evaluate --model {run.run_id}{how}`")
    result = TrainResult(
        run_id=run.run_id,
        experiment_id=run.experiment_id,
        tracking_uri=run.store.uri,
        history=history,
        predictions=predictions,
        module=classifier.module,
        classifier=classifier,
        recipe=prepared.recipe,
        unsent=run.unsent,
    )
    report_end(run, console, headline, shows=SHOWS)
    return result


def train_rows(
    prepared: Prepared,
    source: Source,
    stop: Callable[[], bool],
    group: Group,
    checkpoint: Checkpoint | None,
    *,
    num_epochs: int | None = None,
    checkpoints: Path = Path(),
    on_step: Callable[[Step], None] = lambda _step: None,
    on_thaw: Callable[[int], None] = lambda _epoch: None,
    on_save: Callable[[], None] = lambda: None,
    on_note: Callable[[str], None] = lambda _text: None,
) -> Iterator[Row]:
    """The training itself, the same in every process; files and calls are the first one's."""
    recipe = prepared.recipe
    return fit(
        prepared.model,
        source.train,
        source.val,
        config=recipe.train,
        optim=recipe.optim,
        preprocessing=prepared.preprocessing,
        plan=prepared.plan,
        checkpoints=checkpoints,
        class_weights=prepared.class_weights if recipe.data.balance in LOSS_BALANCES else None,
        mixing=build_mixing(recipe.augment, num_classes=len(prepared.manifest.classes)),
        group=group,
        stop=stop,
        on_step=on_step,
        on_thaw=on_thaw,
        on_save=on_save,
        on_note=on_note,
        resume=checkpoint,
        about=resuming.about(prepared),
        num_epochs=num_epochs,
    )


def train_epochs(
    run: TrackedRun,
    prepared: Prepared,
    console: Console,
    signals: Signals,
    group: Group,
    checkpoint: Checkpoint | None,
    *,
    num_epochs: int | None = None,
) -> History:
    """Train, with a row of metrics for each epoch logged and told.

    Args:
        run: takes the figures, and has the checkpoints in its work folder.
        prepared: what is trained, on what.
        console: where it is told.
        signals: how the job is asked to end.
        group: the processes that train together, of which this is the first.
        checkpoint: go on from here; None begins.
        num_epochs: end after so many epochs, inside the recipe's schedule; None goes through it.

    Raises:
        UserError: as `fit`.
        Stopped: the job was asked to end.
    """
    epochs = prepared.recipe.train.epochs if num_epochs is None else num_epochs
    checkpoints = run.file(f"checkpoints/{LAST}").parent
    history = History([] if checkpoint is None else list(checkpoint.rows))
    uploads = resuming.Uploads(run)
    with prepared.plan.threaded():
        source = open_features(prepared, console)
    if source.about:
        run.set_tags({"imgcls.features": source.about})

    def on_thaw(epoch: int) -> None:
        total, trained = num_parameters(prepared.model)
        run.log_metrics({"model/trainable_parameters": trained}, step=epoch)
        console.say(
            f"epoch {epoch}: now {trained:,} of {total:,} parameters are trained; stages frozen: "
            f"{in_words(prepared.model.stage_names, prepared.model.freeze_depth)}"
            f"{'; from here on all stages are computed in every epoch' if source.about else ''}"
        )

    ballot = Ballot(group, lambda: signals.requested or 0)
    for row in history.rows:  # the process may have been killed between the checkpoint and the record
        run.log_metrics(train_log.metrics(row), step=int(row["epoch"]))
    console.begin_training(done=len(history.rows))
    with signals.deferred(), prepared.plan.threaded():
        for row in train_rows(
            prepared, source, ballot, group, checkpoint,
            num_epochs=num_epochs,
            checkpoints=checkpoints,
            on_step=lambda step: console.step(step, epochs=epochs),
            on_thaw=on_thaw,
            on_save=uploads.now_and_then,
            on_note=console.say,
        ):  # fmt: skip
            history.rows.append(row)
            run.log_metrics(train_log.metrics(row), step=int(row["epoch"]))
            console.row(row, epochs=epochs)
    console.clear()
    if ballot.signum:
        raise Stopped(ballot.signum)
    signals.raise_if_requested()
    return history
