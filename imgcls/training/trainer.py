"""One step of a training after another: the state that a step changes, and evaluation."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from imgcls.data.augment import Preprocessing
from imgcls.data.loading import Batch, Batches
from imgcls.errors import UserError
from imgcls.evaluation.metrics import confusion_matrix, macro_f1
from imgcls.models.family import StagedModel
from imgcls.tables import Row
from imgcls.training.averaging import Averages, Averaging
from imgcls.training.checkpoint import Checkpoint
from imgcls.training.keeper import LAST
from imgcls.training.losses import Loss
from imgcls.training.microbatch import MicroBatch
from imgcls.training.mixing import Mixing
from imgcls.training.monitors import followed
from imgcls.training.optim import OptimConfig, Plateau, learning_rate, momentum
from imgcls.training.optimizers import (
    add_l1,
    add_thawed,
    build_optimizer,
    load_optimizer,
    set_learning_rate,
    set_momentum,
)
from imgcls.training.plan import Forward, Plan
from imgcls.training.processes import ALONE, Group


class Totals:
    """Sums of loss, hits and gradient norms kept on the device, so that a GPU is not held up to read them."""

    def __init__(self, device: str) -> None:
        self._loss = torch.zeros((), device=device, dtype=torch.float64 if device == "cpu" else torch.float32)
        self._hits = torch.zeros((), device=device)
        self._norms, self._num_norms = torch.zeros((), device=device), torch.zeros((), device=device)
        self._left_out = torch.zeros((), device=device)
        self.count = 0
        self._clips = False

    def add(self, loss: torch.Tensor, hits: torch.Tensor, count: int) -> None:
        """Count a batch: its mean loss, how many of its images the network is right about, and how many it has."""
        self._loss += loss.detach() * count
        self._hits += hits
        self.count += count

    def add_norm(self, norm: torch.Tensor) -> None:
        """Count the norm of a step's gradient; not one that is infinite or not a number, whose step a scaler of losses
        leaves out."""
        is_finite = norm.detach().isfinite()
        self._norms += torch.where(is_finite, norm.detach(), 0.0)
        self._num_norms += is_finite
        self._clips = True

    def add_left_out(self, overflows: torch.Tensor) -> None:
        """Count a step that a scaler of losses leaves out, where `overflows` is 1 and not 0."""
        self._left_out += overflows

    @property
    def num_left_out(self) -> int:
        """Steps that a scaler of losses has left out."""
        return int(self._left_out.item())

    def means(self) -> tuple[float, float]:
        """(loss, accuracy) over the images so far; NaN of none."""
        if not self.count:
            return math.nan, math.nan
        return self._loss.item() / self.count, self._hits.item() / self.count

    def grad_norm(self) -> Row:
        """`train/grad_norm`, where gradients are clipped."""
        if not self._clips:
            return {}
        count = self._num_norms.item()
        return {"train/grad_norm": self._norms.item() / count if count else math.nan}

    def over(self, group: Group) -> tuple[float, float, int]:
        """(loss, accuracy, number) of the images of all processes, where each has counted its own; NaN of none."""
        sums = zip(*group.gather((self._loss.item(), self._hits.item(), self.count)), strict=True)
        loss, hits, count = map(sum, sums)
        return (loss / count, hits / count, int(count)) if count else (math.nan, math.nan, 0)

    def state_dict(self) -> dict[str, Any]:
        """The sums, for a checkpoint inside an epoch."""
        sums = {"loss": self._loss, "hits": self._hits, "norms": self._norms, "num_norms": self._num_norms}
        return {**sums, "left_out": self._left_out, "count": self.count, "clips": self._clips}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the sums of `state_dict`."""
        self._loss.copy_(state["loss"])
        self._hits.copy_(state["hits"])
        self._norms.copy_(state["norms"])
        self._num_norms.copy_(torch.as_tensor(state["num_norms"]))
        self._left_out.copy_(torch.as_tensor(state.get("left_out", 0)))  # earlier checkpoints have none
        self.count, self._clips = int(state["count"]), bool(state.get("clips", state["num_norms"] > 0))


