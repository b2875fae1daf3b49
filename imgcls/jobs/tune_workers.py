"""The worker processes of a sweep on this machine: started, started again when one is killed, and ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import torch

from imgcls.errors import UserError
from imgcls.jobs.launch import handover
from imgcls.jobs.signals import Signals, Stopped
from imgcls.jobs.tune_space import Subject, threads_each
from imgcls.jobs.tune_worker import OVERHEADS, Task, worker_name

GRACE_S = 60.0
"""So long the workers have to close their trials when they are asked to end."""
MOST_DEATHS = 5
"""So often a worker is started again without a trial ended in between."""


@dataclass
class _Process:
    popen: "subprocess.Popen[bytes]"
    number: int


class Workers:
    """The processes; a context, at whose end none is left.

    Args:
        task: what they are told.
        subjects: the families.
        count: how many; auto is one for each GPU, and one on a CPU.
    """

    def __init__(self, task: Task, subjects: Mapping[str, Subject], count: int | Literal["auto"]) -> None:
        on_gpu = any(subject.prepared.plan.device == "cuda" for subject in subjects.values())
        self._gpus = torch.cuda.device_count() if on_gpu else 0
        self._count = max(1, self._gpus) if count == "auto" else count
        self._task, self._processes = task, list[_Process]()
        self._stack = ExitStack()
        self._deaths = 0
        self.names: list[str] = []

    def __enter__(self) -> Self:
        self._between = self._stack.enter_context(handover())
        self._between.give("task", self._task)
        for number in range(self._count):
            self._start(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.popen.kill()
            process.popen.wait()
        self._stack.close()

    def tend(self, on_death: Callable[[str], None]) -> bool:
        """Start those again that were killed; whether any is at work.

        Args:
            on_death: told the name of one that died, before another takes its place.

        Raises:
            UserError: one failed for a reason to mend, or they die again and again.
            RuntimeError: one failed for another reason.
        """
        for process in list(self._processes):
            code = process.popen.poll()
            if code is None:
                continue
            self._processes.remove(process)
            if code == 0:
                continue
            on_death(worker_name(process.popen.pid))
            told = self._between.take(f"failure-{process.number}")
            if told is not None:
                _, _, _, reason, trace = told
                if not trace:
                    raise UserError(reason)
                failure = RuntimeError(f"a worker failed: {reason}")
                failure.add_note(trace)
                raise failure
            self._deaths += 1
            if self._deaths > MOST_DEATHS * self._count:
                name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                raise UserError(
                    f"the workers were ended {self._deaths} times ({name}). Where nobody did that, memory ran out: "
                    "lower search.workers or the largest train.batch_size of search.space. Then run the same command, "
                    "which goes on."
                )
            self._start(process.number)
        return bool(self._processes)

    def end(self, signals: Signals) -> None:
        """Ask all to end, and wait until they have closed their trials; at a second signal, kill them."""
        for process in self._processes:
            process.popen.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        try:
            while any(process.popen.poll() is None for process in self._processes) and time.monotonic() < deadline:
                time.sleep(0.1)
        except Stopped as stopped:
            signals.requested = signals.requested or stopped.signum
        for process in self._processes:
            process.popen.kill()
            process.popen.wait()
        self._processes.clear()

    def overheads(self) -> list[float]:
        """Seconds outside of training of every trial but each worker's first."""
        path = self._between.folder / OVERHEADS
        return [float(line) for line in path.read_text().split()] if path.exists() else []

    def _start(self, number: int) -> None:
        environment = dict(os.environ)
        environment.pop("MLFLOW_RUN_ID", None)
        environment.setdefault("OMP_NUM_THREADS", str(threads_each(self._count)))
        if self._gpus > 1:
            visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
            devices = visible if len(visible) >= self._gpus else [str(gpu) for gpu in range(self._gpus)]
            environment["CUDA_VISIBLE_DEVICES"] = devices[number % self._gpus]
        popen = subprocess.Popen(
            [sys.executable, "-m", "imgcls.jobs.tune_worker", str(self._between.folder), str(number)],
            env=environment,
            start_new_session=True,  # a Ctrl-C is for this process, which asks them to end in order
        )
        self.names.append(worker_name(popen.pid))
        self._processes.append(_Process(popen, number))
