"""Ending a job on Ctrl-C or a signal in order: finish the batch, save, mark the run; and at once when asked again."""

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from types import FrameType, TracebackType
from typing import Any

from imgcls.tracking.run import fail_attached_run

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
IMPORT_WAIT_SECONDS = 0.05
"""For so long a signal that comes while a module is imported is put off, again and again."""


class Stopped(BaseException):
    """The job was asked to end.

    Attributes:
        signum: the signal that asked.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Signals:
    """While entered, SIGINT, SIGTERM and SIGHUP (a closed terminal; not under `nohup`) end the job in steps.

    The first signal raises `Stopped`, or inside `deferred()` only sets `requested`, for the loop to notice. The second
    of the same kind raises `Stopped` at once (`mlflow run` passes a Ctrl-C on as SIGTERM, which is no second request).
    From `hold()` to `release()`, while a run is being made, and from `finishing()` on, while it is being closed, only
    the third ends the process there and then. While a module is imported, a signal waits for the import's end.

    Under `mlflow run`, the job is asked to end when that dies: MLflow leaves its child running when it is killed by
    SIGTERM, with nobody to close the run. When the job was stopped, the run that `mlflow run` made is KILLED, and so
    is `mlflow run`, which would mark it as FAILED: MLflow 3.17 does so whatever the child has marked it as, for it
    looks for the name of the status among the numbers of the final ones.

    Args:
        ends_process: the process ends with the job, so that after a stop its handlers stay to the end.
        quiet: say nothing of a stop, where another process does.
    """

    def __init__(self, *, ends_process: bool = False, quiet: bool = False) -> None:
        self.requested: int | None = None
        self.quiet = quiet
        self._ends_process = ends_process
        self._counts: Counter[int] = Counter()
        self._deferred = self._held = self._finishing = self._shielded = False
        self._before: dict[int, Any] = {}
        self._mlflow_run: Any = None  # its process, above this one
        self._postponed: SimpleQueue[int | None] = SimpleQueue()
        self._hook_before: Any = None

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            # Started here, for a handler may interrupt whoever holds the locks that starting a thread needs.
            threading.Thread(target=self._send_again, daemon=True, name="imgcls-signals").start()
            for number in HANDLED:
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
            self._hook_before, sys.unraisablehook = sys.unraisablehook, self._dropped
            self._mlflow_run = _find_mlflow_run()
        if self._mlflow_run is not None:
            threading.Thread(target=self._end_with, args=(self._mlflow_run,), daemon=True, name="imgcls-watch").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Stopped):
            self.finishing()
            fail_attached_run(str(error), status="KILLED")
            if self._mlflow_run is not None:
                with suppress(Exception):  # psutil's, which is imported only where it is needed: it is gone already
                    self._mlflow_run.terminate()
        self._mlflow_run = None
        self._postponed.put(None)
        if self._ends_process and isinstance(error, Stopped):
            return  # a second Ctrl-C on the way out must not turn the exit code into another
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._hook_before is not None:
            sys.unraisablehook = self._hook_before

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A context in which the first signal only sets `requested`."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """A context, short, that the first signal does not break into; it raises `Stopped` at its end."""
        if self._shielded or threading.current_thread() is not threading.main_thread():
            yield
            return
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
        if not (self._deferred or self._held or self._finishing):
            self.raise_if_requested()

    def hold(self) -> None:
        """Until `release()`, a signal only sets `requested`: what is being made must not be lost half-way."""
        self._held = True

    def release(self) -> None:
        """End `hold()`; raises `Stopped` if a signal came since."""
        self._held = False
        self.raise_if_requested()

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

    def _end_with(self, above: Any) -> None:
        """Ask this process to end when the one above is gone, unless what ended that has asked this one too."""
        import psutil

        while self._mlflow_run is not None:
            try:
                gone = not above.is_running() or above.status() == psutil.STATUS_ZOMBIE
            except psutil.Error:
                gone = True
            if gone:
                if not self.stop():
                    os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.5)

    def _send_again(self) -> None:
        """Send the signals again that came at a bad moment, until `None`."""
        while (number := self._postponed.get()) is not None:
            time.sleep(IMPORT_WAIT_SECONDS)
            os.kill(os.getpid(), number)

    def _dropped(self, unraisable: Any) -> None:
        """Where `Stopped` came inside a destructor or a weak reference's callback, Python drops it: once more, then."""
        if not isinstance(unraisable.exc_value, Stopped):
            self._hook_before(unraisable)
            return
        number = unraisable.exc_value.signum
        self._counts[number] -= 1
        self.requested = None
        self._postponed.put(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if _is_importing(frame):
            self._postponed.put(number)
            return
        self._counts[number] += 1
        again = self._counts[number]
        if again >= 3:
            os._exit(128 + number)
        if self._finishing:
            return
        if self._held:
            self.requested = self.requested or number
            return
        if again == 1 and self.requested is not None:
            return
        self.requested = number
        if again == 1 and self._deferred:
            if self.quiet:
                return
            name = signal.Signals(number).name
            # The process's own standard error: what stands in for it in a notebook may have no number.
            os.write(2, f"\nimgcls: {name}: stopping after this batch; again to end at once\n".encode())
            return
        if again == 1 and self._shielded:
            return
        raise Stopped(number)


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: one in C that is interrupted by an exception fails, or aborts the process."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _find_mlflow_run() -> Any:
    """The process of the `mlflow run` that started this one, or None."""
    if "MLFLOW_RUN_ID" not in os.environ:
        return None
    import psutil

    for parent in psutil.Process().parents():
        try:
            words = [os.path.basename(word) for word in parent.cmdline()]  # noqa: PTH119
        except psutil.Error:
            continue
        if "mlflow" in words[:3] and "run" in words[:5]:
            return parent
    return None
