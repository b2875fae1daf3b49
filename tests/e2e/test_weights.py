"""Training from weights as a user does it: from an earlier run, from a file, and from a file that means harm."""

import io
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from imgcls.inference.classifier import Classifier
from imgcls.models.family import FAMILIES
from imgcls.recipe import resolve
from imgcls.tracking.model import download_classifier
from tests.e2e.conftest import Finished, Runs, Spawn, imgcls

pytestmark = pytest.mark.slow


def test_a_training_from_an_earlier_run_starts_where_that_ended(
    digits: Finished, spawn: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = imgcls("train", "digits", "--train.epochs", "1", "--optim.lr", "1e-5")
    earlier, uri = digits.run.info.run_id, digits.runs.uri
    fresh = spawn(*words, MLFLOW_TRACKING_URI=uri, MLFLOW_EXPERIMENT_NAME="fresh")
    assert fresh.wait() == 0, fresh.err
    child = spawn(*words, "--model.weights", earlier, MLFLOW_TRACKING_URI=uri, MLFLOW_EXPERIMENT_NAME="from weights")
    assert child.wait() == 0, child.err
    run = digits.runs.only("from weights")
    best = digits.run.data.metrics["best/val_acc"]
    # At this learning rate an epoch changes next to nothing.
    assert run.data.metrics["best/val_acc"] == pytest.approx(best, abs=0.03)
    assert digits.runs.only("fresh").data.metrics["best/val_acc"] < best - 0.4
    assert "weights runs:/" in child.out
    assert ": tensors 38 loaded\n" in child.out
    [model] = digits.runs.models(digits.run)
    assert run.data.tags["imgcls.weights"] == f"runs:/{earlier}/model ({model.model_id})"
    assert run.data.params["model.weights"] == f"runs:/{earlier}/model"
    table = pd.read_csv(digits.runs.download(run, "tables/weights.csv", tmp_path))
    assert set(table["outcome"]) == {"loaded"}
    assert list(table.columns) == ["tensor", "source", "shape", "outcome", "how"]
    recipe = resolve(digits.runs.download(run, "recipe.yaml", tmp_path)).recipe
    assert (recipe.model.weights, recipe.train.epochs) == (f"runs:/{earlier}/model", 1)
    assert set(table["tensor"]) == set(_model_of(run.info.run_id, uri, monkeypatch).module.state_dict())


def _model_of(run_id: str, uri: str, monkeypatch: pytest.MonkeyPatch) -> Classifier:
    """A run's own model, loaded where the weights that it began with cannot be had."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with download_classifier(run_id) as found:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/at/all.db")
        return Classifier.load(found.folder)


def test_a_file_that_holds_code_is_refused_and_nothing_of_it_runs(spawn: Spawn, store: Runs, tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> Any:
            return (os.system, (f"touch {tmp_path / 'executed'}",))

    torch.save({"state_dict": {"x": torch.zeros(1)}, "more": Malicious()}, tmp_path / "bad.pth")
    words = imgcls("train", "digits", "--model.weights", str(tmp_path / "bad.pth"))
    child = spawn(*words, MLFLOW_TRACKING_URI=store.uri, MLFLOW_EXPERIMENT_NAME="code")
    assert child.wait() == 2
    assert child.err.startswith(f"imgcls: error: the weights {tmp_path}/bad.pth cannot be used: it holds code ")
    assert child.err.count("\n") == 1
    assert not (tmp_path / "executed").exists()
    assert store.of("code") == []


def test_a_real_file_of_imagenet_weights_starts_a_training(
    spawn: Spawn, store: Runs, tmp_path: Path, make_folder: Any
) -> None:
    file = Path(os.environ.get("IMGCLS_DATA", "/nowhere"), "weights", "mobilenet_v2-imagenet.pth")
    if not file.is_file() or "mobilenet_v2" not in FAMILIES.names():
        pytest.skip("needs the family mobilenet_v2 and its weights in IMGCLS_DATA")
    recipe = {
        "data": {"source": "folder", "root": str(make_folder(images=6))},
        "model": {"family": "mobilenet_v2", "weights": str(file)},
        "train": {"epochs": 1, "batch_size": 4},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = imgcls("train", str(tmp_path / "recipe.yaml"))
    child = spawn(*words, MLFLOW_TRACKING_URI=store.uri, MLFLOW_EXPERIMENT_NAME="mobilenet")
    assert child.wait() == 0, child.err
    run = store.only("mobilenet")
    table = pd.read_csv(io.StringIO(store.download(run, "tables/weights.csv", tmp_path).read_text()))
    assert table["outcome"].value_counts().to_dict() == {"loaded": 312, "fresh": 2}
    assert list(table.loc[table["outcome"] == "fresh", "source"]) == ["classifier.1.weight", "classifier.1.bias"]
    assert run.data.params["augment.image_size"] == "224"
    assert run.data.params["augment.normalize"] == "imagenet"
