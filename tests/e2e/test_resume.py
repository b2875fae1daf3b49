"""Jobs that are killed at any moment, a full disk, and what goes on after them."""

import random
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from imgcls.training.checkpoint import Checkpoint
from tests.e2e.conftest import Child, Runs, Spawn, imgcls
from tests.training.test_fit import without_times
from tests.training.test_resume import same

pytestmark = pytest.mark.slow

KILLS = 20
EPOCHS = 40
SMALL = ("--model.num_blocks", "1", "--model.channels", "4", "--train.epochs", str(EPOCHS))
OFTEN = ("--train.checkpoint_minutes", "0.002")


def begins(child: Child, pattern: str) -> bool:
    """Whether its output has the pattern before it ends."""
    try:
        child.wait_for(pattern)
    except AssertionError:
        if child.process.poll() is None:
            raise
        return False
    return True


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


def test_jobs_killed_at_20_moments_end_as_if_they_had_not_been(store: Runs, spawn: Spawn, tmp_path: Path) -> None:
    """Each kill comes at a random moment, seeded, after the data are read: while the run is described, in steps, while
    checkpoints are written, in validation, and, in the last epochs, while the run is concluded."""

    def start(*words: str, name: str = "killed") -> Child:
        return spawn(
            *imgcls("train", *words), folder=tmp_path / name, MLFLOW_TRACKING_URI=store.uri,
            MLFLOW_EXPERIMENT_NAME="resume", MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING="false",
        )  # fmt: skip

    choose = random.Random(0)
    whole = start("digits", *SMALL, name="whole")
    assert whole.wait() == 0, whole.err
    expected = store.only("resume")
    kills = 0
    run_id: str | None = None
    while kills < KILLS or run_id is not None:
        words = ["digits", *SMALL, *OFTEN] if run_id is None else ["--resume", run_id]
        child = start(*words, "--data.num_workers", choose.choice(["0", "0", "1"]))
        if kills < KILLS:
            # Before the first epoch now and then; mostly later, or nothing would be gone on with.
            begun = "1,797 images" if choose.random() < 0.15 else r"epoch +\d+/|going on"
            if not begins(child, begun):
                assert child.wait() == 2, child.err
                assert "it ended before its training began" in child.err
                assert run_id is not None
                store.client.set_terminated(run_id, "KILLED")
                run_id = None
                continue
            time.sleep(choose.uniform(0, 1.0))
        if kills < KILLS and child.process.poll() is None:
            child.process.kill()
            kills += 1
        code = child.wait()
        assert code in (0, -9), child.err
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
