"""The verb `compare` on runs of real trainings."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import imgcls
from imgcls.errors import UserError
from imgcls.evaluation.intervals import wilson
from imgcls.jobs.compare import SIGN, CompareResult, run_compare
from imgcls.jobs.console import Console
from imgcls.tracking.store import connect
from tests.evaluation.test_plots import png

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),  # MLflow's own
]

SMALL = {"model.num_blocks": 1, "model.channels": 4, "augment.image_size": 8, "train.device": "cpu"}


@pytest.fixture(autouse=True)
def _store(folder_of_the_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder_of_the_store}/runs.db")


@pytest.fixture(scope="module")
def runs(folder_of_the_store: Path) -> dict[str, Any]:
    """Three trainings on the same split, the second with hardly any learning, and one on another split."""
    trained = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder_of_the_store)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder_of_the_store}/runs.db")
        given: dict[str, dict[str, Any]] = {
            "good": {"train.epochs": 5, "optim.lr": 0.03, "train.batch_size": 16},
            "bad": {"optim.lr": 1e-6},
            "other": {"data.split_seed": 7},
        }
        for name, changes in given.items():
            trained[name] = imgcls.train("digits", {**SMALL, "train.epochs": 2, **changes}, quiet=True)
    return trained


def compare(*targets: str, **options: Any) -> CompareResult:
    return run_compare(targets, Console(quiet=options.pop("quiet", True)), **options)


def sweep_of(*run_ids: str) -> str:
    """A sweep's run with a study's below it, and the runs below that."""
    store = connect()
    client: Any = store.client
    sweep = client.create_run(store.experiment_id, run_name="my-sweep", tags={"imgcls.verb": "tune"}).info.run_id
    tags = {"imgcls.verb": "tune", "mlflow.parentRunId": sweep}
    study = client.create_run(store.experiment_id, run_name="study", tags=tags).info.run_id
    for run_id in run_ids:
        client.set_tag(run_id, "mlflow.parentRunId", study)
    for run_id in (study, sweep):
        client.set_terminated(run_id)
    return str(sweep)


@pytest.mark.slow
def test_two_runs_side_by_side(runs: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = runs["good"], runs["bad"]
    before = len(connect().client.search_runs([good.experiment_id]))
    found = compare(bad.run_id, f"runs:/{good.run_id}", quiet=False)
    assert len(connect().client.search_runs([good.experiment_id])) == before, "it makes no run"
    table = found.table
    assert table["run_id"].tolist() == [good.run_id, bad.run_id], "the best first"
    assert table["train.epochs"].tolist() == ["5", "2"]
    assert table["optim.lr"][1] == "1e-06"
    assert not {"model.channels", "train.seed", "data.split_seed"} & set(table.columns)
    given = good.predictions
    expected = wilson(int((given.predicted == given.labels).sum()), len(given.labels))
    assert (table["best/val_acc_low"][0], table["best/val_acc_high"][0]) == pytest.approx(expected)
    assert table["best/val_acc_low"][0] <= table["best/val_acc"][0] <= table["best/val_acc_high"][0]
    assert {"best/val_f1", "best/val_loss", "speed/images_per_s", "seconds"} <= set(table.columns)
    assert found.significance.best == table["run"][0]
    assert found.significance.table["mcnemar_holm"][0] < 0.01
    output = capsys.readouterr().out
    assert "val acc, on the same images:" in output
    assert f"{table['run'][0]} is better than all others tested" in output
    assert f"saved in {tmp_path / 'compare'}: compare.csv, compare.md, curves.png" in output
    assert pd.read_csv(tmp_path / "compare/compare.csv")["run_id"].tolist() == table["run_id"].tolist()
    report = (tmp_path / "compare/compare.md").read_text()
    assert report.startswith(SIGN)
    assert "| optim.lr |" in report
    png(tmp_path / "compare/curves.png")


@pytest.mark.slow
def test_a_run_on_another_split_is_compared_but_not_tested(runs: dict[str, Any], tmp_path: Path) -> None:
    found = compare(*(run.run_id for run in runs.values()), output=tmp_path / "x")
    assert len(found.table) == 3
    assert len(found.significance.table) == 1
    assert any("cannot be tested against" in note and "other images" in note for note in found.notes)


@pytest.mark.slow
def test_a_sweep_stands_for_its_finished_trials_and_no_run_is_shown_twice(
    runs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = runs["good"].run_id, runs["bad"].run_id
    sweep = sweep_of(good, bad)
    found = compare(sweep, bad)
    assert found.table["run_id"].tolist() == [good, bad]
    assert any("my-sweep is a sweep: all of its 2 finished trials" in note for note in found.notes)
    monkeypatch.setattr("imgcls.jobs.compare.MOST_TRIALS", 1)
    with pytest.raises(UserError, match=f"found the run {good} to compare; expected two or more"):
        compare(sweep)
    found = compare(sweep, runs["other"].run_id)
    assert set(found.table["run_id"]) == {good, runs["other"].run_id}
    assert any("the best 1 of its 2 finished trials" in note for note in found.notes)
    assert (tmp_path / "compare").exists()


def test_a_sweep_without_a_finished_trial_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\(my-sweep\) has no finished trial to compare"):
        compare(sweep_of())
    assert not (tmp_path / "compare").exists()


@pytest.mark.slow
def test_json_is_all_that_is_printed(runs: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    compare(runs["good"].run_id, runs["bad"].run_id, as_json=True)
    report = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert {"optim.lr", "train.epochs"} <= set(report["params"])
    assert [row["run_id"] for row in report["runs"]] == [runs["good"].run_id, runs["bad"].run_id]
    assert report["significance"][0]["mcnemar_holm"] < 0.01
    assert [Path(name).name for name in report["files"]] == ["compare.csv", "compare.md", "curves.png"]


@pytest.mark.slow
def test_an_earlier_comparison_is_written_over_and_nothing_else(runs: dict[str, Any], tmp_path: Path) -> None:
    good, bad, other = (run.run_id for run in runs.values())
    compare(good, bad)
    assert len(compare(good, other, bad).table) == 3
    assert len(pd.read_csv(tmp_path / "compare/compare.csv")) == 3
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    compare(good, bad, output=mine)
    assert (mine / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["compare.csv", "compare.md", "curves.png"])
def test_a_file_of_another_is_not_written_over(tmp_path: Path, name: str) -> None:
    (tmp_path / "compare").mkdir()
    (tmp_path / "compare" / name).write_text("mine")
    with pytest.raises(UserError, match=f"has {name}, which no earlier comparison made"):
        compare("0" * 32, "1" * 32)
    assert (tmp_path / "compare" / name).read_text() == "mine"


def test_a_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "compare").write_text("mine")
    with pytest.raises(UserError, match="is a file; expected a folder"):
        compare("0" * 32, "1" * 32)


@pytest.mark.slow
def test_a_run_that_only_began_is_compared_and_named(runs: dict[str, Any], tmp_path: Path) -> None:
    store = connect()
    bare = store.client.create_run(store.experiment_id, run_name="bare").info.run_id
    store.client.log_param(bare, "optim.lr", "0.5")
    store.client.set_terminated(bare, "FAILED")
    found = compare(runs["good"].run_id, bare)
    assert found.table["run"].tolist()[1] == "bare"
    assert [note.split(":")[0] for note in found.notes] == [
        "bare is FAILED",
        "bare has no history.json",
        "bare has no predictions for validation images",
    ]
    assert (tmp_path / "compare/curves.png").exists()
