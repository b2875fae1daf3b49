"""The verb `refit` in this process: what it trains, that it reads the test set once, and how its runs end."""

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import imgcls
from imgcls.data.images import ArrayImages
from imgcls.jobs import test_reading as reading
from imgcls.jobs import train as training
from imgcls.recipe import resolve
from imgcls.tables import History, Predictions
from imgcls.tracking.store import connect
from imgcls.training.checkpoint import Checkpoint
from imgcls.training.fit import fit
from tests.jobs.test_train import SMALL, runs, use_store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]

FIELDS = {**SMALL, "optim.lr": 0.03, "train.epochs": 4, "train.batch_size": 128}
NUM_TRAIN, NUM_VAL, NUM_TEST = 1079, 359, 359
STEPS_THEN, STEPS_NOW = 9, 12  # ceil of 1079 and 1438 by 128


@pytest.fixture(scope="module")
def trained(folder_of_the_store: Path) -> Iterator[imgcls.TrainResult]:
    """A training on the digits."""
    with pytest.MonkeyPatch.context() as patch:
        use_store(patch, folder_of_the_store, "trained")
        yield imgcls.train("digits", FIELDS, quiet=True)


@pytest.fixture(scope="module")
def refitted(folder_of_the_store: Path, trained: imgcls.TrainResult) -> Iterator[imgcls.RefitResult]:
    with pytest.MonkeyPatch.context() as patch:
        use_store(patch, folder_of_the_store, "refitted")
        yield imgcls.refit(trained.run_id, quiet=True)


