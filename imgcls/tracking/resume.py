"""Finding a run that was interrupted, and going on writing to it."""

import contextlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from imgcls.errors import UserError
from imgcls.tracking.owner import OWNER_TAG, claim, is_running, owner_in
from imgcls.tracking.run import REASON_TAGS, SPOOL, TrackedRun
from imgcls.tracking.store import Store, active_run, connect, fetch, first_line

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Interrupted:
    """A training's run that has ended before its time.

    Attributes:
        store: the store that it is in, with its experiment.
        run_id: the run.
        tags: its tags.
        folder: its work folder, where it is on this machine.
        file: the checkpoint to go on from, where one was named.
    """

    store: Store
    run_id: str
    tags: Mapping[str, str]
    folder: Path | None
    file: Path | None


def find(target: str) -> Interrupted:
    """The run to go on with.

    Args:
        target: a run id, a run's work folder, or a checkpoint in it.

    Raises:
        UserError: there is no such run, or it is not one to go on with: it is finished, deleted, in work, or no
            training.
    """
    run_id, folder, file = _parse(target)
    _check_attached(run_id)
    if folder is not None and "MLFLOW_TRACKING_URI" not in os.environ and (uri := owner_in(folder).get("uri")):
        os.environ["MLFLOW_TRACKING_URI"] = uri
    store = connect()
    run = active_run(store, run_id, then="then go on with it")
    tags = dict(run.data.tags)
    owner = _owner(tags)
    if folder is None and owner and Path(owner["folder"]).is_dir():
        folder = Path(owner["folder"])
    _check_open(store, run, tags, folder, owner)
    return Interrupted(Store(store.uri, store.client, run.info.experiment_id), run_id, tags, folder, file)


def _parse(target: str) -> tuple[str, Path | None, Path | None]:
    """(run id, work folder, checkpoint) of what the user named."""
    path = Path(target)
    if path.exists():
        path = path.absolute()
        for folder in (path, *path.parents[:3]):
            if _is_run_id(folder.name) and folder.is_dir():
                return folder.name, folder, path if path.is_file() else None
    elif _is_run_id(target):
        return target, None, None
    raise UserError(
        f"found {target!r} to go on with; expected a run id (32 hexadecimal digits), or the run's work folder, such as "
        "outputs/<run id>, or a checkpoint in that."
    )


