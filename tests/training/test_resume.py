"""A training that is interrupted anywhere and goes on ends bit by bit like one that was not."""

import contextlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from imgcls.data.augment import AugmentConfig
from imgcls.errors import UserError
from imgcls.tables import Row
from imgcls.training import loop
from imgcls.training.checkpoint import Checkpoint, newest
from imgcls.training.keeper import BEST, LAST, REWIND, newest_in, ranked
from imgcls.training.loop import Step
from imgcls.training.optim import OptimConfig
from tests.training.test_fit import frozen, loaders, network, rows, without_times

STEPS_PER_EPOCH, EPOCHS = 5, 3
Settings = dict[str, Any]

SETTINGS: dict[str, Callable[[], Settings]] = {
    "plain": lambda: {"model": network()},
    "sgd, mixed": lambda: {
        "model": network(),
        "optim": OptimConfig(optimizer="sgd", lr=0.05, nesterov=True),
        "augment": AugmentConfig(mixup=0.4, cutmix=1.0),
    },
    "thawing, patient": lambda: {
        "model": frozen(3),
        "optim": OptimConfig(lr=0.02, layer_decay=0.5),
        "unfreeze": {2: 2, 3: 0},
        "patience": 2,
    },
    "skipping": lambda: {"model": network(), "on_nan": "skip"},
    "rewinding": lambda: {"model": network(), "on_nan": "rewind"},
    "ema": lambda: {"model": network(), "averaging": "ema", "ema_decay": 0.9},
    "swa": lambda: {"model": network(), "averaging": "swa", "swa_start": 0.2},
}


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _file: None)


class Killed(BaseException):
    """Stands for kill -9: nothing of the training runs after it."""


def train(folder: Path, settings: Settings, *, kill_at: int | None = None, **more: Any) -> list[Row]:
    """The rows of a training in the folder, from what there is in it on, until its end or `kill_at`."""
    told: list[Step] = []

    def on_step(step: Step) -> None:
        told.append(step)
        if len(told) == kill_at:
            raise Killed

    found: list[Row] = []
    taken = newest_in(folder)
    resume = None if taken is None else taken[1]
    with contextlib.suppress(Killed):
        found.extend(rows(folder, on_step=on_step, resume=resume, **{**settings, **more}))
    return found


