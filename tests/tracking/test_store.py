import os
import socket
from pathlib import Path
from typing import Any

import pytest

from imgcls.errors import UserError
from imgcls.tracking import nested, resume, trained
from imgcls.tracking import store as module
from imgcls.tracking.nested import find_parent
from imgcls.tracking.resume import Interrupted, artifact_file, download_checkpoints
from imgcls.tracking.resume import find as find_interrupted
from imgcls.tracking.store import MissingArtifact, Store, artifact, connect, tracking_uri
from imgcls.tracking.trained import find_trained

# MLflow's own models of its tables, read when its SQL store is first opened.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/runs.db"


@pytest.fixture
def client(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Any:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path_factory.getbasetemp())
    return connect().client


def test_the_default_is_sqlite_in_the_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking_uri() == f"sqlite:///{Path.cwd()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert tracking_uri() == f"sqlite:///{Path.cwd()}/mlflow.db"


@pytest.mark.usefixtures("client")
def test_without_variables_the_experiment_is_the_default(uri: str) -> None:
    store = connect()
    assert (store.uri, store.experiment_id) == (uri, "0")


def test_an_experiment_is_made_at_its_first_use_and_found_at_the_next(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "animals")
    made = connect().experiment_id
    assert client.get_experiment_by_name("animals").experiment_id == made
    assert connect().experiment_id == made


def test_the_experiment_of_the_run_of_mlflow_run_comes_before_all(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = client.create_experiment("mine"), client.create_experiment("other")
    run_id = client.create_run(mine).info.run_id
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "third")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", other)
    assert connect().experiment_id == other
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert connect().experiment_id == mine
    assert client.get_experiment_by_name("third") is None
    client.set_terminated(run_id)


def test_a_deleted_experiment_is_an_error_with_the_command_that_restores_it(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = client.create_experiment("gone")
    client.delete_experiment(gone)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "gone")
    with pytest.raises(UserError, match=f"the experiment 'gone' is deleted; .*mlflow experiments restore -x {gone}"):
        connect()


def test_a_server_that_does_not_answer_is_an_error_before_anything_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(UserError, match=f"{uri} does not answer: .*refused.*Start it .*MLFLOW_TRACKING_URI"):
            connect()


@pytest.mark.parametrize("uri", ["sqlite:///{file}/runs.db", "nonsense://store", "http://", "http://["])
def test_a_store_that_cannot_be_opened_is_an_error_that_names_it(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    uri = uri.format(file=tmp_path / "file")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match=r"the tracking (store|server)") as caught:
        connect()
    assert uri in str(caught.value)
    assert "MLFLOW_TRACKING_URI" in str(caught.value)


@pytest.mark.usefixtures("client")
def test_a_call_to_a_dead_server_will_not_block_for_minutes() -> None:
    assert int(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) <= 2
    assert int(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) <= 30


def test_a_users_own_http_settings_stay(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client is not None
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    connect()
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "5"


def test_an_artifact_is_there_while_it_is_needed(client: Any, tmp_path: Path) -> None:
    run_id = client.create_run("0").info.run_id
    (tmp_path / "recipe.yaml").write_text("text")
    client.log_artifact(run_id, str(tmp_path / "recipe.yaml"))
    client.set_terminated(run_id)
    with artifact(run_id, "recipe.yaml") as path:
        assert path.read_text() == "text"
    assert not path.exists()


def test_an_artifact_of_no_run_and_a_run_without_it_are_errors(client: Any) -> None:
    with pytest.raises(UserError, match="'0123' is neither a file nor a run in sqlite"), artifact("0123", "x"):
        pass
    run_id = client.create_run("0").info.run_id
    client.set_terminated(run_id)
    with pytest.raises(UserError, match=f"the run {run_id} has no artifact 'x'"), artifact(run_id, "x"):
        pass


class Gone:
    """The client of a server that stops answering after it was opened."""

    def __getattr__(self, name: str) -> Any:
        raise ConnectionError(f"{name}: connection refused\nand a stack")


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("lasts", ["", "get_run", "get_run list_artifacts"])
def test_a_store_that_fails_is_not_taken_for_a_run_without_the_artifact(
    client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lasts: str
) -> None:
    run_id = client.create_run("0").info.run_id
    (tmp_path / "x").write_text("text")
    client.log_artifact(run_id, str(tmp_path / "x"))
    client.set_terminated(run_id)
    gone: Any = Gone()
    for name in lasts.split():
        setattr(gone, name, getattr(client, name))
    monkeypatch.setattr(module, "connect", lambda: Store("http://gone", gone, "0"))
    with (
        pytest.raises(
            UserError, match=r"^the tracking store http://gone did not give .*: connection refused\. See tha"
        ),
        artifact(run_id, "x"),
    ):
        pass
    monkeypatch.setattr(module, "connect", lambda: Store("http://there", client, "0"))
    with pytest.raises(MissingArtifact), artifact(run_id, "y"):
        pass
    with pytest.raises(MissingArtifact), artifact("0" * 32, "x"):
        pass


@pytest.mark.parametrize(
    ("find", "missing", "deleted"),
    [
        (lambda run_id: find_parent(run_id, "sqlite:///other.db"),
         "there is no run of the sweep .*It was made in sqlite:///other.db; set", "or give the sweep another name"),
        (find_trained, "there is no run .*Give the id of a run from `imgcls ui`", "then refit it"),
        (find_interrupted, "there is no run .*Give the id of a run from `imgcls ui`", "then go on with it"),
    ],
    ids=["a sweep", "a training", "one to go on with"],
)  # fmt: skip
def test_a_run_that_is_missing_or_deleted_is_told_from_a_store_that_fails(
    client: Any, monkeypatch: pytest.MonkeyPatch, find: Any, missing: str, deleted: str
) -> None:
    with pytest.raises(UserError, match=missing):
        find("0" * 32)
    run_id = client.create_run("0").info.run_id
    client.delete_run(run_id)
    with pytest.raises(
        UserError, match=rf"is deleted\. Restore it with `mlflow runs restore --run-id {run_id}`, {deleted}"
    ):
        find(run_id)
    for place in (nested, trained, resume):
        monkeypatch.setattr(place, "connect", lambda: Store("http://gone", Gone(), "0"))
    with pytest.raises(UserError, match=r"^the tracking store http://gone did not give .*: connection refused\. See"):
        find(run_id)


def test_a_run_to_go_on_with_whose_store_fails_is_not_called_one_without_files(client: Any, tmp_path: Path) -> None:
    run_id = client.create_run("0").info.run_id
    client.set_terminated(run_id)
    there = Interrupted(Store("http://there", client, "0"), run_id, {}, None, None)
    with pytest.raises(UserError, match="it ended before its training began"), artifact_file(there, "recipe.yaml"):
        pass
    download_checkpoints(there, tmp_path / "none")
    assert list((tmp_path / "none").iterdir()) == []
    gone = Interrupted(Store("http://gone", Gone(), "0"), run_id, {}, None, None)
    with pytest.raises(UserError, match="http://gone did not give"), artifact_file(gone, "recipe.yaml"):
        pass
    with pytest.raises(UserError, match=f"the checkpoints of the run {run_id} cannot be fetched from http://gone to "):
        download_checkpoints(gone, tmp_path / "none")
