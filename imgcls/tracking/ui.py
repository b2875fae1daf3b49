"""Starting MLflow's server lean, and the links into its pages. Imports no MLflow: the server is its own process."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from imgcls.errors import UserError
from imgcls.tracking.store import tracking_uri

HOST = "127.0.0.1"
VIEW = "imgcls"
"""The name of the view that `save_view` makes, in the runs table's menu of views and in the link."""
COLUMNS = (
    "tags.`imgcls.verb`",
    "metrics.`best/val_acc`", "metrics.`best/val_f1`", "metrics.`test/acc`", "metrics.`best/epoch`",
    "params.`model.family`", "params.`optim.lr`", "params.`train.epochs`",
)  # fmt: skip
"""What the view shows of a run; MLflow leaves out those that no run of the experiment has."""


def runs_link(base: str, experiment_id: str, *, view: bool = False) -> str:
    """The page with the runs table of an experiment; MLflow's start page would be another.

    Args:
        base: the server's address.
        experiment_id: the experiment.
        view: whether to show it as `save_view` has laid it out.
    """
    link = f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    return f"{link}&viewStateShareKey={VIEW}" if view else link


def save_view(base: str, experiment_id: str) -> bool:
    """Lay out the runs table of an experiment for training runs; one that is there stays, also where a user changed it.

    By itself MLflow's table shows no metric and no param. A view is a tag of the experiment, as the page's own menu
    "Views" writes it.

    Returns:
        Whether it is there: not where the server does not answer, or refuses to read or write without a password.
    """
    api, tag = f"{base.rstrip('/')}/api/2.0/mlflow/experiments", f"mlflow.sharedViewState.{VIEW}"
    fixed = ("attributes.`Run Name`", "runDateAndNestInfo", "duration")
    layout = json.dumps({"selectedColumns": COLUMNS, "columnOrder": [*fixed, *COLUMNS]})
    now = int(time.time() * 1000)
    view = json.dumps({"name": VIEW, "createdAt": now, "updatedAt": now, "state": layout})
    body = json.dumps({"experiment_id": experiment_id, "key": tag, "value": view}).encode()
    write = urllib.request.Request(f"{api}/set-experiment-tag", body, {"Content-Type": "application/json"})
    query = urllib.parse.urlencode({"experiment_id": experiment_id})
    try:
        with urllib.request.urlopen(f"{api}/get?{query}", timeout=10) as answer:
            tags = json.load(answer)["experiment"].get("tags", [])
        if not any(found["key"] == tag for found in tags):
            urllib.request.urlopen(write, timeout=10).close()
    except (OSError, ValueError, KeyError):
        return False
    return True


def experiment_id(base: str) -> str:
    """The experiment named by MLflow's environment variables, asked from a server; `0` where it is not there yet."""
    if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return given
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if not name:
        return "0"
    query = urllib.parse.urlencode({"experiment_name": name})
    try:
        with urllib.request.urlopen(
            f"{base.rstrip('/')}/api/2.0/mlflow/experiments/get-by-name?{query}", timeout=10
        ) as answer:
            return str(json.load(answer)["experiment"]["experiment_id"])
    except (OSError, ValueError, KeyError):
        return "0"


@contextmanager
def server(port: int) -> Iterator[tuple[str, "subprocess.Popen[bytes] | None"]]:
    """The base address of a server on the tracking store: the store itself where it is one, else a new process.

    Raises:
        UserError: the port is taken, or the server does not start within 60 s.
    """
    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        yield uri, None
        return
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise UserError(
                f"port {port} on {HOST} is taken, perhaps by another `imgcls ui`. Open http://{HOST}:{port}, or give "
                "another with --port."
            )
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", HOST, "--port", str(port),
        "--workers", "1", "--no-serve-artifacts", "--default-artifact-root", str(Path("mlruns").absolute()),
    ]  # fmt: skip
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            base = f"http://{HOST}:{port}"
            _wait(base, process, log)
            yield base, process
        finally:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(base: str, process: "subprocess.Popen[bytes]", log: IO[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            log.seek(0)
            tail = log.read().decode(errors="replace").strip().splitlines()[-1:]
            raise UserError(f"the MLflow server ended at once: {' '.join(tail)}. Is {tracking_uri()} a usable store?")
        try:
            with urllib.request.urlopen(base + "/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise UserError(f"the MLflow server did not answer at {base} within 60 s; try `mlflow server` to see why.")
