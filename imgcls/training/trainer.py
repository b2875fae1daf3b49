"""One step of a training after another: the state that a step changes, and evaluation."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from imgcls.data.augment import Preprocessing
from imgcls.data.loading import Batch, Batches
from imgcls.evaluation.metrics import confusion_matrix, macro_f1
from imgcls.models.family import StagedModel
from imgcls.tables import History, Row
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
        """Count a batch: its mean loss, its logits (B, C) and its labels (B,)."""
        self._loss += loss.detach() * len(labels)
        self._hits += (logits.detach().argmax(1) == labels).sum()
        self.count += len(labels)

    def means(self) -> tuple[float, float]:
        """(loss, accuracy) of the images so far."""
        return self._loss.item() / max(1, self.count), self._hits.item() / max(1, self.count)


class Trainer:
    """The state that a step changes."""

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
    ) -> None:
        self.model = model.to(plan.device)
        self._optim, self._preprocessing, self._plan = optim, preprocessing, plan
        self._num_steps, self._steps = num_steps, 0
        self._optimizer = build_optimizer(optim, model)
        self._scaler = torch.amp.GradScaler(plan.device, enabled=plan.precision == "fp16")
        self._weights = None
        if class_weights is not None:
            self._weights = torch.tensor(class_weights, dtype=torch.float32, device=plan.device)
        self._mixing = mixing
        self._val_loss = nn.CrossEntropyLoss()
        self.lr = 0.0

    def step(self, batch: Batch, *, steps_per_epoch: int, totals: Totals) -> None:
        """One update of the weights."""
        self.lr = learning_rate(
            self._optim, step=self._steps, num_steps=self._num_steps, steps_per_epoch=steps_per_epoch
        )
        set_learning_rate(self._optimizer, self.lr)
        self.model.train()
        inputs, labels = self._to_device(batch)
        if self._mixing is not None:
            inputs, labels = self._mixing(inputs, labels, seed=batch.seed)
        with self._plan.autocast():
            logits = self.model(inputs)
            loss = training_loss(logits.float(), labels, self._weights)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self._scaler.scale(loss))
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._steps += 1
        totals.add(loss, logits, labels if labels.ndim == 1 else labels.argmax(1))

    def thaw(self, depth: int) -> None:
        """Train all but the first `depth` stages from now on."""
        assert isinstance(self.model, StagedModel)
        self.model.freeze(depth)
        add_thawed(self._optimizer, self._optim, self.model)

    @torch.no_grad()
    def evaluate(self, loader: Batches, stop: Callable[[], bool]) -> Row | None:
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

    def checkpoint(self, epoch: int, batch: int, history: History) -> Checkpoint:
        """The present state."""
        return Checkpoint(
            model=self.model.state_dict(),
            optimizer=self._optimizer.state_dict(),
            scaler=self._scaler.state_dict(),
            epoch=epoch,
            batch=batch,
            rows=list(history.rows),
        )

    def _to_device(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        images = batch.images.to(self._plan.device, non_blocking=True)
        labels = batch.labels.to(self._plan.device, non_blocking=True)
        return images if batch.is_features else self._preprocessing.to_input(images), labels
