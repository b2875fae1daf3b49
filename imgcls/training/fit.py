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
from imgcls.data.loading import Batch, Loader
from imgcls.errors import UserError
from imgcls.models.family import StagedModel
from imgcls.models.freezing import Depth, thaw_schedule
from imgcls.sections import Section
from imgcls.tables import History, Row
from imgcls.training.averaging import Averages, AveragingName
from imgcls.training.checkpoint import Checkpoint, generator_states, set_generator_states
from imgcls.training.keeper import REWIND, Keeper, best_row
from imgcls.training.losses import Loss, LossName
from imgcls.training.microbatch import check_micro_batch
from imgcls.training.mixing import Mixing
from imgcls.training.monitors import Monitor
from imgcls.training.optim import OptimConfig
from imgcls.training.optimizers import check_optimizer
from imgcls.training.plan import Device, Plan, PlanConfig, PlanField
from imgcls.training.trainer import Totals, Trainer

MOST_SKIPPED = 10
"""So many steps in a row without a finite loss end a training that skips them."""
MOST_REWINDS = 5
REWIND_FACTOR = 0.5


class TrainConfig(Section):
    """How long, where and from which seed a model is trained."""

    epochs: int = Field(30, ge=1, le=100_000)
    """Passes over the training images, at most."""
    batch_size: int = Field(64, ge=2, le=1_000_000)
    """Images a step; two at least, since batch normalisation needs them."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the weights, the order of the images and their augmentation."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    plan: PlanField = Field(default_factory=PlanConfig)
    """How to compute: auto, or {precision: fp32 | bf16 | fp16, layout: nchw | nhwc, compile: true | false, threads: N},
    or some of these; what is left out is auto. What is auto is measured for a few seconds, on copies of the network,
    where the training takes minutes; a shorter one takes fp32 in nhwc (on a GPU bf16 in nchw), not
    compiled. What is given is
    taken as it is."""
    micro_batch: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Images that go through the network at a time, at most; the gradients of the parts of a batch are summed, so that
    `batch_size` stays what a step learns from, but batch normalisation sees each part by itself. auto is the whole
    batch, for as long as the memory holds it: where a GPU runs out of memory, this halves, whatever it is."""
    loss: LossName = "cross_entropy"
    """cross_entropy, or focal (Lin et al. 2017, arXiv:1708.02002), in which images that the network is sure and right
    about count less. Validation is always measured in cross-entropy."""
    focal_gamma: float = Field(2.0, ge=0, le=10)
    """focal: the power of the probability missed; 0 is cross-entropy."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """The share of every label that is dealt out evenly to all classes (Szegedy et al. 2015, arXiv:1512.00567); 0.1 is
    common. Validation is measured without it."""
    averaging: AveragingName = "none"
    """ema: an exponential moving average of the weights (Polyak and Juditsky 1992), a step at a time; swa: the mean of
    the weights after each of the last epochs (Izmailov et al. 2018, arXiv:1803.05407), with the statistics of batch
    normalisation counted anew on up to 100 training batches. Validation, best.pt and the model have the average."""
    ema_decay: float = Field(0.999, gt=0, lt=1)
    """ema: what the average keeps of itself at a step; at step n at most (1 + n) / (10 + n), so that a short training
    has an average too."""
    swa_start: float = Field(0.75, ge=0, lt=1)
    """swa: the share of the training after which the weights are averaged."""
    monitor: Monitor = "val/acc"
    """The figure that decides which epoch is the best and when to stop early; ties go to the lower val/loss."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Epochs without a better `monitor` after which training stops; null trains all epochs."""
    unfreeze: dict[Annotated[int, Field(ge=2)], Depth] = Field(default_factory=dict)
    """epoch: depth. From the start of that epoch on only so many stages are frozen, counted as `model.freeze_depth` is,
    with which it begins: {5: 3, 10: 0}. What thaws joins the schedule where it is; what was trained before goes on as
    it was."""
    checkpoint_minutes: Annotated[float, Field(gt=0)] | None = 10.0
    """Minutes after which an epoch that is still in work is saved, again and again, beside the checkpoint at every
    epoch's end; null saves only there."""
    keep_best: int = Field(0, ge=0, le=1000)
    """The best so many epochs keep a checkpoint of their own, checkpoints/epoch-0007.pt, beside best.pt and last.pt."""
    on_nan: Literal["stop", "skip", "rewind"] = "stop"
    """Where the loss, or a weight, becomes infinite or not a number. stop: the run fails, with the checkpoint of
    before. skip: a step whose loss or gradient is not finite is left out; 10 in a row fail. It reads every step's
    loss, which holds up a GPU. rewind: back to the beginning of the epoch with half the learning rate, for the rest of
    the training; 5 times at most."""
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
    def _fields_fit(self) -> Self:
        for name, chooser, reader in (
            ("focal_gamma", "loss", "focal"), ("ema_decay", "averaging", "ema"), ("swa_start", "averaging", "swa")
        ):  # fmt: skip
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default and getattr(self, chooser) != reader:
                raise ValueError(
                    f"{name} is {value:g} with {chooser} {getattr(self, chooser)!r}, which does not read it. Set "
                    f"train.{name} to {default:g} or train.{chooser} to {reader}"
                )
        if self.micro_batch != "auto" and self.micro_batch > self.batch_size:
            raise ValueError(
                f"micro_batch is {self.micro_batch} and batch_size {self.batch_size}; expected at most a whole batch. "
                "Lower train.micro_batch, or set it to auto"
            )
        return self

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


