import io
import json
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from imgcls.recipe import resolve
from imgcls.tables import History, Predictions
from imgcls.training.checkpoint import Checkpoint
from imgcls.training.plan import default_plan, resolve_device
from tests.e2e.conftest import CHECKOUT, Finished, Runs, Spawn, imgcls

pytestmark = pytest.mark.slow

BY_EPOCH = ["train/loss", "train/acc", "val/loss", "val/acc", "val/f1", "lr", "speed/images_per_s"]


def read(digits: Finished, artifact: str, tmp_path: Path) -> Path:
    return digits.runs.download(digits.run, artifact, tmp_path)


def test_the_command_prints_a_line_an_epoch_and_where_the_run_is(digits: Finished) -> None:
    assert (digits.code, digits.err) == (0, "")
    # On a machine so busy that the training is expected to take long, the plan is measured and told.
    lines = [line for line in digits.out.splitlines() if not line.startswith("plan: ")]
    assert lines[0].startswith("1,797 images of 10 classes (train 1,079, val 359, test 359) at 16 px; plaincnn with")
    assert [bool(re.fullmatch(r"epoch +\d/2  train loss .* val .* images/s  ETA .*", line)) for line in lines] == [
        False, True, True, *[False] * (len(lines) - 3)
    ]  # fmt: skip
    assert re.fullmatch(r"best epoch \d: val acc 0\.\d{4}, f1 0\.\d{4}", lines[-3])
    assert lines[-2] == f"run {digits.run.info.run_id} in sqlite:///{digits.folder}/mlflow.db"
    assert lines[-1].startswith("next: imgcls ui")


def test_the_run_is_finished_and_nothing_is_left_behind(digits: Finished) -> None:
    assert digits.run.info.status == "FINISHED"
    assert digits.run.info.end_time >= digits.run.info.start_time
    assert {path.name for path in digits.folder.iterdir()} == {"mlflow.db", "mlruns"}


def test_every_field_of_the_recipe_is_a_param(digits: Finished) -> None:
    recipe = resolve("digits", {"train.epochs": 2}).recipe
    params = digits.run.data.params
    assert set(params) == {name for name in recipe.flat() if not name.startswith(("search.", "promote."))}
    assert params["train.epochs"] == "2"
    assert params["augment.horizontal_flip"] == "false"
    assert params["train.patience"] == "null"


@pytest.mark.parametrize("metric", BY_EPOCH)
def test_a_metric_has_a_value_for_every_epoch(digits: Finished, metric: str) -> None:
    history = digits.runs.history(digits.run, metric)
    assert [step for step, _ in history] == [1, 2]
    assert all(np.isfinite(value) and value >= 0 for _, value in history)


def test_the_best_figures_are_logged_once_and_are_those_of_the_best_epoch(digits: Finished) -> None:
    (epoch,) = (value for _, value in digits.runs.history(digits.run, "best/epoch"))
    (best,) = (value for _, value in digits.runs.history(digits.run, "best/val_acc"))
    assert (epoch, best) == max((value, step) for step, value in digits.runs.history(digits.run, "val/acc"))[::-1]
    assert best > 0.8


def test_the_tags_say_what_was_done_with_what(digits: Finished) -> None:
    tags = digits.run.data.tags
    assert tags["imgcls.verb"] == "train"
    assert tags["imgcls.family"] == "plaincnn"
    assert tags["imgcls.recipe"] == "digits"
    assert re.fullmatch("[0-9a-f]{32}", tags["imgcls.data_digest"])
    assert re.match("(cpu|cuda) (fp32|bf16|fp16)", tags["imgcls.plan"])
    assert "mlflow.user" in tags
    assert "imgcls.error" not in tags


@pytest.mark.skipif(not (CHECKOUT / ".git").exists(), reason="no git checkout")
def test_the_git_commit_is_a_tag(digits: Finished) -> None:
    assert digits.run.data.tags["imgcls.git_commit"].removesuffix("-dirty") == digits.commit


def test_the_data_set_is_an_input_with_the_digest_of_its_content(digits: Finished) -> None:
    [used] = digits.run.inputs.dataset_inputs
    assert used.dataset.name == "digits"
    assert used.dataset.digest == digits.run.data.tags["imgcls.data_digest"]
    assert len(used.dataset.digest) <= 36
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "training")]
    profile = json.loads(used.dataset.profile)
    assert profile == {"num_images": 1797, "num_classes": 10, "train": 1079, "val": 359, "test": 359}


def test_the_machine_was_watched(digits: Finished) -> None:
    names = set(digits.run.data.metrics)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= names


def test_all_artifacts_are_there(digits: Finished) -> None:
    assert digits.runs.artifacts(digits.run) - {"tables/plan.csv"} == {
        "recipe.yaml",
        "environment.txt",
        "history.json",
        "plots/augmentation.png",
        "plots/curves.png",
        "plots/confusion_val.png",
        "tables/per_class_val.csv",
        "tables/split.csv",
        "tables/data_check.json",
        "tables/model.csv",
        "predictions/val.parquet",
        "checkpoints/best.pt",
        "checkpoints/last.pt",
    }


def test_the_recipe_of_the_run_loads_to_what_was_run(digits: Finished, tmp_path: Path) -> None:
    path = read(digits, "recipe.yaml", tmp_path)
    recipe = resolve(path).recipe
    assert recipe.replace({"train.plan": "auto"}) == resolve("digits", {"train.epochs": 2}).recipe
    plan = default_plan(resolve_device(recipe.train.device, recipe.train.plan), recipe.train.plan)
    assert str(plan) == digits.run.data.tags["imgcls.plan"]
    assert digits.run.info.run_id in path.read_text().splitlines()[0]


