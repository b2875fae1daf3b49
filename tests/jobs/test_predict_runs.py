"""The MLflow run of a prediction: what it has, how it ends, and that a dead server does not lose the predictions."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import imgcls
from imgcls.errors import UserError
from imgcls.jobs import predict as job
from imgcls.jobs.open_model import Opened
from imgcls.jobs.predict import predict
from imgcls.jobs.predict_output import Output
from imgcls.tracking import run as tracking
from imgcls.tracking.operations import apply
from imgcls.tracking.promotion import move_alias
from imgcls.tracking.registry import register
from imgcls.tracking.store import connect
from tests.conftest import put
from tests.jobs.test_train import SMALL, runs, use_store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def trained(folder_of_the_store: Path) -> Iterator[imgcls.TrainResult]:
    """A training on the digits, which is champion."""
    with pytest.MonkeyPatch.context() as patch:
        use_store(patch, folder_of_the_store, "trained")
        result = imgcls.train("digits", {**SMALL, "train.epochs": 1}, quiet=True)
        version = register(connect(), result.run_id, "digits")
        move_alias(connect(), "digits", "champion", version.version, expected=None, reason="the first")
        yield result


@pytest.fixture(autouse=True)
def _store(
    trained: imgcls.TrainResult,  # noqa: ARG001  (made first, in a store of the module's own)
    folder_of_the_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    use_store(monkeypatch, folder_of_the_store, request.node.name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return put(tmp_path / "photos", "1.png", "2.png", "3.png")


def artifacts(run_id: str, folder: str = "predictions") -> set[str]:
    return {entry.path for entry in connect().client.list_artifacts(run_id, folder)}


def test_the_run_has_the_model_the_figures_and_the_files(photos: Path) -> None:
    (photos / "2.png").write_bytes(b"damaged")
    result = predict(photos, model="models:/digits@champion", tta=2, quiet=True)
    [run] = runs()
    assert (run.info.run_id, run.info.status) == (result.run_id, "FINISHED")
    assert run.info.run_name.startswith("predict-photos-")
    tags = {name: run.data.tags[f"imgcls.{name}"] for name in ("verb", "model", "family", "version")}
    assert tags == {"verb": "predict", "model": "models:/digits/1", "family": "plaincnn", "version": imgcls.__version__}
    assert run.data.params == {
        "predict.model": "models:/digits@champion", "predict.inputs": str(photos), "predict.tta": "2",
        "predict.tta_views": "crops", "predict.combine": "mean", "predict.device": run.data.params["predict.device"],
        "predict.output": str(result.output),
    }  # fmt: skip
    assert (run.data.metrics["predict/images"], run.data.metrics["predict/unreadable"]) == (2, 1)
    assert run.data.metrics["predict/images_per_s"] == result.images_per_s
    assert artifacts(run.info.run_id) == {"predictions/predictions.csv", "predictions/unreadable.csv"}
    local = connect().client.download_artifacts(run.info.run_id, "predictions/predictions.csv")
    assert Path(local).read_text() == result.output.read_text()
    assert not (photos.parent / "outputs").exists()


@pytest.mark.parametrize("address", ["{}", "runs:/{}", "models:/digits/1"])
def test_any_name_of_the_model_gives_the_same(trained: imgcls.TrainResult, photos: Path, address: str) -> None:
    predict(photos, model=address.format(trained.run_id), quiet=True)
    images = [(photos / name).read_bytes() for name in ("1.png", "2.png", "3.png")]
    expected = trained.classifier.probabilities(images).max(1)
    assert pd.read_csv("predictions.csv")["probability"].astype("float32").tolist() == expected.tolist()


def test_the_data_of_a_run_that_was_deleted_are_still_known(trained: imgcls.TrainResult) -> None:
    client = connect().client
    made = client.create_run(connect().experiment_id, tags={"imgcls.data_digest": "d" * 32}).info.run_id
    client.delete_run(made)
    digests = [Opened(trained.classifier, "models:/digits/1", run_id=run_id).digest for run_id in (made, "0" * 32)]
    assert digests == ["d" * 32, None]


def test_train_views_are_those_of_the_run_s_recipe(trained: imgcls.TrainResult, photos: Path) -> None:
    predict(photos, model=trained.run_id, tta=3, tta_views="train", quiet=True, tracked=False)
    first = pd.read_csv("predictions.csv")
    predict(photos, model=trained.run_id, tta=3, tta_views="train", quiet=True, tracked=False, batch_size=1)
    # Batches of other sizes are rounded otherwise.
    pd.testing.assert_frame_equal(pd.read_csv("predictions.csv"), first, rtol=0, atol=1e-6)


def test_an_output_that_is_too_large_is_not_copied(
    trained: imgcls.TrainResult, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "MOST_LOGGED_BYTES", 10)
    result = predict(photos, model=trained.run_id)
    assert result.run_id is not None
    assert artifacts(result.run_id) == set()
    assert "predictions.csv has 0 MB and is not copied to the run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("models:/digits@challenger", r"has no alias 'challenger'; it has champion \(version 1\)\."),
        ("models:/digit@champion", r"'digit'.*'?digits"),
        ("models:/digits/7", "there is no model models:/digits/7"),
        ("0" * 32, f"there is no model {'0' * 32}"),
    ],
)
def test_a_model_that_there_is_not_is_refused_and_makes_no_run(photos: Path, model: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        predict(photos, model=model, quiet=True)
    assert runs() == []
    assert [path.name for path in Path.cwd().iterdir()] == ["photos"]


def test_a_run_without_a_model_is_refused(photos: Path) -> None:
    client = connect().client
    run_id = client.create_run(connect().experiment_id).info.run_id
    client.set_terminated(run_id)
    with pytest.raises(UserError, match=rf"the run {run_id} \(status FINISHED\) has no model 'model': it has none"):
        predict(photos, model=run_id, quiet=True)


def test_a_mistake_fails_the_run_that_mlflow_made(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = connect().client.create_run(connect().experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with pytest.raises(UserError):
        predict(photos, model="nowhere", quiet=True)
    [run] = runs()
    assert run.info.status == "FAILED"
    assert "the model nowhere is not there" in run.data.tags["imgcls.error"]


def test_a_submission_that_cannot_be_written_fails_the_run_and_lists_the_images(
    trained: imgcls.TrainResult, photos: Path
) -> None:
    (photos / "2.png").write_bytes(b"damaged")
    Path("sample.csv").write_text("id,label\n3,x\n2,x\n1,x\n")
    with pytest.raises(UserError, match="no submission is written"):
        predict(photos, model=trained.run_id, submission=Path("sample.csv"), quiet=True)
    [run] = runs()
    assert run.info.status == "FAILED"
    assert "no submission is written" in run.data.tags["imgcls.error"]
    assert artifacts(run.info.run_id) == {"predictions/unreadable.csv"}
    assert not Path("submission.csv").exists()


def test_ctrl_c_kills_the_run_and_leaves_no_file(
    trained: imgcls.TrainResult, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Output, "write", press)
    with pytest.raises(KeyboardInterrupt):
        predict(photos, model=trained.run_id, quiet=True)
    [run] = runs()
    assert (run.info.status, run.data.tags["imgcls.stopped_by"]) == ("KILLED", "stopped by SIGINT")
    assert [path.name for path in Path.cwd().iterdir()] == ["photos"]


def test_a_server_that_dies_does_not_lose_the_predictions(
    trained: imgcls.TrainResult, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[bool] = []

    def dead(store: Any, run_id: str, folder: Path, operation: Any) -> None:
        if operation["op"] in ("metrics", "artifact", "end"):
            seen.append(Path("predictions.csv").exists())
            raise ConnectionError("no route to host")
        apply(store, run_id, folder, operation)

    monkeypatch.setattr(tracking, "apply", dead)
    monkeypatch.setattr(tracking, "GRACE_SECONDS", 0.0)
    result = predict(photos, model=trained.run_id)
    assert set(seen) == {True}, "the file is there before anything is logged of it"
    assert result.unsent is not None
    assert not result.is_complete
    assert len(pd.read_csv("predictions.csv")) == 3
    assert "imgcls upload" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trained.tracking_uri)
    tracking.upload(result.unsent)
    run = connect().client.get_run(result.run_id)
    assert (run.info.status, run.data.metrics["predict/images"]) == ("FINISHED", 3)
