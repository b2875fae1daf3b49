"""Finding the training that a refit repeats: a finished run, or the best one of a sweep."""

import re
from dataclasses import dataclass
from typing import Any

from imgcls.errors import UserError
from imgcls.tracking.store import active_run, connect

BEST_RUN_TAG = "imgcls.best_run_id"
"""On a sweep's run: its best completed trial."""
_STATES = {
    "RUNNING": "Wait for its end, or finish it",
    "SCHEDULED": "Wait for its end",
    "KILLED": "Finish it: imgcls train --resume {}",
    "FAILED": "Mend what its tag imgcls.error says and finish it: imgcls train --resume {}",
}


@dataclass(frozen=True)
class Trained:
    """A training that is finished.

    Attributes:
        run_id: its run.
        recipe: the name of its recipe.
        best_epoch: the epoch whose weights were the best, from 1.
        data_digest: the digest of all its images.
        sweep: the sweep that it is the best trial of, where that was named.
    """

    run_id: str
    recipe: str
    best_epoch: int
    data_digest: str
    sweep: str | None = None


def find_trained(target: str) -> Trained:
    """The training named by a run id (also runs:/<id>), or by that of a sweep, whose best trial it is then.

    Raises:
        UserError: there is no such run, or it is deleted, unfinished, no training, or a sweep without a completed
            trial.
    """
    found = re.fullmatch(r"(?:runs:/+)?([0-9a-f]{32})/?", target)
    if found is None:
        raise UserError(
            f"found {target!r} to refit; expected the id of a finished training or of a sweep, 32 hexadecimal digits, "
            "such as `imgcls ui` shows."
        )
    store = connect()
    run = active_run(store, found[1], then="then refit it")
    sweep = None
    if run.data.tags.get("imgcls.verb") == "tune":
        sweep, best = found[1], run.data.tags.get(BEST_RUN_TAG)
        if best is None:
            raise UserError(
                f"the sweep {sweep} (status {run.info.status}) has no completed trial to refit. Let it run until one "
                "is finished, or give a training's run id."
            )
        run = active_run(store, best, then="then refit it")
    _check(run)
    tags = run.data.tags
    return Trained(
        run_id=run.info.run_id,
        recipe=tags.get("imgcls.recipe", "recipe"),
        best_epoch=int(run.data.metrics["best/epoch"]),
        data_digest=tags["imgcls.data_digest"],
        sweep=sweep,
    )


def _check(run: Any) -> None:
    run_id, verb, status = run.info.run_id, run.data.tags.get("imgcls.verb"), run.info.status
    if verb == "refit":
        of = run.data.tags.get("imgcls.refit_of", "the run that it was made from")
        raise UserError(
            f"the run {run_id} is a refit itself, which no validation has told how long to train. Refit the training "
            f"that it was made from, {of}."
        )
    if verb is None or "imgcls.data_digest" not in run.data.tags:
        raise UserError(f"the run {run_id} is no training of imgcls; expected one that `imgcls train` made.")
    if status != "FINISHED":
        advice = _STATES.get(status, "Give another").format(run_id)
        raise UserError(
            f"the run {run_id} is {status}; expected a finished training, whose best epoch is known. {advice}."
        )
    if "best/epoch" not in run.data.metrics:
        raise UserError(
            f"the run {run_id} ({verb.replace('_', '-')}) has no best epoch; expected a training that `imgcls train` "
            "made, or a sweep."
        )
