"""Counting the reads of a test set in a real store."""

from collections.abc import Callable
from pathlib import Path

import pytest

from imgcls.tracking import test_reads as counting
from imgcls.tracking.owner import claim
from imgcls.tracking.resume import interrupted
from imgcls.tracking.run import TrackedRun, start
from imgcls.tracking.store import connect

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

A, B = "a" * 32, "b" * 32


@pytest.fixture(scope="module")
def folder_of_the_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def new_run(folder_of_the_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrackedRun]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder_of_the_store}/runs.db")

    def make(experiment: str = "one", parent: str | None = None) -> TrackedRun:
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", experiment)
        return start(tmp_path / "outputs", name="reads", tags={}, parent=parent)

    return make


def test_reads_are_counted_by_digest_over_all_experiments_and_deleted_runs(
    new_run: Callable[..., TrackedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "_PAGE", 2)  # several pages of all
    first = new_run("one")
    assert counting.register_read(first, A) == 1
    assert counting.register_read(new_run("two"), A) == 2
    assert counting.register_read(new_run("two"), B) == 1
    client = connect().client
    client.delete_run(first.run_id)
    assert counting.register_read(new_run("three"), A) == 3
    client.delete_experiment(client.get_experiment_by_name("two").experiment_id)
    last = new_run("three")
    assert counting.register_read(last, A) == 4
    assert client.get_run(last.run_id).data.tags[counting.TAG] == A
    for number in range(5, 8):
        assert counting.register_read(new_run("three"), A) == number


def test_a_run_that_reads_twice_counts_once(new_run: Callable[..., TrackedRun]) -> None:
    run = new_run()
    assert [counting.register_read(run, "c" * 32) for _ in range(2)] == [1, 1]


def test_a_store_that_does_not_answer_gives_no_number_and_no_error(
    new_run: Callable[..., TrackedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run()

    def down(**_: object) -> None:
        raise ConnectionError("refused")

    monkeypatch.setattr(run.store.client, "search_experiments", down)
    assert counting.register_read(run, A) is None
    assert "could not be counted" in counting.in_words(None)


@pytest.mark.parametrize(
    ("reads", "told"),
    [
        (1, "this test set was read for the first time"),
        (2, "has been read once before; its figure is a little optimistic"),
        (3, "has been read twice before"),
        (12, "has been read 11 times before"),
    ],
)
def test_it_is_told_how_often_it_was_read(reads: int, told: str) -> None:
    assert told in counting.in_words(reads)


def test_a_run_below_another_is_a_new_one_in_its_experiment(
    new_run: Callable[..., TrackedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = new_run("of the parent")
    other = new_run("elsewhere")
    monkeypatch.setenv("MLFLOW_RUN_ID", other.run_id)
    child = new_run("elsewhere", parent.run_id)
    assert child.run_id not in (parent.run_id, other.run_id)
    assert child.experiment_id == parent.experiment_id != other.experiment_id
    found = connect().client.get_run(child.run_id)
    assert found.info.experiment_id == parent.experiment_id
    assert found.data.tags["mlflow.parentRunId"] == parent.run_id


def test_a_refit_that_was_killed_is_no_training_to_go_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for verb, run_id in (("train", A), ("refit", B)):
        checkpoints = tmp_path / run_id / "artifacts" / "checkpoints"
        checkpoints.mkdir(parents=True)
        (checkpoints / "last.pt").touch()
        claim(tmp_path / run_id, uri="sqlite:///x.db", run_id=run_id, verb=verb)
    monkeypatch.setattr("imgcls.tracking.resume.is_running", lambda _about: False)
    assert interrupted(tmp_path) == [A]
