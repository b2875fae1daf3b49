"""From a model's name to the model: folders here; runs, versions and aliases are in test_predict_runs.py."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imgcls.errors import UserError
from imgcls.inference.ensemble import Ensemble
from imgcls.inference.views import Views
from imgcls.jobs.console import Console
from imgcls.jobs.open_model import Opened, open_model, open_views
from imgcls.recipe import resolve
from tests.inference.test_classifier import MIXED, classifier

QUIET = Console(quiet=True)


@pytest.mark.parametrize("place", [".", "artifacts/classifier", "classifier"])
def test_a_folder_is_one_of_ours_or_of_a_downloaded_model(tmp_path: Path, place: str) -> None:
    classifier().save(tmp_path / "m" / place)
    opened = open_model(str(tmp_path / "m"), QUIET)
    assert np.array_equal(opened.model.probabilities(MIXED), classifier().probabilities(MIXED))
    assert opened.address == str(tmp_path / "m" / place)
    assert (opened.model_id, opened.run_id, opened.digest) == (None, None, None)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_file_of_it_stands_for_the_folder_also_a_relative_one(tmp_path: Path, name: str) -> None:
    classifier().save(tmp_path / "m")
    assert open_model(f"m/{name}", QUIET).address == str(tmp_path / "m")


def test_an_ensemble_is_told_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Ensemble((classifier(), classifier(size=24)), (1.0, 1.0)).save(tmp_path / "m")
    opened = open_model(str(tmp_path / "m"), Console())
    assert isinstance(opened.model, Ensemble)
    assert capsys.readouterr().out == f"model {tmp_path}/m: 2 models (plaincnn), 3 classes, 16 and 24 px\n"


@pytest.mark.parametrize("ending", [".pt", ".pth", ".pkl", ".ckpt"])
def test_a_pickle_is_refused_and_not_run(tmp_path: Path, ending: str) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / f"best{ending}").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match=r"is a file of weights .*may hold code.*Give the run that made it"):
        open_model(str(tmp_path / f"best{ending}"), QUIET)
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_a_model_and_one_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no saved classifier\. Expected a run id, runs:/<run id>"):
        open_model(str(tmp_path), QUIET)
    with pytest.raises(UserError, match=r"the model nowhere is not there\. Expected a run id"):
        open_model("nowhere", QUIET)


def test_a_name_that_the_system_refuses_is_an_error_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^the model m{300} cannot be looked for: File name too long\. Expected a run"):
        open_model("m" * 300, QUIET)

    def shut(_path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", shut)
    with pytest.raises(UserError, match=r"^the model others/model cannot be looked for: Permission denied\. Expected"):
        open_model("others/model", QUIET)


def test_a_folder_does_not_say_what_it_was_trained_on(tmp_path: Path) -> None:
    classifier().save(tmp_path / "m")
    with pytest.raises(UserError, match=r"is a folder, which does not say what data.*--data\.root"):
        _ = open_model(str(tmp_path / "m"), QUIET).recipe


def test_views_are_those_of_each_model_s_training() -> None:
    recipes = [resolve("digits", {"augment.preset": preset}).recipe for preset in ("light", "strong")]
    models = [Opened(classifier(), "runs:/x/model", "m-x", "x", recipe) for recipe in recipes]
    assert open_views(3, "train", "vote", models) == [
        Views(3, "train", "vote", augment=recipe.augment) for recipe in recipes
    ]
    assert open_views(3, "crops", "mean", models) == [Views(3)] * 2
    assert open_views(1, "train", "mean", models) == [Views(1, "train")] * 2


def test_the_views_of_a_folder_s_training_are_not_known(tmp_path: Path) -> None:
    classifier().save(tmp_path / "m")
    with pytest.raises(UserError, match=r"is a folder, which does not say how its training varied.*crops or flips"):
        open_views(3, "train", "mean", [open_model(str(tmp_path / "m"), QUIET)])
    assert open_views(2, "flips", "mean", [open_model(str(tmp_path / "m"), QUIET)]) == [Views(2, "flips")]
