"""The training loop: its rows, its checkpoints, when it stops and that it repeats."""

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from imgcls.data.augment import AugmentConfig, Preprocessing, evaluation_pipeline, training_pipeline
from imgcls.data.loading import Loader
from imgcls.errors import UserError
from imgcls.models.family import StagedModel, num_parameters
from imgcls.models.plaincnn import PlainCNNConfig, build_plaincnn
from imgcls.tables import History, Row
from imgcls.training.checkpoint import Checkpoint
from imgcls.training.fit import TrainConfig, fit, seed_all
from imgcls.training.keeper import BEST, LAST, best_row
from imgcls.training.loop import Step
from imgcls.training.mixing import build_mixing
from imgcls.training.monitors import Monitor
from imgcls.training.optim import OptimConfig
from imgcls.training.optimizers import add_thawed, build_optimizer
from imgcls.training.plan import Plan
from imgcls.training.trainer import Totals

COUNT, CLASSES = 26, 2
LABELS = np.arange(COUNT, dtype=np.int64) % CLASSES
NOISE = np.random.default_rng(0).normal(0, 40, (COUNT, 8, 8, 1))
IMAGES = list(np.clip(NOISE + 90 + 60 * LABELS[:, None, None, None], 0, 255).astype(np.uint8))
STEPS = Preprocessing(1, 8, (0.5,), (0.25,))
KEYS = {"epoch", "train/loss", "train/acc", "val/loss", "val/acc", "val/f1", "lr", "seconds", "images_per_s"}
KEYS |= {"model/freeze_depth"}


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _file: None)


def loaders(num_workers: int = 0) -> tuple[Loader, Loader]:
    varied = training_pipeline(AugmentConfig(preset="light"), size=8, channels=1)
    train = Loader(IMAGES[:18], LABELS[:18], varied, batch_size=4, shuffle=True, num_workers=num_workers)
    return train, Loader(IMAGES[18:], LABELS[18:], evaluation_pipeline(8), batch_size=5, num_workers=num_workers)


def network() -> nn.Module:
    seed_all(0)
    config = PlainCNNConfig(num_blocks=1, channels=4, dropout=0.3)
    return build_plaincnn(config, num_classes=CLASSES, in_channels=1, image_size=64)


def linear() -> nn.Module:
    seed_all(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))


def rows(
    folder: Path,
    *,
    model: nn.Module | None = None,
    optim: OptimConfig | None = None,
    plan: Plan | None = None,
    num_workers: int = 0,
    class_weights: np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None = None,
    augment: AugmentConfig | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[Step], None] = lambda _step: None,
    on_thaw: Callable[[int], None] = lambda _epoch: None,
    on_note: Callable[[str], None] = lambda _text: None,
    resume: Checkpoint | None = None,
    **train: Any,
) -> Iterator[Row]:
    folder.mkdir(exist_ok=True)
    train_loader, val_loader = loaders(num_workers)
    return fit(
        network() if model is None else model,
        train_loader,
        val_loader,
        config=TrainConfig(**{"epochs": 3, **train}),
        optim=optim or OptimConfig(lr=0.02),
        preprocessing=STEPS,
        plan=plan or Plan("cpu", "fp32"),
        class_weights=class_weights,
        mixing=None if augment is None else build_mixing(augment, num_classes=CLASSES),
        checkpoints=folder,
        stop=stop,
        on_step=on_step,
        on_thaw=on_thaw,
        on_note=on_note,
        resume=resume,
    )


def without_times(found: list[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name not in ("seconds", "images_per_s")} for row in found]


@torch.no_grad()
def validated(model: nn.Module) -> tuple[float, float]:
    """(loss, accuracy) on the validation images, computed apart from the loop."""
    model.eval()
    logits = model(STEPS.to_input(torch.from_numpy(np.stack(IMAGES[18:]))))
    labels = torch.from_numpy(LABELS[18:])
    return nn.functional.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()


@pytest.mark.parametrize("plan", [Plan("cpu", "fp32"), Plan("cpu", "bf16")], ids=str)
def test_every_epoch_yields_a_row_with_all_keys(tmp_path: Path, plan: Plan) -> None:
    found = list(rows(tmp_path / "c", plan=plan))
    assert [row["epoch"] for row in found] == [1, 2, 3]
    assert all(set(row) == KEYS for row in found)
    assert all(math.isfinite(value) for row in found for value in row.values())
    assert all(0 <= row[name] <= 1 for row in found for name in ("train/acc", "val/acc", "val/f1"))
    assert all(type(value) in (int, float) for row in found for value in row.values())


