"""Signals that reach the processes of a training whenever they come."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from imgcls.jobs import launch
from imgcls.jobs.launch import handover, run_processes
from imgcls.jobs.signals import Signals, Stopped
from imgcls.recipe import resolve

WAITING = "import sys, time; time.sleep(60)"


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_a_signal_that_comes_before_a_process_is_started_reaches_it(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    codes = []

    def start_late(folder: Path, _processes: int, failures: dict[int, Any], done: threading.Event) -> None:
        time.sleep(seconds)
        with subprocess.Popen([sys.executable, "-c", WAITING, str(folder)]) as process:
            codes.append(process.wait(30))
        failures[0] = "ended"
        done.set()

    monkeypatch.setattr(launch, "_launch", start_late)
    with Signals() as signals, handover() as between:
        signals.quiet = True
        with signals.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(Stopped) as stopped:
                run_processes(between, 1, resolve("digits"), None, signals, quiet=True)
    assert stopped.value.signum == signal.SIGTERM
    assert codes == [-signal.SIGTERM]
