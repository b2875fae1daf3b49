"""Real processes: the command line, `mlflow run`, `mlflow server`; each ended with its test, whatever happens."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.forking import Forked

CHECKOUT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0
"""Seconds to wait for what takes a few on an idle machine."""


def environment(**more: str) -> dict[str, str]:
    """This process's environment without MLflow's variables, the virtual environment's commands first on the PATH.

    One thread: with as many as there are cores, a busy machine makes the small networks here 25 times slower.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
    return {**clean, "PATH": path, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", **more}


class Child:
    """A process in a session of its own, its output in files.

    Args:
        command: its words.
        folder: its working directory; the output goes beside it.
        fresh: start Python anew for `imgcls …` too, which else is forked where its imports are done.
        more: environment variables.
    """

    def __init__(self, command: Sequence[str], folder: Path, *, fresh: bool = False, **more: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._out = folder.with_name(f"{folder.name}.out")
        self._err = folder.with_name(f"{folder.name}.err")
        self.process: Forked | subprocess.Popen[bytes]
        if not fresh and tuple(command[:3]) == imgcls():
            self.process = Forked(command[3:], folder, self._out, self._err, environment(**more))
            return
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment(**more),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        """What it printed on stdout so far."""
        return self._out.read_text()

    @property
    def err(self) -> str:
        """What it printed on stderr so far."""
        return self._err.read_text()

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its exit code."""
        return self.process.wait(timeout)

    def wait_for(self, pattern: str) -> "re.Match[str]":
        """Wait until its output has the pattern; an error with all of the output where it ends before."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            ended = self.process.poll() is not None
            if found := re.search(pattern, f"{self.out}\n{self.err}"):
                return found
            if ended:
                break
            time.sleep(0.05)
        raise AssertionError(f"no {pattern!r} in the output of {self.process.args!r}:\n{self.out}\n{self.err}")

    def family(self) -> list[psutil.Process]:
        """The process and all below it."""
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    def end(self) -> None:
        """Kill it and all that it started."""
        family = self.family()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(10)


def all_gone(processes: Sequence[psutil.Process], timeout: float = 20.0) -> bool:
    """Whether the processes end in time; a zombie that waits for its parent counts as ended."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if not any(_lives(process) for process in processes):
            return True
        time.sleep(0.1)
    return False


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Spawn = Callable[..., Child]


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """Starts processes by their words, each in a new folder; keywords are those of `Child`."""
    children: list[Child] = []

    def start(*command: str, folder: Path | None = None, fresh: bool = False, **more: str) -> Child:
        children.append(Child(command, folder or tmp_path / f"child{len(children)}", fresh=fresh, **more))
        return children[-1]

    try:
        yield start
    finally:
        for child in children:
            child.end()


def imgcls(*words: str) -> tuple[str, ...]:
    """The words of `imgcls …` as a process."""
    return (sys.executable, "-m", "imgcls", *words)


@dataclass(frozen=True)
class Runs:
    """A store whose tests each have an experiment.

    Attributes:
        uri: the store.
        client: an `MlflowClient` of it.
    """

    uri: str
    client: Any

    def of(self, experiment: str) -> list[Any]:
        """All runs of an experiment, as full runs."""
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            return []
        runs = self.client.search_runs([found.experiment_id])
        return [self.client.get_run(run.info.run_id) for run in runs]

    def only(self, experiment: str) -> Any:
        """The one run of an experiment."""
        [run] = self.of(experiment)
        return run

    def history(self, run: Any, metric: str) -> list[tuple[int, float]]:
        """(step, value) of a metric, by step."""
        rows = self.client.get_metric_history(run.info.run_id, metric)
        return sorted((row.step, row.value) for row in rows)

    def artifacts(self, run: Any, folder: str | None = None) -> set[str]:
        """The paths of a run's artifacts."""
        paths: set[str] = set()
        for entry in self.client.list_artifacts(run.info.run_id, folder):
            paths |= self.artifacts(run, entry.path) if entry.is_dir else {entry.path}
        return paths

    def download(self, run: Any, artifact: str, folder: Path) -> Path:
        """A local copy of an artifact."""
        folder.mkdir(parents=True, exist_ok=True)
        return Path(self.client.download_artifacts(run.info.run_id, artifact, str(folder)))

    def models(self, run: Any) -> list[Any]:
        """The run's LoggedModels."""
        query = f"source_run_id = '{run.info.run_id}'"
        return list(self.client.search_logged_models([run.info.experiment_id], filter_string=query))


def open_runs(uri: str) -> Runs:
    """The runs of a store."""
    import mlflow

    with warnings.catch_warnings():  # about MLflow's own models of its tables, when they are first imported
        warnings.filterwarnings("ignore", "The ``noload`` loader strategy", DeprecationWarning)
        import mlflow.store.tracking.sqlalchemy_store
    return Runs(uri, mlflow.MlflowClient(uri))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """One SQLite store for all tests, since making one takes more than a second."""
    folder = tmp_path_factory.mktemp("store")
    runs = open_runs(f"sqlite:///{folder}/runs.db")
    for name in (
        "mlflow run",
        "main",
        "bad",
        "interrupted",
        "terminated",
        "terminated early",
    ):  # `mlflow run` wants them to be there
        runs.client.create_experiment(name, artifact_location=str(folder / "artifacts" / name.replace(" ", "-")))
    return runs


@pytest.fixture(autouse=True)
def _no_run_is_left_running(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "store" not in request.fixturenames:  # making one takes seconds
        return
    store: Runs = request.getfixturevalue("store")
    experiments = [experiment.experiment_id for experiment in store.client.search_experiments()]
    assert store.client.search_runs(experiments, "attributes.status = 'RUNNING'") == []


class Server:
    """A real `mlflow server` on a store (SQLite in a folder, where no other is given), which can be stopped and started
    again on its port."""

    def __init__(self, folder: Path, backend: str | None = None) -> None:
        self.folder, self.port = folder, free_port()
        self.backend = backend or f"sqlite:///{folder}/server.db"
        self.uri = f"http://127.0.0.1:{self.port}"
        self._child: Child | None = None
        self._starts = 0

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._starts += 1
        command = (
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", self.backend,
            "--artifacts-destination", str(self.folder / "artifacts"),
        )  # fmt: skip
        folder = self.folder / f"start{self._starts}"
        self._child = Child(command, folder, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self._child.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(f"mlflow server does not start:\n{self._child.err}")

    def stop(self) -> None:
        """End it at once, as a crash would."""
        if self._child is not None:
            self._child.end()
            self._child = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that is not started yet."""
    one = Server(tmp_path / "server")
    one.folder.mkdir()
    try:
        yield one
    finally:
        one.stop()


@dataclass(frozen=True)
class Finished:
    """A job that ended.

    Attributes:
        code: its exit code.
        out: what it printed on stdout.
        err: what it printed on stderr.
        folder: where it ran.
        commit: of the checkout when it started.
        run: its run.
        runs: the store of the run.
    """

    code: int
    out: str
    err: str
    folder: Path
    commit: str
    run: Any
    runs: Runs


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """`imgcls train digits --train.epochs 2` in an empty folder, with no variable set: what a newcomer types."""
    folder = tmp_path_factory.mktemp("digits") / "work"
    head = subprocess.run(
        ["git", "-C", str(CHECKOUT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    child = Child(imgcls("train", "digits", "--train.epochs", "2"), folder, fresh=True)
    try:
        code = child.wait()
    finally:
        child.end()
    assert code == 0, child.err
    runs = open_runs(f"sqlite:///{folder}/mlflow.db")
    return Finished(code, child.out, child.err, folder, head.stdout.strip(), runs.only("Default"), runs)
