"""A served classifier, asked over real sockets."""

import base64
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from imgcls.data.augment import Preprocessing
from imgcls.data.decode import DecodeError, Pixels
from imgcls.errors import UserError
from imgcls.inference.classifier import Classifier
from imgcls.inference.labelling import Model
from imgcls.models.family import build
from imgcls.models.plaincnn import PlainCNNConfig
from imgcls.tracking.requests import Refused, read_images
from imgcls.tracking.serving import About, Limits, Service, listener, serve

CLASSES = ("ant", "bee", "cat")
COLUMNS = ["label", "probability", "top_labels", "top_probabilities", "error"]
LIMITS = Limits(body_bytes=100_000, images=5, requests=2, body_seconds=0.5, batch_size=2)


@dataclass
class Served:
    """A server in a thread of this process."""

    port: int
    stop: threading.Event = field(default_factory=threading.Event)

    def ask(self, path: str, body: Any = None, kind: str = "application/json", **headers: str) -> tuple[int, Any]:
        """The status and the JSON of the answer, which must be strict JSON."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            sent = {"Content-Type": kind, **headers} if kind else headers
            client.request("GET" if body is None else "POST", path, data, sent)
            answer = client.getresponse()
            return answer.status, json.loads(answer.read().strip() or b"null", parse_constant=_no_json)
        finally:
            client.close()


def _no_json(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


@contextmanager
def serving(model: Model, limits: Limits = LIMITS) -> Iterator[Served]:
    """A server until the end of the block."""
    bound = listener("127.0.0.1", 0)
    served = Served(bound.getsockname()[1])
    ready = threading.Event()
    service = Service(model, About("models:/bugs@champion", "models:/bugs/3", "m-1"), limits)
    thread = threading.Thread(
        target=serve, args=(service, bound), kwargs={"stop": served.stop.is_set, "ready": ready.set}
    )
    thread.start()
    try:
        assert ready.wait(20)
        yield served
    finally:
        served.stop.set()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    torch.manual_seed(0)
    config = PlainCNNConfig(num_blocks=1, channels=4)
    module = build(config, num_classes=3, in_channels=3, image_size=8).eval()
    return Classifier(module, config, Preprocessing(3, 8, (0.5,) * 3, (0.25,) * 3), CLASSES, 2)


@pytest.fixture(scope="module")
def served(classifier: Classifier) -> Iterator[Served]:
    """One server for all tests that only ask."""
    with serving(classifier) as one:
        yield one


def picture(seed: int = 0, height: int = 9, width: int = 11) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def text(pixels: npt.NDArray[np.uint8]) -> str:
    return base64.b64encode(png(pixels)).decode()


IMAGES = [picture(0), picture(1, 8, 8), picture(2, 20, 9)]


@pytest.mark.parametrize("cell", [text, np.ndarray.tolist], ids=["base64", "pixels"])
@pytest.mark.parametrize(
    "form",
    [
        lambda cells: {"dataframe_split": {"columns": ["id", "image"], "data": [[k, c] for k, c in enumerate(cells)]}},
        lambda cells: {"dataframe_records": [{"image": cell} for cell in cells]},
        lambda cells: {"instances": [{"image": cell} for cell in cells]},
        lambda cells: {"instances": cells},
        lambda cells: {"inputs": {"image": cells}},
        lambda cells: {"inputs": cells},
    ],
    ids=["split", "records", "instances of objects", "instances", "inputs by column", "inputs"],
)
def test_every_form_of_a_request_gives_a_row_an_image(
    served: Served, classifier: Classifier, form: Any, cell: Any
) -> None:
    status, answer = served.ask("/invocations", form([cell(image) for image in IMAGES]))
    assert status == HTTPStatus.OK
    probs = classifier.probabilities(IMAGES)
    rows = answer["predictions"]
    assert [list(row) for row in rows] == [COLUMNS] * 3
    assert [row["label"] for row in rows] == [CLASSES[k] for k in probs.argmax(1)]
    np.testing.assert_allclose([row["top_probabilities"] for row in rows], -np.sort(-probs, axis=1)[:, :2], atol=1e-6)
    assert [row["error"] for row in rows] == [None] * 3


def test_what_is_no_image_gets_an_error_and_the_others_their_labels(served: Served, classifier: Classifier) -> None:
    cells = [text(IMAGES[0]), base64.b64encode(png(IMAGES[1])[:60]).decode(), "no base64!", None, text(IMAGES[2])]
    status, answer = served.ask("/invocations", {"inputs": {"image": cells}})
    rows = answer["predictions"]
    probs = classifier.probabilities([IMAGES[0], IMAGES[2]])
    assert status == HTTPStatus.OK
    assert [row["label"] for row in rows] == [CLASSES[probs[0].argmax()], None, None, None, CLASSES[probs[1].argmax()]]
    assert [row["probability"] is None for row in rows] == [False, True, True, True, False]
    assert rows[1]["error"] == "it cannot be decoded (OSError: image file is truncated)"
    assert rows[2]["error"].startswith("an image given as text must be base64")
    assert rows[3]["error"].endswith("found NoneType")
    assert rows[2]["top_labels"] == rows[2]["top_probabilities"] == []


def test_an_image_as_it_is_gets_its_row(served: Served, classifier: Classifier) -> None:
    for kind in ("image/png", "application/octet-stream", "application/x-www-form-urlencoded", ""):
        status, row = served.ask("/predict", png(IMAGES[0]), kind)
        assert status == HTTPStatus.OK, kind
        assert list(row) == COLUMNS
        assert row["label"] == CLASSES[classifier.probabilities(IMAGES[:1])[0].argmax()]


def bomb() -> bytes:
    """A PNG of 100 megapixels in 12 kB."""
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "PNG", optimize=True)
    return file.getvalue()


def test_an_image_of_100_megapixels_is_refused_before_it_is_decoded(served: Served) -> None:
    data = bomb()
    assert len(data) < LIMITS.body_bytes
    status, answer = served.ask("/predict", data, "image/png")
    assert (status, answer["error_code"]) == (HTTPStatus.BAD_REQUEST, "BAD_REQUEST")
    assert answer["message"].startswith("the image cannot be labelled: it is too large to decode safely")
    cells = [base64.b64encode(data).decode(), text(IMAGES[0])]
    status, answer = served.ask("/invocations", {"instances": cells})
    assert status == HTTPStatus.OK
    assert [bool(row["error"]) for row in answer["predictions"]] == [True, False]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b"\xff\xfe{", "the body is not JSON"),
        (b"[" * 50_000, "the body is not JSON (RecursionError"),
        (b"9" * 5_000, "the body is not JSON"),
        (b"3", "found a number or boolean"),
        (b"null", "found null"),
        ([1], "found a list"),
        ({}, "found 0 of dataframe_split"),
        ({"inputs": [], "instances": []}, "found 2 of dataframe_split"),
        ({"inputs": ["a"], "params": {"top_k": 1}}, "found the unknown 'params'"),
        ({"inputs": []}, "found no image under 'inputs'"),
        ({"inputs": {"image": []}}, "found no image under 'inputs'"),
        ({"inputs": "text"}, "found text under 'inputs'"),
        ({"inputs": {"photo": ["a"]}}, "found under 'inputs' no 'image' but [\"photo\"]"),
        ({"instances": [{"image": "a"}, {"photo": "a"}]}, "found under 'instances' no 'image' but [\"photo\"]"),
        ({"instances": [{"image": "a"}, 3]}, "found something else than a list of objects under 'instances'"),
        ({"dataframe_records": {"image": "a"}}, "found something else than a list of objects"),
        ({"dataframe_records": []}, "found no image under 'dataframe_records'"),
        ({"dataframe_split": {"columns": ["photo"], "data": [["a"]]}}, 'whose "columns" are ["photo"]'),
        ({"dataframe_split": {"data": [["a"]]}}, 'whose "columns" are null'),
        ({"dataframe_split": {"columns": ["image"], "data": []}}, "found no image"),
        ({"dataframe_split": {"columns": ["image"], "data": [["a", "b"]]}}, "does not have 1 cells"),
        ({"dataframe_split": {"columns": ["image"]}}, 'without a list "data"'),
        ({"dataframe_split": ["a"]}, 'without a list "data"'),
    ],
)
def test_a_request_that_cannot_be_read_is_told_what_was_expected(served: Served, body: Any, found: str) -> None:
    status, answer = served.ask("/invocations", body)
    assert (status, answer["error_code"]) == (HTTPStatus.BAD_REQUEST, "BAD_REQUEST")
    assert found in answer["message"]
    assert "expected images in a column 'image'" in answer["message"]


@pytest.mark.parametrize(
    ("path", "body", "kind", "status", "message"),
    [
        ("/invocations", png(IMAGES[0]), "image/png", 415, "takes application/json, found image/png"),
        ("/invocations", b"image\n", "text/csv", 415, "Send an image as it is to /predict"),
        ("/predict", b"--x", "multipart/form-data; boundary=x", 415, "--data-binary @photo.jpg"),
        ("/predict", b"{}", "application/json", 415, "JSON goes to /invocations"),
        ("/predict", b"", "image/png", 400, "the image cannot be labelled: the file is empty"),
        ("/predict", b"no image", "image/png", 400, "cannot identify image file)"),
        ("/predict", None, "", 405, "POST /predict"),
        ("/elsewhere", None, "", 404, "GET /health"),
        ("/invocations", {"inputs": ["a"] * 6}, "application/json", 413, "has 6 images; at most 5"),
        ("/invocations", b" " * 100_001, "application/json", 413, "larger than 0.0953674 MiB"),
        ("/predict", b" " * 399_999, "image/png", 413, "--max-request-mb"),
    ],
)
def test_what_is_not_taken_is_answered_with_a_sentence(
    served: Served, path: str, body: Any, kind: str, status: int, message: str
) -> None:
    found, answer = served.ask(path, body, kind)
    assert found == status
    assert message in answer["message"]
    assert "Traceback" not in answer["message"]


LARGE, ROOM = b" " * 20_000_000, Limits(body_bytes=2**25, requests=1, batch_size=2)
"""A body that no buffer of a socket holds, and a server that would take it."""


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/invocations", "image/png"), ("/predict", "application/json"), ("/predict", "multipart/form-data")],
)
def test_a_large_body_of_another_kind_is_answered_and_the_connection_not_broken(path: str, kind: str) -> None:
    with serving(Slow(), ROOM) as one:
        status, answer = one.ask(path, LARGE, kind)
    assert (status, answer["error_code"]) == (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED_MEDIA_TYPE")


def test_a_large_body_that_has_to_come_back_is_told_so_and_the_connection_not_broken() -> None:
    model = Slow()
    with serving(model, ROOM) as one:
        first = threading.Thread(target=lambda: one.ask("/predict", b"x", "image/png"))
        first.start()
        assert model.began.wait(20)
        client = http.client.HTTPConnection("127.0.0.1", one.port, timeout=20)
        client.request("POST", "/predict", LARGE, {"Content-Type": "image/png"})
        answer = client.getresponse()
        assert (answer.status, answer.headers["Retry-After"]) == (HTTPStatus.SERVICE_UNAVAILABLE, "1")
        assert b"1 requests are waiting already" in answer.read()
        client.close()
        model.go_on.set()
        first.join(20)


def test_a_body_that_has_to_come_back_is_not_waited_for_longer_than_others_and_not_asked_for() -> None:
    model = Slow()
    with serving(model, replace(ROOM, body_seconds=0.2)) as one:
        first = threading.Thread(target=lambda: one.ask("/predict", b"x", "image/png"))
        first.start()
        assert model.began.wait(20)
        for header in (b"", b"Expect: 100-continue\r\n"):
            with socket.create_connection(("127.0.0.1", one.port), timeout=20) as client:
                client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\n" + header + b"Content-Length: 9\r\n\r\n")
                assert client.recv(4096).startswith(b"HTTP/1.1 503 ")
        model.go_on.set()
        first.join(20)


def test_one_that_asks_before_it_sends_too_much_is_told_at_once(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as client:
        client.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\nExpect: 100-continue\r\n\r\n"
        )
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_body_without_a_length_is_limited_too(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            client.sendall(b"c350\r\n" + b" " * 50_000 + b"\r\n")
        client.sendall(b"0\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_never_comes_is_not_waited_for(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
        assert client.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_health_says_what_is_served_and_counts(classifier: Classifier) -> None:
    with serving(classifier) as one:
        assert one.ask("/ping") == (HTTPStatus.OK, None)
        one.ask("/invocations", {"inputs": [text(IMAGES[0]), text(IMAGES[1]), "?"]})
        status, health = one.ask("/health")
    assert status == HTTPStatus.OK
    assert health.pop("seconds") >= 0
    assert health == {
        "status": "ok",
        "model": "models:/bugs@champion",
        "version": "models:/bugs/3",
        "model_id": "m-1",
        "classes": 3,
        "images": 2,
        "images_without_label": 1,
        "requests": 0,
    }


class Slow:
    """A model that computes until it may go on, and notices when it is asked twice at once."""

    classes, top_k = CLASSES, 2

    def __init__(self) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        self.inside, self.most_inside = 0, 0

    def try_probabilities(
        self, images: Sequence[bytes | Pixels], *, batch_size: int = 64
    ) -> tuple[npt.NDArray[np.float32], list[DecodeError | None]]:
        """The same for all."""
        assert batch_size == 2
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        self.began.set()
        assert self.go_on.wait(20)
        self.inside -= 1
        return np.full((len(images), 3), 1 / 3, np.float32), [None] * len(images)


def test_one_request_computes_one_waits_and_the_next_is_told_to_come_back() -> None:
    model, answers = Slow(), []
    with serving(model) as one:
        threads = [
            threading.Thread(target=lambda: answers.append(one.ask("/predict", b"x", "image/png"))) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        assert model.began.wait(20)
        while one.ask("/health")[1]["requests"] < 2:
            time.sleep(0.01)
        status, answer = one.ask("/predict", b"x", "image/png")
        assert (status, answer["error_code"]) == (HTTPStatus.SERVICE_UNAVAILABLE, "SERVICE_UNAVAILABLE")
        assert "2 requests are waiting already" in answer["message"]
        model.go_on.set()
        for thread in threads:
            thread.join(20)
    assert [status for status, _ in answers] == [HTTPStatus.OK] * 2
    assert model.most_inside == 1


def test_a_request_that_is_being_computed_is_answered_before_the_end() -> None:
    model, answers = Slow(), []
    with serving(model) as one:
        thread = threading.Thread(target=lambda: answers.append(one.ask("/predict", b"x", "image/png")))
        thread.start()
        assert model.began.wait(20)
        one.stop.set()
        time.sleep(0.3)
        assert thread.is_alive()
        model.go_on.set()
        thread.join(20)
    assert [status for status, _ in answers] == [HTTPStatus.OK]


def test_an_error_of_ours_is_500_without_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Slow):
        def try_probabilities(self, *_args: Any, **_more: Any) -> Any:
            raise RuntimeError("secret")

    with serving(Broken()) as one:
        status, answer = one.ask("/predict", b"x", "image/png")
        assert one.ask("/health")[1]["requests"] == 0
    assert status == HTTPStatus.INTERNAL_SERVER_ERROR
    assert "secret" not in json.dumps(answer)
    assert "secret" in caplog.text


def test_a_network_that_gives_no_number_is_an_error_of_the_row() -> None:
    class Damaged(Slow):
        def try_probabilities(self, images: Any, **_more: Any) -> Any:
            return np.full((len(images), 3), np.nan, np.float32), [None] * len(images)

    with serving(Damaged()) as one:
        status, answer = one.ask("/invocations", {"inputs": [text(IMAGES[0])]})
    assert status == HTTPStatus.OK
    assert answer["predictions"][0]["error"].startswith("the network's output for it is not a finite number")


def test_a_taken_port_is_an_error_that_names_it() -> None:
    with listener("127.0.0.1", 0) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}: .* Give a free port with --port"):
            listener("127.0.0.1", port)


def test_a_port_that_is_taken_while_the_model_is_read_is_an_error_too(classifier: Classifier) -> None:
    with listener("127.0.0.1", 0) as first, listener("127.0.0.1", first.getsockname()[1]) as second:
        first.listen()
        service = Service(classifier, About("m", "m"), LIMITS)
        with pytest.raises(UserError, match="cannot listen on"):
            serve(service, second, stop=lambda: True, ready=lambda: None)
        service.close()


def test_an_address_that_is_not_this_machine_s_is_an_error() -> None:
    with pytest.raises(UserError, match=r"cannot listen on 192\.0\.2\.1:0"):
        listener("192.0.2.1", 0)
    with pytest.raises(UserError, match="--host no such host! is no address"):
        listener("no such host!", 0)
    for host in ("127..0.0.1", "a" * 64 + ".example"):
        with pytest.raises(UserError, match=f"--host {host} is no address: .* Expected one of this machine's"):
            listener(host, 0)


def test_images_are_read_in_their_order_whatever_they_are() -> None:
    cells = ["a", [[1]], None, {"b": 2}]
    assert read_images(json.dumps({"inputs": cells}).encode(), most=4) == cells
    with pytest.raises(Refused, match="has 4 images; at most 3"):
        read_images(json.dumps({"inputs": cells}).encode(), most=3)
