"""Ending a job on Ctrl-C or SIGTERM in order: finish the batch, save, mark the run; and at once when asked again."""

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

HANDLED = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """The job was asked to end.

    Attributes:
        signum: the signal that asked.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Signals:
    """While entered, SIGINT and SIGTERM end the job in steps.

    The first signal raises `Stopped`, or inside `deferred()` only sets `requested`, for the loop to notice. The second
    of the same kind raises `Stopped` at once (`mlflow run` passes a Ctrl-C on as SIGTERM, which is no second request).
    From `finishing()` on, while the run is being closed, only the third ends the process there and then.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._counts: Counter[int] = Counter()
        self._deferred = self._finishing = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in HANDLED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A context in which the first signal only sets `requested`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def finishing(self) -> None:
        """From here on the run is being closed, which a signal should not keep from being done."""
        self._finishing = True

    def stop(self) -> bool:
        """Whether the job was asked to end."""
        return self.requested is not None

    def raise_if_requested(self) -> None:
        """Raise `Stopped` if the job was asked to end."""
        if self.requested is not None:
            raise Stopped(self.requested)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._counts[number] += 1
        again = self._counts[number]
        if again >= 3:
            os._exit(128 + number)
        if self._finishing:
            return
        if again == 1 and self.requested is not None:
            return
        self.requested = number
        if again == 1 and self._deferred:
            name = signal.Signals(number).name
            os.write(
                sys.stderr.fileno(), f"\nimgcls: {name}: stopping after this batch; again to end at once\n".encode()
            )
            return
        raise Stopped(number)


def watch_mlflow_run() -> None:
    """Where `mlflow run` started this process, ask it to end when `mlflow run` dies.

    MLflow leaves its child running when it is killed by SIGTERM, with nobody to close the run.
    """
    if "MLFLOW_RUN_ID" not in os.environ:
        return
    import psutil

    for parent in psutil.Process().parents():
        try:
            words = [os.path.basename(word) for word in parent.cmdline()]  # noqa: PTH119
        except psutil.Error:
            continue
        if "mlflow" in words[:3] and "run" in words[:5]:
            threading.Thread(target=_end_with, args=(parent,), daemon=True, name="imgcls-watch").start()
            return


def _end_with(parent: Any) -> None:
    import psutil

    while True:
        try:
            gone = not parent.is_running() or parent.status() == psutil.STATUS_ZOMBIE
        except psutil.Error:
            gone = True
        if gone:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        time.sleep(0.5)
