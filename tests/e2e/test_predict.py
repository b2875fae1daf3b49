"""`imgcls predict` and `mlflow run . -e predict` as a user types them, with a model that was trained before."""

import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import put
from tests.e2e.conftest import CHECKOUT, Child, Finished, Spawn, imgcls

pytestmark = pytest.mark.slow

NAMES = ["a/1.png", "a/2.png", "b.png"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return put(tmp_path / "photos", *NAMES)


def predict(spawn: Spawn, digits: Finished, *words: str | Path, model: str | None = None) -> Child:
    model = digits.run.info.run_id if model is None else model
    child = spawn(
        *imgcls("predict", *map(str, words), "--model", model),
        MLFLOW_TRACKING_URI=digits.runs.uri,
        MLFLOW_EXPERIMENT_NAME="predict",
    )
    child.wait()
    return child


def test_a_folder_with_a_damaged_image_is_predicted_without_it_and_exits_with_3(
    digits: Finished, spawn: Spawn, photos: Path
) -> None:
    (photos / "a/1.png").write_bytes(b"damaged")
    child = predict(spawn, digits, photos, "--tta", "2", "--top-k", "2")
    assert child.wait() == 3, child.err
    table = pd.read_csv(child.folder / "predictions.csv")
    assert table["id"].tolist() == NAMES[1:]
    assert list(table.columns) == ["id", "label", "probability", "label_2", "probability_2"]
    assert pd.read_csv(child.folder / "predictions.csv.unreadable.csv")["id"].tolist() == NAMES[:1]
    run = digits.runs.of("predict")[0]
    assert (run.info.status, run.data.tags["imgcls.verb"]) == ("FINISHED", "predict")
    assert run.info.run_id in child.out
    assert digits.runs.artifacts(run) == {"predictions/predictions.csv", "predictions/unreadable.csv"}
    written = {path.name for path in child.folder.iterdir()} - {"mlruns"}  # the artifacts of a new experiment
    assert written == {"predictions.csv", "predictions.csv.unreadable.csv"}


def test_an_archive_and_a_table_without_a_run_make_nothing_but_their_output(
    digits: Finished, spawn: Spawn, photos: Path, tmp_path: Path
) -> None:
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", photos)
    child = predict(spawn, digits, archive, "--no-run", "--output", "new/p.parquet")
    assert child.wait() == 0, child.err
    assert pd.read_parquet(child.folder / "new/p.parquet")["id"].tolist() == NAMES
    (photos / "t.csv").write_text("image\nb\n")
    child = predict(spawn, digits, photos / "t.csv", "--no-run", "--images", photos, "--extension", "png")
    assert child.wait() == 0, child.err
    assert [path.name for path in child.folder.iterdir()] == ["predictions.csv"]
    assert pd.read_csv(child.folder / "predictions.csv")["id"].tolist() == ["b"]


def test_a_submission_has_the_form_of_its_sample_and_other_ids_exit_with_2(
    digits: Finished, spawn: Spawn, photos: Path, tmp_path: Path
) -> None:
    sample = tmp_path / "sample_submission.csv"
    sample.write_text("Id,digit\n2,0\nb,0\n1,0\n")
    child = predict(spawn, digits, photos, "--submission", sample, "--no-run")
    assert child.wait() == 0, child.err
    table = pd.read_csv(child.folder / "submission.csv", dtype=str)
    assert list(table.columns) == ["Id", "digit"]
    assert table["Id"].tolist() == ["2", "b", "1"]
    sample.write_text("Id,digit\n2,0\nb,0\nc,0\n")
    child = predict(spawn, digits, photos, "--submission", sample)
    assert child.wait() == 2
    assert child.err.startswith("imgcls: error: the predictions do not fit the sample submission")
    assert "Traceback" not in child.err
    assert list(child.folder.iterdir()) == []


@pytest.mark.parametrize("model", ["models:/digits@champion", "nowhere", "0" * 32])
def test_a_model_that_there_is_not_exits_with_2(digits: Finished, spawn: Spawn, photos: Path, model: str) -> None:
    child = predict(spawn, digits, photos, model=model)
    assert child.wait() == 2
    assert child.err.startswith("imgcls: error: ")
    assert "Traceback" not in child.err
    assert list(child.folder.iterdir()) == []


def test_mlflow_run_has_it_as_an_entry_point(digits: Finished, spawn: Spawn, photos: Path, tmp_path: Path) -> None:
    digits.runs.client.create_experiment("predict project", artifact_location=str(tmp_path / "artifacts"))
    sample = tmp_path / "sample.csv"
    sample.write_text("id,label\n1,0\n2,0\nb,0\n")
    child = spawn(
        str(Path(sys.executable).with_name("mlflow")), "run", str(CHECKOUT), "--env-manager", "local",
        "--experiment-name", "predict project", "-e", "predict", "-P", f"model={digits.run.info.run_id}",
        "-P", f"input=../{photos.name}", "-P", f"output={tmp_path / 'out puts' / 's.csv'}",
        "-P", f"submission={sample}",
        "-P", "tta=4", "-P", "tta_views=flips", MLFLOW_TRACKING_URI=digits.runs.uri,
    )  # fmt: skip
    assert child.wait() == 0, child.err
    run = digits.runs.only("predict project")
    assert (run.info.status, run.data.params["predict.tta_views"]) == ("FINISHED", "flips")
    assert run.data.metrics["predict/images"] == 3
    assert [path.name for path in (tmp_path / "out puts").iterdir()] == ["s.csv"]
    assert pd.read_csv(tmp_path / "out puts/s.csv")["id"].tolist() == ["1", "2", "b"]
