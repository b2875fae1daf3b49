"""Which MLflow store and experiment to use, and whether it answers."""

import contextlib
import hashlib
import logging
import os
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from filelock import FileLock

from imgcls.errors import UserError

DEFAULT_URI = "sqlite:///mlflow.db"
# MLflow's own defaults let one call to a dead server block for four minutes, draw a bar for every artifact, and print a
# link at the end of a run even where nothing is to be printed.
_MLFLOW_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the SQLite store in the current directory (absolute: MLflow caches stores by address)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"


@dataclass(frozen=True)
class Store:
    """A tracking store that has answered.

    Attributes:
        uri: its address.
        client: an `mlflow.MlflowClient` of it.
        experiment_id: the experiment that new runs go to.
    """

    uri: str
    client: Any
    experiment_id: str

    def writing(self) -> AbstractContextManager[object]:
        """A context in which no other process of imgcls on this machine writes to the same SQLite file.

        SQLite refuses a transaction at once ("database is locked") that has read and then wants to write while
        another one writes, however long its busy timeout is.
        """
        if not self.uri.startswith("sqlite:///"):
            return contextlib.nullcontext()
        path = Path(self.uri.removeprefix("sqlite:///").partition("?")[0]).absolute()
        name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
        return FileLock(Path(gettempdir()) / f"imgcls-{os.getuid()}-{name}.lock")


def connect() -> Store:
    """Open the store named by MLflow's environment variables and find, or create, the experiment.

    MLFLOW_RUN_ID's experiment comes first, then MLFLOW_EXPERIMENT_ID, MLFLOW_EXPERIMENT_NAME, and `Default`.

    Raises:
        UserError: the store does not answer, or the experiment is not there or is deleted.
    """
    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        _ping(uri)
    elif uri.startswith("sqlite:///"):
        _open_sqlite(uri)
    for name, value in _MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # its errors come as exceptions too
    try:
        import mlflow

        mlflow.set_tracking_uri(uri)
        client = mlflow.MlflowClient(uri)
        return Store(uri, client, _experiment_id(client))
    except UserError:
        raise
    except Exception as error:  # the store's own errors: SQLAlchemy's, the file system's, MLflow's
        raise _unusable(uri, error) from error


def _ping(uri: str) -> None:
    try:
        with urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=10):
            return
    except urllib.error.HTTPError:
        return  # something answers; a proxy may hide /health, and the first real call will tell
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"the tracking server {uri} does not answer: {reason}. Start it (mlflow server), mend the address in "
            f"MLFLOW_TRACKING_URI, or unset that to track in {DEFAULT_URI}."
        ) from error


def _open_sqlite(uri: str) -> None:
    """Fail at once where MLflow would try for 100 s, with a warning for each try."""
    path = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("pragma schema_version")
    except (OSError, sqlite3.Error) as error:
        raise _unusable(uri, error) from error


def _unusable(uri: str, error: Exception) -> UserError:
    return UserError(
        f"the tracking store {uri} cannot be used: {first_line(error)}. Expected an MLflow server's address or a "
        f"database that can be written; mend it, or set MLFLOW_TRACKING_URI to another (default {DEFAULT_URI})."
    )


def _experiment_id(client: Any) -> str:
    if run_id := os.environ.get("MLFLOW_RUN_ID"):
        try:
            return str(client.get_run(run_id).info.experiment_id)
        except Exception as error:
            raise UserError(
                f"MLFLOW_RUN_ID is {run_id}, but: {first_line(error)}. Expected a run of the store; unset it, "
                "or set MLFLOW_TRACKING_URI to the store that the run is in."
            ) from error
    if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        try:
            experiment = client.get_experiment(given)
        except Exception as error:
            raise UserError(
                f"MLFLOW_EXPERIMENT_ID is {given}, but: {first_line(error)}. Expected an experiment of the tracking "
                "store; unset it for `Default`, or set MLFLOW_EXPERIMENT_NAME, which makes one that is missing."
            ) from error
    elif name := os.environ.get("MLFLOW_EXPERIMENT_NAME"):
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            return str(client.create_experiment(name))
    else:
        experiment = client.get_experiment("0")
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"the experiment {experiment.name!r} is deleted; restore it (mlflow experiments restore -x "
            f"{experiment.experiment_id}) or set MLFLOW_EXPERIMENT_NAME to another."
        )
    return str(experiment.experiment_id)


def first_line(error: Exception) -> str:
    """What a library's error says, without the stack that some put below it."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")


class MissingArtifact(UserError):
    """A run that is not there, or that does not have what was asked of it; the store has answered."""


def is_missing(error: Exception) -> bool:
    """Whether a store says by this error that it does not have what was asked for; else it has failed."""
    return getattr(error, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def no_answer(store: Store, error: Exception) -> UserError:
    """What a user is told of a store that fails."""
    return UserError(
        f"the tracking store {store.uri} did not give what was asked of it: {first_line(error)}. See that it answers, "
        "and run it again; where that does not help, look at the server's log, or set MLFLOW_TRACKING_URI to the "
        "store that the run is in."
    )


def active_run(store: Store, run_id: str, *, then: str, missing: str = "", what: str = "run") -> Any:
    """MLflow's entity of a run that is there and not deleted.

    Args:
        store: where it is.
        run_id: its id.
        then: what to do once a deleted run is restored, such as `then refit it`.
        missing: what to do where there is none; "" is to give another.
        what: what it is to the user.

    Raises:
        UserError: there is none, it is deleted, or the store fails.
    """
    try:
        run = store.client.get_run(run_id)
    except Exception as error:
        if not is_missing(error):
            raise no_answer(store, error) from error
        advice = missing or (
            "Give the id of a run from `imgcls ui`, or set MLFLOW_TRACKING_URI to the store that it is in."
        )
        raise UserError(f"there is no {what} {run_id} in {store.uri}: {first_line(error)}. {advice}") from error
    if run.info.lifecycle_stage != "active":
        raise UserError(
            f"the {what} {run_id} is deleted. Restore it with `mlflow runs restore --run-id {run_id}`, {then}."
        )
    return run


def fetch(store: Store, run_id: str, path: str, folder: str) -> Path | None:
    """Copy one of a run's artifacts into a folder; None where it has none of this path.

    Raises:
        UserError: the store fails.
    """
    parent = str(PurePosixPath(path).parent)
    try:
        entries = store.client.list_artifacts(run_id, None if parent == "." else parent)
        if path not in [entry.path for entry in entries]:
            return None
        return Path(store.client.download_artifacts(run_id, path, folder))
    except Exception as error:
        raise no_answer(store, error) from error


@contextlib.contextmanager
def artifact(run_id: str, path: str) -> Iterator[Path]:
    """A local copy of one of a run's artifacts.

    Raises:
        MissingArtifact: there is no such run, or it has no such artifact.
        UserError: the store fails.
    """
    store = connect()
    with TemporaryDirectory(prefix="imgcls-") as folder:
        try:
            store.client.get_run(run_id)
        except Exception as error:
            if not is_missing(error):
                raise no_answer(store, error) from error
            raise MissingArtifact(
                f"{run_id!r} is neither a file nor a run in {store.uri}: {first_line(error)}. Give an existing "
                "file, or a run id from `imgcls ui`."
            ) from error
        local = fetch(store, run_id, path, folder)
        if local is None:
            raise MissingArtifact(f"the run {run_id} has no artifact {path!r}; was it made by imgcls?")
        yield local