def check_training(config: TrainConfig, optim: OptimConfig, model: nn.Module) -> None:
    """See that optimiser and micro-batch suit the network, before a run is made.

    Raises:
        UserError: they do not, as `fit` would say.
    """
    check_optimizer(optim, model)
    check_micro_batch(_micro_batch(config), model.train())


def _micro_batch(config: TrainConfig) -> int | None:
    return None if config.micro_batch == "auto" else config.micro_batch


def build_trainer(
    model: nn.Module,
    config: TrainConfig,
    optim: OptimConfig,
    preprocessing: Preprocessing,
    plan: Plan,
    class_weights: npt.NDArray[np.float64] | None,
    mixing: Mixing | None,
    *,
    num_steps: int,
    batch_size: int,
    on_note: Callable[[str], None] = lambda _text: None,
) -> Trainer:
    """The trainer that a recipe's sections ask for; see `Trainer`.

    Raises:
        UserError: the optimiser or the micro-batch does not suit the network.
    """
    return Trainer(
        model,
        optim,
        preprocessing,
        plan,
        num_steps=num_steps,
        batch_size=batch_size,
        class_weights=class_weights,
        mixing=mixing,
        loss=Loss(config.loss, config.focal_gamma, config.label_smoothing),
        averages=Averages(config.averaging, config.ema_decay, config.swa_start),
        micro_batch=_micro_batch(config),
        skips_nan=config.on_nan == "skip",
        on_note=on_note,
    )


def fit(
    model: nn.Module,
    train: Loader,
    val: Loader,
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
    on_save: Callable[[], None] = lambda: None,
    on_note: Callable[[str], None] = lambda _text: None,
    resume: Checkpoint | None = None,
    about: Mapping[str, str] | None = None,
) -> Iterator[Row]:
    """Train the model in place, yielding a row (see `History`) after every epoch.

    At the beginning, after each epoch, and inside a long one, `last.pt` is written to `checkpoints`, and after the best
    epoch so far `best.pt`; see `Keeper`. When `stop()` turns true, the loop ends after the batch in work and writes
    `last.pt` with the part of the epoch that is done; no row is yielded for it.

    With `resume` the training goes on from that checkpoint, in a model, loaders and configuration made as for the
    training that it is of, and yields the rows that are left. On a CPU these, and the weights, are bit by bit those of
    a training that was never interrupted; `seconds` and `images_per_s` are not.

    Args:
        model: what is trained.
        train, val: its images.
        config, optim: the recipe's sections.
        preprocessing: what makes the network's input of images.
        plan: where and how to compute.
        checkpoints: the folder for checkpoints.
        class_weights: (C,) weigh the training loss, and so `train/loss`; `val/loss` is that of the images as they are.
        mixing: mixes the training images of a batch with each other.
        stop: whether to end after the batch in work.
        on_step: told what a progress bar shows, after every batch.
        on_thaw: told the epoch that begins with fewer stages frozen than the one before.
        on_save: called after `last.pt` was written with new steps in it.
        on_note: told, in a line, of steps that were left out, of rewinds, and of a memory that does not hold a batch.
        resume: go on from here.
        about: what the training is of; kept in every checkpoint.

    Raises:
        UserError: the loss became infinite or not a number, a checkpoint cannot be written, `resume` is of another
            network, or the model cannot thaw as `config.unfreeze` asks.
    """
    thaws: dict[int, int] = {}
    if config.unfreeze:
        assert isinstance(model, StagedModel)
        thaws = thaw_schedule(config.unfreeze, model.stage_names, model.freeze_depth)
    trainer = build_trainer(
        model, config, optim, preprocessing, plan, class_weights, mixing,
        num_steps=config.epochs * len(train), batch_size=min(config.batch_size, train.num_images), on_note=on_note,
    )  # fmt: skip
    keeper = Keeper(
        checkpoints,
        monitor=config.monitor,
        minutes=config.checkpoint_minutes,
        keep_best=config.keep_best,
        rewinds=config.on_nan == "rewind",
    )
    loop = _Loop(trainer, train, val, config, optim, plan, keeper, thaws, dict(about or {}))
    loop.stop, loop.on_step, loop.on_thaw, loop.on_save, loop.on_note = stop, on_step, on_thaw, on_save, on_note
    if resume is None:
        keeper.save(loop.checkpoint())  # from the first step on there is something to go on from
    else:
        loop.restore(resume)
        keeper.tidy(resume.rows)
    yield from loop.rows()


