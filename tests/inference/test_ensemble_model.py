"""Classifiers put together: their mean or vote, on disk and back, and errors for what is no ensemble."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imgcls.data.augment import Preprocessing
from imgcls.data.decode import DecodeError, Pixels
from imgcls.errors import UserError
from imgcls.evaluation.ensemble import combine
from imgcls.inference.classifier import SPEC, WEIGHTS, Classifier
from imgcls.inference.ensemble import ENSEMBLE, Ensemble, families_of, load_model, members_of
from imgcls.models.plaincnn import PlainCNNConfig
from tests.inference.test_classifier import MIXED, classifier


@pytest.fixture
def members() -> tuple[Classifier, Classifier]:
    return classifier(), classifier(PlainCNNConfig(num_blocks=1, channels=8), size=24)


def test_the_mean_is_weighted(members: tuple[Classifier, Classifier]) -> None:
    found = Ensemble(members, (1.0, 3.0)).probabilities(MIXED)
    expected = (members[0].probabilities(MIXED) + 3 * members[1].probabilities(MIXED)) / 4
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == np.float32


def test_a_vote_names_the_class_that_most_members_name(members: tuple[Classifier, Classifier]) -> None:
    three = (members[0], members[1], members[1])
    found = Ensemble(three, (1.0, 1.0, 1.0), "vote").probabilities(MIXED)
    assert np.array_equal(found.argmax(1), members[1].probabilities(MIXED).argmax(1))
    expected = combine([member.probabilities(MIXED) for member in three], how="vote")
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_votes_of_different_weight_are_an_error(members: tuple[Classifier, Classifier]) -> None:
    with pytest.raises(UserError, match="different weights for votes"):
        Ensemble(members, (1.0, 3.0), "vote")


def test_one_member_is_itself(members: tuple[Classifier, Classifier]) -> None:
    np.testing.assert_allclose(
        Ensemble(members[:1], (2.0,)).probabilities(MIXED), members[0].probabilities(MIXED), atol=1e-7
    )


@pytest.mark.parametrize("how", ["mean", "vote"])
def test_an_ensemble_survives_the_disk(tmp_path: Path, members: tuple[Classifier, Classifier], how: Any) -> None:
    weights = (0.25, 0.75) if how == "mean" else (0.5, 0.5)
    before = Ensemble(members, weights, how)
    before.save(tmp_path)
    after = load_model(tmp_path)
    assert isinstance(after, Ensemble)
    assert (after.weights, after.combine, after.classes, after.top_k) == (weights, how, ("a", "b c", "日本"), 2)
    assert np.array_equal(after.probabilities(MIXED), before.probabilities(MIXED))
    assert families_of(tmp_path) == ["plaincnn", "plaincnn"]
    assert len(members_of(after)) == 2


def test_an_image_is_decoded_once_for_all_members_of_one_preprocessing(
    members: tuple[Classifier, Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    three = classifier(), members[1], classifier(PlainCNNConfig(num_blocks=1, channels=4))
    images: list[bytes | Pixels] = [*MIXED, b"torn"]
    each = [member.try_probabilities(images)[0] for member in three]
    decodings, pixels = list[int](), Preprocessing.pixels

    def counted(self: Preprocessing, image: bytes | Pixels) -> Pixels:
        decodings.append(self.image_size)
        return pixels(self, image)

    monkeypatch.setattr(Preprocessing, "pixels", counted)
    model = Ensemble(three, (1.0, 2.0, 3.0))
    found, errors = model.try_probabilities(images)
    assert sorted(decodings) == [16] * 5 + [24] * 5
    assert np.array_equal(found, combine(each, (1.0, 2.0, 3.0)).astype(np.float32), equal_nan=True)
    assert [error is None for error in errors] == [True] * 4 + [False]
    assert np.array_equal(model.probabilities(MIXED), found[:4])
    assert sorted(decodings) == [16] * 9 + [24] * 9
    with pytest.raises(DecodeError, match="cannot be decoded"):
        model.probabilities(images)


def test_a_classifier_is_loaded_as_what_it_is(tmp_path: Path) -> None:
    classifier().save(tmp_path)
    found = load_model(tmp_path)
    assert isinstance(found, Classifier)
    assert members_of(found) == (found,)
    assert families_of(tmp_path) == ["plaincnn"]


def test_the_files_hold_no_code(tmp_path: Path, members: tuple[Classifier, Classifier]) -> None:
    Ensemble(members, (1.0, 1.0)).save(tmp_path)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {ENSEMBLE, *(f"member-0{number}/{name}" for number in (1, 2) for name in (SPEC, WEIGHTS))}
    assert json.loads((tmp_path / ENSEMBLE).read_text()) == {
        "members": ["member-01", "member-02"], "weights": [1.0, 1.0], "combine": "mean",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("a", "b c", "d"), r"model 2 has other classes \(d, 日本\) than the first"),
        (("b c", "a", "日本"), "model 2 has another order than the first"),
    ],
)
def test_members_of_other_classes_are_an_error(
    members: tuple[Classifier, Classifier], classes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Ensemble((members[0], replace(members[1], classes=classes)), (1.0, 1.0))


@pytest.mark.parametrize("name", [ENSEMBLE, f"member-02/{SPEC}", f"member-01/{WEIGHTS}"])
def test_a_pickle_in_the_place_of_a_file_is_refused_and_not_run(
    tmp_path: Path, members: tuple[Classifier, Classifier], name: str
) -> None:
    Ensemble(members, (1.0, 1.0)).save(tmp_path)

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="holds no saved"):
        load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"members": []},
        {"members": ["member-01", "../elsewhere"]},
        {"members": ["member-01"]},
        {"weights": ["heavy", 1]},
        {"combine": "product"},
        {"combine": ["mean"]},
        {"members": None},
    ],
)
def test_a_description_that_does_not_describe_is_an_error(
    tmp_path: Path, members: tuple[Classifier, Classifier], change: dict[str, Any]
) -> None:
    Ensemble(members, (1.0, 1.0)).save(tmp_path)
    spec = json.loads((tmp_path / ENSEMBLE).read_text())
    (tmp_path / ENSEMBLE).write_text(json.dumps({**spec, **change}))
    with pytest.raises(UserError, match=f"holds no saved ensemble .{ENSEMBLE}"):
        load_model(tmp_path)


@pytest.mark.parametrize("weights", [[0, 0], [-1, 2], [float("nan"), 1], [float("inf"), 1]])
def test_weights_that_weigh_nothing_are_an_error(
    tmp_path: Path, members: tuple[Classifier, Classifier], weights: list[float]
) -> None:
    Ensemble(members, (1.0, 1.0)).save(tmp_path)
    spec = json.loads((tmp_path / ENSEMBLE).read_text())
    (tmp_path / ENSEMBLE).write_text(json.dumps({**spec, "weights": weights}))
    with pytest.raises(UserError, match=r"found the weights .* for 2 models"):
        load_model(tmp_path)
