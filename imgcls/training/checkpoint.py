"""Checkpoints on disk: written whole or not at all, read without executing anything."""

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from imgcls.errors import UserError


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training between two steps: with the recipe and the data, all that decides how it goes on.

    What early stopping has counted, and which epoch is the best, follow from `rows` and are not kept twice.

    Attributes:
        model: state dict of the model.
        trainer: what else the steps change: see `Trainer.state_dict`.
        epoch: epochs completed.
        batch: batches completed of the epoch after those.
        rows: the history so far.
        totals: sums of the epoch in work: see `Totals.state_dict`; empty between epochs.
        seconds: time spent in the epoch in work.
        rng: the states of torch's generators: `cpu`, and `cuda` with one for each GPU.
        guards: steps skipped in the epoch in work (`skipped`), skipped in a row until now (`in_a_row`), and how often
            the training went back to an earlier checkpoint (`rewinds`).
        plan: the fields of the execution plan.
        about: what the training is of, as its job describes it, for telling whether another may go on from here.
        averaged: `model` holds an average of the weights, which validation saw, and not those that the steps change:
            no training goes on from here.
    """

    model: dict[str, Any]
    trainer: dict[str, Any]
    epoch: int
    batch: int
    rows: list[dict[str, float]]
    totals: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    rng: dict[str, Any] = field(default_factory=dict)
    guards: dict[str, int] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)
    averaged: bool = False

    @property
    def place(self) -> tuple[int, int]:
        """How far the training is: (epochs, batches of the next)."""
        return self.epoch, self.batch

    def save(self, path: Path, *more: Path) -> None:
        """Write to a temporary file, flush it to the disk, and put it in the place of `path`, then of each of `more`.

        All are one file on the disk, where the file system has hard links. Whatever ends the process in between, each
        path holds its earlier file or the new one, and none of `more` is newer than one before it.

        Raises:
            UserError: the disk is full or the folder cannot be written; earlier files stay as they were.
        """
        temporary = path.with_name(path.name + ".tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(vars(self), file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            for other in more:
                _put(path, other)
            _flush_names(path.parent)
        except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError on a full disk
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            if (interruption := _interruption(error)) is not None:
                raise interruption from None
            raise UserError(
                f"cannot write the checkpoint {path}: {error}. Free disk space, or set train.output_dir to a "
                "folder with space; an earlier checkpoint is unharmed."
            ) from error

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read a checkpoint; no code in it is executed.

        Raises:
            UserError: the file is missing, truncated or no checkpoint.
        """
        try:
            return cls(**torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # what torch's readers raise on damaged bytes is open-ended
            raise UserError(f"cannot read the checkpoint {path}: {error}") from error


def newest(paths: Sequence[Path]) -> tuple[Path, Checkpoint] | None:
    """The checkpoint that is furthest on, of those that are there and whole and that a training can go on from: not
    those of averaged weights. The first of equal ones."""
    found: tuple[Path, Checkpoint] | None = None
    for path in paths:
        with contextlib.suppress(UserError):
            checkpoint = Checkpoint.load(path)
            if not checkpoint.averaged and (found is None or checkpoint.place > found[1].place):
                found = path, checkpoint
    return found


def generator_states() -> dict[str, Any]:
    """The states of torch's generators, which dropout and the like draw from."""
    states: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_generator_states(states: dict[str, Any]) -> None:
    """Put torch's generators back; those of GPUs only where there are as many as there were."""
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and torch.cuda.device_count() == len(states.get("cuda", [])):
        torch.cuda.set_rng_state_all(states["cuda"])


def _interruption(error: BaseException | None) -> BaseException | None:
    """The end of the process that was asked for, where torch's writer, closing its half a file, failed for it."""
    while isinstance(error, Exception):
        error = error.__context__
    return error


def _put(source: Path, target: Path) -> None:
    """Let `target` be the file that `source` is, at once."""
    temporary = target.with_name(target.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
    temporary.replace(target)


def _flush_names(folder: Path) -> None:
    """Flush the folder's own entry, so that a renamed file outlives a power cut."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems know no such thing
        pass
    finally:
        os.close(handle)
