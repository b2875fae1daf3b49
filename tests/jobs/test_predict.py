"""The verb `predict` in this process: files without a run, what it refuses, and that nothing is left half written."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from imgcls.errors import UserError
from imgcls.inference import stream as streaming
from imgcls.inference.classifier import Classifier
from imgcls.inference.ensemble import Ensemble
from imgcls.inference.views import Views
from imgcls.jobs import predict as job
from imgcls.jobs.console import Console
from imgcls.jobs.predict import PredictResult, predict
from imgcls.jobs.predict_output import Output
from tests.conftest import put
from tests.inference.test_classifier import classifier

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["a/1.png", "a/2.png", "b.png"]


@pytest.fixture
def model(tmp_path: Path) -> str:
    classifier().save(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return put(tmp_path / "photos", *NAMES)


def probs_of(model: str, photos: Path, names: list[str] = NAMES) -> np.ndarray:
    return Classifier.load(Path(model)).probabilities([(photos / name).read_bytes() for name in names])


def run(photos: Any, model: str, **options: Any) -> PredictResult:
    return predict(photos, model=model, quiet=True, tracked=False, **options)


def refusal(photos: Any, model: str, **options: Any) -> str:
    before = sorted(Path.cwd().rglob("*"))
    with pytest.raises(UserError) as error:
        run(photos, model, **options)
    assert sorted(Path.cwd().rglob("*")) == before, "nothing is written"
    return str(error.value)


def sample(text: str) -> Path:
    Path("sample.csv").write_text(text)
    return Path("sample.csv")


# --- what it writes


def test_a_folder_becomes_a_table_of_the_probabilities_of_the_classifier(model: str, photos: Path) -> None:
    result = run(photos, model, probabilities=True)
    table = pd.read_csv("predictions.csv")
    probs = probs_of(model, photos)
    assert table["id"].tolist() == NAMES
    assert np.array_equal(table[["prob_a", "prob_b c", "prob_日本"]].to_numpy().astype(np.float32), probs)
    assert table["label"].tolist() == [("a", "b c", "日本")[k] for k in probs.argmax(1)]
    assert list(table.columns[:5]) == ["id", "label", "probability", "label_2", "probability_2"], "the model's top 2"
    assert (result.output, result.num_images, result.unreadable) == (Path("predictions.csv").absolute(), 3, None)
    assert (result.is_complete, result.run_id) == (True, None)
    assert result.images_per_s > 0


def test_without_a_run_no_store_is_made(model: str, photos: Path) -> None:
    run(photos, model)
    assert {path.name for path in Path.cwd().iterdir()} == {"model", "photos", "predictions.csv"}


@pytest.mark.parametrize("top_k", [1, 3])
def test_the_ending_says_parquet_and_the_option_how_many_classes(model: str, photos: Path, top_k: int) -> None:
    run(photos, model, output=Path("new/p.parquet"), top_k=top_k)
    table = pq.read_table("new/p.parquet").to_pydict()
    assert [len(row) for row in table["top_labels"]] == [top_k] * 3
    assert np.array_equal(np.array(table["probability"], np.float32), probs_of(model, photos).max(1))


def test_an_archive_a_table_and_single_files_give_the_same(model: str, photos: Path) -> None:
    run(photos, model)
    expected = Path("predictions.csv").read_text()
    run(shutil.make_archive("photos", "zip", photos), model)
    assert Path("predictions.csv").read_text() == expected
    (photos / "t.csv").write_text("path,label\n" + "".join(f"{name},0\n" for name in NAMES))
    run(photos / "t.csv", model)
    assert Path("predictions.csv").read_text() == expected
    run([photos / name for name in NAMES], model)
    assert Path("predictions.csv").read_text() == expected.replace("a/", "")


@pytest.mark.parametrize("views", [Views(4), Views(3, "flips", "vote")])
def test_several_views_are_put_together(model: str, photos: Path, views: Views) -> None:
    run(photos, model, tta=views.num, tta_views=views.kind, combine=views.combine, probabilities=True)
    found = pd.read_csv("predictions.csv").iloc[:, -3:].to_numpy().astype(np.float32)
    items = [streaming.Item(name, (photos / name).read_bytes) for name in NAMES]
    expected = [seen.probs for seen in streaming.stream(Classifier.load(Path(model)), items, views=views)]
    assert np.array_equal(found, np.stack([row for row in expected if row is not None]))
    assert not np.allclose(found, probs_of(model, photos), atol=1e-5)


def test_an_ensemble_predicts_like_a_model(photos: Path, tmp_path: Path) -> None:
    members = classifier(), classifier(channels=1)
    Ensemble(members, (1.0, 1.0)).save(tmp_path / "both")
    run(photos, str(tmp_path / "both"), probabilities=True)
    found = pd.read_csv("predictions.csv").iloc[:, -3:].to_numpy().astype(np.float32)
    expected = Ensemble(members, (1.0, 1.0)).probabilities([(photos / name).read_bytes() for name in NAMES])
    assert np.array_equal(found, expected)


def test_what_cannot_be_read_is_listed_and_the_rest_predicted(model: str, photos: Path) -> None:
    (photos / "a/1.png").write_bytes(b"damaged")
    result = run(photos, model)
    assert pd.read_csv("predictions.csv")["id"].tolist() == ["a/2.png", "b.png"]
    listed = pd.read_csv("predictions.csv.unreadable.csv")
    assert listed["id"].tolist() == ["a/1.png"]
    assert "cannot be decoded" in listed["reason"][0]
    assert (result.num_images, result.num_unreadable, result.is_complete) == (2, 1, False)
    assert result.unreadable == Path("predictions.csv.unreadable.csv").absolute()


def test_it_tells_what_there_is_and_what_came_of_it(
    model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "notes.txt").write_text("")
    (photos / "b.png").write_bytes(b"")
    predict([photos], model=model, tracked=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"3 images in {photos}"
    assert lines[1] == "note: 1 passed over, the first is notes.txt (not an image)"
    assert lines[2] == f"model {model}: plaincnn, 3 classes, 16 px"
    assert lines[3].startswith("2 images predicted, ")
    assert lines[3].endswith(f" a second: {Path.cwd()}/predictions.csv")
    assert lines[4] == f"1 could not be read, and are listed in {Path.cwd()}/predictions.csv.unreadable.csv"


def test_progress_is_told_image_by_image(model: str, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr(Console, "count", lambda _, what, done, total: told.append((what, done, total)))
    (photos / "a/1.png").write_bytes(b"damaged")
    run(photos, model)
    assert told == [("predicting", 1, 3), ("predicting", 2, 3), ("predicting", 3, 3)]


# --- submissions


@pytest.mark.parametrize("ids", ["b.png a/2.png a/1.png", "b.png 2.png 1.png", "b 2 1"])
def test_a_submission_has_exactly_the_columns_the_order_and_the_ids_of_the_sample(
    model: str, photos: Path, ids: str
) -> None:
    header = "Image,日本,a,b c"
    given = sample("\n".join([header, *(f"{name},0,0,0" for name in ids.split()), ""]))
    result = run(photos, model, submission=given)
    first, *rows = result.output.read_text().splitlines()
    assert (result.output.name, first) == ("submission.csv", header)
    assert [row.split(",")[0] for row in rows] == ids.split()
    found = np.array([row.split(",")[1:] for row in rows]).astype(np.float32)
    np.testing.assert_array_equal(found, probs_of(model, photos)[::-1][:, [2, 0, 1]])


def test_a_submission_of_labels_is_written_where_it_is_asked_for(model: str, photos: Path) -> None:
    run(photos, model, submission=sample("id,breed\n2,x\n1,x\nb,x\n"), output=Path("out/mine.csv"))
    labels = [("a", "b c", "日本")[k] for k in probs_of(model, photos).argmax(1)]
    assert Path("out/mine.csv").read_text() == f"id,breed\n2,{labels[1]}\n1,{labels[0]}\nb,{labels[2]}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,label\n1,x\n2,x\n", r"1 of 3 predicted images are not in it: 'b'"),
        ("id,label\n1,x\n2,x\nb,x\nc,x\nd,x\n", r"2 of its 5 ids are not predicted: 'c', 'd'"),
        ("id,cat,dog\n1,x,x\n2,x,x\nb,x,x\n", r"are no class of the model: 'cat', 'dog'"),
        ("id,a,b c\n1,x,x\n2,x,x\nb,x,x\n", r"no column for 1 of the model's 3 classes: '日本'"),
        ("", r"has 0 rows and 0 columns"),
    ],
)
def test_other_ids_or_columns_are_refused_before_anything_is_predicted(
    model: str, photos: Path, text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "stream", None)
    assert message in refusal(photos, model, submission=sample(text))


def test_a_submission_with_an_image_that_cannot_be_read_is_not_written(model: str, photos: Path) -> None:
    (photos / "a/1.png").write_bytes(b"damaged")
    Path("submission.csv").write_text("before")
    with pytest.raises(UserError, match=r"no submission is written: 1 of its 3 images cannot be read \('a/1.png'\)"):
        run(photos, model, submission=sample("id,label\n1,x\n2,x\nb,x\n"))
    assert Path("submission.csv").read_text() == "before"
    assert pd.read_csv("submission.csv.unreadable.csv")["id"].tolist() == ["a/1.png"]
    assert not list(Path.cwd().glob(".*"))


# --- what it refuses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": Path("p.txt")}, "found the output 'p.txt'; expected a file ending in .csv or .parquet or .pq"),
        ({"top_k": 4}, "found --top-k 4; expected 1 to 3, the model's number of classes"),
        ({"tta": 11}, "found 11 views of the kind crops; expected 1 to 10"),
        ({"tta": 5, "tta_views": "flips"}, "found 5 views of the kind flips"),
        ({"tta_views": "flips"}, "--tta-views flips and --combine mean say what to do with several views"),
        ({"combine": "vote"}, "--combine vote"),
        ({"tta": 2, "tta_views": "spins"}, "found --tta-views spins"),
        ({"tta": 2, "tta_views": "train"}, "is a folder, which does not say how its training varied the images"),
        ({"batch_size": 0}, "found a batch size of 0"),
        ({"submission": Path("none.csv")}, "there is no sample submission"),
        ({"submission": Path("none.csv"), "top_k": 1}, "--top-k says what columns are written"),
        ({"submission": Path("none.csv"), "output": Path("p.parquet")}, "found the submission 'p.parquet'; expected"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    model: str, photos: Path, options: dict[str, Any], message: str
) -> None:
    assert message in refusal(photos, model, **options)


def test_a_model_that_is_not_there_and_an_empty_folder_are_refused(model: str, photos: Path, tmp_path: Path) -> None:
    assert "the model nowhere is not there" in refusal(photos, "nowhere")
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path}/empty holds no images" in refusal(tmp_path / "empty", model)


def test_a_gpu_that_is_not_there_is_refused(model: str, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    text = refusal(photos, model, device="cuda")
    assert "--device is cuda, but torch" in text
    assert "Set --device to auto" in text
    assert "train." not in text


def test_what_is_read_is_not_overwritten(model: str, photos: Path) -> None:
    given = sample("id,label\n1,x\n2,x\nb,x\n")
    assert "sample.csv is what is read" in refusal(photos, model, submission=given, output=given)
    (photos / "t.csv").write_text("path\nb.png\n")
    assert "t.csv is what is read" in refusal(photos / "t.csv", model, output=photos / "t.csv")


def test_the_list_of_an_earlier_time_is_not_removed_where_it_is_what_is_read(model: str, photos: Path) -> None:
    """To predict again what could not be read, after it was mended."""
    given = Path("predictions.csv.unreadable.csv")
    given.write_text(f"id,reason\n{photos}/b.png,damaged\n")
    text = refusal(given, model)
    assert f"{given.absolute()} is what is read, but is to list the images that cannot be read" in text
    assert given.exists()
    assert run(given, model, output=Path("again.csv")).num_images == 1


# --- how it ends


def test_ctrl_c_leaves_nothing(model: str, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("predictions.csv").write_text("before")
    before = sorted(Path.cwd().rglob("*"))
    write = Output.write

    def press(output: Any, name: str, probs: Any) -> None:
        write(output, name, probs)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Output, "write", press)
    with pytest.raises(KeyboardInterrupt, match="SIGINT"):
        run(photos, model)
    assert sorted(Path.cwd().rglob("*")) == before
    assert Path("predictions.csv").read_text() == "before"


def test_a_full_disk_leaves_nothing(model: str, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Output, "write", full)
    before = sorted(Path.cwd().rglob("*"))
    with pytest.raises(OSError, match="No space left"):
        run(photos, model)
    assert sorted(Path.cwd().rglob("*")) == before