class Trainer:
    """The state that a step changes.

    Args:
        model: what is trained, in place.
        optim: the recipe's `optim` section.
        preprocessing: from images to the network's input.
        plan: where and how to compute.
        num_steps: steps of the whole training, which schedules run over.
        batch_size: images of a whole batch, for which a compiled network is made.
        class_weights: (C,) weight of each class in the loss; None weighs all alike.
        mixing: mixes the training images of a batch with each other.
        loss: what is minimised.
        averages: which average of the weights is evaluated in their place.
        micro_batch: images that go through the network at a time, at most; None is a whole batch. What a step gives is
            that of the whole batch but for batch norm, whose statistics are those of each part.
        skips_nan: leave out an update whose loss or gradient is not finite; see `step`.
        group: the processes that train together, each with its part of every batch.
        on_note: is told what is to be said about the training, such as that the memory does not hold a batch.

    Attributes:
        lr: the learning rate of the last step.
        lr_factor: the share of the schedule's learning rate that is used.

    Raises:
        UserError: the optimiser or the micro-batch does not suit the network.
    """

    def __init__(
        self,
        model: nn.Module,
        optim: OptimConfig,
        preprocessing: Preprocessing,
        plan: Plan,
        *,
        num_steps: int,
        batch_size: int,
        class_weights: npt.NDArray[np.float64] | None,
        mixing: Mixing | None,
        loss: Loss | None = None,
        averages: Averages | None = None,
        micro_batch: int | None = None,
        skips_nan: bool = False,
        group: Group = ALONE,
        on_note: Callable[[str], None] = lambda _text: None,
    ) -> None:
        plan.place(model)
        self.model = model.train()
        self._group = group
        group.broadcast_model(model)
        self._optim, self._preprocessing, self._plan = optim, preprocessing, plan
        self._num_steps, self._steps = num_steps, 0
        self._optimizer = build_optimizer(optim, model)
        self._freeze_depth = model.freeze_depth if isinstance(model, StagedModel) else 0
        self._thaws: list[int] = []
        self._scaler = torch.amp.GradScaler(plan.device, enabled=plan.precision == "fp16")
        self._weights = None
        if class_weights is not None:
            self._weights = torch.tensor(class_weights, dtype=torch.float32, device=plan.device)
        self._mixing, self._loss = mixing, loss or Loss()
        self._averages = averages or Averages()
        self._averaging = Averaging(self._averages, model)
        self._micro = MicroBatch(micro_batch, model, on_note)
        self._plateau = Plateau()
        self._undo = _Undo(model, plan.device)
        self._forward = Forward(model, plan, usual=partial(self._micro.usual, batch_size))
        self._val_loss = nn.CrossEntropyLoss()
        self._skips_nan = skips_nan
        self.lr, self.lr_factor = 0.0, 1.0

    def step(self, batch: Batch, *, steps_per_epoch: int, totals: Totals, lr: float | None = None) -> bool:
        """One update of the weights, at the schedule's learning rate or at `lr`; False where it was left out.

        What `totals` gets is of the whole batch, also where this process has but a part of it.
        It is left out where that is asked for and its loss or a gradient is not finite. It counts for the schedule
        then, but not for `totals`; the statistics of batch normalisation are put back.

        Raises:
            UserError: the memory does not hold the smallest part of a batch.
        """
        self._set_rates(steps_per_epoch, lr)
        self.model.train()
        if self._group.size > 1:  # dropout: other masks in each process, and the same when the step is done again
            torch.manual_seed(batch.seed)
        inputs, labels = self._inputs(batch)
        self._undo.remember()
        total = self._loss.total(labels, self._weights)
        divisor = total if self._group.size == 1 else batch.total
        loss, logits = self._micro.run(
            len(labels), partial(self._add_gradients, inputs, labels, divisor), undo=self._undo_gradients
        )
        hits = _num_hits(logits, labels if labels.ndim == 1 else labels.argmax(1))
        if self._group.size > 1:
            share = torch.as_tensor(total / divisor, device=loss.device)
            loss, hits = self._group.average_gradients(self.model.parameters(), loss / share, share, hits)
        self._steps += 1
        if self._skips_nan and not self._may_update(loss):
            self._undo_gradients()
            return False
        self._scaler.unscale_(self._optimizer)
        if self.scales:
            found = self._scaler._found_inf_per_device(self._optimizer).values()
            totals.add_left_out(torch.stack([overflows.to(self._plan.device) for overflows in found]).amax())
        add_l1(self._optimizer)
        if self._optim.clip_norm is not None:
            trained = [p for group in self._optimizer.param_groups for p in group["params"]]
            totals.add_norm(nn.utils.clip_grad_norm_(trained, self._optim.clip_norm))
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._averaging.after_step()
        totals.add(loss, hits, len(labels) if self._group.size == 1 else batch.total)
        return True

    @property
    def scales(self) -> bool:
        """Whether losses are scaled, as in fp16, where a step whose gradient overflows is left out."""
        return self._scaler.is_enabled()

    def _may_update(self, loss: torch.Tensor) -> bool:
        """Whether loss and gradients are finite; of scaled gradients the scaler finds out by itself."""
        found = [loss.detach()]
        if not self.scales:
            found += [p.grad for p in self.model.parameters() if p.grad is not None]
        return _all_finite(found)

    def is_finite(self) -> bool:
        """Whether all weights and statistics are finite numbers."""
        return _all_finite([t for t in self.model.state_dict().values() if t.is_floating_point()])

    def thaw(self, depth: int) -> None:
        """Train all but the first `depth` stages from now on."""
        assert isinstance(self.model, StagedModel)
        self.model.freeze(depth)
        self._forward.thawed()
        add_thawed(self._optimizer, self._optim, self.model)
        self._averaging.track()
        self._thaws.append(depth)

    @property
    def num_thaws(self) -> int:
        """How often `thaw` was called."""
        return len(self._thaws)

    def end_epoch(self, epoch: Iterable[Batch], stop: Callable[[], bool]) -> None:
        """Take the weights into an average that is made by epochs; asked again, it changes nothing.

        Args:
            epoch: the training's batches of the epoch, read where statistics of batch norm are to be counted anew.
            stop: when true, the counting ends early.
        """
        if self._averaging.after_epoch(self._steps, self._num_steps):
            devices = [torch.cuda.current_device()] if self._plan.device == "cuda" else []
            with torch.random.fork_rng(devices):  # dropout draws, as in training
                self._averaging.count_statistics(self._forwards(epoch, stop))

    def observe(self, row: Row) -> None:
        """Take the figures of an epoch that is done; the plateau schedule goes by them."""
        if self._optim.schedule == "plateau":
            monitor = followed(self._optim.plateau_monitor, validated="val/loss" in row)
            self._plateau.observe(self._optim.model_copy(update={"plateau_monitor": monitor}), row[monitor])

    @torch.no_grad()
    def evaluate(self, loader: Batches, stop: Callable[[], bool]) -> Row | None:
        """Loss, accuracy and macro F1 over a loader, of the averaged weights where there are any, or None where it was
        stopped. Where several processes share the batches, the figures are those of all images.

        Raises:
            UserError: the memory does not hold one image.
        """
        self.model.eval()
        totals = Totals(self._plan.device)
        predicted, true = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        num_classes = 0
        with self._averaging.applied():
            self._group.broadcast_model(self.model, buffers_only=True)
            for batch in loader.epoch(0):
                if stop():
                    return None
                if not len(batch.labels):
                    continue
                inputs, labels = self._to_device(batch)
                logits = self._micro.run(len(labels), partial(self._in_parts, inputs))
                totals.add(self._val_loss(logits, labels), _num_hits(logits, labels), len(labels))
                predicted.append(logits.argmax(1).cpu().numpy())
                true.append(batch.labels.numpy())
                num_classes = logits.shape[1]
        loss, acc, _ = totals.over(self._group)
        seen = self._group.gather((num_classes, np.concatenate(true), np.concatenate(predicted)))
        counts, trues, guesses = zip(*seen, strict=True)
        confusion = confusion_matrix(np.concatenate(trues), np.concatenate(guesses), max(counts))
        return {"val/loss": loss, "val/acc": acc, "val/f1": macro_f1(confusion)}

    def averaged_weights(self) -> dict[str, Any] | None:
        """The model's state dict with the weights that `evaluate` looks at, where they are not the model's own."""
        return self._averaging.weights() if self._averaging.is_on else None

    def state_dict(self) -> dict[str, Any]:
        """All that steps and thaws change, but for the model's weights and buffers and torch's random generators."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "step": self._steps,
            "averaging": self._averaging.state_dict(),
            "plateau": dict(vars(self._plateau)),
            "micro_batch": self._micro.size,
            "thaws": list(self._thaws),
            "lr": self.lr,
            "lr_factor": self.lr_factor,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`: thaws are made again first, for the optimiser's groups follow from them."""
        if isinstance(self.model, StagedModel):
            self.model.freeze(self._freeze_depth)
        self._optimizer = build_optimizer(self._optim, self.model)
        self._averaging = Averaging(self._averages, self.model)
        self._thaws.clear()
        for depth in state["thaws"]:
            self.thaw(depth)
        load_optimizer(self._optimizer, state["optimizer"])
        if state["scaler"]:  # empty of a training that had none
            self._scaler.load_state_dict(state["scaler"])
        self._averaging.load_state_dict(state["averaging"])
        self._plateau = Plateau(**state["plateau"])
        self._steps, self._micro.size = int(state["step"]), state["micro_batch"]
        self.lr, self.lr_factor = state["lr"], state["lr_factor"]

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up the weights and the state of a checkpoint.

        Raises:
            UserError: it is of another network or another optimiser, or holds averaged weights.
        """
        if checkpoint.averaged:
            raise UserError(
                f"the checkpoint after epoch {checkpoint.epoch} holds averaged weights (train.averaging), from which "
                f"no training goes on. Expected the weights that were trained: {LAST} has them."
            )
        try:
            self.model.load_state_dict(checkpoint.model)
            self.load_state_dict(checkpoint.trainer)
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(
                f"the checkpoint does not fit the network or the optimiser: {error}. Expected one of the same recipe, "
                "made by the same code."
            ) from error

    def _set_rates(self, steps_per_epoch: int, lr: float | None) -> None:
        at = {"step": self._steps, "num_steps": self._num_steps, "steps_per_epoch": steps_per_epoch}
        self.lr = lr or self.lr_factor * learning_rate(self._optim, **at, scale=self._plateau.scale)
        set_learning_rate(self._optimizer, self.lr)
        if self._optim.cycle_momentum is not None:
            set_momentum(self._optimizer, momentum(self._optim, **at))

    def _add_gradients(
        self, inputs: torch.Tensor, labels: torch.Tensor, divisor: torch.Tensor | float, parts: list[slice]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient of the sum of losses by `divisor`, a part after another; gives that and the logits (B, C)."""
        self._optimizer.zero_grad(set_to_none=True)
        losses, logits = [], []
        for part in parts:
            scores = self._logits(inputs[part])
            loss = self._loss.sum(scores, labels[part], self._weights) / divisor
            torch.autograd.backward(self._scaler.scale(loss))
            losses.append(loss.detach())
            logits.append(scores.detach())
        return torch.stack(losses).sum(), torch.cat(logits)

    def _in_parts(self, inputs: torch.Tensor, parts: list[slice]) -> torch.Tensor:
        return torch.cat([self._logits(inputs[part]) for part in parts])

    def _undo_gradients(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self._undo.put_back()

    def _logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, C) float32."""
        return self._forward(inputs).float()

    def _forwards(self, epoch: Iterable[Batch], stop: Callable[[], bool]) -> Iterator[None]:
        for batch in epoch:
            if stop():
                return
            inputs, labels = self._inputs(batch)
            for part in self._micro.parts(len(labels)):
                self._logits(inputs[part])
            yield

    def _inputs(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The network's input and labels or shares of classes, mixed where that is asked for."""
        inputs, labels = self._to_device(batch)
        return (inputs, labels) if self._mixing is None else self._mixing(inputs, labels, seed=batch.seed)

    def _to_device(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        images = batch.images.to(self._plan.device, non_blocking=True)
        labels = batch.labels.to(self._plan.device, non_blocking=True)
        if batch.is_features:
            return images, labels
        return self._plan.arrange(self._preprocessing.to_input(images)), labels


class _Undo:
    """What a pass through the network changes besides gradients: statistics and random generators."""

    def __init__(self, model: nn.Module, device: str) -> None:
        self._model, self._device = model, device
        self._buffers: list[torch.Tensor] = []
        self._generators: tuple[torch.Tensor, ...] = ()

    def remember(self) -> None:
        buffers = self._changing()
        if [b.shape for b in buffers] != [b.shape for b in self._buffers]:
            self._buffers = [b.clone() for b in buffers]
        elif buffers:
            torch._foreach_copy_(self._buffers, buffers)
        self._generators = (torch.get_rng_state(),)
        if self._device == "cuda":
            self._generators += (torch.cuda.get_rng_state(),)

    def put_back(self) -> None:
        buffers = self._changing()
        if buffers:
            torch._foreach_copy_(buffers, self._buffers)
        torch.set_rng_state(self._generators[0])
        if self._device == "cuda":
            torch.cuda.set_rng_state(self._generators[1])

    def _changing(self) -> list[torch.Tensor]:
        modules = (module for module in self._model.modules() if module.training)
        return [buffer for module in modules for buffer in module.buffers(recurse=False)]


def _num_hits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """() of how many labels (B,) the logits (B, C) are highest."""
    return (logits.detach().argmax(1) == labels).sum()


def _all_finite(tensors: list[torch.Tensor]) -> bool:
    """Whether no number in them is infinite or NaN, read from the device once."""
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())
