"""Averages of the weights along a training, which validation and the finished model use in place of the last ones."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from imgcls.models.family import StagedModel

AveragingName = Literal["none", "ema", "swa"]
STATISTICS_BATCHES = 100
"""Batches from which SWA counts the statistics of batch norm anew."""


@dataclass(frozen=True)
class Averages:
    """Which average.

    Attributes:
        name: `ema`, an exponential moving average, a step at a time; `swa`, the mean of the weights after each of the
            last epochs (Izmailov et al. 2018, arXiv:1803.05407); or `none`.
        decay: what an EMA keeps of itself at a step; less at the first steps, (1 + n) / (10 + n) at step n.
        start: the share of the training after which SWA takes weights in.
    """

    name: AveragingName = "none"
    decay: float = 0.999
    start: float = 0.75


class Averaging:
    """The average of a model's trained weights; frozen ones are their own average and cost nothing.

    An EMA averages the running statistics of batch norm along with the weights. SWA counts them anew, since those of
    different weights have no meaningful mean.

    Args:
        averages: which average.
        model: the model; what it trains later is announced by `track`.
    """

    def __init__(self, averages: Averages, model: nn.Module) -> None:
        self._averages, self._model = averages, model
        self._mean: dict[str, torch.Tensor] = {}
        self._count = 0
        self._last_step = 0
        self.track()

    @property
    def is_on(self) -> bool:
        """Whether there is an average yet."""
        return self._count > 0

    @torch.no_grad()
    def track(self) -> None:
        """Begin to average what is trained now and was not before: until now it was its own average."""
        if self._averages.name != "none":
            for name, tensor in self._trained().items():
                self._mean.setdefault(name, tensor.detach().clone())

    def after_step(self) -> None:
        """Take in the weights after a step."""
        if self._averages.name == "ema":
            self._count += 1
            decay = min(self._averages.decay, (1 + self._count) / (10 + self._count))
            mean, now = self._pairs()
            get_ema_multi_avg_fn(decay)(mean, now, self._count)  # type: ignore[no-untyped-call]

    def after_epoch(self, step: int, num_steps: int) -> bool:
        """Take in the weights after an epoch, once however often it is asked.

        Args:
            step: steps done.
            num_steps: steps of the whole training.

        Returns:
            Whether the statistics of batch norm are to be counted anew; see `count_statistics`.
        """
        if self._averages.name != "swa" or step <= self._averages.start * num_steps:
            return False
        if step != self._last_step:
            mean, now = self._pairs()
            get_swa_multi_avg_fn()(mean, now, self._count)  # type: ignore[no-untyped-call]
            self._count, self._last_step = self._count + 1, step
        return bool(self._norms())

    @torch.no_grad()
    def count_statistics(self, forwards: Iterable[None]) -> None:
        """Count the statistics of the batch norms that train anew for the averaged weights.

        Args:
            forwards: runs the model on a batch of training images each time it is asked for the next.
        """
        with self.applied():
            self._model.train()
            norms = self._norms()
            momenta = {name: norm.momentum for name, norm in norms.items()}
            for norm in norms.values():
                norm.reset_running_stats()
                norm.momentum = None  # the plain mean over the batches
            try:
                for _ in islice(forwards, STATISTICS_BATCHES):
                    pass
            finally:
                for name, norm in norms.items():
                    norm.momentum = momenta[name]
            for name in self._mean:
                if name.rpartition(".")[0] in norms:
                    self._mean[name].copy_(self._trained()[name])

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the model has the averaged weights, where there are any."""
        if not self.is_on:
            yield
            return
        mean, now = self._pairs()
        own = [tensor.clone() for tensor in now]
        counts = {name: norm.num_batches_tracked.clone() for name, norm in self._norms().items()}  # type: ignore[union-attr]
        with torch.no_grad():
            torch._foreach_copy_(now, mean)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(now, own)
                for name, norm in self._norms().items():
                    norm.num_batches_tracked.copy_(counts[name])  # type: ignore[union-attr]

    def weights(self) -> dict[str, Any]:
        """The model's state dict with the averaged weights, where there are any, in place of its own."""
        own = self._model.state_dict()
        return {name: self._mean.get(name, tensor) for name, tensor in own.items()} if self.is_on else own

    def state_dict(self) -> dict[str, Any]:
        """The average, and how much is in it."""
        return {"mean": dict(self._mean), "count": self._count, "last_step": self._last_step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state, of a model that trains the same."""
        assert state["mean"].keys() == self._mean.keys()
        for name, tensor in state["mean"].items():
            self._mean[name].copy_(tensor)
        self._count, self._last_step = state["count"], state["last_step"]

    def _pairs(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        trained = self._trained()
        return [self._mean[name] for name in self._mean], [trained[name].detach() for name in self._mean]

    def _trained(self) -> dict[str, torch.Tensor]:
        """Trained parameters, and the running statistics of batch norms that train."""
        found: dict[str, torch.Tensor] = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        for name, norm in self._norms().items():
            for key in ("running_mean", "running_var"):
                found[f"{name}.{key}" if name else key] = getattr(norm, key)
        return found

    def _norms(self) -> dict[str, _BatchNorm]:
        """The batch norms with statistics, of stages that are trained."""
        model = self._model
        frozen: set[int] = set()
        if isinstance(model, StagedModel):
            stages = (model.stage(name) for name in model.stage_names[: model.freeze_depth])
            frozen = {id(module) for stage in stages for module in stage.modules()}
        return {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.track_running_stats and id(module) not in frozen
        }
