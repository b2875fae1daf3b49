"""One MLflow run that a job writes to, and that survives a tracking server which stops answering.

Every write is an operation: a JSON-ready dict that can be applied now, or kept in a file of the run's work folder and
applied later, in order and more than once without harm (MLflow ignores a metric it has already).
"""

import contextlib
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from imgcls.errors import UserError
from imgcls.tracking.operations import Operation, apply
from imgcls.tracking.owner import OWNER_TAG, claim, is_running, this_process
from imgcls.tracking.store import Store, connect

Status = Literal["FINISHED", "FAILED", "KILLED"]

RETRY_SECONDS = 5.0
WAIT_FACTOR = 10.0
GRACE_SECONDS = 15.0
SPOOL = "unsent.jsonl"
MOST_PARAM_CHARS = 6000
BATCH = 100
REASON_TAGS: dict[Status, str] = {"FAILED": "imgcls.error", "KILLED": "imgcls.stopped_by"}
"""The tag that says why a run ended so."""


class TrackedRun:
    """A run to write to. Writes never raise for an outage of the server: they wait in the work folder.

    Args:
        store: the store that the run is in.
        run_id: the run.
        folder: the run's work folder, made if need be; artifacts are written here first.

    Attributes:
        lost: at its end the run could neither be sent nor kept whole.
        num_samples: how often the machine's use was logged before this process.
        shield: a context that keeps a signal from breaking into a write: an exception between two steps of a
            database's driver can leave a transaction open, and the database locked for all later writes.
    """

    def __init__(self, store: Store, run_id: str, folder: Path) -> None:
        self.store, self.run_id, self.folder = store, run_id, folder
        self._lock = threading.RLock()
        self._unsent: list[Operation] = []
        self._next_try = 0.0
        self._ended = False
        self._there: set[tuple[str, int]] = set()
        self.num_samples = 0
        self.lost = False
        self.shield: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def experiment_id(self) -> str:
        """The id of the run's experiment."""
        return self.store.experiment_id

    @property
    def where(self) -> str:
        """Where to find the run: its page where the store is a server, else its id and the store."""
        if self.store.uri.startswith(("http://", "https://")):
            return f"{self.store.uri.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{self.run_id}"
        return f"{self.run_id} in {self.store.uri}"

    @property
    def num_unsent(self) -> int:
        """Operations that wait for the server."""
        return len(self._unsent)

    @property
    def unsent(self) -> Path | None:
        """The folder with what waits for the server; None where all is in the store."""
        return self.folder if self._unsent else None

    def go_on(self, waits: Sequence[Operation], there: Collection[tuple[str, int]], num_samples: int) -> None:
        """Take up what an interrupted run left: operations that wait, and (metric, step) of the figures it has."""
        self._unsent = list(waits)
        spooled = {(row[0], row[3]) for operation in waits for row in operation.get("metrics", [])}
        self._there = {*there, *spooled}
        steps = [step for name, step in spooled if name.startswith("system/")]
        self.num_samples = max([num_samples, *(step + 1 for step in steps)])

    def file(self, artifact: str) -> Path:
        """The local file behind an artifact of this path, its folder made."""
        path = self.folder / "artifacts" / artifact
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log the params that the run lacks; one that is there, as `mlflow run -P` leaves it, stays as it is."""
        texts = {name: _text(value)[:MOST_PARAM_CHARS] for name, value in params.items()}
        self._write({"op": "params", "params": texts})

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log figures of one step in one request; those that an interrupted run has of that step are left out."""
        now = int(time.time() * 1000)
        rows = [[name, float(value), now, step] for name, value in metrics.items() if (name, step) not in self._there]
        if rows:
            self._write({"op": "metrics", "metrics": rows})

    def log_model_metrics(
        self, metrics: Mapping[str, float], *, model_id: str | None, dataset: Mapping[str, str]
    ) -> None:
        """Log figures of a LoggedModel as the run's and as its own.

        Args:
            metrics: name -> value.
            model_id: the model; None is the run's own, logged before.
            dataset: `name` and `digest` of the data that they are of.
        """
        now = int(time.time() * 1000)
        rows = [[name, float(value), now, 0] for name, value in metrics.items()]
        self._write({"op": "model_metrics", "metrics": rows, "model_id": model_id, "dataset": dict(dataset)})

    def link_models(self, model_ids: Sequence[str]) -> None:
        """Record LoggedModels as what the run read."""
        if model_ids:
            self._write({"op": "link_models", "models": list(model_ids)})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._write({"op": "tags", "tags": {name: str(value)[:5000] for name, value in tags.items()}})

    def describe(self, text: str) -> None:
        """Set the run's description, Markdown, where a user has not written one meanwhile."""
        self._write({"op": "note", "text": text})

    def log_dataset(self, *, name: str, digest: str, source: str, profile: Mapping[str, Any], context: str) -> None:
        """Record what data the run read; `digest` has at most 36 characters."""
        self._write(
            {
                "op": "dataset",
                "name": name,
                "digest": digest,
                "source": source,
                "profile": dict(profile),
                "context": context,
            }
        )

    def log_text(self, text: str, artifact: str) -> None:
        """Log a text as an artifact."""
        self.file(artifact).write_text(text, encoding="utf-8")
        self.log_file(artifact)

    def log_file(self, artifact: str) -> None:
        """Log what was written to `file(artifact)`."""
        self._write({"op": "artifact", "artifact": artifact})

    def log_model(self, source: str, *, top_k: int) -> None:
        """Log the classifier saved in the work folder's sub-folder `source` as the run's model."""
        self._write({"op": "model", "source": source, "top_k": top_k})

    def finish(self, status: Status, reason: str | None = None) -> bool:
        """End the run; True if all of it is in the store, False if operations wait in the work folder."""
        if reason is not None:
            self.set_tags({REASON_TAGS[status]: reason})
        with self._lock:
            self._write({"op": "end", "status": status, "time": int(time.time() * 1000)})
            self._ended = True
        deadline = time.monotonic() + GRACE_SECONDS
        while self._unsent and time.monotonic() < deadline:
            time.sleep(0.5)
            self._resend(force=True)
        if not self._unsent:
            self.leave()
            return True
        try:
            self._save()
        except OSError as error:
            self.lost = True
            print(
                f"imgcls: {self.num_unsent} writes are lost: the store does not take them, and {self.folder} cannot be "
                f"written ({error.strerror})",
                file=sys.stderr,
            )
        return False

    def leave(self) -> None:
        """Remove the work folder where nothing waits in it, without ending the run, which may be another process's."""
        if not self._unsent:
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.folder.parent.rmdir()

    def _write(self, operation: Operation) -> None:
        with self.shield(), self._lock:
            if self._ended:  # a last system metric, from a thread that the end of the job did not wait for
                return
            if self._unsent:
                self._keep(operation)
                self._resend()
                return
            begin = time.monotonic()
            try:
                apply(self.store, self.run_id, self.folder, operation)
            except Exception as error:  # whatever the store raises: training is worth more than its record
                print(
                    f"imgcls: the tracking store {self.store.uri} does not take what it is sent ({_reason(error)}); "
                    f"going on, and keeping it in {self.folder}",
                    file=sys.stderr,
                )
                self._keep(operation)
                self._wait_after(begin)

    def _keep(self, operation: Operation) -> None:
        self._unsent.append(operation)
        with contextlib.suppress(OSError):  # a full disk: they stay in memory, and `finish` tries once more
            self._save()

    def _save(self) -> None:
        _save_spool(self.folder, self.store.uri, self.run_id, self._unsent)

    def _wait_after(self, begin: float) -> None:
        """No try soon after one that began then: a server that hangs until a timeout must not hold training up."""
        now = time.monotonic()
        self._next_try = now + max(RETRY_SECONDS, WAIT_FACTOR * (now - begin))

    def _resend(self, *, force: bool = False) -> None:
        with self._lock:
            if not force and time.monotonic() < self._next_try:
                return
            begin = time.monotonic()
            sent = _send_all(self.store, self.run_id, self.folder, self._unsent)
            self._wait_after(begin)
            if not self._unsent and sent:
                (self.folder / SPOOL).unlink(missing_ok=True)
                print(f"imgcls: {self.store.uri} answers again; all that waited was sent", file=sys.stderr)
            elif sent:
                with contextlib.suppress(OSError):
                    self._save()