class _Loop:
    """A training in work: where it is, and what it does next."""

    stop: Callable[[], bool]
    on_step: Callable[[Step], None]
    on_thaw: Callable[[int], None]
    on_save: Callable[[], None]
    on_note: Callable[[str], None]

    def __init__(
        self,
        trainer: Trainer,
        train: Loader,
        val: Loader,
        config: TrainConfig,
        optim: OptimConfig,
        plan: Plan,
        keeper: Keeper,
        thaws: Mapping[int, int],
        about: dict[str, str],
    ) -> None:
        self._trainer, self._train, self._val = trainer, train, val
        self._config, self._optim, self._plan = config, optim, plan
        self._keeper, self._thaws, self._about = keeper, thaws, about
        self._history = History()
        self._batch = 0
        self._totals = Totals(plan.device)
        self._seconds = 0.0
        self._skipped = self._in_a_row = self._rewinds = 0

    @property
    def _epoch(self) -> int:
        """The epoch in work, from 1."""
        return len(self._history.rows) + 1

    def checkpoint(self) -> Checkpoint:
        """The present state."""
        return Checkpoint(
            model=self._trainer.model.state_dict(),
            trainer=self._trainer.state_dict(),
            epoch=self._epoch - 1,
            batch=self._batch,
            rows=list(self._history.rows),
            totals=self._totals.state_dict() if self._batch else {},
            seconds=self._seconds,
            rng=generator_states(),
            guards={"skipped": self._skipped, "in_a_row": self._in_a_row, "rewinds": self._rewinds},
            plan=self._plan.as_dict(),
            about=self._about,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from that state."""
        self._trainer.restore(checkpoint)
        self._history = History(list(checkpoint.rows))
        self._begin_epoch()
        self._batch, self._seconds = checkpoint.batch, checkpoint.seconds
        if checkpoint.totals:
            self._totals.load_state_dict(checkpoint.totals)
        self._skipped, self._in_a_row = checkpoint.guards["skipped"], checkpoint.guards["in_a_row"]
        self._rewinds = checkpoint.guards["rewinds"]
        set_generator_states(checkpoint.rng)

    def rows(self) -> Iterator[Row]:
        """Train, yielding a row after every epoch."""
        while self._epoch <= self._config.epochs and not self._out_of_patience():
            try:
                row = self._train_epoch()
            except _DivergedError as diverged:
                self._rewind(str(diverged))
                continue
            if row is None:
                return
            yield row

    def _train_epoch(self) -> Row | None:
        """The rest of the epoch in work, or of it what is done when `stop` turns true."""
        epoch, trainer = self._epoch, self._trainer
        self._thaw()
        begin = time.perf_counter() - self._seconds
        for batch in self._train.epoch(epoch, start=self._batch):
            if self.stop():
                break
            self._step(batch, begin)
            if self._keeper.is_due():
                self._check_weights()
                self._keeper.save(self.checkpoint())
                self.on_save()
        self._seconds = time.perf_counter() - begin
        measured = None
        if not self.stop():
            trainer.end_epoch(self._train.epoch(epoch), self.stop)
            measured = trainer.evaluate(self._val, self.stop)
        self._check_weights()
        if measured is None:
            self._keeper.save(self.checkpoint())
            return None
        row = self._row(measured)
        row["seconds"] = time.perf_counter() - begin
        self._history.rows.append(row)
        trainer.observe(row)
        self._begin_epoch()
        self._keeper.save_epoch(self.checkpoint(), averaged=trainer.averaged_weights())
        self.on_save()
        return row

    def _row(self, measured: Row) -> Row:
        """The row of the epoch in work, but for its seconds; see `History`."""
        loss, acc = self._totals.means()
        row: Row = {"epoch": self._epoch, "train/loss": loss, "train/acc": acc, **measured, "lr": self._trainer.lr}
        row |= self._totals.grad_norm()
        if isinstance(self._trainer.model, StagedModel):
            row["model/freeze_depth"] = self._trainer.model.freeze_depth
        if self._config.on_nan == "skip":
            row["train/skipped_steps"] = self._skipped
        if self._config.on_nan == "rewind":
            row["train/lr_factor"] = self._trainer.lr_factor
        row["images_per_s"] = self._totals.count / self._seconds
        return row

    def _begin_epoch(self) -> None:
        self._batch, self._totals, self._seconds, self._skipped = 0, Totals(self._plan.device), 0.0, 0

    def _step(self, batch: Batch, begin: float) -> None:
        """One batch, told to `on_step`."""
        num_batches = len(self._train)
        updated = self._trainer.step(batch, steps_per_epoch=num_batches, totals=self._totals)
        self._batch += 1
        self._seconds = time.perf_counter() - begin
        if not updated:
            self._skip()
        else:
            self._in_a_row = 0
        progress = _progress(self._epoch, self._batch, num_batches, self._totals, self._seconds, self._plan)
        if updated and progress.loss is not None and not math.isfinite(progress.loss):
            raise _DivergedError(f"the training loss became {progress.loss} in epoch {self._epoch}")
        self.on_step(progress)

    def _thaw(self) -> None:
        """Freeze fewer stages where the epoch in work asks for it and that is not done yet."""
        due = sum(epoch <= self._epoch for epoch in self._thaws)
        if due > self._trainer.num_thaws:
            self._trainer.thaw(self._thaws[self._epoch])
            self.on_thaw(self._epoch)

    def _out_of_patience(self) -> bool:
        rows = self._history.rows
        if self._config.patience is None or not rows:
            return False
        return len(rows) - best_row(self._history, self._config.monitor)["epoch"] >= self._config.patience

    def _check_weights(self) -> None:
        """Weights that are no numbers must not replace a checkpoint of good ones."""
        if not self._trainer.is_finite():
            raise _DivergedError(f"a weight became infinite or not a number in epoch {self._epoch}")

    def _skip(self) -> None:
        self._skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= MOST_SKIPPED:
            raise UserError(
                _advice(f"{MOST_SKIPPED} steps in a row had no finite loss in epoch {self._epoch}", self._optim)
            )
        if self._skipped == 1:
            self.on_note(
                f"epoch {self._epoch}, batch {self._batch}: loss or gradient is not finite; such steps are left out "
                "(train/skipped_steps counts them)"
            )

    def _rewind(self, found: str) -> None:
        """Go back to the beginning of the epoch with a lower learning rate, where the recipe says so."""
        if self._config.on_nan != "rewind":
            raise UserError(_advice(found, self._optim))
        if self._rewinds >= MOST_REWINDS:
            raise UserError(_advice(f"{found}, after {MOST_REWINDS} rewinds with lower learning rates", self._optim))
        count = self._rewinds + 1
        self.restore(Checkpoint.load(self._keeper.folder / REWIND))
        self._rewinds = count
        self._trainer.lr_factor *= REWIND_FACTOR
        self._keeper.save(self.checkpoint())
        self.on_note(
            f"{found}; back to the beginning of the epoch with {self._trainer.lr_factor:g} of the schedule's "
            f"learning rate (rewind {count} of at most {MOST_REWINDS})"
        )


class _DivergedError(Exception):
    """Loss or weights are not finite any more."""


def _progress(epoch: int, batch: int, num_batches: int, totals: Totals, seconds: float, plan: Plan) -> Step:
    readable = plan.device == "cpu" or batch % 20 == 0 or batch == num_batches
    loss, acc = totals.means() if readable else (None, None)
    return Step(epoch, batch, num_batches, loss, acc, totals.count / max(seconds, 1e-9))


def _advice(found: str, optim: OptimConfig) -> str:
    return (
        f"{found}; expected a finite number. Lower optim.lr (now {optim.lr:g}), lengthen optim.warmup_epochs, or set "
        "train.plan.precision to fp32. The last checkpoint is of before."
    )
