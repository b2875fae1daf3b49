"""Reading runs that are done: what they logged, and the trials below a sweep."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from imgcls.errors import UserError
from imgcls.plugins import nearest
from imgcls.tables import History, Predictions
from imgcls.tracking.store import MissingArtifact, Store, fetch, first_line, is_missing, no_answer

PARENT_TAG, VERB_TAG = "mlflow.parentRunId", "imgcls.verb"
BEST = "best/val_acc"
"""The figure that ranks a sweep's trials."""
NUM_RECENT, NUM_SEARCHED, PAGE = 5, 200, 1000


@dataclass(frozen=True)
class FoundRun:
    """What a run says of itself.

    Attributes:
        run_id: its id.
        name: its name.
        status: RUNNING, FINISHED, FAILED, KILLED or SCHEDULED.
        experiment_id: its experiment.
        params: name -> text.
        metrics: name -> last value.
        tags: name -> text.
        seconds: from its start to its end; None while it runs.
    """

    run_id: str
    name: str
    status: str
    experiment_id: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    seconds: float | None

    @property
    def is_sweep(self) -> bool:
        """Whether `imgcls tune` made it to hold trials."""
        return self.tags.get(VERB_TAG) == "tune"


def read_run(store: Store, target: str) -> FoundRun:
    """The run of an id or of runs:/<id>.

    Raises:
        UserError: it names no run, there is none, it is deleted, or the store does not answer.
    """
    parsed = re.fullmatch(r"(?:runs:/+)?([0-9a-f]{32})/?", target)
    if parsed is None:
        raise UserError(
            f"found {target!r}; expected a run id (32 hexadecimal digits) or runs:/<run id>.{_hint(store, target)}"
        )
    try:
        run = store.client.get_run(parsed[1])
    except Exception as error:
        if not is_missing(error):
            raise no_answer(store, error) from error
        raise UserError(f"there is no run {parsed[1]} in {store.uri}.{_hint(store, parsed[1])}") from error
    if run.info.lifecycle_stage != "active":
        raise UserError(
            f"the run {parsed[1]} is deleted. Restore it with `mlflow runs restore --run-id {parsed[1]}`, or leave it "
            "out."
        )
    return _found(run)


def _found(run: Any) -> FoundRun:
    info = run.info
    return FoundRun(
        run_id=info.run_id,
        name=info.run_name or info.run_id,
        status=info.status,
        experiment_id=info.experiment_id,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        tags=dict(run.data.tags),
        seconds=None if not info.end_time else (info.end_time - info.start_time) / 1000,
    )


def _hint(store: Store, wanted: str) -> str:
    """The run that may have been meant, and the newest ones."""
    try:
        runs = store.client.search_runs([store.experiment_id], order_by=["start_time DESC"], max_results=NUM_SEARCHED)
    except Exception:  # it is but a hint
        return ""
    if not runs:
        return (
            " The experiment has no run yet; train one (imgcls train), or set MLFLOW_TRACKING_URI or "
            "MLFLOW_EXPERIMENT_NAME to another."
        )
    names = {run.info.run_id: run.info.run_name for run in runs}
    named = [run_id for run_id, name in names.items() if name == wanted]
    begun = [run_id for run_id in names if len(wanted) >= 4 and run_id.startswith(wanted)]
    guess = next(iter([*named, *begun]), None) or nearest(wanted, list(names))
    meant = f" Did you mean {guess} ({names[guess]})?" if guess else ""
    recent = "".join(f"\n  {run_id}  {name}" for run_id, name in list(names.items())[:NUM_RECENT])
    return f"{meant} The newest runs of the experiment:{recent}"


def finished_trials(store: Store, sweep: FoundRun) -> list[FoundRun]:
    """The trials below a sweep (or below one of its studies) that are FINISHED, the best `best/val_acc` first.

    A trial is a run without runs below it that is no sweep itself; it may lie one level below or two.

    Raises:
        UserError: the store does not answer.
    """
    found: list[FoundRun] = []
    for child in _children(store, sweep):
        below = _children(store, child) if child.tags.get(VERB_TAG) != "train" else []
        found += below or ([] if child.is_sweep else [child])
    done = [run for run in found if run.status == "FINISHED" and BEST in run.metrics and not run.is_sweep]
    return sorted(done, key=lambda run: -run.metrics[BEST])


def _children(store: Store, parent: FoundRun) -> list[FoundRun]:
    found: list[FoundRun] = []
    token = None
    try:
        while True:
            page = store.client.search_runs(
                [parent.experiment_id],
                filter_string=f"tags.`{PARENT_TAG}` = '{parent.run_id}'",
                max_results=PAGE,
                page_token=token,
            )
            found += [_found(run) for run in page]
            token = page.token
            if not token:
                return found
    except Exception as error:
        raise no_answer(store, error) from error


@contextmanager
def _local(store: Store, run: FoundRun, artifact: str) -> Iterator[Path]:
    """A copy of an artifact."""
    with TemporaryDirectory(prefix="imgcls-") as temporary:
        local = fetch(store, run.run_id, artifact, temporary)
        if local is None:
            raise MissingArtifact(
                f"the run {run.run_id} ({run.name}, {run.status}) has no artifact {artifact!r}: it ended before that "
                "was written, its files were moved, or imgcls did not make it. Give a finished run of `imgcls train`."
            )
        yield local


def read_history(store: Store, run: FoundRun) -> History:
    """What the run logged by epoch (history.json).

    Raises:
        MissingArtifact: it has none.
        UserError: it cannot be read, or the store does not answer.
    """
    with _local(store, run, "history.json") as path:
        try:
            return History.from_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise _unreadable(run, "history.json", error) from error


def read_predictions(store: Store, run: FoundRun, split: str) -> Predictions:
    """The run's predictions for the images of a split (predictions/<split>.parquet).

    Raises:
        MissingArtifact: it has none.
        UserError: they cannot be read, or the store does not answer.
    """
    artifact = f"predictions/{split}.parquet"
    with _local(store, run, artifact) as path:
        try:
            return Predictions.from_parquet(path)
        except (ValueError, KeyError, OSError) as error:
            raise _unreadable(run, artifact, error) from error


def _unreadable(run: FoundRun, artifact: str, error: Exception) -> UserError:
    return UserError(
        f"the artifact {artifact!r} of the run {run.run_id} cannot be read: {first_line(error)}. Expected what "
        "`imgcls train` writes; leave the run out."
    )
