"""The verb `tune`: a sweep over the fields of a recipe for one or more families, as a tree of MLflow runs."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from imgcls.errors import UserError
from imgcls.jobs.console import Console
from imgcls.jobs.record import before_run, common_tags, log_data, reason_of, report_end, within_run
from imgcls.jobs.signals import Signals, Stopped
from imgcls.jobs.train_log import describe_data
from imgcls.jobs.tune_report import Report
from imgcls.jobs.tune_space import Subject, open_subjects
from imgcls.jobs.tune_worker import Task
from imgcls.jobs.tune_workers import Workers
from imgcls.recipe import Resolved, resolve
from imgcls.tracking import run as tracking
from imgcls.tracking.nested import close, end_attached, find_parent, reopen, running_children
from imgcls.tracking.run import Status, TrackedRun
from imgcls.tuning.sweep import Sweep, open_sweep

SHOWS = "leaderboard, figures and trials"
POLL_S = 1.0
PARENT_WAIT_S = 60.0
"""So long one that joins a sweep waits for the one that has just begun it to make its runs."""
_MAY_DIFFER = (
    "search.", "promote.", "train.plan", "train.output_dir", "train.device", "train.processes",
    "train.checkpoint_minutes", "train.keep_best", "train.cache_features", "data.root", "data.table", "data.parquet",
    "data.cache_dir", "data.num_workers", "data.prefetch", "data.device", "data.store_budget", "data.check",
    "data.download", "model.",
)  # fmt: skip
"""Fields that may differ between commands that work on one sweep. The data are compared by their digest."""


@dataclass(frozen=True)
class TuneResult:
    """What a sweep gave.

    Attributes:
        run_id: the MLflow run of the sweep, above those of its families and trials.
        name: the sweep's name, by which the same command goes on with it or joins it.
        storage: where its studies are.
        best: the best trial's row of `table`.
        table: one row a trial, see `imgcls.tuning.sweep.Sweep.table`.
        unsent: the folder with what the tracking server could not take, or None.
    """

    run_id: str
    name: str
    storage: str
    best: Mapping[str, Any]
    table: pd.DataFrame
    unsent: Path | None


def tune(
    recipe: str | Path | Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    texts: Mapping[str, str] | None = None,
    families: Sequence[str] = (),
    storage: str | None = None,
    name: str | None = None,
    more_trials: int = 0,
    quiet: bool = False,
) -> TuneResult:
    """Search the best values of a recipe's fields, as one MLflow run with a run for every family and trial below it.

    Args:
        recipe: as of `imgcls.train`; its `search` section says what is searched.
        overrides: dotted field names to values, such as {"search.trials": 40}.
        texts: the same with values as typed on a command line, read as YAML.
        families: model families, a study each; none is the recipe's own.
        storage: the studies' database, `sqlite:///…` or `postgresql://…`; None is `optuna.db` in the current folder.
        name: the sweep's name; a sweep of that name is gone on with. None is made of the recipe's and the data's.
        more_trials: so many trials more than a sweep of that name has.
        quiet: print nothing.

    Raises:
        UserError: see `run_tune`.
        KeyboardInterrupt: Ctrl-C; the running trials are closed, and the same call goes on.
    """
    try:
        with Signals() as signals:
            return run_tune(
                resolve(recipe, overrides, texts=texts),
                Console(quiet=quiet),
                signals,
                families=families,
                storage=storage,
                name=name,
                more_trials=more_trials,
            )
    except Stopped as stopped:
        raise KeyboardInterrupt(str(stopped)) from stopped


def run_tune(
    resolved: Resolved,
    console: Console,
    signals: Signals,
    *,
    families: Sequence[str] = (),
    storage: str | None = None,
    name: str | None = None,
    more_trials: int = 0,
) -> TuneResult:
    """Search the fields of a recipe's `search` section, one study a family, in worker processes.

    The same command goes on with a sweep that was stopped, and joins one that another process works on, also on another
    machine. The sweep's run has a run for each family nested in it, and those a run for each trial.

    Args:
        resolved: the recipe.
        console: where to tell of it.
        signals: how it is asked to end.
        families: the families; none is the recipe's own.
        storage: the database of the studies, `sqlite:///…` or `postgresql://…`; None is `optuna.db` here.
        name: the sweep's name; None is made of the recipe's and the data's.
        more_trials: so many trials more than a sweep of that name has.

    Raises:
        UserError: the recipe, the space, the data or the storage is not as it must be, or there is a sweep of that name
            with another space; nothing is begun then. Or no trial was completed; the run is FAILED then.
        Stopped: it was asked to end; its trials and runs are closed.
    """
    with before_run(console):
        subjects = open_subjects(resolved, families or (resolved.recipe.model.family,), console)
        prepared = next(iter(subjects.values())).prepared
        origin = Path(prepared.recipe.data.origin).name
        sweep = open_sweep(
            storage or f"sqlite:///{Path('optuna.db').absolute()}",
            name or (resolved.name if origin == resolved.name else f"{resolved.name}-{origin}"),
            {family: subject.space for family, subject in subjects.items()},
            resolved.recipe.search,
            _identity(subjects),
            {family: subject.first for family, subject in subjects.items()},
        )
    with sweep:
        with before_run(console):
            for notice in sweep.notices:
                console.say(f"note: {notice}")
            if more_trials:
                sweep.more(more_trials)
            console.say(f"sweep {sweep.name!r} in {_without_password(sweep.storage)}, {_budget_in_words(sweep)}")
            for family, subject in subjects.items():
                console.say(f"  {family}: {subject.in_words}")
            signals.hold()
            run, is_ours = _open_run(sweep, subjects, resolved)
        if is_ours:
            return _lead(run, sweep, subjects, console, signals)
        return _join(run, sweep, subjects, console, signals)


def _lead(
    run: TrackedRun, sweep: Sweep, subjects: Mapping[str, Subject], console: Console, signals: Signals
) -> TuneResult:
    """Work at the sweep, and write its run."""
    with within_run(run, console, signals, shows=SHOWS):
        parents = dict[str, TrackedRun]()
        report = Report(run, sweep)
        try:
            _open_families(run, sweep, subjects, signals, parents)
            ids = {name: child.run_id for name, child in parents.items()}
            _work(run, sweep, subjects, ids, report, console, signals)
            result = _conclude(run, sweep, report)
        except Stopped as stopped:
            signals.finishing()  # or the first write would raise it again
            _finish(parents, "KILLED", str(stopped))
            report.write(sweep.table(), final=True)
            raise
        except Exception as error:
            signals.finishing()
            _finish(parents, "FAILED", reason_of(error))
            raise
        _finish(parents, "FINISHED", None)
    _tell_end(result, run, report, console)
    return result


def _finish(runs: Mapping[str, TrackedRun], status: Status, reason: str | None) -> None:
    for run in runs.values():
        run.finish(status, reason)


def _join(
    run: TrackedRun, sweep: Sweep, subjects: Mapping[str, Subject], console: Console, signals: Signals
) -> TuneResult:
    """Work at a sweep whose run another process writes; where that ends first, this one writes the end."""
    console.say(f"another process leads the sweep; this one joins it, in the run {run.run_id}")
    signals.release()
    try:
        known = _await_families(sweep, subjects, signals)
        report = Report(run, sweep)
        _work(run, sweep, subjects, known, None, console, signals)
        result = _conclude(run, sweep, report)
        if sweep.is_done():  # else the time of this command was up, and the other one goes on
            for run_id in (*known.values(), run.run_id):
                close(run.store, run_id, "FINISHED", {})
    finally:
        run.leave()
    _tell_end(result, run, report, console)
    return result


def _await_families(sweep: Sweep, subjects: Mapping[str, Subject], signals: Signals) -> dict[str, str]:
    """The ids of the families' runs, which the process that leads makes.

    Raises:
        UserError: it makes none.
        Stopped: it was asked to end.
    """
    deadline = time.monotonic() + PARENT_WAIT_S
    while True:
        found = {name: sweep.attributes.get(f"run/{name}") for name in subjects}
        known = {name: run_id for name, run_id in found.items() if run_id is not None}
        if len(known) == len(found):
            return known
        if time.monotonic() > deadline:
            raise UserError(
                f"the process that began the sweep {sweep.name!r} has made no runs for its families; it may be gone. "
                "End its run in `imgcls ui`, then run this again."
            )
        time.sleep(POLL_S)
        signals.raise_if_requested()


def _open_run(sweep: Sweep, subjects: Mapping[str, Subject], resolved: Resolved) -> tuple[TrackedRun, bool]:
    """The sweep's run, and whether this process is to write it."""
    recipe = next(iter(subjects.values())).prepared.recipe
    output_dir = Path(recipe.train.output_dir)
    known = sweep.attributes.get("run_id")
    if known is None:
        prepared = next(iter(subjects.values())).prepared
        tags = {
            **common_tags("tune", resolved, prepared.manifest),
            "imgcls.sweep": sweep.name,
            "imgcls.storage": _without_password(sweep.storage),
            "imgcls.family": ",".join(subjects),
        }
        run = tracking.start(output_dir, name=sweep.name, tags=tags)
        known = sweep.attributes.first("run_id", run.run_id)
        if known == run.run_id:
            sweep.attributes.set("tracking_uri", run.store.uri)
            _describe(run, sweep, subjects, resolved)
            return run, True
        run.finish("KILLED", f"another process began the sweep at the same moment, in the run {known}")
    store, is_led = find_parent(known, sweep.attributes.get("tracking_uri") or "another store")
    end_attached(known)
    if is_led:
        return TrackedRun(store, known, (output_dir / f"{known}-{os.getpid()}").absolute()), False
    return reopen(store, known, output_dir), True


