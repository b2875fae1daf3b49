"""One's own earlier model back from MLflow: by run, by version, by alias, by id; its code is never read."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from imgcls.data.augment import Preprocessing
from imgcls.errors import UserError
from imgcls.inference.classifier import Classifier
from imgcls.models.family import build
from imgcls.models.plaincnn import PlainCNNConfig
from imgcls.tracking.model import download_classifier, log_model
from imgcls.tracking.store import Store

# MLflow's own models of its tables, read when its SQL store is first opened.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture
def run_id(store: Store, folder: Path) -> Iterator[str]:
    """A finished run with a model, registered as version 1 of `animals` with the alias `champion`."""
    torch.manual_seed(0)
    config = PlainCNNConfig(num_blocks=1, channels=4)
    module = build(config, num_classes=2, in_channels=3, image_size=8).eval()
    Classifier(module, config, Preprocessing(3, 8, (0.5,) * 3, (0.25,) * 3), ("ant", "bee"), 1).save(
        folder / "classifier"
    )
    run_id: str = store.client.create_run("0").info.run_id
    log_model(store.client, run_id, folder / "classifier", top_k=1)
    store.client.set_terminated(run_id)
    store.client.create_registered_model("animals")
    store.client.create_model_version("animals", f"models:/{the_model(store, run_id).model_id}", run_id=run_id)
    store.client.set_registered_model_alias("animals", "champion", 1)
    yield run_id
    store.client.delete_registered_model("animals")


def the_model(store: Store, run_id: str) -> Any:
    [model] = store.client.search_logged_models(["0"], filter_string=f"source_run_id = '{run_id}'")
    return model


def test_every_way_to_name_a_model_gives_its_classifier_and_an_address_that_stays(
    store: Store, run_id: str, folder: Path
) -> None:
    model_id = the_model(store, run_id).model_id
    expected = {
        run_id: f"runs:/{run_id}/model",
        f"runs:/{run_id}": f"runs:/{run_id}/model",
        f"runs:/{run_id}/model": f"runs:/{run_id}/model",
        "models:/animals/1": "models:/animals/1",
        "models:/animals@champion": "models:/animals/1",
        f"models:/{model_id}": f"models:/{model_id}",
    }
    for source, pinned in expected.items():
        with download_classifier(source) as found:
            assert (found.pinned, found.model_id, found.run_id) == (pinned, model_id, run_id)
            assert {path.name for path in found.folder.iterdir()} == {"model.json", "model.safetensors"}
            for path in found.folder.iterdir():
                assert path.read_bytes() == (folder / "classifier" / path.name).read_bytes()
        assert not found.folder.exists()


@pytest.mark.usefixtures("run_id")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("0" * 32, r"there is no model 0{32} in sqlite.*Give a run id from `imgcls ui`"),
        ("models:/birds/1", "there is no model models:/birds/1 in sqlite.*birds"),
        ("models:/animals/2", "there is no model models:/animals/2 in sqlite"),
        ("models:/animals@nobody", "there is no model models:/animals@nobody in sqlite.*nobody"),
        (f"models:/m-{'0' * 32}", "there is no model models:/m-0{32} in sqlite"),
        ("models:/animals", "'models:/animals' names no model. Expected runs:/<run id>, models:/<name>/<version>"),
        ("runs:/123", "'runs:/123' names no model"),
    ],
)
def test_a_model_that_is_not_there_is_an_error_that_names_the_store(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message), download_classifier(source):
        pass


def test_a_run_without_such_a_model_is_an_error_that_lists_its_models(store: Store, run_id: str) -> None:
    with (
        pytest.raises(UserError, match=r"has no model 'other': its models are model\. "),
        download_classifier(f"runs:/{run_id}/other"),
    ):
        pass
    bare = store.client.create_run("0").info.run_id
    store.client.set_terminated(bare, "FAILED")
    message = rf"the run {bare} \(status FAILED\) has no model 'model': it has none\. .*checkpoints/best\.pt"
    with pytest.raises(UserError, match=message), download_classifier(bare):
        pass


def test_a_model_that_imgcls_did_not_log_is_an_error(store: Store, run_id: str) -> None:
    location = the_model(store, run_id).artifact_location.removeprefix("file://")
    shutil.rmtree(Path(location) / "artifacts")
    with pytest.raises(UserError, match="has no classifier of imgcls that can be read"), download_classifier(run_id):
        pass
