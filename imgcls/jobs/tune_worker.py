"""`python -m imgcls.jobs.tune_worker FOLDER NUMBER`: a worker of a sweep, which runs trials until none are left."""

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from imgcls.errors import UserError
from imgcls.jobs.launch import Handover, end_with_launcher
from imgcls.jobs.reading import Shelf
from imgcls.jobs.signals import Signals, Stopped
from imgcls.jobs.trial import run_trial
from imgcls.recipe import Resolved
from imgcls.tables import Row
from imgcls.tuning.sweep import load_sweep
from imgcls.tuning.worker import Asked, Pruned, TrialFailed

OVERHEADS = "overheads"
"""The file that workers write the seconds to that their trials took outside of training."""


@dataclass(frozen=True)
class Task:
    """What the workers are told.

    Attributes:
        storage: where the sweep's studies are.
        name: the sweep.
        recipes: the recipe of each family, with its execution plan in it.
        parents: the MLflow run of each family's study.
        until: `time.time()` after which no trial is begun; None for no such time.
        coordinator: the process that started them.
    """

    storage: str
    name: str
    recipes: Mapping[str, Resolved]
    parents: Mapping[str, str]
    until: float | None
    coordinator: int


class Objective:
    """Runs the trial that is asked for.

    Args:
        task: what to train.
        signals: how the worker is asked to end.
        worker: its name.
        overheads: the file for the seconds that trials took outside of training.
    """

    def __init__(self, task: Task, signals: Signals, worker: str, overheads: Path) -> None:
        self._task, self._signals, self._worker, self._overheads = task, signals, worker, overheads
        self._shelf, self._last_end = Shelf(), 0.0

    def __call__(self, asked: Asked) -> list[float]:
        """The trial's values of the sweep's objectives.

        Raises:
            Pruned: others were better at the same epoch.
            TrialFailed: it cannot be trained so, or it diverged.
            Stopped: the worker was asked to end.
        """
        base, began = self._task.recipes[asked.family], self._last_end
        objectives = base.recipe.search.objectives

        def prunes(row: Row) -> bool:
            return asked.report(value_of(row, objectives[0]), int(row["epoch"]))

        try:
            trial = run_trial(
                Resolved(base.recipe.replace(asked.values), base.name),
                self._signals,
                parent=self._task.parents[asked.family],
                name=asked.name,
                tags={
                    "imgcls.trial": str(asked.number),
                    "imgcls.sweep": self._task.name,
                    "imgcls.worker": self._worker,
                },
                shelf=self._shelf,
                on_run=lambda run_id: asked.set_attribute("run_id", run_id),
                prunes=prunes,
            )
        except UserError as error:
            raise TrialFailed(str(error)) from error
        self._last_end = time.monotonic()
        if began:  # from the end of the one before, so with what lies between them
            with self._overheads.open("a") as file:
                file.write(f"{self._last_end - began - trial.train_s:.3f}\n")
        if trial.pruned:
            raise Pruned
        return [value_of(trial.best, name) for name in objectives]


def value_of(row: Row, objective: str) -> float:
    """An objective's value in a row of the history."""
    return row["images_per_s" if objective == "speed/images_per_s" else objective]


def worker_name(pid: int) -> str:
    """How a worker of this machine is called in the storage."""
    return f"{os.uname().nodename}:{pid}"


def main(folder: Path, number: int) -> NoReturn:
    """Run trials as the task in the folder says, until none are left or it is asked to end."""
    between, code = Handover(folder), 1
    worker = worker_name(os.getpid())
    try:
        with Signals(ends_process=True, quiet=True) as signals:
            (folder / f"here-{os.getpid()}").touch()
            task: Task = between.take("task")
            end_with_launcher(task.coordinator)
            sweep = load_sweep(task.storage, task.name)
            with signals.deferred():
                objective = Objective(task, signals, worker, folder / OVERHEADS)
                sweep.work(objective, worker=worker, stop=signals.stop, until=task.until)
            signals.raise_if_requested()
            code = 0
    except Stopped as stopped:
        code = 128 + stopped.signum
    except BaseException as error:
        between.tell_failure(number, error)
        code = 2
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