def _describe(run: TrackedRun, sweep: Sweep, subjects: Mapping[str, Subject], resolved: Resolved) -> None:
    prepared = next(iter(subjects.values())).prepared
    recipe = resolved.recipe
    run.log_params({name: value for name, value in recipe.flat().items() if name.startswith(("search.", "data."))})
    run.log_text("# The sweep's recipe. Repeat it with: imgcls tune recipe.yaml\n" + recipe.to_yaml(), "recipe.yaml")
    spaces = {family: space.as_json() for family, space in sweep.spaces.items()}
    run.log_text(json.dumps(spaces, indent=2), "tables/spaces.json")
    log_data(run, prepared.recipe.data, prepared.manifest, context="tuning")
    describe_data(run, prepared)


def _open_families(
    run: TrackedRun, sweep: Sweep, subjects: Mapping[str, Subject], signals: Signals, found: dict[str, TrackedRun]
) -> None:
    """Put the run of each family, nested in the sweep's, into `found` as soon as there is one, so that it is ended."""
    for family, subject in subjects.items():
        output_dir = Path(subject.prepared.recipe.train.output_dir)
        with signals.shielded():
            known = sweep.attributes.get(f"run/{family}")
            if known is not None:
                found[family] = reopen(run.store, known, output_dir)
                continue
            tags = {"imgcls.verb": "study", "imgcls.family": family, "imgcls.sweep": sweep.name}
            tags["imgcls.plan"] = str(subject.prepared.plan)
            found[family] = child = tracking.start(output_dir, name=family, tags=tags, parent=run.run_id)
            child.log_params(subject.prepared.recipe.flat())
            sweep.attributes.set(f"run/{family}", child.run_id)


