"""`imgcls ui`: the real MLflow server on this machine."""

import re
import signal
import socket
import urllib.request

import pytest

from tests.e2e.conftest import Child, Runs, Spawn, all_gone, free_port, imgcls

pytestmark = pytest.mark.slow

WANTED = "workflowType=machine_learning&viewStateShareKey=imgcls"


def serve(spawn: Spawn, port: int, **more: str) -> tuple[Child, str]:
    child = spawn(*imgcls("ui", "--no-open", "--port", str(port)), **more)
    return child, child.wait_for(r"http://\S+").group(0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_the_runs_table_lean_and_only_here_and_ends_with_all_it_started(
    number: signal.Signals, store: Runs, spawn: Spawn
) -> None:
    port = free_port()
    experiment = store.client.get_experiment_by_name("main").experiment_id
    child, link = serve(spawn, port, MLFLOW_TRACKING_URI=store.uri, MLFLOW_EXPERIMENT_NAME="main")
    assert link == f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs?{WANTED}"
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30) as answer:
        assert answer.read() == b"OK"
    for elsewhere in ("127.0.0.2", socket.gethostbyname(socket.gethostname())):
        if elsewhere != "127.0.0.1":
            with socket.socket() as other:
                other.settimeout(5)
                assert other.connect_ex((elsewhere, port)) != 0, elsewhere
    family = child.family()
    assert 2 <= len(family) <= 4, [process.cmdline() for process in family]
    child.process.send_signal(number)
    assert child.wait() == 128 + number
    assert all_gone(family)
    assert child.out == f"{link}\nCtrl-C ends the server\n"
    assert child.err == ""
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_without_variables_it_shows_the_default_experiment_of_this_folder(spawn: Spawn) -> None:
    port = free_port()
    child, link = serve(spawn, port)
    assert link == f"http://127.0.0.1:{port}/#/experiments/0/runs?{WANTED}"
    assert (child.folder / "mlflow.db").exists()


def test_a_taken_port_is_a_users_error(spawn: Spawn) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        child = spawn(*imgcls("ui", "--no-open", "--port", str(port)))
        assert child.wait() == 2
    assert re.fullmatch(rf"imgcls: error: port {port} on 127\.0\.0\.1 is taken.*--port\.\n", child.err)
    assert child.out == ""


def test_a_store_that_is_a_server_needs_no_other(spawn: Spawn) -> None:
    child = spawn(*imgcls("ui", "--no-open"), MLFLOW_TRACKING_URI="http://tracking.example:5000")
    assert child.wait() == 0
    assert child.out == "http://tracking.example:5000/#/experiments/0/runs?workflowType=machine_learning\n"
    assert child.err == ""
