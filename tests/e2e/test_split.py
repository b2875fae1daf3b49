"""Splits as a user meets them: given back to another run, by folds, of some classes, by drawer."""

import json
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.e2e.conftest import Child, Runs, Spawn, imgcls

pytestmark = pytest.mark.slow

Train = Callable[..., Child]
SMALL = ("--train.epochs", "1", "--model.family", "plaincnn", "--model.num_blocks", "1", "--model.channels", "4")


@pytest.fixture
def train(spawn: Spawn, store: Runs) -> Train:
    """`imgcls train …` with a small network, in an experiment of the store."""

    def start(experiment: str, *words: str, code: int = 0) -> Child:
        child = spawn(
            *imgcls("train", *words, *SMALL), MLFLOW_TRACKING_URI=store.uri, MLFLOW_EXPERIMENT_NAME=experiment
        )
        assert child.wait() == code, child.err
        return child

    return start


def text_of(store: Runs, run: Any, artifact: str, folder: Path) -> str:
    return store.download(run, artifact, folder / run.info.run_id).read_text()


def test_the_split_of_a_run_is_given_back_to_another(train: Train, store: Runs, tmp_path: Path) -> None:
    train("split a", "digits", "--data.split_seed", "3")
    first = store.only("split a")
    train("split b", "digits", "--data.split_from", first.info.run_id, "--data.split_seed", "7")
    second = store.only("split b")
    texts = [text_of(store, run, "tables/split.csv", tmp_path) for run in (first, second)]
    assert texts[0] == texts[1]
    table = pd.read_csv(StringIO(texts[0]))
    assert list(table.columns) == ["id", "label", "split", "group", "content"]
    assert table["split"].value_counts().to_dict() == {"train": 1079, "val": 359, "test": 359}
    assert second.data.params["data.split_from"] == first.info.run_id
    assert "tables/notices.txt" not in store.artifacts(second)


def test_a_split_of_a_run_that_is_not_there_is_one_paragraph(train: Train, store: Runs) -> None:
    child = train("split none", "digits", "--data.split_from", "runs:/" + "0" * 32, code=2)
    assert re.fullmatch(r"imgcls: error: data\.split_from: '0{32}' is neither a file nor a run in .*\n", child.err)
    assert store.of("split none") == []


def test_labels_of_another_order_stop_before_there_is_a_run(train: Train, store: Runs, tmp_path: Path) -> None:
    rows = [{"id": f"digits/{k:04d}", "label": 9, "split": "train"} for k in range(1797)]
    pd.DataFrame(rows).to_csv(tmp_path / "split.csv", index=False)
    child = train("split labels", "digits", "--data.split_from", str(tmp_path / "split.csv"), code=2)
    assert "the labels of 1,617 of 1,797 images are not their classes: digits/0000 is '0' here and '9' in" in child.err
    assert store.of("split labels") == []


def test_a_fold_of_some_classes_by_drawer(
    train: Train, store: Runs, tmp_path: Path, make_folder: Callable[..., Path]
) -> None:
    root = make_folder(classes=4, images=12)
    child = train(
        "drawers", "--data.root", str(root), "--augment.image_size", "16", "--data.fold", "2/5",
        "--data.classes", "{low: [class0, class1], high: class3}", "--data.group_pattern", r"([^/]+)\.png$",
    )  # fmt: skip
    run = store.only("drawers")
    assert "36 images of 2 classes (train " in child.out
    assert "skipped 12 files: class class2 (12 images left out by data.classes)" in child.out
    assert run.data.params["data.fold"] == "2 of 5"
    assert json.loads(run.data.params["data.classes"]) == {"low": ["class0", "class1"], "high": ["class3"]}
    table = pd.read_csv(StringIO(text_of(store, run, "tables/split.csv", tmp_path)))
    assert set(table["label"]) == {"low", "high"}
    assert (table.groupby("group")["split"].nunique() == 1).all()
    assert table.groupby("split")["group"].nunique().to_dict() == {"train": 8, "val": 2, "test": 2}
    [skipped] = text_of(store, run, "tables/skipped.jsonl", tmp_path).splitlines()
    assert json.loads(skipped) == {"path": "class class2", "reason": "12 images left out by data.classes"}


def test_what_was_decided_about_a_split_is_in_the_run(
    train: Train, store: Runs, tmp_path: Path, make_folder: Callable[..., Path]
) -> None:
    root = make_folder(classes=3, images=6)
    for number in range(1, 6):
        (root / "class1" / f"{number}.png").unlink()
    words = ("--data.root", str(root), "--augment.image_size", "16")
    assert "set data.tiny_classes to train" in train("tiny", *words, code=2).err
    child = train("tiny", *words, "--data.tiny_classes", "train")
    told = text_of(store, store.only("tiny"), "tables/notices.txt", tmp_path)
    assert told.startswith("tiny classes, 1 in all, have too few different images (class1: 1): ")
    assert f"note: {told}" in child.out