def test_what_fp16_leaves_out_is_in_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Totals, "num_left_out", 2)
    [row] = rows(tmp_path / "c", plan=Plan("cpu", "fp16"), epochs=1)
    assert row["train/skipped_steps"] == 2
    [row] = rows(tmp_path / "d", epochs=1)
    assert "train/skipped_steps" not in row


def test_it_learns(tmp_path: Path) -> None:
    found = list(rows(tmp_path / "c", epochs=12))
    assert found[-1]["train/loss"] < found[0]["train/loss"]
    assert found[-1]["val/acc"] == 1


def test_the_learning_rate_of_a_row_is_that_of_the_epochs_last_step(tmp_path: Path) -> None:
    optim = OptimConfig(lr=0.02, warmup_epochs=1, schedule="constant")
    found = list(rows(tmp_path / "c", optim=optim, epochs=2))
    assert [row["lr"] for row in found] == pytest.approx([0.02 * 5 / 6, 0.02])


def test_a_seeded_run_repeats_bit_by_bit(tmp_path: Path) -> None:
    first = without_times(list(rows(tmp_path / "a")))
    assert without_times(list(rows(tmp_path / "b"))) == first
    one, two = (Checkpoint.load(tmp_path / name / LAST).model for name in ("a", "b"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    first = without_times(list(rows(tmp_path / "a")))
    assert without_times(list(rows(tmp_path / "b", num_workers=1))) == first


def test_a_row_may_be_read_late_or_never(tmp_path: Path) -> None:
    stream = rows(tmp_path / "c")
    next(stream)
    assert Checkpoint.load(tmp_path / "c" / LAST).epoch == 1
    stream.close()  # type: ignore[attr-defined]
    assert Checkpoint.load(tmp_path / "c" / LAST).epoch == 1


def test_steps_are_told_after_every_batch(tmp_path: Path) -> None:
    told: list[Step] = []
    found = list(rows(tmp_path / "c", epochs=2, on_step=told.append))
    assert [(step.epoch, step.batch) for step in told] == [(epoch, batch) for epoch in (1, 2) for batch in range(1, 6)]
    assert {step.num_batches for step in told} == {5}
    assert told[4].loss == pytest.approx(found[0]["train/loss"])
    assert told[9].acc == found[1]["train/acc"]
    assert all(step.images_per_s > 0 for step in told)


def test_the_last_checkpoint_holds_the_whole_state(tmp_path: Path) -> None:
    model = network()
    found = list(rows(tmp_path / "c", model=model))
    last = Checkpoint.load(tmp_path / "c" / LAST)
    assert (last.epoch, last.batch, last.rows) == (3, 0, found)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in last.model.items())
    assert last.trainer["optimizer"]["state"][0]["step"] == 15


@pytest.mark.parametrize("monitor", get_args(Monitor))
def test_the_best_checkpoint_holds_the_weights_of_the_best_epoch(tmp_path: Path, monitor: str) -> None:
    optim = OptimConfig(lr=0.3, schedule="constant")
    found = list(rows(tmp_path / "c", epochs=6, optim=optim, monitor=monitor))
    expected = best_row(History(found), monitor)
    best = Checkpoint.load(tmp_path / "c" / BEST)
    assert best.epoch == expected["epoch"]
    assert best.rows == found[: best.epoch]
    model = network()
    model.load_state_dict(best.model)
    loss, acc = validated(model)
    assert acc == pytest.approx(expected["val/acc"])
    assert loss == pytest.approx(expected["val/loss"], rel=1e-4)


def history(*figures: tuple[float, float]) -> History:
    return History(
        [
            {"epoch": k, "val/acc": acc, "val/loss": loss, "train/loss": k, "train/acc": k}
            for k, (acc, loss) in enumerate(figures, 1)
        ]
    )


@pytest.mark.parametrize(
    ("monitor", "figures", "best"),
    [
        ("val/acc", [(0.5, 1.0), (0.9, 3.0), (0.7, 0.5)], 2),
        ("val/loss", [(0.5, 1.0), (0.9, 3.0), (0.7, 0.5)], 3),
        ("val/acc", [(0.9, 1.0), (0.9, 0.5), (0.9, 0.7)], 2),
        ("val/acc", [(0.9, 1.0), (0.9, 1.0)], 1),
        ("val/loss", [(0.1, math.nan), (0.9, 3.0)], 2),
        ("val/loss", [(0.1, 3.0), (0.9, math.nan)], 1),
        ("val/acc", [(0.9, math.nan), (0.9, 3.0)], 2),
        ("val/loss", [(0.1, math.inf), (0.9, 3.0)], 2),
        ("train/loss", [(0.1, 3.0), (0.9, 2.0)], 1),
        ("train/acc", [(0.1, 3.0), (0.9, 2.0)], 2),
    ],
)
def test_the_best_row_has_the_best_figure_and_then_the_lower_loss(
    monitor: str, figures: list[tuple[float, float]], best: int
) -> None:
    assert best_row(history(*figures), monitor)["epoch"] == best


def test_patience_stops_after_so_many_epochs_without_a_better_one(tmp_path: Path) -> None:
    still = OptimConfig(lr=1e-30, weight_decay=0, schedule="constant")
    found = list(rows(tmp_path / "c", model=linear(), optim=still, epochs=9, patience=2))
    assert len(found) == 3
    assert Checkpoint.load(tmp_path / "c" / BEST).epoch == 1
    assert Checkpoint.load(tmp_path / "c" / LAST).epoch == 3
    assert len(list(rows(tmp_path / "d", model=linear(), optim=still, epochs=5))) == 5


def test_a_stop_in_an_epoch_writes_the_part_that_is_done_and_yields_no_row(tmp_path: Path) -> None:
    told: list[Step] = []
    found = list(rows(tmp_path / "c", stop=lambda: len(told) == 7, on_step=told.append))
    assert [row["epoch"] for row in found] == [1]
    assert len(told) == 7
    last = Checkpoint.load(tmp_path / "c" / LAST)
    assert (last.epoch, last.batch, last.rows) == (1, 2, found)
    assert last.trainer["optimizer"]["state"][0]["step"] == 7
    assert Checkpoint.load(tmp_path / "c" / BEST).epoch == 1


def test_a_stop_before_the_first_batch_still_writes_a_checkpoint(tmp_path: Path) -> None:
    assert list(rows(tmp_path / "c", stop=lambda: True)) == []
    last = Checkpoint.load(tmp_path / "c" / LAST)
    assert (last.epoch, last.batch, last.rows) == (0, 0, [])
    assert not (tmp_path / "c" / BEST).exists()


def test_a_stop_during_validation_yields_no_row(tmp_path: Path) -> None:
    asked = iter([False] * 7 + [True] * 9)  # five batches, the check before validation, one batch of validation
    assert list(rows(tmp_path / "c", stop=lambda: next(asked))) == []
    last = Checkpoint.load(tmp_path / "c" / LAST)
    assert (last.epoch, last.batch) == (0, 5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_an_error_that_says_what_to_do(tmp_path: Path, value: float) -> None:
    model = linear()
    with torch.no_grad():
        next(model.parameters())[0, 0] = value
    with pytest.raises(UserError, match=r"loss became (nan|inf) in epoch 1; .* Lower optim\.lr \(now 0\.02\)"):
        list(rows(tmp_path / "c", model=model))
    assert not (tmp_path / "c" / BEST).exists()


def test_a_checkpoint_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    stream = rows(tmp_path / "c")
    (tmp_path / "c").rmdir()
    with pytest.raises(UserError, match="cannot write the checkpoint"):
        next(stream)


def test_seeding_repeats_torch_and_leaves_the_generators_of_others_alone() -> None:
    python = random.getstate()
    seed_all(3)
    first = torch.rand(()).item()
    assert torch.rand(()).item() != first
    seed_all(3)
    assert torch.rand(()).item() == first
    assert random.getstate() == python


@pytest.mark.parametrize(
    "fields", [{"epochs": 0}, {"batch_size": 0}, {"seed": -1}, {"device": "gpu"}, {"monitor": "acc"}, {"patience": 0}]
)
def test_settings_out_of_range_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TrainConfig.model_validate(fields)


def test_class_weights_weigh_the_training_loss_and_leave_that_of_validation(tmp_path: Path) -> None:
    plain = next(rows(tmp_path / "a", model=linear(), optim=OptimConfig(lr=1e-9)))
    weighted = next(
        rows(tmp_path / "b", model=linear(), optim=OptimConfig(lr=1e-9), class_weights=np.array([1.0, 1e-6]))
    )
    assert weighted["val/loss"] == pytest.approx(plain["val/loss"], rel=1e-5)
    assert abs(weighted["train/loss"] - plain["train/loss"]) > 0.01


MIXED = AugmentConfig(mixup=1.0, cutmix=1.0)


def test_mixed_images_change_the_training_and_leave_validation_whole(tmp_path: Path) -> None:
    still = OptimConfig(lr=1e-9)
    plain = next(rows(tmp_path / "a", model=linear(), optim=still))
    mixed = next(rows(tmp_path / "b", model=linear(), optim=still, augment=MIXED))
    assert mixed["val/loss"] == pytest.approx(plain["val/loss"], rel=1e-5)
    assert abs(mixed["train/loss"] - plain["train/loss"]) > 0.01


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_mixed_run_repeats_bit_by_bit_with_any_number_of_workers(tmp_path: Path, num_workers: int) -> None:
    weights = np.array([1.0, 3.0])
    first = without_times(list(rows(tmp_path / "a", augment=MIXED, class_weights=weights)))
    again = rows(tmp_path / "b", augment=MIXED, class_weights=weights, num_workers=num_workers)
    assert without_times(list(again)) == first


def test_mixed_images_are_learnt_from(tmp_path: Path) -> None:
    found = list(rows(tmp_path / "c", epochs=12, augment=AugmentConfig(mixup=0.2)))
    assert found[-1]["val/acc"] > 0.9


def test_the_hits_of_mixed_images_are_those_of_the_label_with_the_larger_share(tmp_path: Path) -> None:
    # What MixUp leaves of a linear classifier that knows the classes is right about the larger share.
    model = linear()
    list(rows(tmp_path / "a", model=model, epochs=30))
    row = next(rows(tmp_path / "b", model=model, optim=OptimConfig(lr=1e-9), augment=AugmentConfig(mixup=0.1)))
    assert row["train/acc"] > 0.8


def frozen(depth: int) -> StagedModel:
    seed_all(0)
    config = PlainCNNConfig(num_blocks=3, channels=4)
    model = build_plaincnn(config, num_classes=CLASSES, in_channels=1, image_size=64)
    model.freeze(depth)
    return model


def test_what_is_frozen_stays_and_thaws_at_the_start_of_its_epoch(tmp_path: Path) -> None:
    model = frozen(3)
    begin = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    told: list[tuple[int, int]] = []
    changed, found = [], []
    stream = rows(
        tmp_path / "c",
        model=model,
        epochs=4,
        unfreeze={4: 0, 3: 2},
        on_thaw=lambda epoch: told.append((epoch, num_parameters(model)[1])),
    )
    for row in stream:
        found.append(row)
        after = model.state_dict()
        changed.append({name.split(".")[1] for name in after if not torch.equal(after[name], begin[name])} - {"1"})
    assert [row["model/freeze_depth"] for row in found] == [3, 3, 2, 0]
    assert changed == [set(), set(), {"block3"}, {"block1", "block2", "block3"}]
    total, _ = num_parameters(model)
    head, block3 = (sum(p.numel() for p in model.stage(name).parameters()) for name in ("head", "block3"))
    assert told == [(3, head + block3), (4, total)]


def test_the_optimiser_holds_nothing_of_what_is_frozen_and_a_thaw_leaves_its_state(tmp_path: Path) -> None:
    model = frozen(3)
    stream = rows(tmp_path / "c", model=model, epochs=3, unfreeze={3: 1})
    next(stream), next(stream)
    before = Checkpoint.load(tmp_path / "c" / LAST).trainer["optimizer"]
    assert len(before["state"]) == len(list(model.head.parameters())) == 2
    next(stream)
    after = Checkpoint.load(tmp_path / "c" / LAST).trainer["optimizer"]
    assert [len(group["params"]) for group in after["param_groups"]] == [2, 12]
    assert [after["state"][k]["step"] for k in (0, 2, 13)] == [15, 5, 5]  # five steps an epoch
    assert len({group["lr"] for group in after["param_groups"]}) == 1


def test_the_schedule_goes_on_through_a_thaw(tmp_path: Path) -> None:
    plain = list(rows(tmp_path / "a", model=frozen(3), epochs=4))
    thawing = list(rows(tmp_path / "b", model=frozen(3), epochs=4, unfreeze={2: 1, 4: 0}))
    assert [row["lr"] for row in thawing] == [row["lr"] for row in plain]
    assert without_times(thawing)[0] == without_times(plain)[0]
    assert thawing[1]["train/loss"] != plain[1]["train/loss"]


@pytest.mark.parametrize("optim", [OptimConfig(), OptimConfig(layer_decay=0.5, decay_norms_and_biases=False)])
def test_a_saved_optimiser_loads_after_the_same_thaws(tmp_path: Path, optim: OptimConfig) -> None:
    list(rows(tmp_path / "c", model=frozen(3), optim=optim, epochs=2, unfreeze={2: 1}))
    saved = Checkpoint.load(tmp_path / "c" / LAST)
    model = frozen(3)
    model.load_state_dict(saved.model)
    optimizer = build_optimizer(optim, model)
    model.freeze(1)
    add_thawed(optimizer, optim, model)
    optimizer.load_state_dict(saved.trainer["optimizer"])
    again = optimizer.state_dict()
    assert again["param_groups"] == saved.trainer["optimizer"]["param_groups"]
    for k, state in saved.trainer["optimizer"]["state"].items():
        assert all(torch.equal(state[name], again["state"][k][name]) for name in state)


def test_a_thaw_of_what_the_network_does_not_have_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.unfreeze, epoch 2: found 9; expected 0"):
        next(rows(tmp_path / "c", model=frozen(3), unfreeze={2: 9}))


@pytest.mark.parametrize("unfreeze", [{5: 3, 10: 0}, {"5": 3, "10": 0}])
def test_epochs_may_be_texts_as_in_json(unfreeze: dict[Any, int]) -> None:
    config = TrainConfig.model_validate({"epochs": 10, "unfreeze": unfreeze})
    assert config.unfreeze == {5: 3, 10: 0}
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    "unfreeze", [{1: 0}, {4: 0}, {2: -1}, {2: True}, {2: None}, {"2": 1, 2: 0}, {"two": 0}, {2.0: 0}, [2], 3]
)
def test_thaws_that_cannot_be_are_refused(unfreeze: object) -> None:
    with pytest.raises(ValidationError, match="unfreeze"):
        TrainConfig.model_validate({"epochs": 3, "unfreeze": unfreeze})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"focal_gamma": 1.0}, r"focal_gamma is 1 with loss 'cross_entropy', .* to 2 or train\.loss to focal"),
        ({"ema_decay": 0.9, "averaging": "swa"}, r"to 0\.999 or train\.averaging to ema"),
        ({"swa_start": 0.5}, r"swa_start is 0\.5 with averaging 'none'"),
        ({"micro_batch": 65}, "micro_batch is 65 and batch_size 64; expected at most a whole batch"),
    ],
)
def test_settings_that_nothing_would_read_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate(fields)


