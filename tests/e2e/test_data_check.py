"""`imgcls data check` as a process, through `mlflow run`, and stopped by a signal."""

import json
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import MakeFolder
from tests.e2e.conftest import CHECKOUT, Runs, Spawn, imgcls

pytestmark = pytest.mark.slow


def test_through_mlflow_run_a_check_is_the_run_that_mlflow_made(
    store: Runs, spawn: Spawn, make_folder: MakeFolder, tmp_path: Path
) -> None:
    store.client.create_experiment("data check", artifact_location=str(tmp_path / "artifacts"))
    mlflow = str(Path(sys.executable).with_name("mlflow"))
    root = make_folder(classes=2, images=16)
    child = spawn(
        mlflow, "run", str(CHECKOUT), "-e", "data_check", "--env-manager", "local", "--experiment-name", "data check",
        "-P", f"data.root={root}", "-P", "data.check=full", "-P", f"train.output_dir={tmp_path / 'outputs'}",
        MLFLOW_TRACKING_URI=store.uri,
    )  # fmt: skip
    assert child.wait() == 0, child.err
    run = store.only("data check")
    assert run.info.status == "FINISHED"
    assert run.data.tags["imgcls.verb"] == "data_check"
    assert run.data.metrics["data/images"] == 32
    assert {"report.json", "plots/classes.png", "plots/samples.png", "plots/sizes.png"} <= store.artifacts(run)
    report = json.loads(store.download(run, "report.json", tmp_path / "down").read_text())
    assert (report["depth"], report["findings"]) == ("full", [])


def test_a_stopped_check_leaves_no_run_open(store: Runs, spawn: Spawn, make_folder: MakeFolder) -> None:
    """While modules are imported, images are decoded, the run is made, and figures are drawn."""
    root = make_folder(classes=20, images=60, size=(100, 80))
    ended = []
    for delay, pattern in [(0.3, None), (1.5, None), (0.0, "nothing found"), (0.7, "nothing found")]:
        child = spawn(
            *imgcls("data", "check", "--full", "--data.root", str(root)),
            MLFLOW_TRACKING_URI=store.uri,
            MLFLOW_EXPERIMENT_NAME="stopped check",
        )
        if pattern is not None:
            child.wait_for(pattern)
        time.sleep(delay)
        child.process.send_signal(signal.SIGTERM)
        ended.append(child.wait())
        assert "Traceback" not in child.err
    assert set(ended) <= {143, -signal.SIGTERM}, "the latter before imgcls is imported"
    assert {run.info.status for run in store.of("stopped check")} <= {"KILLED"}
