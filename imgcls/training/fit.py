"""The training loop: yields one row an epoch and leaves the best and the last checkpoint in a folder."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

from imgcls.data.augment import Preprocessing
from imgcls.data.loading import Batches
from imgcls.models.family import StagedModel
from imgcls.models.freezing import Depth, thaw_schedule
from imgcls.models.timm import with_synced_norms
from imgcls.sections import Section
from imgcls.tables import Row
from imgcls.training.averaging import Averages, AveragingName
from imgcls.training.checkpoint import Checkpoint
from imgcls.training.keeper import Keeper
from imgcls.training.loop import Loop, Rules, Step
from imgcls.training.losses import Loss, LossName
from imgcls.training.microbatch import check_micro_batch
from imgcls.training.mixing import Mixing
from imgcls.training.monitors import Monitor, followed
from imgcls.training.optim import OptimConfig
from imgcls.training.optimizers import check_optimizer
from imgcls.training.plan import Device, Plan, PlanConfig, PlanField
from imgcls.training.processes import ALONE, Group
from imgcls.training.trainer import Trainer


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
    """The figure that decides which epoch is the best and when to stop early; ties go to the lower val/loss. Without
    validation images (`imgcls refit`) the last epoch is the best and nothing stops early."""
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
    checkpoint_minutes: Annotated[float, Field(gt=0)] | None = 10.0
    """Minutes after which an epoch that is still in work is saved, again and again, beside the checkpoint at every
    epoch's end; null saves only there."""
    keep_best: int = Field(0, ge=0, le=1000)
    """The best so many epochs keep a checkpoint of their own, checkpoints/epoch-0007.pt, beside best.pt and last.pt.
    Without validation images (`imgcls refit`) those with the lowest train/loss."""
    on_nan: Literal["stop", "skip", "rewind"] = "stop"
    """Where the loss, or a weight, becomes infinite or not a number. stop: the run fails, with the checkpoint of
    before. skip: a step whose loss or gradient is not finite is left out; 10 in a row fail. It reads every step's
    loss, which holds up a GPU. rewind: back to the beginning of the epoch with half the learning rate, for the rest of
    the training; 5 times at most. In fp16 losses are scaled, and a step whose gradient overflows is left out whatever
    this says, with a lower scale for the next: that is usual at the beginning and now and then.
    train/skipped_steps counts what was left out of an epoch, with skip and in fp16."""
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    """Processes on this machine that share each batch of `batch_size` images: on GPUs one for each, on a CPU with a
    share of its cores each. auto is the number of GPUs, and 1 on a CPU. Where torchrun or a scheduler started the job,
    as many as it started."""
    sync_batch_norm: bool = False
    """Batch normalisation over the images of all processes, on GPUs only, rather than of each by itself. Their parts of
    a batch then go through the network whole: `micro_batch` is auto, and a GPU that runs out of memory fails."""
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


def seed_all(seed: int) -> None:
    """Seed torch's global generator, which weights and dropout draw from; all else here has generators of its own."""
    torch.manual_seed(seed)


def check_training(config: TrainConfig, optim: OptimConfig, model: nn.Module) -> None:
    """See that optimiser and micro-batch suit the network, before a run is made.

    Raises:
        UserError: they do not, as `fit` would say.
    """
    check_optimizer(optim, model)
    check_micro_batch(micro_batch_of(config), model.train())


def micro_batch_of(config: TrainConfig) -> int | None:
    """Images that go through the network at a time, at most; None: a whole batch, until the memory does not hold it."""
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
    group: Group = ALONE,
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
        micro_batch=micro_batch_of(config),
        skips_nan=config.on_nan == "skip",
        group=group,
        on_note=on_note,
    )


