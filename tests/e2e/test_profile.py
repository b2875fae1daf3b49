"""`imgcls profile` and `imgcls lr-find` as processes, through `mlflow run`, and stopped by a signal."""

import json
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import CHECKOUT, Runs, Spawn, imgcls

pytestmark = pytest.mark.slow
SMALL = ("--model.num_blocks", "1", "--model.channels", "8", "--augment.image_size", "8")


def test_a_profile_as_json_is_json_and_its_run_is_finished(store: Runs, spawn: Spawn) -> None:
    child = spawn(
        *imgcls("profile", "digits", "--json", "--seconds", "2", "--turns", "3", *SMALL),
        MLFLOW_TRACKING_URI=store.uri,
        MLFLOW_EXPERIMENT_NAME="profile json",
    )
    assert child.wait() == 0, child.err
    report = json.loads(child.out)
    run = store.only("profile json")
    assert (run.info.status, run.info.run_id) == ("FINISHED", report["run_id"])
    assert run.data.metrics["profile/ratio"] == pytest.approx(report["ratio"])
    assert 0.2 < report["ratio"] < 1.5
    assert report["ratio"] <= report["serial_ratio"] * 1.001
    assert {"profile.json", "tables/profile.csv"} <= store.artifacts(run)
    assert len(store.history(run, "profile/loop/train/loss")) == 4


@pytest.mark.parametrize(("verb", "artifact"), [("lr_find", "plots/lr_find.png"), ("profile", "tables/profile.csv")])
def test_through_mlflow_run_it_is_the_run_that_mlflow_made(
    verb: str, artifact: str, store: Runs, spawn: Spawn, tmp_path: Path
) -> None:
    store.client.create_experiment(f"project {verb}", artifact_location=str(tmp_path / "artifacts"))
    mlflow = str(Path(sys.executable).with_name("mlflow"))
    child = spawn(
        mlflow, "run", str(CHECKOUT), "-e", verb, "--env-manager", "local", "--experiment-name", f"project {verb}",
        "-P", "recipe=digits", "-P", "model.num_blocks=1", "-P", "model.channels=4", "-P", "augment.image_size=8",
        *(("-P", "seconds=1") if verb == "profile" else ("-P", "steps=20")),
        "-P", f"train.output_dir={tmp_path / 'outputs'}",
        MLFLOW_TRACKING_URI=store.uri,
    )  # fmt: skip
    assert child.wait() == 0, child.err
    run = store.only(f"project {verb}")
    assert (run.info.status, run.data.tags["imgcls.verb"]) == ("FINISHED", verb)
    assert artifact in store.artifacts(run)


@pytest.mark.parametrize("verb", ["profile", "lr-find", "batch-find"])
def test_a_stop_in_the_middle_leaves_no_run_open(verb: str, store: Runs, spawn: Spawn) -> None:
    longer = {"profile": ("--seconds", "600"), "lr-find": ("--steps", "100000"), "batch-find": ("--seconds", "600")}
    child = spawn(
        *imgcls(verb, "digits", *longer[verb]),
        MLFLOW_TRACKING_URI=store.uri,
        MLFLOW_EXPERIMENT_NAME=f"stopped {verb}",
    )
    child.wait_for("162,562 parameters")
    deadline = 60.0
    while not store.of(f"stopped {verb}") and deadline > 0:
        time.sleep(0.2)
        deadline -= 0.2
    child.process.send_signal(signal.SIGTERM)
    assert child.wait() == 143
    assert "Traceback" not in child.err
    assert [run.info.status for run in store.of(f"stopped {verb}")] == ["KILLED"]
