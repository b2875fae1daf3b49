"""A training in work: epoch after epoch, from the start or a checkpoint, and what a loss that is not finite does."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from imgcls.data.loading import Batch, Batches
from imgcls.errors import UserError
from imgcls.models.family import StagedModel
from imgcls.tables import History, Row
from imgcls.training.checkpoint import Checkpoint, generator_states, set_generator_states
from imgcls.training.keeper import REWIND, Keeper, best_row
from imgcls.training.plan import Plan
from imgcls.training.processes import Group
from imgcls.training.trainer import Totals, Trainer

MOST_SKIPPED = 10
"""So many steps in a row without a finite loss end a training that skips them."""
MOST_REWINDS = 5
REWIND_FACTOR = 0.5


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


@dataclass(frozen=True)
class Rules:
    """When a training ends, and what it does where a loss is not finite: fields of the recipe's sections.

    Attributes:
        epochs: passes over the training images, at most.
        patience: epochs without a better `monitor` after which it stops; None never.
        monitor: the figure that ranks epochs.
        on_nan: stop, skip or rewind.
        lr: the highest learning rate, for advice.
    """

    epochs: int
    patience: int | None
    monitor: str
    on_nan: str
    lr: float


class Loop:
    """A training in work: where it is, and what it does next."""

    stop: Callable[[], bool]
    on_step: Callable[[Step], None]
    on_thaw: Callable[[int], None]
    on_save: Callable[[], None]
    on_note: Callable[[str], None]

    def __init__(
        self,
        trainer: Trainer,
        train: Batches,
        val: Batches | None,
        rules: Rules,
        plan: Plan,
        keeper: Keeper,
        thaws: Mapping[int, int],
        about: dict[str, str],
        group: Group,
    ) -> None:
        self._trainer, self._train, self._val = trainer, train, val
        self._rules, self._plan = rules, plan
        self._keeper, self._thaws, self._about, self._group = keeper, thaws, about, group
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
        while self._epoch <= self._rules.epochs and not self._out_of_patience():
            try:
                row = self._train_epoch()
            except DivergedError as diverged:
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
            # Weights that are no numbers are told at the epoch's end, which all processes reach alike.
            if self._group.is_first and self._keeper.is_due() and self._trainer.is_finite():
                self._keeper.save(self.checkpoint())
                self.on_save()
        self._seconds = time.perf_counter() - begin
        measured = None
        if not self.stop():
            trainer.end_epoch(self._train.epoch(epoch), self.stop)
            measured = self._evaluate()
        self._check_weights()
        if measured is None:
            if self._group.is_first:
                self._keeper.save(self.checkpoint())
            return None
        row = self._row(measured)
        row["seconds"] = time.perf_counter() - begin
        row = self._group.from_first(row)
        self._history.rows.append(row)
        trainer.observe(row)
        self._begin_epoch()
        if self._group.is_first:
            self._keeper.save_epoch(self.checkpoint(), averaged=trainer.averaged_weights())
            self.on_save()
        return row

    def _evaluate(self) -> Row | None:
        """The figures of validation, none where there are no such images, or None where it was stopped."""
        if self._val is None:
            return None if self.stop() else {}
        return self._trainer.evaluate(self._val, self.stop)

    def _row(self, measured: Row) -> Row:
        """The row of the epoch in work, but for its seconds; see `History`."""
        loss, acc = self._totals.means()
        row: Row = {"epoch": self._epoch, "train/loss": loss, "train/acc": acc, **measured, "lr": self._trainer.lr}
        row |= self._totals.grad_norm()
        if isinstance(self._trainer.model, StagedModel):
            row["model/freeze_depth"] = self._trainer.model.freeze_depth
        if self._rules.on_nan == "skip" or self._trainer.scales:
            row["train/skipped_steps"] = self._skipped + self._totals.num_left_out
        if self._rules.on_nan == "rewind":
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
            raise DivergedError(f"the training loss became {progress.loss} in epoch {self._epoch}")
        self.on_step(progress)

    def _thaw(self) -> None:
        """Freeze fewer stages where the epoch in work asks for it and that is not done yet."""
        due = sum(epoch <= self._epoch for epoch in self._thaws)
        if due > self._trainer.num_thaws:
            self._trainer.thaw(self._thaws[self._epoch])
            self.on_thaw(self._epoch)

    def _out_of_patience(self) -> bool:
        rows = self._history.rows
        if self._rules.patience is None or not rows:
            return False
        return len(rows) - best_row(self._history, self._rules.monitor)["epoch"] >= self._rules.patience

    def _check_weights(self) -> None:
        """Weights that are no numbers must not replace a checkpoint of good ones."""
        if not self._trainer.is_finite():
            raise DivergedError(f"a weight became infinite or not a number in epoch {self._epoch}")

    def _skip(self) -> None:
        self._skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= MOST_SKIPPED:
            raise UserError(
                _advice(f"{MOST_SKIPPED} steps in a row had no finite loss in epoch {self._epoch}", self._rules.lr)
            )
        if self._skipped == 1:
            self.on_note(
                f"epoch {self._epoch}, batch {self._batch}: loss or gradient is not finite; such steps are left out "
                "(train/skipped_steps counts them)"
            )

    def _rewind(self, found: str) -> None:
        """Go back to the beginning of the epoch with a lower learning rate, where the recipe says so."""
        if self._rules.on_nan != "rewind":
            raise UserError(_advice(found, self._rules.lr))
        if self._rewinds >= MOST_REWINDS:
            raise UserError(_advice(f"{found}, after {MOST_REWINDS} rewinds with lower learning rates", self._rules.lr))
        count = self._rewinds + 1
        first = self._group.is_first
        self.restore(
            self._group.from_first(Checkpoint.load(self._keeper.folder / REWIND) if first else self.checkpoint())
        )
        self._rewinds = count
        self._trainer.lr_factor *= REWIND_FACTOR
        if first:
            self._keeper.save(self.checkpoint())
        self.on_note(
            f"{found}; back to the beginning of the epoch with {self._trainer.lr_factor:g} of the schedule's "
            f"learning rate (rewind {count} of at most {MOST_REWINDS})"
        )


class DivergedError(Exception):
    """Loss or weights are not finite any more."""


def _progress(epoch: int, batch: int, num_batches: int, totals: Totals, seconds: float, plan: Plan) -> Step:
    readable = plan.device == "cpu" or batch % 20 == 0 or batch == num_batches
    loss, acc = totals.means() if readable else (None, None)
    return Step(epoch, batch, num_batches, loss, acc, totals.count / max(seconds, 1e-9))


def _advice(found: str, lr: float) -> str:
    return (
        f"{found}; expected a finite number. Lower optim.lr (now {lr:g}), lengthen optim.warmup_epochs, or set "
        "train.plan.precision to fp32. The last checkpoint is of before."
    )