def fit(
    model: nn.Module,
    train: Batches,
    val: Batches | None,
    *,
    config: TrainConfig,
    optim: OptimConfig,
    preprocessing: Preprocessing,
    plan: Plan,
    checkpoints: Path,
    class_weights: npt.NDArray[np.float64] | None = None,
    mixing: Mixing | None = None,
    group: Group = ALONE,
    stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[Step], None] = lambda _step: None,
    on_thaw: Callable[[int], None] = lambda _epoch: None,
    on_save: Callable[[], None] = lambda: None,
    on_note: Callable[[str], None] = lambda _text: None,
    resume: Checkpoint | None = None,
    about: Mapping[str, str] | None = None,
    num_epochs: int | None = None,
) -> Iterator[Row]:
    """Train the model in place, yielding a row (see `History`) after every epoch.

    At the beginning, after each epoch, and inside a long one, `last.pt` is written to `checkpoints`, and after the best
    epoch so far `best.pt`; see `Keeper`. When `stop()` turns true, the loop ends after the batch in work and writes
    `last.pt` with the part of the epoch that is done; no row is yielded for it.

    With `resume` the training goes on from that checkpoint, in a model, loaders and configuration made as for the
    training that it is of, and yields the rows that are left. On a CPU these, and the weights, are bit by bit those of
    a training that was never interrupted; `seconds` and `images_per_s` are not.
    Without validation images the rows have no `val/...`, the best weights are the last (averaged) ones, nothing stops
    early, and the plateau schedule and `keep_best` follow `train/loss` where they would follow `val/...`.

    Args:
        model: what is trained.
        train, val: its images; no val where all are trained on.
        config, optim: the recipe's sections.
        preprocessing: what makes the network's input of images.
        plan: where and how to compute.
        checkpoints: the folder for checkpoints.
        class_weights: (C,) weigh the training loss, and so `train/loss`; `val/loss` is that of the images as they are.
        mixing: mixes the training images of a batch with each other.
        group: the processes that train together. Each calls this with its part of the same batches and gets the same
            rows; the first one's files are written, and `stop` must answer alike in all (see `Ballot`).
        stop: whether to end after the batch in work.
        on_step: told what a progress bar shows, after every batch.
        on_thaw: told the epoch that begins with fewer stages frozen than the one before.
        on_save: called after `last.pt` was written with new steps in it.
        on_note: told, in a line, of steps that were left out, of rewinds, and of a memory that does not hold a batch.
        resume: go on from here.
        about: what the training is of; kept in every checkpoint.
        num_epochs: end after so many, in the middle of schedules over `config.epochs`; None goes through all of them.

    Raises:
        UserError: the loss became infinite or not a number, a checkpoint cannot be written, `resume` is of another
            network, or the model cannot thaw as `config.unfreeze` asks.
    """
    thaws = _thaws(model, config)
    model = with_synced_norms(model) if config.sync_batch_norm and group.size > 1 else model
    trainer = build_trainer(
        model, config, optim, preprocessing, plan, class_weights, mixing,
        num_steps=config.epochs * len(train), batch_size=min(config.batch_size, train.num_images) // group.size,
        group=group, on_note=on_note,
    )  # fmt: skip
    rules = _rules(config, optim, validated=val is not None, num_epochs=num_epochs or config.epochs)
    keeper = Keeper(
        checkpoints, monitor=rules.monitor, minutes=config.checkpoint_minutes, keep_best=config.keep_best,
        rewinds=config.on_nan == "rewind",
    )  # fmt: skip
    loop = Loop(trainer, train, val, rules, plan, keeper, thaws, dict(about or {}), group)
    loop.stop, loop.on_step, loop.on_thaw, loop.on_save, loop.on_note = stop, on_step, on_thaw, on_save, on_note
    if resume is not None:
        loop.restore(resume)
    if group.is_first:
        if resume is None:
            keeper.save(loop.checkpoint())  # from the first step on there is something to go on from
        else:
            keeper.take_up(loop.checkpoint(), averaged=trainer.averaged_weights())
    yield from loop.rows()


def _rules(config: TrainConfig, optim: OptimConfig, *, validated: bool, num_epochs: int) -> Rules:
    return Rules(
        epochs=min(num_epochs, config.epochs),
        patience=config.patience if validated else None,
        monitor=followed(config.monitor, validated=validated),
        on_nan=config.on_nan,
        lr=optim.lr,
    )


def _thaws(model: nn.Module, config: TrainConfig) -> dict[int, int]:
    """epoch -> how many stages are frozen from then on."""
    if not config.unfreeze:
        return {}
    assert isinstance(model, StagedModel)
    return thaw_schedule(config.unfreeze, model.stage_names, model.freeze_depth)
