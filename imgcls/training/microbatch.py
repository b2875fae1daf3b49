"""How many images go through the network at a time: the whole batch, or what the memory of a GPU holds of it."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from imgcls.errors import UserError

T = TypeVar("T")


def fewest(model: nn.Module) -> int:
    """The fewest images that can go through the network at a time: two where it has batch norm that trains."""
    return 2 if any(isinstance(module, _BatchNorm) and module.training for module in model.modules()) else 1


def check_micro_batch(size: int | None, model: nn.Module) -> None:
    """See that the size suits the network, which is in training mode.

    Raises:
        UserError: a size of 1 for a network with batch norm.
    """
    if size is not None and size < fewest(model):
        raise UserError(
            "train.micro_batch is 1, but the network has batch normalisation, which needs two images at a time. "
            "Set train.micro_batch to 2 or more, or choose a network without it."
        )


class MicroBatch:
    """The size of the parts of a batch, which halves when the memory does not hold them.

    Args:
        size: images at a time, at most; None is the whole batch.
        model: where it has batch norm that trains, a part has two images at least.
        on_note: is told when the size halves.

    Raises:
        UserError: a size of 1 for a network with batch norm.
    """

    def __init__(self, size: int | None, model: nn.Module, on_note: Callable[[str], None]) -> None:
        self.size, self._model, self._on_note = size, model, on_note
        check_micro_batch(size, model)

    @property
    def _least(self) -> int:
        return fewest(self._model)

    def parts(self, count: int) -> list[slice]:
        """A batch of `count` images as parts of nearly the same size, in order."""
        if self.size is None or count <= self.size:
            return [slice(0, count)]
        number = max(1, min(math.ceil(count / self.size), count // self._least))
        bounds = [count * k // number for k in range(number + 1)]
        return [slice(start, stop) for start, stop in pairwise(bounds)]

    def usual(self, count: int) -> int:
        """Images of the largest part of a batch of `count`; the others have one less, where it does not divide."""
        return max(int(part.stop) - int(part.start) for part in self.parts(count))

    def run(self, count: int, attempt: Callable[[list[slice]], T], undo: Callable[[], None] = lambda: None) -> T:
        """What `attempt` gives of a batch in parts; smaller parts where the memory does not hold them.

        Args:
            count: images of the batch.
            attempt: takes the parts.
            undo: puts back what an attempt that failed has changed.

        Raises:
            UserError: the memory does not hold the smallest part, or all processes would have to halve it together.
        """
        while True:
            parts = self.parts(count)
            try:
                return attempt(parts)
            except torch.OutOfMemoryError as error:
                reason = str(error).partition("\n")[0]
            # Out of the handler, whose traceback holds the tensors of the attempt.
            undo()
            self._halve(self.usual(count), reason)

    def _halve(self, size: int, reason: str) -> None:
        if any(isinstance(module, nn.SyncBatchNorm) for module in self._model.modules()):
            # The other processes would wait for ever for the statistics of parts that only this one makes.
            raise UserError(
                f"out of memory with {size} images at a time, which cannot be halved with train.sync_batch_norm true: "
                f"{reason} Lower train.batch_size or augment.image_size, or set train.sync_batch_norm to false."
            )
        if size <= self._least:
            raise UserError(
                f"out of memory with {size} image{'s' if size > 1 else ''} at a time, the fewest that this network can "
                f"be trained with: {reason} Lower augment.image_size, freeze stages (model.freeze_depth), choose a "
                "smaller network, or free the GPU of other programs (nvidia-smi lists them)."
            )
        self.size = max(self._least, size // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._on_note(
            f"out of memory with {size} images at a time: from now on {self.size}, whose gradients are summed up to "
            f"the same batch; set train.micro_batch to {self.size} to begin so ({reason})"
        )
