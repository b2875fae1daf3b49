"""A training on all images: without validation its last weights are the best, nothing stops early, and it repeats."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from imgcls.tables import History, Row
from imgcls.training.checkpoint import Checkpoint
from imgcls.training.fit import TrainConfig, fit
from imgcls.training.keeper import BEST, LAST, best_row, ranked
from imgcls.training.loop import Step
from imgcls.training.monitors import followed
from imgcls.training.optim import OptimConfig
from imgcls.training.plan import Plan
from tests.training.test_fit import KEYS, STEPS, frozen, loaders, network, without_times

STEPS_PER_EPOCH = 5
WILD = OptimConfig(lr=1.0, schedule="constant")
"""With which the loss goes up and down."""


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _file: None)


def rows(folder: Path, *, optim: OptimConfig | None = None, model: Any = None, **more: Any) -> Iterator[Row]:
    folder.mkdir(exist_ok=True)
    names = {"stop", "on_step", "on_thaw", "resume", "num_epochs"}
    train = {name: value for name, value in more.items() if name not in names}
    return fit(
        network() if model is None else model,
        loaders()[0],
        None,
        config=TrainConfig(**{"epochs": 3, **train}),
        optim=optim or OptimConfig(lr=0.02),
        preprocessing=STEPS,
        plan=Plan("cpu", "fp32"),
        checkpoints=folder,
        **{name: value for name, value in more.items() if name in names},
    )


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_its_rows_have_no_figures_of_validation(tmp_path: Path) -> None:
    found = list(rows(tmp_path))
    assert [row["epoch"] for row in found] == [1, 2, 3]
    assert {frozenset(row) for row in found} == {frozenset(KEYS - {"val/loss", "val/acc", "val/f1"})}
    assert all(math.isfinite(value) for row in found for value in row.values())


def test_it_trains_as_one_with_validation_does(tmp_path: Path) -> None:
    (tmp_path / "validated").mkdir()
    train, val = loaders()
    validated = fit(
        network(), train, val, config=TrainConfig(epochs=3), optim=OptimConfig(lr=0.02), preprocessing=STEPS,
        plan=Plan("cpu", "fp32"), checkpoints=tmp_path / "validated",
    )  # fmt: skip
    expected = [{k: v for k, v in row.items() if not k.startswith("val/")} for row in validated]
    assert without_times(list(rows(tmp_path / "all"))) == without_times(expected)
    one, other = (Checkpoint.load(tmp_path / name / LAST).model for name in ("validated", "all"))
    assert same(one, other)


def test_its_last_weights_are_the_best_whatever_the_loss_was(tmp_path: Path) -> None:
    found = list(rows(tmp_path, optim=WILD, epochs=4, label_smoothing=0.2))
    assert found[-1]["train/loss"] > min(row["train/loss"] for row in found)
    best, last = Checkpoint.load(tmp_path / BEST), Checkpoint.load(tmp_path / LAST)
    assert best.epoch == last.epoch == 4
    assert same(best.model, last.model)
    assert best_row(History(found), "val/acc")["epoch"] == 4


@pytest.mark.parametrize("averaging", ["ema", "swa"])
def test_the_best_weights_are_the_averaged_ones(tmp_path: Path, averaging: str) -> None:
    early: dict[str, Any] = {"swa_start": 0.1} if averaging == "swa" else {}
    list(rows(tmp_path, averaging=averaging, **early))
    best, last = Checkpoint.load(tmp_path / BEST), Checkpoint.load(tmp_path / LAST)
    mean = last.trainer["averaging"]["mean"]
    assert mean
    assert not same(best.model, last.model)
    assert all(torch.equal(best.model[name], mean[name]) for name in mean)


def test_nothing_stops_early(tmp_path: Path) -> None:
    optim = OptimConfig(lr=1e-9, schedule="constant")
    assert len(list(rows(tmp_path, optim=optim, epochs=6, patience=1))) == 6


def test_the_best_that_are_kept_have_the_lowest_training_loss(tmp_path: Path) -> None:
    found = list(rows(tmp_path, optim=WILD, epochs=6, label_smoothing=0.2, keep_best=2))
    by_loss = sorted(found, key=lambda row: row["train/loss"])
    kept = {path.name for path in tmp_path.glob("epoch-*.pt")}
    assert kept == {f"epoch-{row['epoch']:04.0f}.pt" for row in by_loss[:2]}
    assert [row["epoch"] for row in ranked(found, "train/loss")] == [row["epoch"] for row in by_loss]


def test_the_plateau_schedule_follows_the_training_loss(tmp_path: Path) -> None:
    optim = OptimConfig(lr=1.0, schedule="plateau", plateau_patience=1, gamma=0.5, warmup_epochs=0)
    found = list(rows(tmp_path, optim=optim, epochs=6, label_smoothing=0.2))
    expected, best, lr = [], math.inf, 1.0
    for row in found:
        expected.append(lr)
        lr = lr if row["train/loss"] < best else lr / 2
        best = min(best, row["train/loss"])
    assert [row["lr"] for row in found] == pytest.approx(expected)
    assert expected[-1] < 1.0


def test_what_follows_validation_follows_the_training_loss_and_what_does_not_stays() -> None:
    assert followed("val/f1", validated=False) == "train/loss"
    assert followed("train/acc", validated=False) == "train/acc"
    assert followed("val/f1", validated=True) == "val/f1"


def test_it_ends_in_the_middle_of_its_schedule(tmp_path: Path) -> None:
    whole, part = (list(rows(tmp_path / str(n), epochs=6, num_epochs=n)) for n in (None, 2))
    assert len(whole) == 6
    assert without_times(part) == without_times(whole[:2])
    assert Checkpoint.load(tmp_path / "2" / BEST).epoch == 2


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "averaged": {"averaging": "swa", "swa_start": 0.1, "keep_best": 1},
    "plateau": {"optim": OptimConfig(lr=1.0, schedule="plateau", plateau_patience=1)},
    "thawing": {"unfreeze": {2: 1}},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_stopped_after_a_batch_it_goes_on_bit_by_bit(tmp_path: Path, name: str) -> None:
    def train(folder: Path, **more: Any) -> list[Row]:
        model = frozen(3) if name == "thawing" else network()
        return list(rows(folder, model=model, num_epochs=2, **SETTINGS[name], **more))

    expected = without_times(train(tmp_path / "whole"))
    for at in (0, 2, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 3):
        folder = tmp_path / f"stopped{at}"
        told: list[Step] = []
        first = train(folder, stop=lambda at=at, told=told: len(told) == at, on_step=told.append)
        torch.manual_seed(99)
        second = train(folder, resume=Checkpoint.load(folder / LAST))
        assert without_times(first + second) == expected, at
        for file in (BEST, LAST):
            assert same(Checkpoint.load(folder / file).model, Checkpoint.load(tmp_path / "whole" / file).model), file
