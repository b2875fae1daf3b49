"""The verb `evaluate` in this process: which images, which figures, ensembles, and what is refused."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score, log_loss, matthews_corrcoef, roc_auc_score

import imgcls
from imgcls.errors import UserError
from imgcls.tables import Predictions
from imgcls.tracking.store import connect
from tests.jobs.test_train import SMALL, use_store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]

FIELDS = {
    **SMALL, "model.num_blocks": 2, "model.channels": 16, "optim.lr": 0.03, "train.epochs": 3, "train.batch_size": 64
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(folder_of_the_store: Path) -> Iterator[tuple[imgcls.TrainResult, imgcls.TrainResult]]:
    """Two trainings on the digits with one split."""
    with pytest.MonkeyPatch.context() as patch:
        use_store(patch, folder_of_the_store, "trained")
        first = imgcls.train("digits", FIELDS, quiet=True)
        yield first, imgcls.train("digits", {**FIELDS, "train.seed": 1, "train.epochs": 2}, quiet=True)


@pytest.fixture(scope="module")
def evaluated(
    folder_of_the_store: Path, trained: tuple[imgcls.TrainResult, imgcls.TrainResult]
) -> Iterator[imgcls.EvaluateResult]:
    with pytest.MonkeyPatch.context() as patch:
        use_store(patch, folder_of_the_store, "evaluated")
        yield imgcls.evaluate(trained[0].run_id, quiet=True)


@pytest.fixture(autouse=True)
def _store(
    trained: tuple[imgcls.TrainResult, imgcls.TrainResult],  # noqa: ARG001  (made first, in a store of its own)
    folder_of_the_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    use_store(monkeypatch, folder_of_the_store, request.node.name)


def run_of(run_id: str) -> Any:
    return connect().client.get_run(run_id)


def files(run_id: str, folder: str) -> set[str]:
    return {Path(entry.path).name for entry in connect().client.list_artifacts(run_id, folder)}


def digits_folder(root: Path, images_a_class: int, classes: tuple[str, ...] = ("3", "7")) -> Path:
    """Scikit-learn's digits as PNG files in folders of their classes."""
    from sklearn.datasets import load_digits

    data = load_digits()
    for name in classes:
        (root / name).mkdir(parents=True)
        for number, row in enumerate(np.flatnonzero(data.target == int(name))[:images_a_class]):
            pixels = (data.images[row] / 16 * 255).astype(np.uint8)
            Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save(root / name / f"{number}.png")
    return root


# --- the model's own test images


def test_it_reads_the_test_split_that_the_training_left_aside(
    trained: tuple[imgcls.TrainResult, imgcls.TrainResult], evaluated: imgcls.EvaluateResult, tmp_path: Path
) -> None:
    table = pd.read_csv(connect().client.download_artifacts(trained[0].run_id, "tables/split.csv", str(tmp_path)))
    assert set(evaluated.predictions.ids) == set(table["id"][table["split"] == "test"].astype(str))
    assert evaluated.predictions.split == "test"
    assert evaluated.reads == 1


def test_its_figures_are_scikit_learns(evaluated: imgcls.EvaluateResult) -> None:
    found, figures = evaluated.predictions, evaluated.evaluation.figures
    probs = found.probs.astype(np.float64)
    probs /= probs.sum(1, keepdims=True)
    assert figures["acc"] == accuracy_score(found.labels, found.predicted)
    assert figures["f1"] == pytest.approx(f1_score(found.labels, found.predicted, average="macro"))
    assert figures["mcc"] == pytest.approx(matthews_corrcoef(found.labels, found.predicted))
    assert figures["loss"] == pytest.approx(log_loss(found.labels, probs), rel=1e-5)
    assert figures["auc"] == pytest.approx(roc_auc_score(found.labels, probs, multi_class="ovr"), abs=1e-6)
    assert all(low <= high for low, high in evaluated.evaluation.intervals.values())