def same(one: object, other: object) -> bool:
    """Whether two checkpoints' parts are bit by bit the same."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    return one == other


def check_same(a: Path, b: Path) -> None:
    """The checkpoints of two folders are the same but for times."""
    assert sorted(path.name for path in a.iterdir()) == sorted(path.name for path in b.iterdir())
    for path in a.iterdir():
        one, other = Checkpoint.load(path), Checkpoint.load(b / path.name)
        assert without_times(one.rows) == without_times(other.rows), path.name
        for part in ("model", "trainer", "epoch", "batch", "totals", "rng", "guards", "plan"):
            assert same(getattr(one, part), getattr(other, part)), f"{part} of {path.name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_stopped_after_any_batch_it_goes_on_bit_by_bit(tmp_path: Path, name: str) -> None:
    make = SETTINGS[name]
    expected = without_times(train(tmp_path / "whole", make()))
    for at in range(EPOCHS * STEPS_PER_EPOCH + 1):
        folder = tmp_path / f"stopped{at}"
        told: list[Step] = []
        first = list(rows(folder, stop=lambda at=at, told=told: len(told) == at, on_step=told.append, **make()))  # type: ignore[misc]
        torch.manual_seed(99)  # whatever another process has drawn
        second = train(folder, make())
        assert without_times(first + second) == expected, at
        check_same(tmp_path / "whole", folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "thawing, patient"])
@pytest.mark.parametrize("minutes", [None, 1e-9], ids=["at epochs", "at every step"])
def test_killed_at_any_batch_it_goes_on_bit_by_bit(tmp_path: Path, name: str, minutes: float | None) -> None:
    make = SETTINGS[name]
    expected = without_times(train(tmp_path / "whole", make(), keep_best=2))
    for at in range(1, EPOCHS * STEPS_PER_EPOCH + 1):
        folder = tmp_path / f"killed{at}"
        train(folder, make(), kill_at=at, checkpoint_minutes=minutes, keep_best=2)
        batch = Checkpoint.load(folder / LAST).batch
        assert batch == ((at - 1) % STEPS_PER_EPOCH if minutes else 0)
        train(folder, make(), checkpoint_minutes=minutes, keep_best=2)
        assert without_times(Checkpoint.load(folder / LAST).rows) == expected
        check_same(tmp_path / "whole", folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rewinding", "ema", "swa"])
def test_killed_at_any_moment_of_writing_it_goes_on_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole = SETTINGS[name]
    train(tmp_path / "whole", whole(), keep_best=1)
    calls = 0

    def dying(real: Callable[..., Any], at: int) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise Killed
            return real(*args, **kwargs)

        return call

    at = 0
    while True:
        at, calls = at + 1, 0
        folder = tmp_path / f"killed{at}"
        with monkeypatch.context() as patch:
            for owner, name in ((Path, "replace"), (torch, "save"), (os, "link"), (os, "fsync")):
                patch.setattr(owner, name, dying(getattr(owner, name), at))
            train(folder, whole(), keep_best=1)
        if calls < at:
            break
        train(folder, whole(), keep_best=1)
        for path in folder.glob("*.tmp"):
            path.unlink()
        check_same(tmp_path / "whole", folder)
    assert at > 20


def test_killed_again_and_again_it_still_arrives(tmp_path: Path) -> None:
    make = SETTINGS["plain"]
    train(tmp_path / "whole", make())
    for _ in range(EPOCHS * STEPS_PER_EPOCH):
        train(tmp_path / "c", make(), kill_at=2, checkpoint_minutes=1e-9)
    assert train(tmp_path / "c", make()) == []
    check_same(tmp_path / "whole", tmp_path / "c")


@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 0), (1, 2)])
def test_another_number_of_workers_changes_nothing(tmp_path: Path, before: int, after: int) -> None:
    make = SETTINGS["sgd, mixed"]
    train(tmp_path / "whole", make())
    train(tmp_path / "c", make(), kill_at=8, checkpoint_minutes=1e-9, num_workers=before)
    assert Checkpoint.load(tmp_path / "c" / LAST).batch == 2
    train(tmp_path / "c", make(), num_workers=after)
    check_same(tmp_path / "whole", tmp_path / "c")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_epoch_begins_at_any_batch(num_workers: int) -> None:
    loader, _ = loaders(num_workers)
    whole = [(batch.seed, batch.images.clone()) for batch in loader.epoch(4)]
    for start in range(STEPS_PER_EPOCH + 1):
        part = [(batch.seed, batch.images.clone()) for batch in loader.epoch(4, start=start)]
        assert [seed for seed, _ in part] == [seed for seed, _ in whole[start:]]
        assert all(torch.equal(one, other) for (_, one), (_, other) in zip(part, whole[start:], strict=True))


def test_one_that_is_done_yields_nothing_more(tmp_path: Path) -> None:
    patient: Settings = {
        "optim": OptimConfig(lr=1e-30, weight_decay=0, schedule="constant"),
        "patience": 1,
        "epochs": 9,
    }
    train(tmp_path / "c", {"model": network(), **patient})
    done = Checkpoint.load(tmp_path / "c" / LAST)
    assert done.epoch < 9
    assert train(tmp_path / "c", {"model": network(), **patient}) == []


def test_a_checkpoint_of_another_network_or_optimiser_is_refused(tmp_path: Path) -> None:
    train(tmp_path / "c", SETTINGS["plain"]())
    with pytest.raises(UserError, match="does not fit the network or the optimiser"):
        train(tmp_path / "c", {"model": frozen(0)})
    with pytest.raises(UserError, match="does not fit the network or the optimiser"):
        train(tmp_path / "c", {"model": network(), "optim": OptimConfig(layer_decay=0.5)})


def test_the_best_epochs_keep_files_of_their_own(tmp_path: Path) -> None:
    optim = OptimConfig(lr=0.3, schedule="constant")
    found = train(tmp_path / "c", {"model": network(), "optim": optim}, epochs=7, keep_best=2)
    best = [int(row["epoch"]) for row in ranked(found, "val/acc")[:2]]
    names = {f"epoch-{epoch:04d}.pt" for epoch in best}
    assert {path.name for path in (tmp_path / "c").iterdir()} == {BEST, LAST, *names}
    for epoch in best:
        assert Checkpoint.load(tmp_path / "c" / f"epoch-{epoch:04d}.pt").epoch == epoch
    assert Checkpoint.load(tmp_path / "c" / BEST).epoch == best[0]


def test_the_newest_whole_checkpoint_is_taken(tmp_path: Path) -> None:
    train(tmp_path / "c", SETTINGS["plain"]())
    paths = [tmp_path / "c" / LAST, tmp_path / "c" / BEST, tmp_path / "missing.pt"]
    found = newest(paths)
    assert found is not None
    assert (found[0].name, found[1].epoch) == (LAST, EPOCHS)
    half = paths[0].read_bytes()[:1000]
    paths[0].unlink()  # it may be one file on the disk with the other
    paths[0].write_bytes(half)
    found = newest(paths)
    assert found is not None
    assert found[0].name == BEST
    assert newest(paths[2:]) is None


@pytest.mark.parametrize("name", ["ema", "swa"])
def test_no_training_goes_on_from_averaged_weights(tmp_path: Path, name: str) -> None:
    make = SETTINGS[name]
    train(tmp_path / "whole", make(), keep_best=1)
    train(tmp_path / "c", make(), kill_at=6, keep_best=1)
    folder = tmp_path / "c"
    for path in folder.iterdir():
        checkpoint = Checkpoint.load(path)
        assert checkpoint.averaged == (path.name != LAST)
        if checkpoint.averaged:
            with pytest.raises(UserError, match=r"after epoch 1 holds averaged weights .* last\.pt has them"):
                next(rows(tmp_path / "refused", resume=checkpoint, **make()))
    (folder / LAST).unlink()
    assert newest_in(folder) is None
    train(folder, make(), keep_best=1)
    check_same(tmp_path / "whole", folder)


def test_whichever_file_it_goes_on_from_last_is_there_again(tmp_path: Path) -> None:
    make = SETTINGS["rewinding"]
    for name in (REWIND, BEST):
        folder = tmp_path / name
        train(folder, make(), epochs=1)
        for other in {LAST, REWIND, BEST} - {name}:
            (folder / other).unlink()
        train(folder, make(), epochs=1)
        for other in (LAST, REWIND, BEST):
            assert Checkpoint.load(folder / other).place == (1, 0)
            assert same(Checkpoint.load(folder / other).model, Checkpoint.load(folder / name).model)


class Poisoned(nn.Module):
    """A network whose forward pass gives NaN at chosen training steps, counted from 1."""

    def __init__(self, calls: set[int]) -> None:
        super().__init__()
        self.inner = network()
        self._calls, self._seen = calls, 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self._seen += 1
            if self._seen in self._calls:
                inputs = inputs * math.nan
        found: torch.Tensor = self.inner(inputs)
        return found


def test_stop_keeps_the_checkpoint_of_before(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss became nan in epoch 2; .* Lower optim\.lr .* is of before"):
        train(tmp_path / "c", {"model": Poisoned({7})}, checkpoint_minutes=1e-9)
    last = Checkpoint.load(tmp_path / "c" / LAST)
    assert (last.epoch, last.batch) == (1, 1)
    assert all(tensor.isfinite().all() for tensor in last.model.values())


def test_a_weight_that_is_no_number_is_not_saved(tmp_path: Path) -> None:
    model = network()
    told: list[Step] = []

    def break_after_the_last_step(step: Step) -> None:
        told.append(step)
        if len(told) == 10:
            next(model.parameters()).data.view(-1)[0] = math.inf

    with pytest.raises(UserError, match="a weight became infinite or not a number in epoch 2"):
        list(rows(tmp_path / "c", model=model, on_step=break_after_the_last_step))
    assert Checkpoint.load(tmp_path / "c" / LAST).epoch == 1


def test_skip_leaves_the_step_out_and_counts_it(tmp_path: Path) -> None:
    notes: list[str] = []
    model = Poisoned({3, 4, 12})
    found = train(tmp_path / "c", {"model": model, "on_nan": "skip"}, on_note=notes.append)
    assert [row["train/skipped_steps"] for row in found] == [2, 0, 1]
    assert all(math.isfinite(value) for row in found for value in row.values())
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    last = Checkpoint.load(tmp_path / "c" / LAST)
    assert last.trainer["optimizer"]["state"][0]["step"] == 12
    assert last.trainer["step"] == 15
    assert [note.split(":")[0] for note in notes] == ["epoch 1, batch 3", "epoch 3, batch 2"]


def test_skip_gives_up_after_ten_in_a_row(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="10 steps in a row had no finite loss in epoch 3"):
        train(tmp_path / "c", {"model": Poisoned(set(range(4, 14))), "on_nan": "skip"})
    train(tmp_path / "d", {"model": Poisoned(set(range(4, 13))), "on_nan": "skip"})


def test_rewind_goes_back_to_the_beginning_of_the_epoch_with_half_the_rate(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", {"model": Poisoned(set())})
    notes: list[str] = []
    found = train(tmp_path / "c", {"model": Poisoned({8}), "on_nan": "rewind"}, on_note=notes.append)
    assert [row["epoch"] for row in found] == [1, 2, 3]
    assert [row["train/lr_factor"] for row in found] == [1, 0.5, 0.5]
    assert [row["lr"] for row in found[1:]] == [row["lr"] / 2 for row in plain[1:]]
    assert found[0]["train/loss"] == plain[0]["train/loss"]
    assert len(notes) == 1
    assert "loss became nan in epoch 2; back to the beginning of the epoch with 0.5" in notes[0]


def test_rewind_gives_up_after_five(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="in epoch 2, after 5 rewinds"):
        train(tmp_path / "c", {"model": Poisoned(set(range(7, 99))), "on_nan": "rewind"})
    last = Checkpoint.load(tmp_path / "c" / LAST)
    assert (last.epoch, last.guards["rewinds"], last.trainer["lr_factor"]) == (1, 5, 0.5**5)


def test_rewinds_are_the_same_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is made not a number at a step of the schedule, so that both trainings meet it."""

    def progress(*args: Any) -> Step:
        step = real(*args)
        bad = (step.epoch, step.batch) == (2, 3) and rate() == 1
        return Step(step.epoch, step.batch, step.num_batches, math.nan if bad else step.loss, step.acc, 1.0)

    def rate() -> float:
        factor: float = Checkpoint.load(folder / REWIND).trainer["lr_factor"]
        return factor

    real = loop._progress
    monkeypatch.setattr(loop, "_progress", progress)
    folder = tmp_path / "whole"
    train(folder, SETTINGS["rewinding"]())
    for at in (2, 7, 8, 9, 12):
        folder = tmp_path / f"killed{at}"
        train(folder, SETTINGS["rewinding"](), kill_at=at, checkpoint_minutes=1e-9)
        train(folder, SETTINGS["rewinding"](), checkpoint_minutes=1e-9)
        check_same(tmp_path / "whole", folder)