def _is_run_id(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{32}", text) is not None


def _check_attached(run_id: str) -> None:
    attached = os.environ.get("MLFLOW_RUN_ID")
    if attached not in (None, run_id):
        raise UserError(
            f"MLFLOW_RUN_ID is {attached}, as `mlflow run` sets it, but the run to go on with is {run_id}. Unset it, "
            f"and run without `mlflow run`: imgcls train --resume {run_id}"
        )


def _owner(tags: Mapping[str, str]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(tags.get(OWNER_TAG, "{}"))
    except ValueError:
        return {}
    return found


def _check_open(store: Store, run: Any, tags: Mapping[str, str], folder: Path | None, owner: Mapping[str, Any]) -> None:
    run_id, status = run.info.run_id, run.info.status
    if tags.get("imgcls.verb") != "train":
        raise UserError(f"the run {run_id} is no training of imgcls; expected one that `imgcls train` made.")
    waits = [] if folder is None else read_spool(folder)
    ends = [operation["status"] for operation in waits if operation["op"] == "end"]
    if "FINISHED" in ends:
        raise UserError(f"the training of the run {run_id} is finished, but not sent. Send it: imgcls upload {folder}")
    if status == "FINISHED":
        raise UserError(
            f"the run {run_id} in {store.uri} is FINISHED; there is nothing to go on with. To train its network "
            f"further, start a new run from its weights: imgcls train RECIPE --model.weights runs:/{run_id}"
        )
    if status == "RUNNING" and not ends and is_running(owner):
        raise UserError(
            f"the run {run_id} is still in work, by process {owner['pid']} on this machine. Wait for its end, or end "
            f"it (kill {owner['pid']}) and run this again."
        )


def reattach(found: Interrupted, folder: Path) -> TrackedRun:
    """Go on writing to the run, in this work folder. It is RUNNING again, whatever it was.

    Figures that it has are not logged a second time, and what an outage of the server left waiting is sent.

    Raises:
        UserError: the store does not take it.
    """
    client, run_id = found.store.client, found.run_id
    os.environ.pop("MLFLOW_RUN_ID", None)
    try:
        run = TrackedRun(found.store, run_id, folder)
        waits = [operation for operation in read_spool(folder) if operation["op"] != "end"]
        run.go_on(waits, *_metrics_of(client, run_id))
        client.update_run(run_id, status="RUNNING")
        for tag in REASON_TAGS.values():
            if tag in found.tags:
                client.delete_tag(run_id, tag)
    except Exception as error:
        raise UserError(f"the run {run_id} in {found.store.uri} does not go on: {first_line(error)}.") from error
    count = int(found.tags.get("imgcls.resumes", 0)) + 1
    run.set_tags({OWNER_TAG: claim(folder, uri=found.store.uri, run_id=run_id), "imgcls.resumes": str(count)})
    return run


def _metrics_of(client: Any, run_id: str) -> tuple[set[tuple[str, int]], int]:
    """(metric, step) of all that the run has, and the number of samples of the machine."""
    names = list(client.get_run(run_id).data.metrics)
    there: set[tuple[str, int]] = set()
    for name in names:
        if not name.startswith("system/"):
            there |= {(name, metric.step) for metric in client.get_metric_history(run_id, name)}
    samples = 0
    for name in [name for name in names if name.startswith("system/")][:1]:
        samples = 1 + max(metric.step for metric in client.get_metric_history(run_id, name))
    return there, samples


def read_spool(folder: Path) -> list[dict[str, Any]]:
    """The operations that wait in the folder."""
    try:
        return [json.loads(line) for line in (folder / SPOOL).read_text(encoding="utf-8").splitlines()[1:]]
    except (OSError, ValueError):
        return []


@contextlib.contextmanager
def artifact_file(found: Interrupted, name: str) -> Iterator[Path]:
    """An artifact as a file: the work folder's where it is there, else a copy of the run's.

    Raises:
        UserError: neither has it, or the store fails.
    """
    if found.folder is not None and (found.folder / "artifacts" / name).is_file():
        yield found.folder / "artifacts" / name
        return
    with TemporaryDirectory(prefix="imgcls-") as temporary:
        path = fetch(found.store, found.run_id, name, temporary)
        if path is None:
            raise UserError(
                f"the run {found.run_id} has no artifact {name!r}: it ended before its training began. Start it "
                "again: imgcls train RECIPE"
            )
        yield path


def local_checkpoints(found: Interrupted) -> Path | None:
    """The folder of the checkpoints on this machine, or None."""
    if found.folder is None or not (found.folder / "artifacts" / CHECKPOINTS).is_dir():
        return None
    return found.folder / "artifacts" / CHECKPOINTS


def download_checkpoints(found: Interrupted, target: Path, *, damaged: Collection[str] = ()) -> None:
    """Fetch those of the run's checkpoints that are not in the folder yet, or damaged there, each whole or not at all.

    Raises:
        UserError: the store does not give them, or the folder cannot be written. A run may have none.
    """
    client = found.store.client
    try:
        target.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".download-", dir=target) as temporary:  # beside, for `replace` cannot go far
            for entry in client.list_artifacts(found.run_id, CHECKPOINTS):
                if (name := Path(entry.path).name) in damaged or not (target / name).exists():
                    fetched = Path(client.download_artifacts(found.run_id, entry.path, temporary))
                    fetched.replace(target / name)
    except Exception as error:  # the store's own errors, of its database, its server or where it keeps artifacts
        raise UserError(
            f"the checkpoints of the run {found.run_id} cannot be fetched from {found.store.uri} to {target}: "
            f"{first_line(error)}. Nothing was changed; mend that, and run this again."
        ) from error


def interrupted(output_dir: Path) -> list[str]:
    """Ids of trainings whose work folders in `output_dir` have a checkpoint and no process any more, newest last."""
    found: list[tuple[float, str]] = []
    with contextlib.suppress(OSError):
        for folder in output_dir.iterdir():
            last = folder / "artifacts" / CHECKPOINTS / "last.pt"
            owner = owner_in(folder)
            if not owner or owner.get("verb", "train") != "train" or not last.is_file() or is_running(owner):
                continue
            if all(operation["op"] != "end" for operation in read_spool(folder)):
                found.append((last.stat().st_mtime, folder.name))
    return [name for _, name in sorted(found)]
