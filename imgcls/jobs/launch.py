"""Starts the processes of a training under torchrun's elastic launcher, watches them, and tells how they ended."""

import logging
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from imgcls.errors import UserError
from imgcls.jobs.record import reason_of
from imgcls.jobs.resume import Resumption
from imgcls.jobs.signals import Signals, Stopped
from imgcls.recipe import Resolved
from imgcls.training.processes import OthersGone

GRACE_SECONDS = 60.0
"""So long a process has to end in order when the one that started it is gone."""


@dataclass(frozen=True)
class Task:
    """What the processes are told.

    Attributes:
        resolved: the recipe.
        resumption: the run to go on with; None for a new one.
        quiet: print nothing.
        launcher: the process that started them.
        mlflow_run_id: the run that `mlflow run` made, for the first of them to attach to.
    """

    resolved: Resolved
    resumption: Resumption | None
    quiet: bool
    launcher: int
    mlflow_run_id: str | None


class Handover:
    """The folder through which a launcher and its processes on the same machine tell each other what is up.

    Args:
        folder: private to the user.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def give(self, name: str, value: Any) -> None:
        """Leave a value under a name, whole or not at all."""
        temporary = self.folder / f"{name}.{os.getpid()}.tmp"
        temporary.write_bytes(pickle.dumps(value))
        temporary.replace(self.folder / name)

    def take(self, name: str) -> Any:
        """The value under a name, or None."""
        path = self.folder / name
        return pickle.loads(path.read_bytes()) if path.exists() else None

    def tell_failure(self, rank: int, error: BaseException) -> None:
        """Leave the reason why a process ends; the first that did not end for want of another is the cause."""
        trace = "" if isinstance(error, UserError) else "".join(traceback.format_exception(error))
        reason = reason_of(error) if isinstance(error, Exception) else f"{type(error).__name__}: {error}"
        caused = isinstance(error, OthersGone)
        self.give(f"failure-{rank}", (caused, time.time(), rank, reason, trace))

    def first_failure(self, processes: int) -> tuple[int, str, str] | None:
        """(rank, reason, traceback or nothing) of the process that failed by itself, as far as one could tell it."""
        found = sorted(f for f in (self.take(f"failure-{rank}") for rank in range(processes)) if f is not None)
        return None if not found or found[0][0] else found[0][2:]


@contextmanager
def handover() -> Iterator[Handover]:
    """A fresh folder, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="imgcls-processes-", ignore_cleanup_errors=True) as folder:
        yield Handover(Path(folder))


def run_processes(
    between: Handover,
    processes: int,
    resolved: Resolved,
    resumption: Resumption | None,
    signals: Signals,
    *,
    quiet: bool,
) -> None:
    """Run `python -m imgcls.jobs.rank` so many times, until all have ended.

    A signal is passed on to all of them, also a second one; they end as one process does.

    Raises:
        UserError: one failed for a reason to mend, or was killed; the others were ended then.
        RuntimeError: one failed for another reason, which is told with its traceback.
        Stopped: they were asked to stop.
    """
    # The first of them attaches to it. This process keeps it for the case that none of them gets so far.
    attached = os.environ.pop("MLFLOW_RUN_ID", None)
    between.give("task", Task(resolved, resumption, quiet, os.getpid(), attached))
    failures, done = dict[int, Any](), threading.Event()
    thread = threading.Thread(
        target=_launch, args=(between.folder, processes, failures, done), name="imgcls-launcher", daemon=True
    )
    sent, told = 0, set[int]()
    with signals.deferred():
        thread.start()
        while not done.is_set():
            try:
                time.sleep(0.1)  # Thread.join, interrupted, takes the thread for ended (Python 3.11 and 3.12)
                if signals.requested is not None:
                    sent = sent or signals.requested
                    _send(between.folder, sent, told)  # also to those that are started after it came
            except Stopped as stopped:
                sent = stopped.signum
                told.clear()
                _send(between.folder, sent, told)
    if attached is not None and between.take("run") is None:
        os.environ["MLFLOW_RUN_ID"] = attached
    if not failures:
        return
    if sent:
        raise Stopped(sent)
    _raise(between, processes, failures)


def _raise(between: Handover, processes: int, failures: dict[int, Any]) -> None:
    """Raise the error of the process that failed first."""
    if -1 in failures:
        raise failures[-1]
    first = between.first_failure(processes)
    if first is not None:
        rank, reason, trace = first
        if not trace:
            raise UserError(reason)
        error = RuntimeError(f"process {rank} of {processes} failed: {reason}")
        error.add_note(trace)
        raise error
    # What ended for want of another process has told so, and the launcher ends those that are left by SIGTERM.
    told = {rank: between.take(f"failure-{rank}") for rank in failures}
    ended = (-signal.SIGTERM, 128 + signal.SIGTERM)
    rank = min(failures, key=lambda rank: (told[rank] is not None or failures[rank].exitcode in ended, rank))
    if told[rank] is not None:
        raise UserError(told[rank][3])
    code = failures[rank].exitcode
    if code >= 0:
        raise RuntimeError(f"process {rank} of {processes} ended with exit code {code} and told no reason")
    raise UserError(
        f"process {rank} of {processes} was ended by {signal.Signals(-code).name}. Where nobody did that, memory "
        "ran out: lower train.batch_size, train.processes or data.num_workers."
    )


def _launch(folder: Path, processes: int, failures: dict[int, Any], done: threading.Event) -> None:
    """In a thread, where torch leaves the handling of signals alone. What failed comes back in `failures`, by rank."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in list(logging.root.manager.loggerDict):  # they tell what is told here in plain words
        if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher")):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=folder.name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs")),
        )
        elastic_launch(config, sys.executable)("-m", "imgcls.jobs.rank", str(folder))
    except ChildFailedError as error:
        failures.update(error.failures)
    except Exception as error:
        failures[-1] = error
    finally:
        done.set()


def _send(folder: Path, number: int, told: set[int]) -> None:
    """Pass a signal on to the processes that are not among those told; one that is still starting would take any but
    SIGTERM for an error."""
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if child.pid not in told and str(folder) in child.cmdline():
                child.send_signal(number if (folder / f"here-{child.pid}").exists() else signal.SIGTERM)
                told.add(child.pid)


def end_with_launcher(launcher: int) -> None:
    """Ask this process to end when the launcher is gone, and end it when that takes too long; in a thread."""

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="imgcls-launcher-watch").start()
