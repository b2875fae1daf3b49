import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from threading import enumerate as threads

import psutil
import pytest

from imgcls.jobs import signals as signals_module
from imgcls.jobs.signals import HANDLED, Signals, Stopped

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in HANDLED}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", HANDLED)
def test_a_signal_raises_stopped_which_names_it(number: signal.Signals) -> None:
    with Signals(), pytest.raises(Stopped, match=f"stopped by {number.name}") as caught:
        signal.raise_signal(number)
    assert caught.value.signum == number


def test_a_signal_waits_for_the_end_of_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["import os, signal, time", "os.kill(os.getpid(), signal.SIGTERM)", "time.sleep(0.2)", "whole = True"]
    (tmp_path / "half_way_stopped.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    with Signals():
        assert importlib.import_module("half_way_stopped").whole
        with pytest.raises(Stopped, match="SIGTERM"):
            time.sleep(2)


def test_a_signal_inside_a_destructor_is_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    class Interrupted:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    before = sys.unraisablehook
    with Signals():
        thing = Interrupted()
        del thing  # Python prints and drops what a destructor raises
        with pytest.raises(Stopped, match="SIGTERM"):
            time.sleep(2)
    assert sys.unraisablehook == before
    assert capfd.readouterr().err == ""


def test_stopped_is_not_caught_by_a_handler_of_exceptions() -> None:
    assert not issubclass(Stopped, Exception)


def test_a_deferred_signal_only_sets_what_the_loop_asks_for(capfd: pytest.CaptureFixture[str]) -> None:
    with Signals() as signals:
        with signals.deferred():
            assert not signals.stop()
            signal.raise_signal(signal.SIGTERM)
            assert signals.stop()
        with pytest.raises(Stopped, match="SIGTERM"):
            signals.raise_if_requested()
    assert capfd.readouterr().err == "\nimgcls: SIGTERM: stopping after this batch; again to end at once\n"


def test_a_signal_does_not_break_into_what_is_shielded_but_comes_right_after_it() -> None:
    done: list[str] = []

    def write(signals: Signals) -> None:
        with signals.shielded():
            with signals.shielded():
                signal.raise_signal(signal.SIGTERM)
                done.append("inner")
            done.append("outer")
        done.append("after")

    with Signals() as signals, pytest.raises(Stopped, match="SIGTERM"):
        write(signals)
    assert done == ["inner", "outer"]


def test_the_second_signal_breaks_into_what_is_shielded() -> None:
    """A server that hangs must not hold up a user who asks twice."""
    with Signals() as signals, signals.shielded():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped, match="SIGINT"):
            signal.raise_signal(signal.SIGINT)
        signals.finishing()


def test_after_a_shield_a_deferred_signal_waits_for_the_loop() -> None:
    with Signals() as signals:
        with signals.deferred():
            with signals.shielded():
                signal.raise_signal(signal.SIGTERM)
            assert signals.stop()
        signals.finishing()
        with signals.shielded():
            pass


def test_a_shield_in_another_thread_is_none_for_this_one() -> None:
    with Signals() as signals:
        ready, done = Event(), Event()

        def write() -> None:
            with signals.shielded():
                ready.set()
                done.wait(10)

        thread = Thread(target=write)
        thread.start()
        ready.wait(10)
        with pytest.raises(Stopped, match="SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
        done.set()
        thread.join()


def test_raise_if_requested_does_nothing_where_nothing_was_requested() -> None:
    with Signals() as signals:
        signals.raise_if_requested()


def test_the_second_deferred_signal_of_a_kind_raises_at_once() -> None:
    with Signals() as signals, signals.deferred():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped, match="SIGINT"):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("first", "then"), [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
def test_a_signal_of_another_kind_is_no_second_request(first: signal.Signals, then: signal.Signals) -> None:
    with Signals() as signals, signals.deferred():
        signal.raise_signal(first)
        signal.raise_signal(then)
        assert signals.requested == first
        with pytest.raises(Stopped, match=then.name):
            signal.raise_signal(then)


def test_after_a_deferred_part_a_signal_raises_at_once() -> None:
    with Signals() as signals:
        with signals.deferred():
            pass
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)


def test_while_held_signals_wait_and_release_raises_the_first() -> None:
    with Signals() as signals:
        signals.hold()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGINT"):
            signals.release()


def test_release_lets_signals_through_again() -> None:
    with Signals() as signals:
        signals.hold()
        signals.release()
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)


def test_while_finishing_two_signals_change_nothing() -> None:
    with Signals() as signals:
        signals.finishing()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert not signals.stop()


