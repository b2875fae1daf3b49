"""Which checkpoints of a training are kept in its folder, and when they are written."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from imgcls.tables import History, Row
from imgcls.training.checkpoint import Checkpoint, newest
from imgcls.training.monitors import score

BEST, LAST, REWIND = "best.pt", "last.pt", "rewind.pt"


class Keeper:
    """Writes the checkpoints of one training.

    `last.pt` is the newest; `best.pt` that after the best epoch (see `best_row`); `epoch-0007.pt` that after one of the
    best `keep_best`; `rewind.pt`, where asked for, that at the beginning of the epoch in work.

    Args:
        folder: where they lie.
        monitor: the figure that ranks epochs.
        minutes: how often `last.pt` is written inside an epoch; None never.
        keep_best: how many of the best epochs keep a file of their own.
        rewinds: whether there is a `rewind.pt`.
    """

    def __init__(self, folder: Path, *, monitor: str, minutes: float | None, keep_best: int, rewinds: bool) -> None:
        self.folder = folder
        self._monitor, self._minutes, self._keep_best, self._rewinds = monitor, minutes, keep_best, rewinds
        self._written = time.monotonic()

    def is_due(self) -> bool:
        """Whether an epoch has been in work for so long that what is done of it should be saved."""
        return self._minutes is not None and time.monotonic() - self._written >= 60 * self._minutes

    def save(self, checkpoint: Checkpoint) -> None:
        """Write `last.pt`; between epochs, `rewind.pt` before it, which so is never the older one."""
        first = [self.folder / REWIND] if self._rewinds and checkpoint.batch == 0 else []
        self._write(checkpoint, [*first, self.folder / LAST])

    def save_epoch(self, checkpoint: Checkpoint, *, averaged: dict[str, Any] | None = None) -> None:
        """Write all that the end of an epoch, whose row is the last, asks for: `last.pt` last.

        A process that is killed in between goes on from one of the others, or from the earlier `last.pt` and writes the
        same files again; in the other order it would go on from an epoch whose `best.pt` is missing. Where there is an
        average of the weights, the best have that, as a state dict of the model, and nothing goes on from them.
        """
        own, best = epoch_file(checkpoint.epoch), best_row(History(checkpoint.rows), self._monitor)
        names = [BEST] if best is checkpoint.rows[-1] else []
        names += [own] if own in self._kept(checkpoint.rows) else []
        if names and averaged is not None:
            self._write(replace(checkpoint, model=averaged, averaged=True), [self.folder / name for name in names])
            names = []
        names += [REWIND] if self._rewinds else []
        self._write(checkpoint, [self.folder / name for name in (*names, LAST)])
        self.tidy(checkpoint.rows)

    def take_up(self, checkpoint: Checkpoint, *, averaged: dict[str, Any] | None = None) -> None:
        """Write what a process that was killed left to do of a checkpoint that is gone on from; see `save_epoch`."""
        last = newest([self.folder / LAST])
        behind = last is None or last[1].place < checkpoint.place
        if behind and checkpoint.rows and checkpoint.batch == 0:
            self.save_epoch(checkpoint, averaged=averaged)
        elif behind:
            self.save(checkpoint)
        self.tidy(checkpoint.rows)

    def tidy(self, rows: list[Row]) -> None:
        """Remove the files of epochs that are among the best no more."""
        kept = self._kept(rows)
        for path in self.folder.glob("epoch-*.pt"):
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def _kept(self, rows: list[Row]) -> set[str]:
        return {epoch_file(int(row["epoch"])) for row in ranked(rows, self._monitor)[: self._keep_best]}

    def _write(self, checkpoint: Checkpoint, paths: list[Path]) -> None:
        checkpoint.save(paths[0], *paths[1:])
        self._written = time.monotonic()


def newest_in(folder: Path) -> tuple[Path, Checkpoint] | None:
    """The checkpoint of a folder from which its training goes on; None where there is none that can be read."""
    return newest([folder / LAST, folder / REWIND, folder / BEST])


def epoch_file(epoch: int) -> str:
    """The name of the checkpoint of one of the best epochs."""
    return f"epoch-{epoch:04d}.pt"


def ranked(rows: list[Row], monitor: str) -> list[Row]:
    """The rows, best first: highest `monitor` (lowest for a loss); ties go to the lower `val/loss`, then the earlier.

    A figure that is not a number is the worst. Without validation ties go to the earlier.
    """
    return sorted(rows, key=lambda row: (score(monitor, row[monitor]), _tie_break(row)), reverse=True)


def best_row(history: History, monitor: str) -> Row:
    """The row of the best epoch: see `ranked`. Of a training without validation it is the last: the loss on the
    training images falls as long as a network learns them by heart, and tells nothing of others."""
    return ranked(history.rows, monitor)[0] if "val/loss" in history.rows[-1] else history.rows[-1]


def _tie_break(row: Row) -> float:
    return score("val/loss", row["val/loss"]) if "val/loss" in row else 0.0