@pytest.fixture(autouse=True)
def _store(
    trained: imgcls.TrainResult,  # noqa: ARG001  (made first, in a store of the module's own)
    folder_of_the_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    use_store(monkeypatch, folder_of_the_store, request.node.name)


def downloaded(run_id: str, artifact: str, folder: Path) -> Path:
    return Path(connect().client.download_artifacts(run_id, artifact, str(folder)))


def of_split(run_id: str, split: str, folder: Path) -> set[str]:
    table = pd.read_csv(downloaded(run_id, "tables/split.csv", folder))
    return set(table["id"][table["split"] == split].astype(str))


def best_epoch(run_id: str) -> int:
    return int(connect().client.get_run(run_id).data.metrics["best/epoch"])


# --- what it trains


def test_it_trains_on_all_but_the_test_images_for_as_many_steps_as_was_best(
    trained: imgcls.TrainResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    seen = []

    def spy(*args: Any, **options: Any) -> Any:
        seen.append((args, options))
        return fit(*args, **options)

    monkeypatch.setattr(training, "fit", spy)
    result = imgcls.refit(trained.run_id)
    [((_, images, val), options)] = seen
    assert (images.num_images, len(images), val) == (NUM_TRAIN + NUM_VAL, STEPS_NOW, None)
    best = best_epoch(trained.run_id)
    epochs = max(1, round(best * STEPS_THEN / STEPS_NOW))
    assert options["config"].epochs == 3 == round(4 * STEPS_THEN / STEPS_NOW)
    assert options["optim"].warmup_epochs == 0.75
    [network] = result.networks
    assert [row["epoch"] for row in network.history.rows] == list(range(1, epochs + 1))
    assert not any(name.startswith("val/") for row in network.history.rows for name in row)
    assert (
        f"the run {trained.run_id} was best after epoch {best} of 4, of 9 steps each. With its validation images there "
        f"are 1,438 to train on, 12 steps an epoch: {epochs} epoch"
    ) in capsys.readouterr().out
    was = {split: of_split(trained.run_id, split, tmp_path) for split in ("train", "val", "test")}
    assert of_split(result.run_id, "train", tmp_path) == was["train"] | was["val"]
    assert of_split(result.run_id, "val", tmp_path) == set()
    assert of_split(result.run_id, "test", tmp_path) == was["test"]
    assert len(was["test"]) == NUM_TEST


@pytest.mark.slow
def test_it_ends_where_the_best_epoch_was(trained: imgcls.TrainResult) -> None:
    """Of a run that was best early, only so many epochs are trained, of the same schedule."""
    store = connect()
    store.client.log_metric(trained.run_id, "best/epoch", 2)
    try:
        short = imgcls.refit(trained.run_id, quiet=True)
    finally:
        store.client.log_metric(trained.run_id, "best/epoch", best_epoch_of(trained))
    [network] = short.networks
    assert len(network.history) == 2 == round(2 * STEPS_THEN / STEPS_NOW)
    assert network.history.rows[-1]["lr"] > 0
    run = store.client.get_run(short.run_id)
    assert (run.data.params["refit.best_epoch"], run.data.params["refit.epochs"]) == ("2", "2")
    assert run.data.params["train.epochs"] == "3"


def best_epoch_of(result: imgcls.TrainResult) -> int:
    rows = sorted(result.history.rows, key=lambda row: (-row["val/acc"], row["val/loss"]))
    return int(rows[0]["epoch"])


def test_what_an_image_becomes_is_what_it_was_in_the_run(
    trained: imgcls.TrainResult, refitted: imgcls.RefitResult
) -> None:
    """The digits' recipe measures mean and deviation on the training images, which are others now."""
    assert refitted.recipe.augment.normalize == "dataset"
    assert refitted.networks[0].classifier.preprocessing == trained.classifier.preprocessing
    assert refitted.recipe.train.plan == trained.recipe.train.plan
    assert refitted.recipe.augment == trained.recipe.augment


@pytest.mark.slow
def test_a_recipe_of_a_fold_is_split_as_that_fold_was(photos: dict[str, Any], tmp_path: Path) -> None:
    run = imgcls.train(None, {**photos, "data.fold": "2 of 3", "data.test_fraction": 0.2}, quiet=True)
    result = imgcls.refit(run.run_id, quiet=True)
    assert of_split(result.run_id, "test", tmp_path) == of_split(run.run_id, "test", tmp_path) != set()
    assert (result.recipe.data.fold, result.recipe.data.split_from) == (None, run.run_id)


@pytest.mark.slow
def test_with_frozen_stages_whose_outputs_are_kept_it_needs_no_validation_either(photos: dict[str, Any]) -> None:
    frozen = {"model.freeze_depth": 1, "train.cache_features": 1, "train.unfreeze": {2: 0}}
    run = imgcls.train(None, {**photos, **frozen}, quiet=True)
    result = imgcls.refit(run.run_id, quiet=True)
    assert "1 view of" in connect().client.get_run(result.run_id).data.tags["imgcls.features"]


@pytest.fixture
def photos(make_folder: Callable[..., Path], request: pytest.FixtureRequest) -> dict[str, Any]:
    """Overrides that train on a small folder in a second, with other test images in every test: they share a store."""
    seed = zlib.crc32(request.node.name.encode())
    return {**SMALL, "data.root": str(make_folder()), "data.split_seed": seed, "train.epochs": 2, "train.batch_size": 8}


# --- what it logs


def test_its_run_says_what_it_is_of(trained: imgcls.TrainResult, refitted: imgcls.RefitResult, tmp_path: Path) -> None:
    run = connect().client.get_run(refitted.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["imgcls.verb"] == "refit"
    assert run.data.tags["imgcls.refit_of"] == trained.run_id == refitted.refit_of
    assert run.data.tags["mlflow.runName"].startswith("refit-plaincnn-digits-")
    assert run.data.params["optim.lr"] == "0.03"
    recipe = downloaded(refitted.run_id, "recipe.yaml", tmp_path)
    assert f"# Repeat it with: imgcls refit {trained.run_id}\n" in recipe.read_text()
    assert resolve(recipe).recipe == refitted.recipe
    assert not Path("outputs").exists()


def test_its_run_has_what_a_training_has(refitted: imgcls.RefitResult, tmp_path: Path) -> None:
    client = connect().client
    folders = (None, "plots", "tables", "predictions", "checkpoints")
    found = {entry.path for folder in folders for entry in client.list_artifacts(refitted.run_id, folder)}
    assert {
        "recipe.yaml", "environment.txt", "history.json", "plots/curves.png", "plots/confusion_test.png",
        "plots/augmentation.png", "tables/split.csv", "tables/per_class_test.csv", "predictions/test.parquet",
        "checkpoints/best.pt", "checkpoints/last.pt",
    } <= found  # fmt: skip
    assert not [path for path in found if "val" in path]
    [network] = refitted.networks
    history = History.from_json(downloaded(refitted.run_id, "history.json", tmp_path).read_text())
    assert history.rows == network.history.rows
    losses = sorted(client.get_metric_history(refitted.run_id, "train/loss"), key=lambda metric: metric.step)
    assert [metric.value for metric in losses] == [row["train/loss"] for row in history.rows]
    run = client.get_run(refitted.run_id)
    assert not [name for name in run.data.metrics if name.startswith(("val/", "best/"))]
    [output] = run.outputs.model_outputs
    assert client.get_logged_model(output.model_id).status.value == "READY"
    weights = Checkpoint.load(downloaded(refitted.run_id, "checkpoints/last.pt", tmp_path)).model
    served = network.classifier.module.state_dict()
    assert all(torch.equal(served[name], weights[name]) for name in served)


def test_the_figures_of_the_test_are_those_of_its_predictions(refitted: imgcls.RefitResult, tmp_path: Path) -> None:
    predictions = Predictions.from_parquet(downloaded(refitted.run_id, "predictions/test.parquet", tmp_path))
    assert (predictions.split, len(predictions.ids)) == ("test", NUM_TEST)
    assert set(predictions.ids) == of_split(refitted.run_id, "test", tmp_path)
    metrics = connect().client.get_run(refitted.run_id).data.metrics
    assert metrics["test/acc"] == (predictions.predicted == predictions.labels).mean()
    assert metrics["test/acc_low"] < metrics["test/acc"] < metrics["test/acc_high"]
    assert {"test/f1", "test/top3_acc", "test/loss", "test/reads"} <= metrics.keys()
    assert {f"test/{name}": value for name, value in refitted.test.items()}.items() <= metrics.items()
    from sklearn.datasets import load_digits

    scans = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    images = [scans[int(name.rpartition("/")[2])] for name in predictions.ids]
    probs = refitted.networks[0].classifier.probabilities(images)
    np.testing.assert_allclose(probs, predictions.probs, atol=1e-5)


# --- the test set


def test_every_test_image_is_looked_at_once_when_the_read_is_counted(
    trained: imgcls.TrainResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    test_rows = {int(name.rpartition("/")[2]) for name in of_split(trained.run_id, "test", tmp_path)}
    looked_at: list[int] = []
    tags_then: list[dict[str, str]] = []

    def look(rows: Any) -> None:
        found = [int(row) for row in np.atleast_1d(rows) if int(row) in test_rows]
        if found and not looked_at:
            tags_then.extend(run.data.tags for run in runs())
        looked_at.extend(found)

    gather, item = ArrayImages.gather, ArrayImages.__getitem__

    def spied_gather(self: ArrayImages, rows: Any) -> Any:
        look(self._rows[list(rows)])
        return gather(self, rows)

    def spied_item(self: ArrayImages, index: int) -> Any:
        look(self._rows[index])
        return item(self, index)

    monkeypatch.setattr(ArrayImages, "gather", spied_gather)
    monkeypatch.setattr(ArrayImages, "__getitem__", spied_item)
    imgcls.refit(trained.run_id, quiet=True)
    assert sorted(looked_at) == sorted(test_rows)
    assert [len(tags["imgcls.test_digest"]) for tags in tags_then] == [32]


@pytest.mark.slow
def test_reads_are_counted_over_all_experiments_and_told(
    photos: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = imgcls.train(None, photos, quiet=True)
    first = imgcls.refit(run.run_id)
    assert "this test set was read for the first time" in capsys.readouterr().out
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another one")
    connect().client.delete_run(first.run_id)  # what it told is known all the same
    second = imgcls.refit(run.run_id)
    assert (
        "this test set has been read once before; its figure is a little optimistic for what was chosen after seeing it"
        in capsys.readouterr().out
    )
    assert (first.reads, second.reads) == (1, 2)
    assert connect().client.get_run(second.run_id).data.metrics["test/reads"] == 2


@pytest.mark.slow
def test_a_read_that_breaks_off_is_a_read(photos: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run = imgcls.train(None, photos, quiet=True)

    def breaks(*_: Any, **_options: Any) -> Any:
        raise RuntimeError("boom")

    with monkeypatch.context() as patch:
        patch.setattr(reading, "predict", breaks)
        with pytest.raises(RuntimeError, match="boom"):
            imgcls.refit(run.run_id, quiet=True)
    assert imgcls.refit(run.run_id, quiet=True).reads == 2


# --- several seeds


@pytest.mark.slow
def test_seeds_are_runs_below_one_that_has_their_mean_and_one_read(
    photos: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = imgcls.train(None, {**photos, "train.seed": 7}, quiet=True)
    result = imgcls.refit(run.run_id, seeds=3)
    client = connect().client
    parent = client.get_run(result.run_id)
    children = [client.get_run(network.run_id) for network in result.networks]
    assert [network.seed for network in result.networks] == [7, 8, 9]
    assert [child.data.params["train.seed"] for child in children] == ["7", "8", "9"]
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {result.run_id}
    assert [child.data.tags["mlflow.runName"] for child in children] == ["seed 7", "seed 8", "seed 9"]
    assert {item.info.status for item in (parent, *children)} == {"FINISHED"}
    assert {item.data.tags["imgcls.refit_of"] for item in (parent, *children)} == {run.run_id}
    assert (result.reads, parent.data.metrics["test/reads"]) == (1, 1)
    assert "imgcls.test_digest" in parent.data.tags
    assert not any("imgcls.test_digest" in child.data.tags for child in children)
    assert not parent.outputs.model_outputs
    assert all(child.outputs.model_outputs for child in children)
    figures = [child.data.metrics["test/acc"] for child in children]
    assert parent.data.metrics["test/acc_mean"] == pytest.approx(np.mean(figures))
    assert parent.data.metrics["test/acc_std"] == pytest.approx(np.std(figures, ddof=1))
    assert {
        f"test/{n}_{w}" for n in ("acc", "f1") for w in ("mean", "std", "low", "high")
    } <= parent.data.metrics.keys()
    assert result.test["f1_mean"] == parent.data.metrics["test/f1_mean"]
    table = pd.read_csv(downloaded(result.run_id, "tables/seeds.csv", tmp_path))
    assert table["seed"].tolist() == [7, 8, 9]
    assert table["acc"].tolist() == pytest.approx(figures)
    assert table["run_id"].tolist() == [child.info.run_id for child in children]
    one, other = (network.classifier.module.state_dict() for network in result.networks[:2])
    assert any(not torch.equal(one[name], other[name]) for name in one)
    told = capsys.readouterr().out
    assert f"seed 8: test acc {figures[1]:.4f}, f1 " in told
    assert f"test of 3 seeds on 3 images: acc {np.mean(figures):.4f} ± " in told
    assert not Path("outputs").exists()


@pytest.mark.slow
def test_one_seed_of_several_is_the_refit_of_that_seed_alone(photos: dict[str, Any]) -> None:
    run = imgcls.train(None, photos, quiet=True)
    alone, several = imgcls.refit(run.run_id, quiet=True), imgcls.refit(run.run_id, seeds=2, quiet=True)
    first = several.networks[0]
    assert first.history.rows[-1]["train/loss"] == alone.networks[0].history.rows[-1]["train/loss"]
    assert (first.reading.predictions.probs == alone.networks[0].reading.predictions.probs).all()
