"""A trained model behind real servers: MLflow's own and `imgcls serve`."""

import base64
import http.client
import io
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from imgcls.tables import Predictions
from tests.e2e.conftest import PATIENCE, Child, Finished, Spawn, free_port, imgcls

pytestmark = pytest.mark.slow
COLUMNS = ["label", "probability", "top_labels", "top_probabilities", "error"]


@pytest.fixture
def predictions(digits: Finished, tmp_path: Path) -> Predictions:
    """What the run predicted on its validation images."""
    return Predictions.from_parquet(digits.runs.download(digits.run, "predictions/val.parquet", tmp_path / "val"))


def scans(predictions: Predictions, number: int) -> list[npt.NDArray[np.uint8]]:
    """The first validation images, (8, 8) each."""
    pixels = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    return [pixels[int(name.rpartition("/")[2])] for name in predictions.ids[:number]]


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def ask(port: int, path: str, body: Any = None, kind: str = "application/json") -> tuple[int, Any]:
    """The status and the JSON of the answer, which must be strict JSON."""

    def no_json(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        client.request("GET" if body is None else "POST", path, data, {"Content-Type": kind})
        answer = client.getresponse()
        return answer.status, json.loads(answer.read().strip() or b"null", parse_constant=no_json)
    finally:
        client.close()


def wait_until_it_answers(child: Child, port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and child.process.poll() is None:
        try:
            if ask(port, "/ping")[0] == 200:
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"the server does not answer:\n{child.out}\n{child.err}")


def check_labels(port: int, predictions: Predictions) -> None:
    """Base64 and pixels get the labels that the run gave, and a corrupt image in a batch spoils its own row only."""
    images = scans(predictions, 6)
    labels = [predictions.classes[k] for k in predictions.predicted[:6]]
    texts = [base64.b64encode(png(image)).decode() for image in images]
    forms: list[Callable[[list[Any]], Any]] = [
        lambda cells: {"dataframe_split": {"columns": ["image"], "data": [[cell] for cell in cells]}},
        lambda cells: {"inputs": {"image": cells}},
        lambda cells: {"instances": cells},
    ]
    for form in forms:
        for cells in (texts, [image.tolist() for image in images]):
            status, answer = ask(port, "/invocations", form(cells))
            assert status == 200, answer
            rows = answer["predictions"]
            assert [list(row) for row in rows] == [COLUMNS] * 6
            assert [row["label"] for row in rows] == labels
            probabilities = [row["probability"] for row in rows]
            np.testing.assert_allclose(probabilities, predictions.probs[:6].max(1), atol=1e-5)
        corrupt = base64.b64encode(png(images[1])[:60]).decode()
        status, answer = ask(port, "/invocations", form([texts[0], corrupt, "no base64!", texts[3]]))
        assert status == 200, answer
        rows = answer["predictions"]
        assert [row["label"] for row in rows] == [labels[0], None, None, labels[3]]
        assert [row["probability"] is None for row in rows] == [False, True, True, False]
        assert "cannot be decoded" in rows[1]["error"]
        assert "base64" in rows[2]["error"]
    refused: list[Any] = [b"{", {"dataframe_split": {"columns": ["photo"], "data": [["x"]]}}, {"dataframe_records": []}]
    for wrong in refused:
        status, answer = ask(port, "/invocations", wrong)
        assert status == 400, answer


def test_mlflow_s_own_server_answers_by_alias(digits: Finished, predictions: Predictions, spawn: Spawn) -> None:
    [model] = digits.runs.models(digits.run)
    client = digits.runs.client
    client.create_registered_model("served")
    client.create_model_version("served", model.artifact_location, digits.run.info.run_id, model_id=model.model_id)
    client.set_registered_model_alias("served", "champion", "1")
    port = free_port()
    words = ("-m", "models:/served@champion", "--env-manager", "local", "--port", str(port))
    child = spawn(sys.executable, "-m", "mlflow", "models", "serve", *words, MLFLOW_TRACKING_URI=digits.runs.uri)
    wait_until_it_answers(child, port)
    check_labels(port, predictions)


def test_imgcls_serve_answers_the_same_and_ends_with_its_signal(
    digits: Finished, predictions: Predictions, spawn: Spawn
) -> None:
    run_id = digits.run.info.run_id
    command = imgcls("serve", run_id, "--port", "0", "--max-images", "6", "--threads", "1")
    child = spawn(*command, MLFLOW_TRACKING_URI=digits.runs.uri)
    port = int(child.wait_for(r"serving at http://127\.0\.0\.1:(\d+)\n")[1])
    assert child.out.startswith(f"model runs:/{run_id}/model: ")
    assert f"curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:{port}/predict" in child.out
    check_labels(port, predictions)
    image = png(scans(predictions, 1)[0])
    status, row = ask(port, "/predict", image, "image/png")
    assert (status, row["label"]) == (200, predictions.classes[predictions.predicted[0]])
    status, answer = ask(port, "/invocations", {"inputs": ["x"] * 7})
    assert (status, "at most 6" in answer["message"]) == (413, True)
    status, health = ask(port, "/health")
    assert (status, health["status"], health["classes"]) == (200, "ok", 10)
    assert (health["model"], health["version"]) == (run_id, f"runs:/{run_id}/model")
    assert (health["images"], health["images_without_label"]) == (3 * 14 + 1, 3 * 2)
    taken = spawn(*imgcls("serve", run_id, "--port", str(port)), MLFLOW_TRACKING_URI=digits.runs.uri)
    assert taken.wait() == 2
    assert f"imgcls: error: cannot listen on 127.0.0.1:{port}" in taken.err
    child.process.send_signal(signal.SIGTERM)
    assert child.wait() == 128 + signal.SIGTERM
    assert "Traceback" not in child.err


def test_a_model_s_folder_is_served_without_a_store_until_ctrl_c(
    digits: Finished, predictions: Predictions, spawn: Spawn
) -> None:
    [model] = digits.runs.models(digits.run)
    folder = model.artifact_location.removeprefix("file://")
    child = spawn(*imgcls("serve", folder, "--port", "0", "--host", "0.0.0.0"))
    port = int(child.wait_for(r"http://0\.0\.0\.0:(\d+)\n")[1])
    assert "there is no authentication and no encryption" in child.out
    assert ask(port, "/predict", png(scans(predictions, 1)[0]), "image/png")[0] == 200
    child.process.send_signal(signal.SIGINT)
    assert child.wait() == 128 + signal.SIGINT
    assert list(child.folder.iterdir()) == []
