"""Checkpoints on disk: written whole or not at all, read without executing anything."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from imgcls.errors import UserError


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training.

    Attributes:
        model: state dict of the model.
        optimizer: state dict of the optimiser.
        scaler: state dict of the gradient scaler.
        epoch: epochs completed.
        batch: batches completed of the epoch after those.
        rows: the history so far.
    """

    model: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    epoch: int
    batch: int
    rows: list[dict[str, float]]

    def save(self, path: Path) -> None:
        """Write to a temporary file, flush it to the disk, and put it in the place of `path`.

        Raises:
            UserError: the disk is full or the folder cannot be written; an earlier file stays as it was.
        """
        temporary = path.with_name(path.name + ".tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(vars(self), file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError on a full disk
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
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