def start(output_dir: Path, *, name: str, tags: Mapping[str, str], parent: str | None = None) -> TrackedRun:
    """Attach to the run that `mlflow run` made (MLFLOW_RUN_ID), or make one.

    A run below another is always a new one, in the experiment of that.

    Args:
        output_dir: the run's work folder is made in it.
        name: the run's name, if it is made here.
        tags: set on the run beside MLflow's own (user, source, git commit).
        parent: the run that it is nested in; such a run is always made here.

    Raises:
        UserError: the store does not answer, or the folder cannot be written. No run is made then.
    """
    store = connect()
    _check_writable(output_dir)
    if parent is not None:
        tags = {**tags, "mlflow.parentRunId": parent}
    run_id = os.environ.get("MLFLOW_RUN_ID") if parent is None else None
    if run_id is None:
        from mlflow.tracking.context.registry import resolve_tags

        logging.getLogger("mlflow.tracking.context").setLevel(logging.ERROR)
        try:
            every_tag = resolve_tags(dict(tags))
            if parent is not None:
                store = replace(store, experiment_id=str(store.client.get_run(parent).info.experiment_id))
            with store.writing():
                run_id = store.client.create_run(store.experiment_id, tags=every_tag, run_name=name).info.run_id
        except Exception as error:
            with contextlib.suppress(OSError):  # it holds other runs' files
                output_dir.rmdir()
            raise UserError(f"the tracking store {store.uri} takes no new run: {_reason(error)}") from error
    run = TrackedRun(store, run_id, (output_dir / run_id).absolute())
    if parent is None:
        os.environ.pop("MLFLOW_RUN_ID", None)  # the next run of this process is another one
    owner = claim(run.folder, uri=store.uri, run_id=run_id, verb=tags.get("imgcls.verb", ""))
    run.set_tags({**tags, OWNER_TAG: owner})
    return run


