import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from imgcls.errors import UserError
from imgcls.tracking.ui import experiment_id, runs_link, server


class Answer(BaseHTTPRequestHandler):
    """Knows one experiment, as an MLflow server would."""

    def do_GET(self) -> None:
        known = parse_qs(urlsplit(self.path).query).get("experiment_name") == ["animals & more"]
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(json.dumps({"experiment": {"experiment_id": "12"}} if known else {}).encode())

    def log_message(self, *_words: Any) -> None: ...


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answer) as answering:
        thread = threading.Thread(target=answering.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{answering.server_port}/"
        finally:
            answering.shutdown()
            thread.join()


def test_the_link_leads_to_the_runs_table_of_the_experiment() -> None:
    wanted = "http://127.0.0.1:5000/#/experiments/3/runs?workflowType=machine_learning"
    assert runs_link("http://127.0.0.1:5000", "3") == runs_link("http://127.0.0.1:5000/", "3") == wanted


def test_the_experiment_is_the_default_where_none_is_named(base: str) -> None:
    assert experiment_id(base) == "0"


def test_a_named_experiment_is_asked_from_the_server(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "animals & more")
    assert experiment_id(base) == "12"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "unknown")
    assert experiment_id(base) == "0"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "5")
    assert experiment_id(base) == "5"


def test_a_store_that_is_a_server_is_shown_itself(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", base)
    with server(5000) as (address, process):
        assert (address, process) == (base, None)


def test_a_taken_port_is_an_error_that_says_what_to_do(base: str) -> None:
    port = int(base.rstrip("/").rpartition(":")[2])
    with pytest.raises(UserError, match=f"port {port} on 127.0.0.1 is taken.*give another with --port"), server(port):
        pass
