"""Kept features in a whole training: what the run says of them, who shares them, and what happens without room."""

import errno
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import imgcls
from imgcls.data import cache
from imgcls.errors import UserError
from imgcls.jobs.train import TrainResult
from imgcls.tracking.store import connect
from imgcls.training.features import Features

# MLflow's own models of its tables, read when its SQL store is first opened.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.slow,
]


@pytest.fixture
def photos(make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Overrides that train a frozen network on a small folder, in a store and a cache of its own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs.db")
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "cache"))
    return {
        "model.family": "plaincnn", "model.num_blocks": 2, "model.channels": 4, "model.freeze_depth": "all",
        "augment.image_size": 8, "augment.horizontal_flip": False, "augment.preset": "none",
        "data.root": str(make_folder()), "train.epochs": 3, "train.batch_size": 4,
    }  # fmt: skip


def figures(result: TrainResult) -> list[dict[str, float]]:
    return [
        {name: value for name, value in row.items() if name not in ("seconds", "images_per_s")}
        for row in result.history.rows
    ]


def tag(result: TrainResult) -> str | None:
    tags: dict[str, str] = connect().client.get_run(result.run_id).data.tags
    return tags.get("imgcls.features")


@pytest.mark.parametrize(
    ("fields", "views"),
    [
        ({}, "1 view"),
        ({"augment.preset": "light", "train.cache_features": 9}, "3 views"),
        ({"augment.preset": "light", "train.cache_features": 3, "model.freeze_depth": 1}, "3 views"),
        ({"train.unfreeze": {3: 1}}, "1 view"),
        ({"augment.preset": "light", "train.cache_features": 2, "train.unfreeze": {3: 0}}, "2 views"),
        ({"data.balance": "class_weights"}, "1 view"),
    ],
)
def test_a_training_with_features_gives_the_figures_of_one_without(
    photos: dict[str, Any], fields: dict[str, Any], views: str
) -> None:
    kept = imgcls.train(None, {**photos, **fields})
    plain = imgcls.train(None, {**photos, **fields, "train.cache_features": "off"}, quiet=True)
    assert figures(kept) == figures(plain)
    assert (kept.predictions.probs == plain.predictions.probs).all()
    found = tag(kept)
    assert found is not None
    assert found.startswith(f"{views} of block{fields.get('model.freeze_depth', 2)}, ")
    assert found.endswith(" KiB, computed")
    assert tag(plain) is None


def test_trials_with_the_same_backbone_share_them(photos: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    first = imgcls.train(None, {**photos, "augment.preset": "light", "train.cache_features": 1})
    other = {**photos, "augment.preset": "light", "optim.lr": 0.1, "train.epochs": 5, "train.batch_size": 7}
    second = imgcls.train(None, {**other, "train.cache_features": 1})
    third = imgcls.train(None, {**other, "train.cache_features": 2})
    assert [(tag(result) or "").rpartition(", ")[2] for result in (first, second, third)] == [
        "computed", "reused", "2 of 3 parts reused"
    ]  # fmt: skip
    assert "features of the frozen stages: 1 view of block2, " in capsys.readouterr().out
    assert len(cache.entries("features")) == 3


def test_oversampling_and_auto_go_together(photos: dict[str, Any]) -> None:
    kept = imgcls.train(None, {**photos, "data.balance": "oversample"}, quiet=True)
    plain = imgcls.train(None, {**photos, "data.balance": "oversample", "train.cache_features": "off"}, quiet=True)
    assert tag(kept)
    for row, expected in zip(figures(kept), figures(plain), strict=True):
        assert row == pytest.approx(expected, rel=1e-4)


def test_mixing_turns_auto_off_and_makes_a_number_an_error(photos: dict[str, Any]) -> None:
    assert tag(imgcls.train(None, {**photos, "augment.mixup": 0.2}, quiet=True)) is None
    with pytest.raises(UserError, match=r"^train\.cache_features is 1, but mixup and cutmix mix "):
        imgcls.train(None, {**photos, "augment.mixup": 0.2, "train.cache_features": 1}, quiet=True)


def test_a_full_disk_is_told_and_images_are_used(
    photos: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = imgcls.train(None, {**photos, "train.cache_features": "off"}, quiet=True)

    def full(_self: Features, _needed: int, _key: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Features, "_make_room", full)
    found = imgcls.train(None, photos)
    told = f"the frozen stages are computed anew in every epoch, which is slow: {cache.cache_dir()} cannot be written"
    assert f"{told} (No space left on device)\n" in capsys.readouterr().out
    assert figures(found) == figures(plain)
    assert tag(found) is None
    assert cache.entries("features") == []


def test_what_thaws_is_said_to_end_them(photos: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    imgcls.train(None, {**photos, "train.unfreeze": {3: 0}})
    out = capsys.readouterr().out
    assert "stages frozen: none; from here on all stages are computed in every epoch\n" in out


def test_a_signal_while_they_are_computed_ends_the_run_and_leaves_no_half(
    photos: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = Features._outputs

    def interrupted(self: Features, batch: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return compute(self, batch)

    monkeypatch.setattr(Features, "_outputs", interrupted)
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGTERM"):
        imgcls.train(None, photos, quiet=True)
    assert list((cache.cache_dir() / "features").glob("*/")) == []
    [run] = connect().client.search_runs([connect().experiment_id])
    assert run.info.status == "KILLED"