def _work(
    run: TrackedRun,
    sweep: Sweep,
    subjects: Mapping[str, Subject],
    parents: Mapping[str, str],
    report: Report | None,
    console: Console,
    signals: Signals,
) -> None:
    """Keep workers at work until the sweep is done, or its time is up; where asked, keep the run's figures new.

    Raises:
        Stopped: it was asked to end; the workers have ended then.
        UserError: the workers die again and again.
    """
    task = Task(
        storage=sweep.storage,
        name=sweep.name,
        recipes={family: subject.resolved for family, subject in subjects.items()},
        parents=parents,
        until=None if sweep.search.seconds is None else time.time() + sweep.search.seconds,
        coordinator=os.getpid(),
    )
    teller = _Teller(sweep, console)
    with Workers(task, subjects, sweep.search.workers) as workers, signals.deferred():
        try:
            while workers.tend(lambda name: _close_abandoned(run, sweep.requeue_of(name))):
                if signals.stop():
                    break
                table = sweep.table()
                teller.tell(table)
                if report is not None:
                    report.write_if_due(table)
                _close_abandoned(run, sweep.requeue_stale())
                time.sleep(POLL_S)
        finally:
            workers.end(signals)
            for name in workers.names:
                _close_abandoned(run, sweep.requeue_of(name))
            if report is not None:
                report.overheads += workers.overheads()
    teller.tell(sweep.table())
    if report is not None:
        for run_id in running_children(run.store, list(parents.values())):
            if not any(run_id == row for row in sweep.table().query("state == 'running'")["run_id"]):
                close(run.store, run_id, "KILLED", {"imgcls.trial_state": "killed"})
    signals.raise_if_requested()


