"""Runs within runs: those of a sweep, which several processes write and which outlive the one that began them."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from imgcls.errors import UserError
from imgcls.tracking.owner import OWNER_TAG, claim, is_running
from imgcls.tracking.run import REASON_TAGS, Status, TrackedRun
from imgcls.tracking.store import Store, active_run, connect, first_line


def find_parent(run_id: str, uri: str) -> tuple[Store, bool]:
    """The store of a sweep's run, and whether another process writes to that run.

    Args:
        run_id: the run.
        uri: the store that it was made in.

    Raises:
        UserError: this store has no such run, it is deleted, or the store fails.
    """
    store = connect()
    other = "or give the sweep another name"
    missing = f"It was made in {uri}; set MLFLOW_TRACKING_URI to that, {other}."
    run = active_run(store, run_id, then=other, missing=missing, what="run of the sweep")
    if run.info.status != "RUNNING":
        return store, False
    try:
        owner = json.loads(run.data.tags.get(OWNER_TAG, "{}"))
    except ValueError:
        owner = {}
    here = owner.get("host") == os.uname().nodename
    return store, is_running(owner) if here else True


def reopen(store: Store, run_id: str, output_dir: Path) -> TrackedRun:
    """Go on writing to a run that has ended, or whose process is gone: it is RUNNING again.

    Raises:
        UserError: the store does not take it.
    """
    run = TrackedRun(store, run_id, (output_dir / run_id).absolute())
    try:
        tags = store.client.get_run(run_id).data.tags
        with store.writing():
            store.client.update_run(run_id, status="RUNNING")
            for tag in REASON_TAGS.values():
                if tag in tags:
                    store.client.delete_tag(run_id, tag)
    except Exception as error:
        raise UserError(f"the run {run_id} in {store.uri} does not go on: {first_line(error)}.") from error
    run.set_tags({OWNER_TAG: claim(run.folder, uri=store.uri, run_id=run_id)})
    return run


def close(store: Store, run_id: str, status: Status, tags: Mapping[str, str]) -> bool:
    """End a run whose process is gone; whether it was still RUNNING."""
    with contextlib.suppress(Exception):  # an outage; the run is looked at again at the sweep's end
        if store.client.get_run(run_id).info.status == "RUNNING":
            with store.writing():
                for name, text in tags.items():
                    store.client.set_tag(run_id, name, text[:5000])
                store.client.set_terminated(run_id, status)
            return True
    return False


def running_children(store: Store, parents: list[str]) -> list[str]:
    """Ids of the RUNNING runs nested in these."""
    found = []
    for parent in parents:
        condition = f"tags.`mlflow.parentRunId` = '{parent}' and attributes.status = 'RUNNING'"
        found += [run.info.run_id for run in store.client.search_runs([store.experiment_id], condition)]
    return found


def end_attached(run_id: str) -> None:
    """Where `mlflow run` made a run for this process, but what it does belongs to another: say so in it and end it."""
    attached = os.environ.pop("MLFLOW_RUN_ID", None)
    if attached is None or attached == run_id:
        return
    store = connect()
    with store.writing():
        store.client.set_tag(attached, "imgcls.sweep_run", run_id)
        store.client.set_tag(attached, "mlflow.note.content", f"Went on with the sweep of the run {run_id}.")
        store.client.set_terminated(attached, "FINISHED")
