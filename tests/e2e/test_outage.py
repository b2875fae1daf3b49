"""A real tracking server that crashes in the middle of a training."""

import re
from pathlib import Path
from typing import Any

import pytest

from imgcls.tables import History, Predictions
from tests.e2e.conftest import Runs, Server, Spawn, imgcls, open_runs

pytestmark = pytest.mark.slow

SMALL = ("--model.num_blocks", "1", "--model.channels", "8")
BY_EPOCH = ["train/loss", "train/acc", "val/loss", "val/acc", "val/f1", "lr", "speed/images_per_s"]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def check_complete(runs: Runs, run: Any, epochs: int, tmp_path: Path) -> None:
    assert run.info.status == "FINISHED"
    for metric in BY_EPOCH:
        assert [step for step, _ in runs.history(run, metric)] == list(range(1, epochs + 1)), metric
    for metric in ("best/epoch", "best/val_acc"):
        assert len(runs.history(run, metric)) == 1, metric
    watched = [step for step, _ in runs.history(run, "system/cpu_utilization_percentage")]
    assert watched == list(range(len(watched)))
    assert len(watched) > 0
    assert {
        "recipe.yaml", "environment.txt", "history.json",
        "plots/augmentation.png", "plots/curves.png", "plots/confusion_val.png",
        "tables/per_class_val.csv", "tables/split.csv", "tables/data_check.json", "tables/model.csv",
        "predictions/val.parquet", "checkpoints/best.pt", "checkpoints/last.pt",
    } == runs.artifacts(run)  # fmt: skip
    history = History.from_json(runs.download(run, "history.json", tmp_path / "down").read_text())
    assert [row["val/acc"] for row in history.rows] == [value for _, value in runs.history(run, "val/acc")]
    predictions = Predictions.from_parquet(runs.download(run, "predictions/val.parquet", tmp_path / "down"))
    assert (predictions.predicted == predictions.labels).mean() == run.data.metrics["best/val_acc"]
    [model] = runs.models(run)
    assert (model.name, str(model.status)) == ("model", "READY")
    assert len(run.inputs.dataset_inputs) == 1
    assert run.data.params["train.epochs"] == str(epochs)


def test_a_server_that_crashes_and_comes_back_misses_nothing(server: Server, spawn: Spawn, tmp_path: Path) -> None:
    server.start()
    child = spawn(
        *imgcls("train", "digits", "--train.epochs", "60", *SMALL),
        MLFLOW_TRACKING_URI=server.uri,
        MLFLOW_EXPERIMENT_NAME="outage",
        MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL="2",
    )
    child.wait_for(r"epoch +2/60 ")
    server.stop()
    child.wait_for("does not take what it is sent")
    server.start()
    assert child.wait(240) == 0, child.err
    about, again = child.err.splitlines()
    assert re.fullmatch(
        rf"imgcls: the tracking store {server.uri} does not take what it is sent \(.*\); going .*", about
    )
    assert again == f"imgcls: {server.uri} answers again; all that waited was sent"
    assert len(re.findall(r"^epoch ", child.out, re.MULTILINE)) == 60
    assert child.out.count(server.uri) == 1
    assert re.search(rf"^run {server.uri}/#/experiments/\d+/runs/[0-9a-f]{{32}}$", child.out, re.MULTILINE)
    assert not (child.folder / "outputs").exists()
    runs = open_runs(server.uri)
    check_complete(runs, runs.only("outage"), 60, tmp_path)


def test_a_server_that_stays_away_gets_everything_by_the_command_that_is_printed(
    server: Server, spawn: Spawn, tmp_path: Path
) -> None:
    server.start()
    child = spawn(
        *imgcls("train", "digits", "--train.epochs", "8", *SMALL),
        MLFLOW_TRACKING_URI=server.uri,
        MLFLOW_EXPERIMENT_NAME="away",
    )
    child.wait_for(r"epoch +1/8 ")
    server.stop()
    assert child.wait(240) == 3, child.err
    assert len(re.findall(r"^epoch ", child.out, re.MULTILINE)) == 8
    assert "best epoch" in child.out
    folder = child.wait_for(r"they wait in (\S+)\. When the server answers again: imgcls upload \1\n").group(1)
    assert Path(folder).is_relative_to(child.folder)

    too_early = spawn(*imgcls("upload", folder))
    assert too_early.wait() == 2
    assert f"the tracking server {server.uri} does not answer" in too_early.err

    server.start()
    runs = open_runs(server.uri)
    run = runs.only("away")
    assert run.info.status == "RUNNING"
    upload = spawn(*imgcls("upload", folder))
    assert upload.wait() == 0, upload.err
    assert re.fullmatch(rf"sent \d+ writes; the run {run.info.run_id} is complete\nnext: imgcls ui\n", upload.out)
    assert upload.err == ""
    check_complete(runs, runs.only("away"), 8, tmp_path)
    assert not Path(folder).exists()

    again = spawn(*imgcls("upload", folder))
    assert again.wait() == 2
    assert "holds nothing to upload" in again.err