def _close_abandoned(run: TrackedRun, abandoned: Sequence[Any]) -> None:
    for trial in abandoned:
        run_id = trial.attributes.get("run_id")
        if run_id:
            why = {"imgcls.stopped_by": "its worker was killed", "imgcls.trial_state": "killed"}
            close(run.store, run_id, "KILLED", why)


def _ended(table: pd.DataFrame) -> list[tuple[str, int]]:
    rows = table[table["state"].isin(["complete", "pruned", "failed"])]
    return list(zip(rows["family"], rows["number"], strict=True))


class _Teller:
    """Tells a line for every trial that has ended, with an estimate of the time that is left."""

    def __init__(self, sweep: Sweep, console: Console) -> None:
        self._sweep, self._console = sweep, console
        self._seen = set(_ended(sweep.table()))
        self._begin, self._before = time.monotonic(), len(self._seen)

    def tell(self, table: pd.DataFrame) -> None:
        """A line for every trial of the table that was not told yet."""
        objective = self._sweep.search.objectives[0]
        for family, number in _ended(table):
            if (family, number) in self._seen:
                continue
            self._seen.add((family, number))
            [row] = table[(table["family"] == family) & (table["number"] == number)].to_dict("records")
            fields = self._sweep.spaces[family].ranges
            values = ", ".join(f"{name.split('.')[-1]} {_short(row[name])}" for name in fields if row[name] is not None)
            what = row["reason"] if row["state"] == "failed" else f"{objective} {row[objective]:.4f}"
            best = self._sweep.best()
            ahead = "" if best is None else f"  best {best[objective]:.4f}"
            trial = f"{family}/{number:03d} {row['state']:<8}  {what}  ({values}; {row['seconds']:.0f} s)"
            self._console.say(f"{self._place()}  {trial}{ahead}{self._left()}")

    def _place(self) -> str:
        total = self._sweep.budget
        return f"{len(self._seen):>3}{'' if total is None else f'/{total}'}"

    def _left(self) -> str:
        total, limit = self._sweep.budget, self._sweep.search.seconds
        spent = time.monotonic() - self._begin
        left = [] if limit is None else [max(0.0, limit - spent)]
        if total is not None:
            left.append(max(0, total - len(self._seen)) * spent / (len(self._seen) - self._before))
        return f"  ETA {timedelta(seconds=round(min(left)))}" if left else ""


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _conclude(run: TrackedRun, sweep: Sweep, report: Report) -> TuneResult:
    """The end of the sweep's run: figures, and which trial was the best.

    Raises:
        UserError: no trial was completed.
    """
    table, best = sweep.table(), sweep.best()
    report.write(table, final=True)
    if best is None:
        failed = table[table["state"] == "failed"]
        why = f" The last one failed: {failed['reason'].iloc[-1]}" if len(failed) else ""
        raise UserError(
            f"no trial of the sweep {sweep.name!r} was completed.{why} Mend that, and give the sweep another name."
        )
    return TuneResult(run.run_id, sweep.name, _without_password(sweep.storage), best, table, run.unsent)


def _tell_end(result: TuneResult, run: TrackedRun, report: Report, console: Console) -> None:
    for line in report.in_words(result.table):
        console.say(line)
    best, objective = result.best, report.objectives[0]
    headline = f"best: {best['family']}/{best['number']:03d} with {objective} {best[objective]:.4f}"
    report_end(run, console, headline, shows=SHOWS)
    console.say(f"next: imgcls refit {run.run_id}    (the best trial's recipe, on train + validation, and one test)")


def _identity(subjects: Mapping[str, Subject]) -> dict[str, str]:
    """What must be the same for two commands to work on one sweep."""
    recipe = next(iter(subjects.values())).prepared.recipe
    searched = {name for subject in subjects.values() for name in subject.space.ranges}
    fields = {
        name: json.dumps(value, sort_keys=True)
        for name, value in recipe.flat().items()
        if not name.startswith(_MAY_DIFFER) and name not in searched
    }
    digest = next(iter(subjects.values())).prepared.manifest.digest
    weights = {f"model of {name}": subject.about_model for name, subject in subjects.items()}
    return {**fields, **weights, "the data's digest": digest}


def _budget_in_words(sweep: Sweep) -> str:
    count = "as many trials as fit" if sweep.budget is None else f"{sweep.budget} trials"
    limit = sweep.search.time_limit
    return count if limit is None else f"{count} in {limit}"


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    user, at, place = rest.rpartition("@")
    return f"{scheme}{separator}{user.partition(':')[0]}{at}{place}"
