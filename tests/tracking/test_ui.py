import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from imgcls.errors import UserError
from imgcls.tracking.ui import COLUMNS, experiment_id, runs_link, save_view, server


class Answer(BaseHTTPRequestHandler):
    """Knows two experiments, as an MLflow server would; one of them may only be read."""

    tags: ClassVar[list[dict[str, str]]] = []

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        known = query.get("experiment_name") == ["animals & more"] or query.get("experiment_id") in (["12"], ["13"])
        self.answer(200 if known else 404, {"experiment": {"experiment_id": "12", "tags": self.tags}} if known else {})

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        mine = self.path == "/api/2.0/mlflow/experiments/set-experiment-tag" and given.pop("experiment_id") == "12"
        if mine:
            self.tags.append(given)
        self.answer(200 if mine else 403, {})

    def answer(self, code: int, body: dict[str, Any]) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

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
    assert runs_link("http://127.0.0.1:5000", "3", view=True) == f"{wanted}&viewStateShareKey=imgcls"


def test_the_runs_table_is_laid_out_once_and_then_left_to_the_user(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tags: list[dict[str, str]] = [{"key": "mlflow.note.content", "value": "cats"}]
    monkeypatch.setattr(Answer, "tags", tags)
    assert save_view(base, "12")
    assert tags[1]["key"] == "mlflow.sharedViewState.imgcls"
    view = json.loads(tags[1]["value"])
    assert (view["name"], view["createdAt"]) == ("imgcls", view["updatedAt"])
    assert json.loads(view["state"])["selectedColumns"] == list(COLUMNS)
    tags[1]["value"] = "the user's own"
    assert save_view(base, "12")
    assert tags[1:] == [{"key": "mlflow.sharedViewState.imgcls", "value": "the user's own"}]


def test_a_server_that_lets_nobody_lay_out_its_table_shows_it_as_it_is(base: str) -> None:
    assert not save_view(base, "13")
    assert not save_view(base, "14")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        assert not save_view(f"http://127.0.0.1:{nobody.getsockname()[1]}", "12")


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