@pytest.mark.parametrize("averaging", ["ema", "swa"])
def test_validation_and_the_best_checkpoint_are_of_the_average(tmp_path: Path, averaging: str) -> None:
    optim = OptimConfig(lr=0.05, schedule="constant")
    more: dict[str, Any] = {"ema_decay": 0.9} if averaging == "ema" else {"swa_start": 0.3}
    raw = network()
    found = list(
        rows(tmp_path / "c", model=raw, epochs=4, optim=optim, averaging=averaging, **more, monitor="val/loss")
    )
    best = best_row(History(found), "val/loss")
    saved = Checkpoint.load(tmp_path / "c" / BEST)
    model = network()
    model.load_state_dict(saved.model)
    assert validated(model)[0] == pytest.approx(best["val/loss"], rel=1e-4)
    last = Checkpoint.load(tmp_path / "c" / LAST).model
    assert all(torch.equal(tensor, raw.state_dict()[name]) for name, tensor in last.items())
    assert validated(raw)[0] != pytest.approx(found[-1]["val/loss"], rel=1e-4)


def test_everything_together_learns_through_a_thaw_and_repeats(tmp_path: Path) -> None:
    def everything(folder: str) -> list[Row]:
        optim = OptimConfig(
            optimizer="nadam",
            schedule="plateau",
            plateau_patience=1,
            plateau_monitor="train/loss",
            l1=1e-5,
            clip_norm=1.0,
            layer_decay=0.8,
        )
        return without_times(
            list(
                rows(
                    tmp_path / folder,
                    model=frozen(3),
                    optim=optim,
                    epochs=6,
                    unfreeze={3: 0},
                    averaging="swa",
                    swa_start=0.5,
                    loss="focal",
                    label_smoothing=0.1,
                    micro_batch=3,
                    augment=AugmentConfig(mixup=0.2),
                    class_weights=np.array([1.0, 2.0]),
                    monitor="train/loss",
                    patience=4,
                )
            )
        )

    found = everything("a")
    assert found == everything("b")
    assert found[-1]["train/loss"] < found[0]["train/loss"]
    assert all(row["train/grad_norm"] > 0 for row in found)


def test_a_memory_that_is_too_small_is_told_and_the_training_goes_on(tmp_path: Path) -> None:
    class Scarce(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if len(images) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            logits: torch.Tensor = self.inner(images)
            return logits

    told: list[str] = []
    plain = without_times(list(rows(tmp_path / "a", model=linear())))
    found = without_times(list(rows(tmp_path / "b", model=Scarce(), on_note=told.append)))
    assert [note.partition(",")[0] for note in told] == ["out of memory with 4 images at a time: from now on 2"]
    for one, two in zip(plain, found, strict=True):
        assert one == pytest.approx(two, rel=1e-4)
