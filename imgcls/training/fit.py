"""The training loop: yields one row an epoch and leaves the best and the last checkpoint in a folder."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

from imgcls.data.augment import Preprocessing
from imgcls.data.loading import Batches
from imgcls.errors import UserError
from imgcls.models.family import StagedModel
from imgcls.models.freezing import Depth, thaw_schedule
from imgcls.sections import Section
from imgcls.tables import History, Row
from imgcls.training.device import Plan
from imgcls.training.mixing import Mixing
from imgcls.training.optim import OptimConfig
from imgcls.training.trainer import Totals, Trainer

BEST, LAST = "best.pt", "last.pt"


class TrainConfig(Section):
    """How long, where and from which seed a model is trained."""

    epochs: int = Field(30, ge=1, le=100_000)
    """Passes over the training images, at most."""
    batch_size: int = Field(64, ge=2, le=1_000_000)
    """Images a step; two at least, since batch normalisation needs them."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the weights, the order of the images and their augmentation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward pass; auto is bf16 on a GPU (fp16 where it lacks it) and fp32 on a CPU."""
    monitor: Literal["val/acc", "val/f1", "val/loss"] = "val/acc"
    """The figure that decides which epoch is the best and when to stop early; ties go to the lower val/loss."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Epochs without a better `monitor` after which training stops; null trains all epochs."""
    unfreeze: dict[Annotated[int, Field(ge=2)], Depth] = Field(default_factory=dict)
    """epoch: depth. From the start of that epoch on only so many stages are frozen, counted as `model.freeze_depth` is,
    with which it begins: {5: 3, 10: 0}. What thaws joins the schedule where it is; what was trained before goes on as
    it was."""
    cache_features: Annotated[int, Field(ge=1, le=100_000)] | Literal["auto", "off"] = "auto"
    """What the frozen stages give of the images, computed once and kept for all epochs and all trainings with the same
    frozen weights, images and variation, in up to `data.store_budget` GiB of its own. A number: so many views of each
    training image, varied as in so many first epochs; later epochs go through them again in other orders. As many views
    as epochs change no figure; fewer vary the images less. off: computed anew in every epoch. auto: one view where
    images are not varied; where they are and only the head is trained two, or one for every ten epochs; if that is
    faster and fits. Else off, as with mixup and cutmix. What `unfreeze` thaws ends it."""
    output_dir: str = "outputs"
    """Folder for checkpoints and for what waits to be sent; emptied of a run once all is in MLflow."""

    @field_validator("unfreeze", mode="before")
    @classmethod
    def _epochs_as_json_writes_them(cls, value: Any) -> Any:
        """JSON, and a dotted name on the command line, have no keys but texts."""
        if not isinstance(value, Mapping):
            return value
        epochs = {k: int(k) if isinstance(k, str) and k.isdecimal() and k.isascii() else k for k in value}
        if len(set(epochs.values())) < len(epochs):
            raise ValueError("expected every epoch once")
        return {epochs[k]: depth for k, depth in value.items()}

    @model_validator(mode="after")
    def _thaws_while_training(self) -> Self:
        late = [epoch for epoch in self.unfreeze if epoch > self.epochs]
        if late:
            raise ValueError(
                f"unfreeze has epoch {min(late)}, but there are only {self.epochs}. Raise train.epochs, or take the "
                "epoch out of train.unfreeze; {} thaws nothing"
            )
        return self


@dataclass(frozen=True)
class Step:
    """What a progress bar shows after a batch.

    Attributes:
        epoch: from 1.
        batch: batches done in this epoch.
        num_batches: batches an epoch.
        loss, acc: running means of the epoch, or None where reading them would hold up a GPU.
        images_per_s: training images a second in this epoch so far.
    """

    epoch: int
    batch: int
    num_batches: int
    loss: float | None
    acc: float | None
    images_per_s: float


def seed_all(seed: int) -> None:
    """Seed torch's global generator, which weights and dropout draw from; all else here has generators of its own."""
    torch.manual_seed(seed)


