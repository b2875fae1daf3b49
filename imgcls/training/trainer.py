"""One step of a training after another: the state that a step changes, and evaluation."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from imgcls.data.augment import Preprocessing
from imgcls.data.loading import Batch, Loader
from imgcls.errors import UserError
from imgcls.evaluation.metrics import confusion_matrix, macro_f1
from imgcls.models.family import StagedModel
from imgcls.tables import Row
from imgcls.training.checkpoint import Checkpoint
from imgcls.training.device import Plan
from imgcls.training.losses import training_loss
from imgcls.training.mixing import Mixing
from imgcls.training.optim import OptimConfig, add_thawed, build_optimizer, learning_rate, set_learning_rate


class Totals:
    """Sums of loss and hits kept on the device, so that a GPU is not held up to read them."""

    def __init__(self, device: str) -> None:
        self._loss = torch.zeros((), device=device, dtype=torch.float64 if device == "cpu" else torch.float32)
        self._hits = torch.zeros((), device=device)
        self.count = 0

    def add(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Count a batch: its mean loss, and (B, C) logits against (B,) labels."""
        self._loss += loss.detach() * len(labels)
        self._hits += (logits.detach().argmax(1) == labels).sum()
        self.count += len(labels)

    def means(self) -> tuple[float, float]:
        """Mean loss and share of hits; NaN of nothing."""
        if not self.count:
            return math.nan, math.nan
        return self._loss.item() / self.count, self._hits.item() / self.count

    def state_dict(self) -> dict[str, Any]:
        """The sums, for a checkpoint inside an epoch."""
        return {"loss": self._loss, "hits": self._hits, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the sums of `state_dict`."""
        self._loss.copy_(state["loss"])
        self._hits.copy_(state["hits"])
        self.count = int(state["count"])


class Trainer:
    """The state that a step changes.

    Args:
        skips_nan: leave out an update whose loss or gradient is not finite; see `step`.

    Attributes:
        lr: the learning rate of the last step.
        lr_factor: the share of the schedule's learning rate that is used.
    """

    def __init__(
        self,
        model: nn.Module,
        optim: OptimConfig,
        preprocessing: Preprocessing,
        plan: Plan,
        *,
        num_steps: int,
        class_weights: npt.NDArray[np.float64] | None,
        mixing: Mixing | None,
        skips_nan: bool = False,
    ) -> None:
        self.model = model.to(plan.device)
        self._optim, self._preprocessing, self._plan = optim, preprocessing, plan
        self._num_steps, self._steps = num_steps, 0
        self._optimizer = build_optimizer(optim, model)
        self._freeze_depth = model.freeze_depth if isinstance(model, StagedModel) else 0
        self._thaws: list[int] = []
        self._scaler = torch.amp.GradScaler(plan.device, enabled=plan.precision == "fp16")
        self._weights = None
        if class_weights is not None:
            self._weights = torch.tensor(class_weights, dtype=torch.float32, device=plan.device)
        self._mixing = mixing
        self._val_loss = nn.CrossEntropyLoss()
        self._skips_nan = skips_nan
        self.lr, self.lr_factor = 0.0, 1.0

    def step(self, batch: Batch, *, steps_per_epoch: int, totals: Totals) -> bool:
        """One update of the weights; False where it was left out, since its loss or a gradient was not finite.

        Such a step counts for the schedule, but not for `totals`; the statistics of batch normalisation are put back.
        """
        self.lr = self.lr_factor * learning_rate(
            self._optim, step=self._steps, num_steps=self._num_steps, steps_per_epoch=steps_per_epoch
        )
        set_learning_rate(self._optimizer, self.lr)
        self.model.train()
        buffers = [buffer.clone() for buffer in self.model.buffers()] if self._skips_nan else []
        inputs, labels = self._to_device(batch)
        if self._mixing is not None:
            inputs, labels = self._mixing(inputs, labels, seed=batch.seed)
        with self._plan.autocast():
            logits = self.model(inputs)
            loss = training_loss(logits.float(), labels, self._weights)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self._scaler.scale(loss))
        self._steps += 1
        if self._skips_nan and not self._may_update(loss):
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
            return False
        self._scaler.step(self._optimizer)
        self._scaler.update()
        totals.add(loss, logits, labels if labels.ndim == 1 else labels.argmax(1))
        return True

    def _may_update(self, loss: torch.Tensor) -> bool:
        """Whether loss and gradients are finite; of scaled gradients the scaler finds out by itself."""
        found = [loss.detach()]
        if not self._scaler.is_enabled():
            found += [p.grad for p in self.model.parameters() if p.grad is not None]
        return _all_finite(found)

    def is_finite(self) -> bool:
        """Whether all weights and statistics are finite numbers."""
        return _all_finite([t for t in self.model.state_dict().values() if t.is_floating_point()])

    def thaw(self, depth: int) -> None:
        """Train all but the first `depth` stages from now on."""
        assert isinstance(self.model, StagedModel)
        self.model.freeze(depth)
        add_thawed(self._optimizer, self._optim, self.model)
        self._thaws.append(depth)

    @property
    def num_thaws(self) -> int:
        """How often `thaw` was called."""
        return len(self._thaws)

    @torch.no_grad()
    def evaluate(self, loader: Loader, stop: Callable[[], bool]) -> Row | None:
        """Loss, accuracy and macro F1 over a loader, or None where it was stopped."""
        self.model.eval()
        totals = Totals(self._plan.device)
        predicted, true = [], []
        num_classes = 0
        for batch in loader.epoch(0):
            if stop():
                return None
            inputs, labels = self._to_device(batch)
            with self._plan.autocast():
                logits = self.model(inputs).float()
            totals.add(self._val_loss(logits, labels), logits, labels)
            predicted.append(logits.argmax(1).cpu().numpy())
            true.append(batch.labels.numpy())
            num_classes = logits.shape[1]
        loss, acc = totals.means()
        confusion = confusion_matrix(np.concatenate(true), np.concatenate(predicted), num_classes)
        return {"val/loss": loss, "val/acc": acc, "val/f1": macro_f1(confusion)}

    def state_dict(self) -> dict[str, Any]:
        """All that steps and thaws change beside the model's weights."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "step": self._steps,
            "thaws": list(self._thaws),
            "lr": self.lr,
            "lr_factor": self.lr_factor,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`: thaws are made again first, for the optimiser's groups follow from them."""
        if isinstance(self.model, StagedModel):
            self.model.freeze(self._freeze_depth)
        self._optimizer = build_optimizer(self._optim, self.model)
        self._thaws.clear()
        for depth in state["thaws"]:
            self.thaw(depth)
        self._optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty of a training that had none
            self._scaler.load_state_dict(state["scaler"])
        self._steps = int(state["step"])
        self.lr, self.lr_factor = state["lr"], state["lr_factor"]

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up the weights and the state of a checkpoint.

        Raises:
            UserError: it is of another network or another optimiser.
        """
        try:
            self.model.load_state_dict(checkpoint.model)
            self.load_state_dict(checkpoint.trainer)
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(
                f"the checkpoint does not fit the network or the optimiser: {error}. Expected one of the same recipe, "
                "made by the same code."
            ) from error

    def _to_device(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        images = batch.images.to(self._plan.device, non_blocking=True)
        labels = batch.labels.to(self._plan.device, non_blocking=True)
        return self._preprocessing.to_input(images), labels


def _all_finite(tensors: list[torch.Tensor]) -> bool:
    """Whether no number in them is infinite or NaN, read from the device once."""
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())