def test_the_recipe_of_the_run_repeats_it(digits: Finished, store: Runs, spawn: Spawn, tmp_path: Path) -> None:
    path = read(digits, "recipe.yaml", tmp_path)
    child = spawn(*imgcls("train", str(path)), MLFLOW_TRACKING_URI=store.uri, MLFLOW_EXPERIMENT_NAME="repeated")
    assert child.wait() == 0, child.err
    again = store.only("repeated")
    for metric in ("train/loss", "train/acc", "val/loss", "val/acc", "val/f1", "lr", "best/val_acc", "best/epoch"):
        assert store.history(again, metric) == digits.runs.history(digits.run, metric), metric
    assert again.data.tags["imgcls.data_digest"] == digits.run.data.tags["imgcls.data_digest"]
    assert again.data.params.pop("train.output_dir") == digits.run.data.params["train.output_dir"]
    assert [p for p in digits.run.data.params.items() if again.data.params.get(p[0], p[1]) != p[1]] == []


def test_the_environment_names_python_the_machine_and_the_packages(digits: Finished, tmp_path: Path) -> None:
    text = read(digits, "environment.txt", tmp_path).read_text()
    assert f"# python {sys.version.split()[0]} on " in text
    assert f"\ntorch=={version('torch')}\n" in text
    assert re.search(r"^imgcls==", text, re.MULTILINE)


def test_the_history_equals_the_metrics(digits: Finished, tmp_path: Path) -> None:
    history = History.from_json(read(digits, "history.json", tmp_path).read_text())
    assert [row["epoch"] for row in history.rows] == [1, 2]
    for name in ("train/loss", "val/acc", "lr"):
        assert [row[name] for row in history.rows] == [value for _, value in digits.runs.history(digits.run, name)]


@pytest.mark.parametrize("name", ["augmentation", "curves", "confusion_val"])
def test_the_figures_are_pictures(digits: Finished, name: str, tmp_path: Path) -> None:
    data = read(digits, f"plots/{name}.png", tmp_path).read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        assert min(image.size) > 200
        assert len(set(image.convert("L").tobytes())) > 10


def test_the_accuracy_of_the_predictions_is_the_best_accuracy(digits: Finished, tmp_path: Path) -> None:
    predictions = Predictions.from_parquet(read(digits, "predictions/val.parquet", tmp_path))
    assert predictions.probs.shape == (359, 10)
    np.testing.assert_allclose(predictions.probs.sum(1), 1, atol=1e-5)
    assert (predictions.predicted == predictions.labels).mean() == digits.run.data.metrics["best/val_acc"]
    assert predictions.split == "val"
    assert predictions.manifest_digest == digits.run.data.tags["imgcls.data_digest"]


def test_the_tables_fit_the_predictions(digits: Finished, tmp_path: Path) -> None:
    predictions = Predictions.from_parquet(read(digits, "predictions/val.parquet", tmp_path))
    by_class = pd.read_csv(read(digits, "tables/per_class_val.csv", tmp_path))
    assert by_class["support"].sum() == 359
    hits = [((predictions.predicted == k) & (predictions.labels == k)).sum() for k in range(10)]
    np.testing.assert_allclose(by_class["recall"] * by_class["support"], hits)
    by_image = pd.read_csv(read(digits, "tables/split.csv", tmp_path))
    assert by_image["split"].value_counts().to_dict() == {"train": 1079, "val": 359, "test": 359}
    assert set(by_image.loc[by_image["split"] == "val", "id"]) == set(predictions.ids)


def test_the_checkpoints_are_those_of_the_best_and_the_last_epoch(digits: Finished, tmp_path: Path) -> None:
    best, last = (Checkpoint.load(read(digits, f"checkpoints/{name}.pt", tmp_path)) for name in ("best", "last"))
    assert best.epoch == digits.run.data.metrics["best/epoch"]
    assert last.epoch == 2
    assert [row["epoch"] for row in last.rows] == [1, 2]


def test_the_model_is_ready_and_belongs_to_the_run(digits: Finished) -> None:
    [model] = digits.runs.models(digits.run)
    assert (model.name, str(model.status)) == ("model", "READY")
    [output] = digits.run.outputs.model_outputs
    assert output.model_id == model.model_id
    assert {metric.key: metric.value for metric in model.metrics}["best/val_acc"] == (
        digits.run.data.metrics["best/val_acc"]
    )


def test_the_job_can_run_without_any_home_or_git(spawn: Spawn, store: Runs, tmp_path: Path, make_folder: Any) -> None:
    root = make_folder(images=6)
    words = imgcls("train", "--data.root", str(root), "--train.epochs", "1", "--augment.image_size", "16")
    output, home = tmp_path / "a folder" / "out", tmp_path / "file"
    home.write_text("no folder, so nothing can be made in it")
    child = spawn(
        *words, "--train.output_dir", str(output), "--model.family", "plaincnn",
        MLFLOW_TRACKING_URI=store.uri, MLFLOW_EXPERIMENT_NAME="bare", HOME=str(home),
        PATH=str(Path(sys.executable).parent),
    )  # fmt: skip
    assert child.wait() == 0, child.err
    run = store.only("bare")
    assert (run.info.status, run.data.params["data.root"]) == ("FINISHED", str(root))
    assert not output.exists()
    assert {path.name for path in child.folder.iterdir()} <= {"mlruns"}  # where MLflow puts a new experiment's files