def best_row(history: History, monitor: str) -> Row:
    """The row of the best epoch: highest `monitor` (lowest for a loss); ties go to the lower `val/loss`.

    A loss that is not a number is the worst.
    """
    sign = -1.0 if monitor.endswith("loss") else 1.0

    def rank(row: Row) -> tuple[float, float]:
        by_monitor, by_loss = sign * row[monitor], -row["val/loss"]
        return (
            -math.inf if math.isnan(by_monitor) else by_monitor,
            -math.inf if math.isnan(by_loss) else by_loss,
        )

    return max(history.rows, key=rank)


def fit(
    model: nn.Module,
    train: Batches,
    val: Batches,
    *,
    config: TrainConfig,
    optim: OptimConfig,
    preprocessing: Preprocessing,
    plan: Plan,
    checkpoints: Path,
    class_weights: npt.NDArray[np.float64] | None = None,
    mixing: Mixing | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[Step], None] = lambda _step: None,
    on_thaw: Callable[[int], None] = lambda _epoch: None,
) -> Iterator[Row]:
    """Train the model in place, yielding a row (see `History`) after every epoch.

    After each epoch `last.pt`, and where it is the best so far `best.pt`, are written to `checkpoints`. When
    `stop()` turns true, the loop ends after the batch in work and writes `last.pt` with the part of the epoch
    that is done; no row is yielded for it. `class_weights` (C,) weigh the training loss, and so `train/loss`;
    `val/loss` is that of the images as they are. `mixing` mixes the training images of a batch with each other.
    `on_thaw(epoch)` is called when an epoch begins with fewer stages frozen than the one before.

    Raises:
        UserError: the loss became infinite or not a number, a checkpoint cannot be written, or the model cannot thaw as
            `config.unfreeze` asks.
    """
    thaws: dict[int, int] = {}
    if config.unfreeze:
        assert isinstance(model, StagedModel)
        thaws = thaw_schedule(config.unfreeze, model.stage_names, model.freeze_depth)
    trainer = Trainer(
        model,
        optim,
        preprocessing,
        plan,
        num_steps=config.epochs * len(train),
        class_weights=class_weights,
        mixing=mixing,
    )
    history = History()
    since_best = 0
    for epoch in range(1, config.epochs + 1):
        if epoch in thaws:
            trainer.thaw(thaws[epoch])
            on_thaw(epoch)
        begin = time.perf_counter()
        done, totals = 0, Totals(plan.device)
        for batch in train.epoch(epoch):
            if stop():
                break
            trainer.step(batch, steps_per_epoch=len(train), totals=totals)
            done += 1
            seconds = time.perf_counter() - begin
            progress = _progress(epoch, done, len(train), totals, seconds, plan)
            if progress.loss is not None and not math.isfinite(progress.loss):
                raise UserError(_diverged(progress.loss, epoch, optim))
            on_step(progress)
        loss, acc = totals.means()
        seconds = time.perf_counter() - begin
        measured = None if stop() else trainer.evaluate(val, stop)
        if measured is None:
            trainer.checkpoint(epoch - 1, done, history).save(checkpoints / LAST)
            return
        row: Row = {"epoch": epoch, "train/loss": loss, "train/acc": acc, **measured, "lr": trainer.lr}
        if isinstance(model, StagedModel):
            row["model/freeze_depth"] = model.freeze_depth
        row["images_per_s"] = totals.count / seconds
        row["seconds"] = time.perf_counter() - begin
        history.rows.append(row)
        checkpoint = trainer.checkpoint(epoch, 0, history)
        checkpoint.save(checkpoints / LAST)
        is_best = best_row(history, config.monitor) is row
        if is_best:
            checkpoint.save(checkpoints / BEST)
        since_best = 0 if is_best else since_best + 1
        yield row
        if config.patience is not None and since_best >= config.patience:
            return


def _progress(epoch: int, batch: int, num_batches: int, totals: Totals, seconds: float, plan: Plan) -> Step:
    readable = plan.device == "cpu" or batch % 20 == 0 or batch == num_batches
    loss, acc = totals.means() if readable else (None, None)
    return Step(epoch, batch, num_batches, loss, acc, totals.count / max(seconds, 1e-9))


def _diverged(loss: float, epoch: int, optim: OptimConfig) -> str:
    return (
        f"the training loss became {loss} in epoch {epoch}; expected a finite number. Lower optim.lr (now "
        f"{optim.lr:g}), lengthen optim.warmup_epochs, or set train.precision to fp32."
    )