def end_for(run_id: str, folder: Path, status: Status, reason: str) -> TrackedRun | None:
    """End the run of a job that was killed, with the checkpoints it left; or put right why it ended.

    Args:
        run_id: the run.
        folder: its work folder.
        status: how the job ended.
        reason: why; it replaces what the job itself may have found out.

    Returns:
        The run where it was still open, ended now; None where the job ended it itself.
    """
    with contextlib.suppress(Exception):  # the store may be what failed; the error itself is on its way
        store = connect()
        found = store.client.get_run(run_id)
        if found.info.status == "RUNNING" and not (folder / SPOOL).exists():
            run = TrackedRun(store, run_id, folder)
            for path in sorted((folder / "artifacts" / "checkpoints").glob("*.pt")):
                run.log_file(f"checkpoints/{path.name}")
            run.finish(status, reason)
            return run
        if found.info.status in ("FAILED", "KILLED"):
            for tag in set(REASON_TAGS.values()) & set(found.data.tags):
                store.client.delete_tag(run_id, tag)
            store.client.set_tag(run_id, REASON_TAGS[status], reason[:5000])
            store.client.set_terminated(run_id, status)
    return None


def fail_attached_run(reason: str, *, status: Status = "FAILED") -> None:
    """Mark the run that `mlflow run` made for this process as FAILED or KILLED, with the reason, if it made one."""
    run_id = os.environ.pop("MLFLOW_RUN_ID", None)
    if run_id is None:
        return
    with contextlib.suppress(Exception):  # the store may be what failed; the error itself is already on its way
        store = connect()
        store.client.set_tag(run_id, REASON_TAGS[status], reason[:5000])
        store.client.set_terminated(run_id, status)


def upload(folder: Path) -> tuple[str, int]:
    """Send what waits in a run's work folder; returns the run id and how many operations were sent.

    Where the job was killed before it could end its run, the run is marked KILLED; not where it was another process's.

    Raises:
        UserError: the folder is not one that waits, its job is still running, or the store still does not take it.
    """
    try:
        lines = (folder / SPOOL).read_text(encoding="utf-8").splitlines()
        about, *unsent = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} holds nothing to upload: {error}. Expected the folder named at the end of a run whose "
            f"tracking server was down, with a file {SPOOL}."
        ) from error
    if about["pid"] != os.getpid() and is_running(about):
        raise UserError(
            f"the job that writes to {folder} is still running (process {about['pid']}); it sends what waits by "
            "itself. Wait for its end."
        )
    os.environ["MLFLOW_TRACKING_URI"] = about["uri"]
    store = connect()
    joined = folder.resolve().name.startswith(f"{about['run_id']}-")  # a run that another process leads and ends
    if not joined and all(operation["op"] != "end" for operation in unsent):
        unsent.append({"op": "tags", "tags": {REASON_TAGS["KILLED"]: "killed while its tracking server was down"}})
        unsent.append({"op": "end", "status": "KILLED", "time": int(time.time() * 1000)})
    total, errors = len(unsent), list[Exception]()
    _send_all(store, about["run_id"], folder, unsent, errors)
    if unsent:
        _save_spool(folder, store.uri, about["run_id"], unsent)
        raise UserError(
            f"{store.uri} took {total - len(unsent)} of {total} writes, then: {_reason(errors[0])}. What is left "
            f"stays in {folder}; run the command again."
        )
    shutil.rmtree(folder)
    return about["run_id"], total


def _send_all(
    store: Store, run_id: str, folder: Path, unsent: list[Operation], errors: list[Exception] | None = None
) -> int:
    """Apply and remove operations from the front until one fails; how many went."""
    sent = 0
    while unsent:
        try:
            apply(store, run_id, folder, unsent[0])
        except Exception as error:
            if errors is not None:
                errors.append(error)
            return sent
        unsent.pop(0)
        sent += 1
    return sent


def _save_spool(folder: Path, uri: str, run_id: str, unsent: Sequence[Operation]) -> None:
    about = {"uri": uri, "run_id": run_id, **this_process()}
    lines = [json.dumps(about), *(json.dumps(operation) for operation in unsent)]
    temporary = folder / (SPOOL + ".tmp")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.replace(folder / SPOOL)


def _check_writable(folder: Path) -> None:
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"train.output_dir {str(folder)!r} cannot be written: {reason}. Expected a folder for checkpoints; "
            "mend its permissions or set train.output_dir to another."
        ) from error


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool | list | tuple | dict):
        return json.dumps(value)
    return str(value)


def _reason(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


@contextlib.contextmanager
def system_metrics(run: TrackedRun) -> Iterator[None]:
    """Log CPU, memory, disk, network and GPU use to the run while the context lasts.

    MLflow's environment variables set the interval (MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL, seconds) and switch it
    off (MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false).
    """
    if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").casefold() in ("false", "0"):
        yield
        return
    from imgcls.tracking.monitor import Monitor

    monitor = Monitor(
        run.run_id, run.store.uri, lambda metrics, step: run.log_metrics(metrics, step=run.num_samples + step)
    )
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
