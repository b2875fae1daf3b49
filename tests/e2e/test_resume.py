"""Jobs that are killed at any moment, a full disk, and what goes on after them."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from imgcls.training.checkpoint import Checkpoint
from tests.e2e.conftest import PATIENCE, Runs, Spawn, environment, imgcls
from tests.training.test_fit import without_times
from tests.training.test_resume import same

pytestmark = pytest.mark.slow

KILLS = 20
EPOCHS = 40
SMALL = ("--model.num_blocks", "1", "--model.channels", "4", "--train.epochs", str(EPOCHS))
OFTEN = ("--train.checkpoint_minutes", "0.002")


SERVER = """
import json, os, sys
import imgcls.jobs.resume, imgcls.jobs.train, mlflow.pyfunc
from imgcls.cli import main
for line in sys.stdin:
    words, folder, out = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.makedirs(folder, exist_ok=True)
        os.chdir(folder)
        file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.argv = ["imgcls", *words]
        main()
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""Forks jobs one after another, so that torch and MLflow, which take seconds, are imported once for all of them."""


class Jobs:
    """`imgcls` jobs, one at a time.

    Args:
        folder: their working directory.
        environ: their environment.
    """

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self._folder, self._out = folder, folder.with_name(f"{folder.name}.out")
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER], env=environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def start(self, *words: str, folder: Path | None = None) -> None:
        """Begin a job."""
        assert self._server.stdin is not None
        self._out.unlink(missing_ok=True)
        self._server.stdin.write(json.dumps([words, str(folder or self._folder), str(self._out)]) + "\n")
        self._server.stdin.flush()
        self._pid = int(self._line())

    @property
    def out(self) -> str:
        """What the job printed so far."""
        return self._out.read_text() if self._out.exists() else ""

    def has_ended(self) -> bool:
        """Whether the job has ended."""
        return not psutil.pid_exists(self._pid)

    def wait_for(self, pattern: str) -> bool:
        """Whether its output has the pattern before it ends."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            ended = self.has_ended()
            if re.search(pattern, self.out):
                return True
            if ended:
                return False
            time.sleep(0.02)
        raise AssertionError(self.out)

    def kill(self) -> None:
        """End it by SIGKILL."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit code."""
        return int(self._line())

    def end(self) -> None:
        """End the last job and what forks them."""
        self._server.kill()
        self._server.communicate(timeout=10)
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)

    def _line(self) -> str:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, self.out
        return line


@pytest.fixture
def jobs(store: Runs, tmp_path: Path) -> Iterator[Jobs]:
    more = {
        "MLFLOW_TRACKING_URI": store.uri,
        "MLFLOW_EXPERIMENT_NAME": "resume",
        "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
    }
    some = Jobs(tmp_path / "killed", environment(**more))
    yield some
    some.end()


def series(store: Runs, run: Any) -> dict[str, list[tuple[int, float]]]:
    """Every metric of a run but times."""
    return {name: store.history(run, name) for name in run.data.metrics if not name.startswith("speed/")}


def check_same(store: Runs, one: Any, other: Any, tmp_path: Path) -> None:
    """Two runs have the same figures, weights and predictions, bit by bit."""
    assert (one.info.status, other.info.status) == ("FINISHED", "FINISHED")
    figures = series(store, one)
    assert [step for step, _ in figures["val/loss"]] == list(range(1, EPOCHS + 1))
    assert figures == series(store, other)
    folders = [tmp_path / run.info.run_id for run in (one, other)]
    for name in ("best.pt", "last.pt"):
        a, b = (
            Checkpoint.load(store.download(run, f"checkpoints/{name}", folder))
            for run, folder in zip((one, other), folders, strict=True)
        )
        assert without_times(a.rows) == without_times(b.rows)
        assert all(same(getattr(a, part), getattr(b, part)) for part in ("model", "trainer", "rng", "epoch", "batch"))
    left, right = (
        pd.read_parquet(store.download(run, "predictions/val.parquet", folder))
        for run, folder in zip((one, other), folders, strict=True)
    )
    pd.testing.assert_frame_equal(left, right, check_exact=True)
    assert [len(store.models(run)) for run in (one, other)] == [1, 1]


def test_jobs_killed_at_20_moments_end_as_if_they_had_not_been(store: Runs, jobs: Jobs, tmp_path: Path) -> None:
    """Each kill comes at a random moment, seeded, after the data are read: while the run is described, in steps, while
    checkpoints are written, in validation, and, in the last epochs, while the run is concluded."""
    choose = random.Random(0)
    jobs.start("train", "digits", *SMALL, folder=tmp_path / "whole")
    assert jobs.wait() == 0, jobs.out
    expected = store.only("resume")
    kills = 0
    run_id: str | None = None
    while kills < KILLS or run_id is not None:
        words = ["digits", *SMALL, *OFTEN] if run_id is None else ["--resume", run_id]
        jobs.start("train", *words, "--data.num_workers", choose.choice(["0", "0", "1"]))
        if kills < KILLS:
            # Before the first epoch now and then; mostly later, or nothing would be gone on with.
            begun = "1,797 images" if choose.random() < 0.15 else r"epoch +\d+/|going on"
            if not jobs.wait_for(begun):
                assert jobs.wait() == 2, jobs.out
                assert "it ended before its training began" in jobs.out
                assert run_id is not None
                store.client.set_terminated(run_id, "KILLED")
                run_id = None
                continue
            time.sleep(choose.uniform(0, 1.0))
        if kills < KILLS and not jobs.has_ended():
            jobs.kill()
            kills += 1
        code = jobs.wait()
        assert code in (0, -9), jobs.out
        left = [run.info.run_id for run in store.of("resume") if run.info.status == "RUNNING"]
        assert len(left) <= (code == -9)
        run_id = left[0] if left else None
    others = [run for run in store.of("resume") if run.info.run_id != expected.info.run_id]
    done = [run for run in others if run.info.status == "FINISHED"]
    assert sum(int(run.data.tags.get("imgcls.resumes", 0)) for run in done) >= KILLS // 2
    for run in done:
        check_same(store, run, expected, tmp_path)


LIMITED = (
    "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, 8 << 20)); "
    "sys.argv[0] = 'imgcls'; runpy.run_module('imgcls', run_name='__main__')"
)


def test_a_disk_that_fills_up_leaves_the_earlier_checkpoint(store: Runs, spawn: Spawn, tmp_path: Path) -> None:
    """The weights alone (5 MB) can be written, those with the optimiser's moments (14 MB) cannot."""
    child = spawn(
        sys.executable, "-c", LIMITED, "train", "digits", "--model.channels", "64", "--train.epochs", "1",
        MLFLOW_TRACKING_URI=store.uri, MLFLOW_EXPERIMENT_NAME="full",
    )  # fmt: skip
    assert child.wait() == 2, child.err
    assert "cannot write the checkpoint" in child.err
    assert "Free disk space" in child.err
    assert "Traceback" not in child.err
    run = store.only("full")
    assert run.info.status == "FAILED"
    assert "cannot write the checkpoint" in run.data.tags["imgcls.error"]
    last = Checkpoint.load(store.download(run, "checkpoints/last.pt", tmp_path / "down"))
    assert (last.epoch, last.batch) == (0, 0)
    more = spawn(*imgcls("train", "--resume", run.info.run_id), MLFLOW_TRACKING_URI=store.uri)
    assert more.wait() == 0, more.err
    assert store.only("full").info.status == "FINISHED"