def test_the_third_signal_ends_the_process_even_while_finishing() -> None:
    code = (
        "import signal\n"
        "from imgcls.jobs.signals import Signals\n"
        "with Signals() as signals:\n"
        "    signals.finishing()\n"
        "    for _ in range(3):\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    print('not reached')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (143, "")


def test_the_handlers_from_before_are_put_back() -> None:
    def own(_number: int, _frame: object) -> None: ...

    for number in HANDLED:
        signal.signal(number, own)
    with Signals():
        assert all(signal.getsignal(number) is not own for number in HANDLED)
    assert all(signal.getsignal(number) is own for number in HANDLED)


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Signals() as signals:
        signal.raise_signal(signal.SIGHUP)
        assert not signals.stop()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_in_another_thread_signals_are_left_alone() -> None:
    before = [signal.getsignal(number) for number in HANDLED]
    problems: list[BaseException] = []

    def enter() -> None:
        try:
            with Signals():
                assert [signal.getsignal(number) for number in HANDLED] == before
        except BaseException as error:
            problems.append(error)

    thread = Thread(target=enter)
    thread.start()
    thread.join()
    assert not problems


def test_without_mlflow_run_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)  # as a scheduler may set it, with no `mlflow run` above
    with Signals():
        assert "imgcls-watch" not in [thread.name for thread in threads()]


@pytest.mark.parametrize(("error", "closed"), [(Stopped(2), ["stopped by SIGINT: KILLED"]), (ValueError(), [])])
def test_a_stopped_job_closes_the_run_that_mlflow_made_for_it(
    error: BaseException, closed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    monkeypatch.setattr(signals_module, "fail_attached_run", lambda why, status: done.append(f"{why}: {status}"))
    with pytest.raises(type(error)), Signals():
        raise error
    assert done == closed


JOB_UNDER_MLFLOW_RUN = """
import time
from imgcls.jobs import signals as module

module.fail_attached_run = lambda why, status: print(why, status, flush=True)
with module.Signals() as signals:
    with signals.deferred():
        print('watching', flush=True)
        end = time.monotonic() + 30
        while not signals.stop() and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.9)
        print('batch done', flush=True)
    signals.raise_if_requested()
"""


@pytest.fixture
def under_mlflow_run(tmp_path: Path) -> "Iterator[subprocess.Popen[str]]":
    """A process whose words are `python mlflow run`, as those of the real one are, with a job below it."""
    script = tmp_path / "mlflow"
    code = "import subprocess, sys\nsys.exit(subprocess.run([sys.executable, '-c', {!r}]).returncode)\n"
    script.write_text(code.format(JOB_UNDER_MLFLOW_RUN))
    command = [sys.executable, str(script), "run"]
    environment = {**os.environ, "MLFLOW_RUN_ID": "0" * 32}
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as parent:
        try:
            yield parent
        finally:
            with suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)


def lines_after(parent: "subprocess.Popen[str]", send: Callable[[], None]) -> list[str]:
    assert parent.stdout is not None
    assert parent.stdout.readline() == "watching\n"
    send()
    return parent.stdout.readlines()


def test_a_job_is_asked_to_end_when_the_mlflow_run_above_it_dies(under_mlflow_run: "subprocess.Popen[str]") -> None:
    assert lines_after(under_mlflow_run, under_mlflow_run.terminate) == ["batch done\n", "stopped by SIGTERM KILLED\n"]


def test_a_signal_to_mlflow_run_and_its_job_is_one_request(under_mlflow_run: "subprocess.Popen[str]") -> None:
    group = under_mlflow_run.pid
    assert lines_after(under_mlflow_run, lambda: os.killpg(group, signal.SIGTERM)) == [
        "batch done\n",
        "stopped by SIGTERM KILLED\n",
    ]


def test_a_stopped_job_ends_the_mlflow_run_above_it(under_mlflow_run: "subprocess.Popen[str]") -> None:
    [job] = wait_for_child(under_mlflow_run.pid)
    assert lines_after(under_mlflow_run, lambda: job.send_signal(signal.SIGINT)) == [
        "batch done\n",
        "stopped by SIGINT KILLED\n",
    ]
    assert under_mlflow_run.wait(30) == -signal.SIGTERM


def wait_for_child(pid: int) -> list[psutil.Process]:
    for _ in range(600):
        if children := psutil.Process(pid).children():
            return children
        time.sleep(0.05)
    raise AssertionError(f"{pid} starts nothing")


def test_where_the_process_ends_with_the_job_a_late_second_signal_changes_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(Stopped), Signals(ends_process=True):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # would be a KeyboardInterrupt
    finally:
        signal.signal(signal.SIGINT, before)
    assert signal.getsignal(signal.SIGINT) is before
