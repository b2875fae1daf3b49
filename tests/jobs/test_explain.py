"""The verbs `explain` and `export` in this process, and heat maps of an evaluation's mistakes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import imgcls
from imgcls.errors import UserError
from imgcls.jobs.console import Console
from imgcls.jobs.explain import run_explain
from imgcls.jobs.export import run_export
from imgcls.jobs.signals import Signals
from imgcls.jobs.surroundings import git_commit
from imgcls.tracking.store import connect
from tests.jobs.test_train import SMALL, use_store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def trained(folder_of_the_store: Path) -> Iterator[imgcls.TrainResult]:
    with pytest.MonkeyPatch.context() as patch:
        use_store(patch, folder_of_the_store, "trained")
        yield imgcls.train("digits", {**SMALL, "train.epochs": 1, "train.batch_size": 128}, quiet=True)


@pytest.fixture(autouse=True)
def _store(
    trained: imgcls.TrainResult,  # noqa: ARG001
    folder_of_the_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    use_store(monkeypatch, folder_of_the_store, request.node.name)


@pytest.fixture
def image(tmp_path: Path) -> str:
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "one.png")
    return str(tmp_path / "one.png")


def test_heat_maps_of_images_are_a_file_and_a_run(trained: imgcls.TrainResult, image: str, tmp_path: Path) -> None:
    with Signals() as signals:
        result = run_explain(
            [image, image], Console(quiet=True), signals, model=trained.run_id, target="3", output=tmp_path / "a/b.png"
        )
    assert [one.label for one in result.explanations] == ["3", "3"]
    with Image.open(tmp_path / "a/b.png") as drawn:
        assert drawn.size[0] > 100
    run = connect().client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["imgcls.verb"] == "explain"
    assert run.data.tags.get("imgcls.git_commit") == git_commit()
    assert [entry.path for entry in connect().client.list_artifacts(result.run_id, "plots")] == [
        "plots/explanations.png"
    ]


def test_what_cannot_be_explained_makes_no_run(trained: imgcls.TrainResult, image: str, tmp_path: Path) -> None:
    cases: list[tuple[list[str], dict[str, str], str]] = [
        ([str(tmp_path / "none.png")], {}, "cannot read the image .*none.png"),
        ([image], {"target": "cat"}, "cat"),
        ([image], {"stage": "layer9"}, "layer9"),
        ([image] * 33, {}, "found 33 images; expected 1 to 32"),
    ]
    for images, options, message in cases:
        with Signals() as signals, pytest.raises(UserError, match=message):
            run_explain(images, Console(quiet=True), signals, model=trained.run_id, **options)  # type: ignore[arg-type]
    assert connect().client.search_runs([connect().experiment_id]) == []


def test_an_evaluation_explains_its_mistakes(trained: imgcls.TrainResult) -> None:
    result = imgcls.evaluate(trained.run_id, split="val", explain=3, quiet=True)
    names = [entry.path for entry in connect().client.list_artifacts(result.run_id, "plots")]
    assert "plots/explained_mistakes_val.png" in names


def test_a_run_is_exported_to_a_file_that_needs_no_imgcls(trained: imgcls.TrainResult, tmp_path: Path) -> None:
    run_export(trained.run_id, tmp_path / "new/model.pt2", Console(quiet=True))
    program = torch.export.load(tmp_path / "new/model.pt2").module()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    expected = trained.classifier.probabilities(list(pixels))
    assert np.allclose(program(torch.from_numpy(pixels)).detach().numpy(), expected, atol=1e-4)


def test_an_ensemble_is_exported_as_one(trained: imgcls.TrainResult, tmp_path: Path) -> None:
    from imgcls.inference.ensemble import Ensemble

    Ensemble((trained.classifier, trained.classifier), (0.5, 0.5)).save(tmp_path / "both")
    run_export(str(tmp_path / "both"), tmp_path / "model.pt2", Console(quiet=True))
    assert (tmp_path / "model.pt2").stat().st_size > 0
    Ensemble((trained.classifier, trained.classifier), (0.5, 0.5), "vote").save(tmp_path / "votes")
    with pytest.raises(UserError, match="vote, which no export can"):
        run_export(str(tmp_path / "votes"), tmp_path / "vote.pt2", Console(quiet=True))
    with pytest.raises(UserError, match=r"^found 'model.pb' as the file to write; expected one that ends in"):
        run_export(trained.run_id, tmp_path / "model.pb", Console(quiet=True))
