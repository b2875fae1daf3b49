"""Reading runs, and the trials below a sweep."""

import socket
import uuid
from pathlib import Path
from typing import Any

import pytest

from imgcls.errors import UserError
from imgcls.tables import History
from imgcls.tracking.read import finished_trials, read_history, read_predictions, read_run
from imgcls.tracking.store import MissingArtifact, Store, connect
from tests.evaluation.test_intervals import predictions

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture(autouse=True)
def _experiment_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", uuid.uuid4().hex)


def make(
    store: Store, name: str, *, parent: str | None = None, verb: str = "train", acc: float | None = None,
    status: str = "FINISHED",
) -> str:  # fmt: skip
    tags = {"imgcls.verb": verb, **({} if parent is None else {"mlflow.parentRunId": parent})}
    run_id = str(store.client.create_run(store.experiment_id, run_name=name, tags=tags).info.run_id)
    if acc is not None:
        store.client.log_metric(run_id, "best/val_acc", acc)
    if status != "RUNNING":
        store.client.set_terminated(run_id, status)
    return run_id


def log(store: Store, run_id: str, path: Path, folder: str | None = None) -> None:
    store.client.log_artifact(run_id, str(path), folder)


@pytest.mark.parametrize("form", ["{}", "runs:/{}", "runs:/{}/"])
def test_a_run_says_what_it_logged(store: Store, form: str) -> None:
    run_id = make(store, "first", acc=0.5, status="RUNNING")
    store.client.log_param(run_id, "optim.lr", 0.1)
    assert read_run(store, run_id).seconds is None
    store.client.set_terminated(run_id)
    found = read_run(store, form.format(run_id))
    assert (found.run_id, found.name, found.status, found.is_sweep) == (run_id, "first", "FINISHED", False)
    assert (found.params, found.metrics) == ({"optim.lr": "0.1"}, {"best/val_acc": 0.5})
    assert found.seconds is not None
    assert 0 <= found.seconds < 60


def test_an_unknown_run_is_an_error_that_lists_the_newest_and_the_nearest(store: Store) -> None:
    with pytest.raises(UserError, match="The experiment has no run yet"):
        read_run(store, "0" * 32)
    ids = [make(store, f"run-{k}") for k in range(7)]
    wrong = ids[0][:-1] + ("0" if ids[0][-1] != "0" else "1")
    with pytest.raises(UserError, match=f"there is no run {wrong} in sqlite.*Did you mean {ids[0]}") as caught:
        read_run(store, wrong)
    assert str(caught.value).count("\n") == 5
    assert f"{ids[-1]}  run-6" in str(caught.value)


@pytest.mark.parametrize("target", ["run-x", "abc", "runs:/x", "models:/animals/1", ""])
def test_what_is_no_id_is_an_error(store: Store, target: str) -> None:
    make(store, "run-y")
    with pytest.raises(UserError, match=r"expected a run id \(32 hexadecimal digits\)"):
        read_run(store, target)


def test_a_name_and_the_beginning_of_an_id_are_understood_as_what_was_meant(store: Store) -> None:
    run_id = make(store, "mobilenet_v2/017")
    for target in ("mobilenet_v2/017", run_id[:8]):
        with pytest.raises(UserError, match=f"Did you mean {run_id}"):
            read_run(store, target)


def test_a_deleted_run_is_an_error_with_the_command_that_restores_it(store: Store) -> None:
    run_id = make(store, "gone")
    store.client.delete_run(run_id)
    with pytest.raises(UserError, match=f"is deleted. .*mlflow runs restore --run-id {run_id}"):
        read_run(store, run_id)