def test_its_run_has_figures_tables_plots_and_a_report(
    trained: tuple[imgcls.TrainResult, imgcls.TrainResult], evaluated: imgcls.EvaluateResult, tmp_path: Path
) -> None:
    run = run_of(evaluated.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["imgcls.verb"] == "evaluate"
    assert run.data.tags["imgcls.model_run"] == trained[0].run_id
    assert run.data.params["evaluate.split"] == "test"
    assert "test: 359 images of 10 classes" in run.data.tags["mlflow.note.content"]
    for name, value in evaluated.evaluation.figures.items():
        assert run.data.metrics[f"test/{name}"] == value
        low, high = evaluated.evaluation.intervals[name]
        assert (run.data.metrics[f"test/{name}_low"], run.data.metrics[f"test/{name}_high"]) == (low, high)
    assert files(evaluated.run_id, "tables") == {
        f"{name}_test.csv"
        for name in (
            "scores", "per_class", "confusion", "confused_pairs", "reliability", "coverage", "mistakes", "highest_loss",
        )
    }  # fmt: skip
    assert files(evaluated.run_id, "plots") == {
        f"{name}_test.png"
        for name in (
            "confusion", "confusion_normalised", "most_confused", "class_recall", "roc", "precision_recall",
            "reliability", "coverage", "false_positives", "highest_loss",
        )
    }  # fmt: skip
    report = Path(
        connect().client.download_artifacts(evaluated.run_id, "evaluation_test.md", str(tmp_path))
    ).read_text()
    assert f"runs:/{trained[0].run_id}/model" in report
    kept = connect().client.download_artifacts(evaluated.run_id, "predictions/test.parquet", str(tmp_path))
    assert np.array_equal(Predictions.from_parquet(Path(kept)).probs, evaluated.predictions.probs)


def test_the_logged_model_has_the_figures_with_the_data_set(
    trained: tuple[imgcls.TrainResult, imgcls.TrainResult], evaluated: imgcls.EvaluateResult
) -> None:
    [entry] = run_of(evaluated.run_id).inputs.model_inputs
    model = connect().client.get_logged_model(entry.model_id)
    assert model.source_run_id == trained[0].run_id
    here = [metric for metric in model.metrics if metric.run_id == evaluated.run_id]
    [metric] = [metric for metric in here if metric.key == "test/acc"]
    assert metric.value == evaluated.evaluation.figures["acc"]
    assert metric.dataset_digest == evaluated.predictions.manifest_digest


def test_again_it_gives_the_same_bits_and_says_that_the_test_was_read_before(
    trained: tuple[imgcls.TrainResult, imgcls.TrainResult],
    evaluated: imgcls.EvaluateResult,
    capsys: pytest.CaptureFixture[str],
) -> None:
    again = imgcls.evaluate(f"runs:/{trained[0].run_id}/model")
    assert np.array_equal(again.predictions.probs, evaluated.predictions.probs)
    assert again.evaluation == evaluated.evaluation
    assert again.reads is not None
    assert again.reads >= 2
    said = capsys.readouterr().out
    assert "this test set has been read " in said
    assert f"  acc          {again.evaluation.figures['acc']:>8.4f}  (" in said


def test_validation_images_are_no_read_of_the_test(trained: tuple[imgcls.TrainResult, imgcls.TrainResult]) -> None:
    result = imgcls.evaluate(trained[0].run_id, split="val", quiet=True)
    assert result.reads is None
    assert result.evaluation.figures["acc"] == run_of(trained[0].run_id).data.metrics["best/val_acc"]
    assert not any(name.startswith("test/") for name in run_of(result.run_id).data.metrics)


def test_views_change_the_probabilities_and_are_recorded(
    trained: tuple[imgcls.TrainResult, imgcls.TrainResult], evaluated: imgcls.EvaluateResult
) -> None:
    options: list[dict[str, Any]] = [
        {"tta": 3, "tta_views": "flips"}, {"tta": 3, "tta_views": "train"},
        {"tta": 3, "tta_views": "train", "combine": "vote"},
    ]  # fmt: skip
    results = [imgcls.evaluate(trained[0].run_id, quiet=True, **each) for each in options]
    for result, each in zip(results, options, strict=True):
        assert not np.array_equal(result.predictions.probs, evaluated.predictions.probs)
        assert run_of(result.run_id).data.params["evaluate.tta"] == "3"
        assert run_of(result.run_id).data.params["evaluate.tta_views"] == each["tta_views"]
    assert results[1].evaluation.figures["acc"] > 0.5
    assert np.allclose(results[2].predictions.probs.sum(1), 1)


def test_all_of_its_own_images_are_a_read_of_the_test_set_among_them_but_no_test(
    trained: tuple[imgcls.TrainResult, imgcls.TrainResult], evaluated: imgcls.EvaluateResult
) -> None:
    result = imgcls.evaluate(trained[0].run_id, split="all", quiet=True)
    assert (len(result.predictions.ids), result.predictions.split) == (1797, "all")
    assert result.reads is not None
    assert result.reads >= 2
    data = run_of(result.run_id).data
    assert data.tags["imgcls.test_digest"] == run_of(evaluated.run_id).data.tags["imgcls.test_digest"]
    assert "all/acc" in data.metrics
    assert [name for name in data.metrics if name.startswith("test/")] == ["test/reads"]


def test_what_cannot_be_explained_or_copied_at_the_end_is_a_note_and_views_are_not_what_is_served(
    trained: tuple[imgcls.TrainResult, imgcls.TrainResult],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def no_map(*_words: Any, **_options: Any) -> Any:
        raise UserError("the network has no map.")

    def full(*_words: Any, **_options: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("imgcls.jobs.explain.explained_mistakes", no_map)
    monkeypatch.setattr("imgcls.jobs.evaluate.shutil.copytree", full)
    result = imgcls.evaluate(
        trained[0].run_id, split="val", tta=2, tta_views="flips", explain=2, output=tmp_path / "out"
    )
    run = run_of(result.run_id)
    assert run.info.status == "FINISHED"
    told = capsys.readouterr().out
    assert "note: no mistakes are explained: the network has no map." in told
    assert f"note: not all copies could be made in {tmp_path}/out: [Errno 28] No space left on device; the run" in told
    assert "copies are in" not in told
    [entry] = run.inputs.model_inputs
    model = connect().client.get_logged_model(entry.model_id)
    assert "val/acc" in run.data.metrics
    assert not [metric for metric in model.metrics if metric.run_id == result.run_id]


# --- other images


def test_other_images_are_matched_by_the_names_of_their_classes(
    trained: tuple[imgcls.TrainResult, imgcls.TrainResult], tmp_path: Path
) -> None:
    root = digits_folder(tmp_path / "new", 12)
    result = imgcls.evaluate(trained[0].run_id, overrides={"data.root": str(root)}, quiet=True, output=tmp_path / "out")
    assert len(result.predictions.ids) == 24
    assert set(result.predictions.labels) == {3, 7}
    assert result.evaluation.figures["acc"] > 0.5
    assert run_of(result.run_id).data.params["evaluate.split"] == "all"
    assert (tmp_path / "out/evaluation_test.md").is_file()


def test_classes_that_the_model_does_not_know_are_named(
    trained: tuple[imgcls.TrainResult, imgcls.TrainResult], tmp_path: Path
) -> None:
    root = digits_folder(tmp_path / "new", 3)
    (root / "7").rename(root / "seven")
    with pytest.raises(
        UserError, match=r"1 classes that the model runs:/.* does not know: 'seven'; it knows 10: '0', "
    ):
        imgcls.evaluate(trained[0].run_id, overrides={"data.root": str(root)}, quiet=True)


def test_images_that_were_trained_on_are_counted(
    make_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(classes=2, images=12)
    fields = {**FIELDS, "data.root": str(root), "train.epochs": 1, "train.batch_size": 8}
    result = imgcls.train("folder", fields, quiet=True)
    (tmp_path / "copies").mkdir()
    for path in root.glob("*/*.png"):
        target = tmp_path / "copies" / path.parent.name / f"copy-{path.name}"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    (tmp_path / "copies/class0/new.png").write_bytes((root / "class1/0.png").read_bytes()[:-1] + b"x")
    Image.fromarray(np.full((16, 20, 3), 9, np.uint8)).save(tmp_path / "copies/class0/new.png")
    found = imgcls.evaluate(result.run_id, overrides={"data.root": str(tmp_path / "copies")})
    assert run_of(found.run_id).data.metrics["evaluate/trained_on"] == 16
    assert "note: 16 of the 25 images (64%) were trained on, by their bytes" in capsys.readouterr().out


# --- several models


@pytest.mark.parametrize("weights", ["equal", "fit", "greedy"])
def test_several_models_become_one_that_is_logged_and_gives_the_same(
    trained: tuple[imgcls.TrainResult, imgcls.TrainResult], weights: str
) -> None:
    result = imgcls.evaluate([run.run_id for run in trained], weights=weights, quiet=True)
    assert len(result.weights) == 2
    assert sum(result.weights) == pytest.approx(1)
    again = imgcls.evaluate(result.run_id, quiet=True)
    assert np.allclose(again.predictions.probs, result.predictions.probs, atol=1e-6)
    served = mlflow.pyfunc.load_model(f"runs:/{result.run_id}/model")
    pixels = np.zeros((8, 8), np.uint8)
    single = [run.classifier.probabilities([pixels])[0] for run in trained]
    expected = sum(weight * probs for weight, probs in zip(result.weights, single, strict=True))
    row = served.predict(pd.DataFrame({"image": [_png(pixels)]})).iloc[0]
    assert row["probability"] == pytest.approx(float(np.max(expected)), abs=1e-5)


def test_an_ensemble_of_named_classes_can_be_evaluated_and_says_what_its_members_were_trained_on(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_folder(classes=2, images=20)
    (root / "class0").rename(root / "cat")
    (root / "class1").rename(root / "dog")
    fields = {**FIELDS, "data.root": str(root), "train.epochs": 1, "train.batch_size": 8}
    each = [imgcls.train("folder", {**fields, "data.split_seed": seed}, quiet=True).run_id for seed in (0, 1)]
    first = imgcls.evaluate(each, quiet=True)
    again = imgcls.evaluate(first.run_id, split="val", quiet=True)
    tables = [
        pd.read_csv(connect().client.download_artifacts(run_id, "tables/split.csv", str(tmp_path)), index_col="id")
        for run_id in (*each, first.run_id)
    ]
    assert set(tables[2]["label"]) == {"cat", "dog"}
    members, whole = tables[:2], tables[2]["split"]
    union = members[0].index[(members[0]["split"] == "train") | (members[1]["split"] == "train")]
    assert set(whole.index[whole == "train"]) == set(union)
    assert (
        set(again.predictions.ids)
        == set(whole.index[whole == "val"])
        < set(members[0].index[members[0]["split"] == "val"])
    )


def _png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_models_can_vote(trained: tuple[imgcls.TrainResult, imgcls.TrainResult]) -> None:
    result = imgcls.evaluate([run.run_id for run in trained], combine="vote", quiet=True)
    assert result.weights == (1.0, 1.0)
    with pytest.raises(UserError, match=r"^--weights is fit, but votes count the same"):
        imgcls.evaluate([run.run_id for run in trained], combine="vote", weights="fit", quiet=True)


def test_weights_are_not_fitted_on_images_that_a_member_was_trained_on(
    trained: tuple[imgcls.TrainResult, imgcls.TrainResult],
) -> None:
    other = imgcls.train("digits", {**FIELDS, "train.epochs": 1, "data.split_seed": 5}, quiet=True)
    with pytest.raises(UserError, match=r"^weights cannot be fitted: [\d,]+ of the validation images were trained on"):
        imgcls.evaluate([trained[0].run_id, other.run_id], weights="greedy", quiet=True)


# --- what is refused


def test_what_is_refused_makes_no_run(trained: tuple[imgcls.TrainResult, imgcls.TrainResult], tmp_path: Path) -> None:
    run_id = trained[0].run_id
    (tmp_path / "model.pt").write_bytes(b"\x80\x02")
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (run_id, {"overrides": {"optim.lr": 1}}, r"^optim\.lr cannot be given beside a model"),
        (run_id, {"tta": 5, "tta_views": "flips"}, r"^found 5 views of the kind flips; expected 1 to 4"),
        (run_id, {"weights": "fit"}, r"^--weights is fit, but there is one model"),
        ((), {}, r"^found no model; "),
        (str(tmp_path / "model.pt"), {}, r"is a file of weights \(\.pt\).* may hold code"),
        (str(tmp_path / "nowhere"), {}, r"nowhere is not there\. Expected a run id"),
        ("models:/animals@champion", {}, r"^there is no registered model .animals., nor any other, in "),
        ("0" * 32, {}, r"^there is no model 0{32} in "),
        (run_id, {"overrides": {"data.root": str(tmp_path / "none")}}, r"none"),
    ]
    for model, options, message in cases:
        with pytest.raises(UserError, match=message):
            imgcls.evaluate(model, quiet=True, **options)
    assert connect().client.search_runs([connect().experiment_id]) == []


def test_a_folder_needs_the_data_and_makes_no_claim(
    trained: tuple[imgcls.TrainResult, imgcls.TrainResult], tmp_path: Path
) -> None:
    trained[0].classifier.save(tmp_path / "saved")
    with pytest.raises(UserError, match=r"is a folder, which does not say what data it was trained on"):
        imgcls.evaluate(str(tmp_path / "saved"), quiet=True)
    root = digits_folder(tmp_path / "new", 6)
    result = imgcls.evaluate(str(tmp_path / "saved"), overrides={"data.root": str(root)}, quiet=True)
    assert result.evaluation.figures["acc"] > 0.5
    assert "imgcls.model_run" not in run_of(result.run_id).data.tags
