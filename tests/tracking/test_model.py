"""The logged model inside MLflow's own store; tests/e2e/test_model.py loads one where imgcls is not installed."""

import base64
import io
import json
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from imgcls.data.augment import Preprocessing
from imgcls.inference.classifier import Classifier
from imgcls.models.family import build
from imgcls.models.plaincnn import PlainCNNConfig
from imgcls.tracking.model import MODEL_NAME, REQUIREMENTS, log_model, requirements
from imgcls.tracking.store import Store, connect

# MLflow's own models of its tables, read when its SQL store is first opened.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")]

CLASSES = ("ant", "bee", "cat")
COLUMNS = ["label", "probability", "top_labels", "top_probabilities", "error"]


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    torch.manual_seed(0)
    config = PlainCNNConfig(num_blocks=1, channels=4)
    module = build(config, num_classes=3, in_channels=3, image_size=8).eval()
    return Classifier(module, config, Preprocessing(3, 8, (0.5,) * 3, (0.25,) * 3), CLASSES, 2)


@pytest.fixture(scope="module")
def saved(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    classifier.save(folder)
    return folder


def models(store: Store, run_id: str) -> list[Any]:
    experiment_id = store.client.get_run(run_id).info.experiment_id
    found = store.client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'")
    return list(found)


def new_run(store: Store, experiment: str) -> str:
    known = store.client.get_experiment_by_name(experiment)
    experiment_id = known.experiment_id if known else store.client.create_experiment(experiment)
    run_id: str = store.client.create_run(experiment_id).info.run_id
    store.client.set_terminated(run_id)
    return run_id


@pytest.fixture
def python_model(saved: Path) -> Any:
    from imgcls.tracking.pyfunc import ImageClassifier

    model = ImageClassifier()
    model.load_context(SimpleNamespace(artifacts={"classifier": str(saved)}))
    return model


def pictures(number: int = 4) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    generator = np.random.default_rng(1)
    return [generator.integers(0, 256, (9, 11, 3)).astype(np.uint8) for _ in range(number)]


def png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_the_model_goes_to_the_experiment_of_its_run_and_not_to_the_process_own(store: Store, saved: Path) -> None:
    run_id = new_run(store, "of the run")
    log_model(store.client, run_id, saved, top_k=2)
    [model] = models(store, run_id)
    assert (model.name, str(model.status)) == (MODEL_NAME, "READY")
    [output] = store.client.get_run(run_id).outputs.model_outputs
    assert output.model_id == model.model_id


def test_a_complete_model_is_not_logged_again(store: Store, saved: Path) -> None:
    run_id = new_run(store, "twice")
    log_model(store.client, run_id, saved, top_k=2)
    [first] = models(store, run_id)
    log_model(store.client, run_id, saved, top_k=2)
    assert [model.model_id for model in models(store, run_id)] == [first.model_id]


@pytest.mark.parametrize(
    "step", ["create_logged_model", "log_model_artifacts", "log_outputs", "log_batch", "finalize_logged_model"]
)
@pytest.mark.parametrize("done", [False, True], ids=["before it was done", "after it was done"])
def test_a_model_that_was_cut_off_at_any_step_is_completed(
    step: str, done: bool, store: Store, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = new_run(store, "cut off")
    store.client.log_metric(run_id, "best/val_acc", 0.5)
    real = getattr(store.client, step)

    def refuse(*args: Any, **kwargs: Any) -> None:
        if done:
            real(*args, **kwargs)
        raise ConnectionError("gone in the middle")

    with monkeypatch.context() as broken:
        broken.setattr(store.client, step, refuse)
        for _ in range(2):
            with suppress(ConnectionError):  # a step that was done is not tried again
                log_model(store.client, run_id, saved, top_k=2)
    log_model(store.client, run_id, saved, top_k=2)
    [model] = models(store, run_id)
    assert str(model.status) == "READY"
    outputs = store.client.get_run(run_id).outputs.model_outputs
    assert [output.model_id for output in outputs] == [model.model_id]
    assert [(metric.key, metric.value) for metric in model.metrics] == [("best/val_acc", 0.5)]
    assert len(store.client.get_metric_history(run_id, "best/val_acc")) == 1


def test_the_requirements_are_pinned_to_what_is_installed_without_a_local_version() -> None:
    lines = requirements()
    assert f"torch=={torch.__version__.split('+')[0]}" in lines
    assert all(line.count("==") == 1 and "+" not in line for line in lines)
    assert not any(line.startswith("imgcls") for line in lines)


def test_only_a_network_of_timm_requires_timm() -> None:
    assert [line.partition("==")[0] for line in requirements("timm:resnet18")] == [*REQUIREMENTS, "timm"]
    assert not any(line.startswith("timm") for line in requirements("resnet18"))


def test_bytes_text_and_pixels_give_the_same_table(python_model: Any, classifier: Classifier) -> None:
    images = pictures()
    probs = classifier.probabilities(images)
    encoded = [png(image) for image in images]
    kinds: list[list[Any]] = [
        encoded,
        [bytearray(data) for data in encoded],
        [base64.b64encode(data).decode() for data in encoded],
        list(images),
        [image.tolist() for image in images],
    ]
    for cells in kinds:
        table = python_model.predict(None, pd.DataFrame({"image": pd.Series(cells, dtype=object)}))
        assert list(table.columns) == COLUMNS
        assert table["error"].tolist() == [None] * 4
        assert table["probability"].dtype == float
        assert table["label"].tolist() == [CLASSES[k] for k in probs.argmax(1)]
        np.testing.assert_allclose(table["probability"], probs.max(1), atol=1e-6)
        np.testing.assert_allclose(np.stack(table["top_probabilities"]), -np.sort(-probs, axis=1)[:, :2], atol=1e-6)
        assert [row[0] for row in table["top_labels"]] == table["label"].tolist()
        assert {len(row) for row in table["top_labels"]} == {2}


def test_a_batch_of_arrays_is_a_batch_of_images(python_model: Any) -> None:
    images = pictures()
    one = python_model.predict(None, {"image": np.stack(images)})
    other = python_model.predict(None, pd.DataFrame({"image": pd.Series(images, dtype=object)}))
    pd.testing.assert_frame_equal(one, other)


def test_no_images_give_no_rows(python_model: Any) -> None:
    assert len(python_model.predict(None, pd.DataFrame({"image": pd.Series([], dtype=object)}))) == 0


def test_what_is_no_image_is_an_error_of_its_row(python_model: Any, classifier: Classifier) -> None:
    images = pictures()
    cells = [images[0], b"no image", png(images[1]), "not base64!", None]
    table = python_model.predict(None, pd.DataFrame({"image": pd.Series(cells, dtype=object)}))
    labels = [CLASSES[k] for k in classifier.probabilities(images[:2]).argmax(1)]
    assert table["label"].tolist() == [labels[0], None, labels[1], None, None]
    assert [value is None for value in table["probability"]] == [False, True, False, True, True]
    assert [bool(error) for error in table["error"]] == [False, True, False, True, True]
    assert [len(row) for row in table["top_labels"]] == [2, 0, 2, 0, 0]


@pytest.fixture(scope="module")
def loaded(folder: Path, saved: Path) -> Any:
    """The logged model as MLflow's server loads it."""
    import mlflow

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/runs.db")
        patch.chdir(folder)
        store = connect()
        run_id = new_run(store, "served")
        log_model(store.client, run_id, saved, top_k=2)
        [model] = models(store, run_id)
        return mlflow.pyfunc.load_model(model.artifact_location)


def ask(model: Any, request: Any) -> tuple[int, Any]:
    """What MLflow's scoring server answers, which must be strict JSON."""
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc.scoring_server import invocations

    def no_json(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    try:
        schema = model.metadata.get_input_schema()
        answer = invocations(json.dumps(request), "application/json", model, schema)  # type: ignore[no-untyped-call]
    except MlflowException as error:
        return error.get_http_status_code(), error.message  # type: ignore[no-untyped-call]
    return answer.status, json.loads(answer.response, parse_constant=no_json)


FORMS: dict[str, Any] = {
    "split": lambda cells: {"dataframe_split": {"columns": ["image"], "data": [[cell] for cell in cells]}},
    "records": lambda cells: {"dataframe_records": [{"image": cell} for cell in cells]},
    "inputs by column": lambda cells: {"inputs": {"image": cells}},
    "inputs of objects": lambda cells: {"inputs": [{"image": cell} for cell in cells]},
    "inputs": lambda cells: {"inputs": cells},
    "instances of objects": lambda cells: {"instances": [{"image": cell} for cell in cells]},
    "instances": lambda cells: {"instances": cells},
}


@pytest.mark.parametrize("form", FORMS)
def test_mlflow_s_server_answers_text_in_all_its_forms_and_spares_the_rows_beside_a_corrupt_one(
    loaded: Any, classifier: Classifier, form: str
) -> None:
    images = pictures(2)
    first, last = (base64.b64encode(png(image)).decode() for image in images)
    status, answer = ask(loaded, FORMS[form]([first, base64.b64encode(b"no image").decode(), "no base64!", last]))
    assert status == 200
    rows = answer["predictions"]
    labels = [CLASSES[k] for k in classifier.probabilities(images).argmax(1)]
    assert [list(row) for row in rows] == [COLUMNS] * 4
    assert [row["label"] for row in rows] == [labels[0], None, None, labels[1]]
    assert [row["probability"] is None for row in rows] == [False, True, True, False]
    assert [bool(row["error"]) for row in rows] == [False, True, True, False]


@pytest.mark.parametrize("form", FORMS)
def test_mlflow_s_server_answers_pixels_in_all_its_forms(loaded: Any, classifier: Classifier, form: str) -> None:
    images = pictures(3)
    status, answer = ask(loaded, FORMS[form]([image.tolist() for image in images]))
    assert status == 200
    probs = classifier.probabilities(images)
    np.testing.assert_allclose([row["probability"] for row in answer["predictions"]], probs.max(1), atol=1e-6)


def test_one_text_of_one_image_is_one_row_in_all_forms(loaded: Any) -> None:
    one = base64.b64encode(png(pictures(1)[0])).decode()
    for request in (*(form([one]) for form in FORMS.values()), {"inputs": {"image": one}}):
        status, answer = ask(loaded, request)
        assert (status, len(answer["predictions"])) == (200, 1), request


@pytest.mark.parametrize(
    ("request_body", "message"),
    [
        ({"dataframe_split": {"columns": ["photo"], "data": [["a"]]}}, r"missing inputs \['image'\]"),
        ({"dataframe_records": []}, r"missing inputs \['image'\]"),
        ({"inputs": 3}, "missing inputs"),
        ({"photos": ["a"]}, "exactly one of the input fields"),
        ([1], "Received a list"),
    ],
)
def test_mlflow_s_server_refuses_what_it_cannot_read(loaded: Any, request_body: Any, message: str) -> None:
    status, answer = ask(loaded, request_body)
    assert status == 400
    assert re.search(message, answer)


def test_the_requirements_name_every_package_that_the_code_in_the_model_imports() -> None:
    code = (
        "import ast, pathlib, sys; import imgcls.inference.classifier\n"
        "for name, module in list(sys.modules.items()):\n"
        "    if name.partition('.')[0] == 'imgcls':\n"
        "        for node in ast.parse(pathlib.Path(module.__file__).read_text()).body:\n"
        "            if isinstance(node, ast.Import): print(*[alias.name for alias in node.names], sep='\\n')\n"
        "            if isinstance(node, ast.ImportFrom): print(node.module)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True).stdout
    imported = {line.partition(".")[0] for line in found.split()} - {"imgcls"} - set(sys.stdlib_module_names)
    called = {"PIL": "pillow", "cv2": "opencv-python-headless", "pydantic_core": "pydantic"}
    assert {"torch", "PIL", "cv2"} <= imported
    assert {called.get(name, name) for name in imported} <= set(REQUIREMENTS)