def test_trials_are_found_one_level_below_a_sweep_and_two(store: Store) -> None:
    sweep = make(store, "sweep", verb="tune")
    direct = make(store, "direct", parent=sweep, acc=0.5)
    study = make(store, "resnet18", parent=sweep, verb="tune", acc=0.99)
    best = make(store, "resnet18/000", parent=study, acc=0.9)
    make(store, "resnet18/001", parent=study, acc=0.95, status="KILLED")
    make(store, "resnet18/002", parent=study, acc=0.95, status="FAILED")
    make(store, "resnet18/003", parent=study, acc=0.95, status="RUNNING")
    make(store, "resnet18/004", parent=study)
    make(store, "empty", parent=sweep, verb="tune", acc=0.99)
    other = make(store, "other", verb="tune")
    make(store, "other/000", parent=other, acc=0.7)
    found = read_run(store, sweep)
    assert found.is_sweep
    assert [trial.run_id for trial in finished_trials(store, found)] == [best, direct]
    assert [trial.run_id for trial in finished_trials(store, read_run(store, study))] == [best]


def test_all_pages_of_trials_are_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgcls.tracking.read.PAGE", 2)
    sweep = make(store, "sweep", verb="tune")
    for k in range(5):
        make(store, str(k), parent=sweep, acc=k / 10)
    found = finished_trials(store, read_run(store, sweep))
    assert [trial.metrics["best/val_acc"] for trial in found] == [0.4, 0.3, 0.2, 0.1, 0.0]


def test_history_and_predictions_are_read_as_they_were_written(store: Store, tmp_path: Path) -> None:
    run_id = make(store, "whole")
    history, given = History([{"epoch": 1.0, "val/acc": 0.5}]), predictions(20)
    (tmp_path / "history.json").write_text(history.to_json())
    given.to_parquet(tmp_path / "val.parquet")
    log(store, run_id, tmp_path / "history.json")
    log(store, run_id, tmp_path / "val.parquet", "predictions")
    run = read_run(store, run_id)
    assert read_history(store, run) == history
    read = read_predictions(store, run, "val")
    assert (read.ids, read.manifest_digest) == (given.ids, "d")
    with pytest.raises(MissingArtifact, match=r"has no artifact 'predictions/test.parquet'"):
        read_predictions(store, run, "test")


def test_a_run_without_artifacts_is_an_error_of_its_own(store: Store) -> None:
    run = read_run(store, make(store, "bare", status="FAILED"))
    with pytest.raises(MissingArtifact, match=r"\(bare, FAILED\) has no artifact 'history.json'"):
        read_history(store, run)
    with pytest.raises(MissingArtifact, match=r"has no artifact 'predictions/val.parquet'"):
        read_predictions(store, run, "val")


def test_artifacts_that_are_something_else_are_an_error(store: Store, tmp_path: Path) -> None:
    run_id = make(store, "broken")
    for name, folder in (("history.json", None), ("val.parquet", "predictions")):
        (tmp_path / name).write_text("no such thing")
        log(store, run_id, tmp_path / name, folder)
    run = read_run(store, run_id)
    with pytest.raises(UserError, match=r"'history.json' of the run \w+ cannot be read"):
        read_history(store, run)
    with pytest.raises(UserError, match=r"'predictions/val.parquet' of the run \w+ cannot be read"):
        read_predictions(store, run, "val")


def test_a_server_that_stops_answering_is_an_error_that_names_it(store: Store) -> None:
    class Gone:
        def __getattr__(self, name: str) -> Any:
            raise ConnectionError(f"{name}: connection refused")

    found = read_run(store, make(store, "sweep", verb="tune"))
    gone = Store("http://gone", Gone(), "0")
    for call in (
        lambda: read_run(gone, found.run_id),
        lambda: finished_trials(gone, found),
        lambda: read_history(gone, found),
        lambda: read_predictions(gone, found, "val"),
    ):
        with pytest.raises(UserError, match=r"http://gone did not give .* connection refused") as caught:
            call()
        assert not isinstance(caught.value, MissingArtifact)


def test_a_server_that_is_down_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(UserError, match="does not answer"):
            read_run(connect(), "0" * 32)
