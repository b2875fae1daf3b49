"""Signals to real jobs: whatever is sent and when, no run is left RUNNING; conftest checks that after every test."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from imgcls.training.checkpoint import Checkpoint
from tests.e2e.conftest import CHECKOUT, PATIENCE, Child, Runs, Spawn, all_gone, imgcls

pytestmark = pytest.mark.slow

FIRST_EPOCH = r"epoch +1/500 "


def training(spawn: Spawn, store: Runs, experiment: str, *, fresh: bool = False) -> Child:
    return spawn(
        *imgcls("train", "digits", "--train.epochs", "500"),
        fresh=fresh,
        MLFLOW_TRACKING_URI=store.uri,
        MLFLOW_EXPERIMENT_NAME=experiment,
    )


def check_killed(store: Runs, run: Any, name: str, tmp_path: Path) -> None:
    assert run.info.status == "KILLED"
    assert run.data.tags["imgcls.stopped_by"] == f"stopped by {name}"
    last = Checkpoint.load(store.download(run, "checkpoints/last.pt", tmp_path / "down"))
    history = store.history(run, "val/acc")
    assert last.epoch == len(last.rows) == len(history) >= 1
    assert [step for step, _ in history] == list(range(1, last.epoch + 1))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stopped_training_is_killed_with_its_last_checkpoint(
    number: signal.Signals, store: Runs, spawn: Spawn, tmp_path: Path
) -> None:
    child = training(spawn, store, number.name)
    child.wait_for(FIRST_EPOCH)
    child.process.send_signal(number)
    assert child.wait() == 128 + number
    run = store.only(number.name)
    check_killed(store, run, number.name, tmp_path)
    assert child.err == f"\nimgcls: {number.name}: stopping after this batch; again to end at once\n"
    assert child.out.splitlines()[-3:] == [
        f"stopped by {number.name}; the run is KILLED",
        f"run {run.info.run_id} in {store.uri}",
        f"next: imgcls train --resume {run.info.run_id}    (goes on where it stopped)",
    ]
    assert not (child.folder / "outputs").exists()


def test_two_quick_signals_end_at_once_and_still_close_the_run(store: Runs, spawn: Spawn, tmp_path: Path) -> None:
    child = training(spawn, store, "twice")
    child.wait_for(FIRST_EPOCH)
    child.process.send_signal(signal.SIGINT)
    child.wait_for("again to end at once")
    child.process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    assert child.wait() == 130, f"{child.out}\n{child.err}"
    assert time.monotonic() - begin < 30
    check_killed(store, store.only("twice"), "SIGINT", tmp_path)


def test_a_signal_before_training_leaves_no_run_open(store: Runs, spawn: Spawn) -> None:
    """While modules are imported, data are read, the run is made and described, and the first epoch is trained."""
    for delay, pattern in [
        (0.7, None),
        (2.5, None),
        (0.0, "1,797 images"),
        (0.1, "1,797 images"),
        (0.4, "1,797 images"),
    ]:
        child = training(spawn, store, "early", fresh=pattern is None)
        if pattern is not None:
            child.wait_for(pattern)
        time.sleep(delay)
        child.process.send_signal(signal.SIGTERM)
        code, said = child.wait(), f"after {pattern} and {delay} s:\n{child.out}\n{child.err}"
        assert code in (143, -signal.SIGTERM), f"the latter before imgcls is imported; {said}"
        assert "Traceback" not in child.err
        assert {run.info.status for run in store.of("early")} <= {"KILLED"}, said


def mlflow_run(spawn: Spawn, store: Runs, experiment: str, tmp_path: Path) -> Child:
    mlflow = str(Path(sys.executable).with_name("mlflow"))
    return spawn(
        mlflow, "run", str(CHECKOUT), "-e", "train", "--env-manager", "local", "--experiment-name", experiment,
        "-P", "train.epochs=500", "-P", f"train.output_dir={tmp_path / 'outputs'}", MLFLOW_TRACKING_URI=store.uri,
    )  # fmt: skip


def test_ctrl_c_on_mlflow_run_kills_the_run_in_order(store: Runs, spawn: Spawn, tmp_path: Path) -> None:
    child = mlflow_run(spawn, store, "interrupted", tmp_path)
    child.wait_for(FIRST_EPOCH)
    family = child.family()
    assert len(family) >= 2
    os.killpg(child.process.pid, signal.SIGINT)  # as a terminal sends it: to all of them
    assert child.wait() != 0
    assert all_gone(family)
    check_killed(store, store.only("interrupted"), "SIGINT", tmp_path)


def test_sigterm_to_mlflow_run_leaves_neither_a_process_nor_an_open_run(
    store: Runs, spawn: Spawn, tmp_path: Path
) -> None:
    child = mlflow_run(spawn, store, "terminated", tmp_path)
    child.wait_for(FIRST_EPOCH)
    family = child.family()
    child.process.send_signal(signal.SIGTERM)
    assert child.wait() != 0
    assert all_gone(family)
    check_killed(store, store.only("terminated"), "SIGTERM", tmp_path)


def watches(child: Child) -> bool:
    """Whether imgcls, below `mlflow run`, has begun to watch over it: with a thread, beside that for signals."""
    return any(process.num_threads() >= 3 for process in child.family()[1:])


def test_sigterm_to_mlflow_run_before_the_training_leaves_neither_too(
    store: Runs, spawn: Spawn, tmp_path: Path
) -> None:
    child = mlflow_run(spawn, store, "terminated early", tmp_path)
    child.wait_for("Running command")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and not watches(child):  # before, nobody can know who started it
        time.sleep(0.05)
    family = child.family()
    assert len(family) >= 2
    child.process.send_signal(signal.SIGTERM)
    assert child.wait() != 0
    assert all_gone(family, 60)
    run = store.only("terminated early")
    assert (run.info.status, run.data.tags["imgcls.stopped_by"]) == ("KILLED", "stopped by SIGTERM")
