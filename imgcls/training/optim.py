"""The recipe's `optim` section, and its learning-rate schedules by name, which advance at every step."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from imgcls.plugins import Registry
from imgcls.training.monitors import Monitor, score
from imgcls.training.optimizers import OPTIMIZERS, PARTICULAR, OptimizerConfig

SCHEDULES: "Registry[Schedule]" = Registry("learning-rate schedule")


class OptimConfig(OptimizerConfig):
    """How the weights are updated."""

    schedule: str = "cosine"
    """constant; step, multistep, exponential, plateau, which multiply the learning rate by `gamma` now and then; cosine
    (Loshchilov and Hutter 2016, arXiv:1608.03983), polynomial; or one-cycle (Smith and Topin 2017, arXiv:1708.07120).
    All but plateau advance at every step."""
    warmup_epochs: Annotated[float, Field(ge=0)] | None = None
    """Epochs, or parts of one, in which the learning rate rises linearly from 0 to where the schedule begins (Goyal et
    al. 2017, arXiv:1706.02677). null is 1, and 0 for one-cycle, which rises by itself."""
    final_lr_ratio: float = Field(0.0, ge=0, le=1)
    """cosine, polynomial, one-cycle: the learning rate at the end, as a share of `lr`; plateau: the lowest."""
    gamma: Annotated[float, Field(gt=0, le=1)] | None = None
    """step, multistep, plateau: the learning rate is multiplied by this; exponential: by this over an epoch. null is
    0.1, and 0.95 for exponential."""
    step_epochs: int = Field(10, ge=1, le=100_000)
    """step: epochs between one multiplication and the next."""
    milestones: list[Annotated[float, Field(gt=0)]] = Field(default_factory=list)
    """multistep: after so many epochs (parts of one count) the learning rate is multiplied; those that the training
    does not reach do nothing. [16, 21]."""
    power: float = Field(1.0, gt=0, le=10)
    """polynomial: the share of the steps that is left, to this power, is the share of `lr`; 1 is a straight line."""
    cycle_rise: float = Field(0.3, gt=0, lt=1)
    """one-cycle: the share of the steps in which the learning rate rises; it falls in the others."""
    cycle_start: float = Field(0.04, gt=0, le=1)
    """one-cycle: the learning rate at the start, as a share of `lr`."""
    cycle_anneal: Literal["cosine", "linear"] = "cosine"
    """one-cycle: how it rises and falls."""
    cycle_momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """one-cycle: the momentum (or beta1) at the highest learning rate, to which it falls from `momentum` and from which
    it rises back; 0.85 in the paper. null leaves it at `momentum`."""
    plateau_monitor: Monitor = "val/loss"
    """plateau: the metric that has to become better; see `train.monitor`. Without validation images (`imgcls refit`)
    train/loss stands for one of validation."""
    plateau_patience: int = Field(5, ge=1, le=100_000)
    """plateau: epochs without a better `plateau_monitor` after which the learning rate is multiplied."""

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, name: str) -> str:
        OPTIMIZERS.get(name)
        return name

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, name: str) -> str:
        SCHEDULES.get(name)
        return name

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        optimizers = {name: OPTIMIZERS.get(name).reads for name in OPTIMIZERS.names()}
        schedules = {name: SCHEDULES.get(name).reads for name in SCHEDULES.names()}
        self._refuse_unread("optimizer", PARTICULAR, optimizers)
        self._refuse_unread("schedule", sorted(frozenset().union(*schedules.values())), schedules)
        if self.nesterov and self.momentum == 0:
            raise ValueError(
                "nesterov is true with momentum 0; it needs a momentum above 0. Set optim.nesterov to false, or "
                "optim.momentum to 0.9"
            )
        if self.schedule == "multistep" and not self.milestones:
            raise ValueError(
                "schedule is 'multistep' and milestones is []; expected the epochs after which the learning rate "
                "falls. Set optim.milestones, such as to [16, 21], or optim.schedule to constant"
            )
        if self.milestones != sorted(set(self.milestones)):
            raise ValueError(f"milestones is {self.milestones}; expected rising numbers of epochs, each once")
        if self.cycle_momentum is not None and self.cycle_momentum > self.momentum:
            raise ValueError(
                f"cycle_momentum is {self.cycle_momentum:g} and momentum {self.momentum:g}; expected the first to be "
                "the lower one. Lower optim.cycle_momentum or raise optim.momentum"
            )
        return self

    def _refuse_unread(self, chooser: str, names: Iterable[str], reads: Mapping[str, frozenset[str]]) -> None:
        chosen: str = getattr(self, chooser)
        for name in names:
            default = type(self).model_fields[name].get_default(call_default_factory=True)
            value = getattr(self, name)
            if name in reads[chosen] or value == default:
                continue
            readers = [reader for reader in reads if name in reads[reader]]
            listed = readers[0] if len(readers) == 1 else f"{', '.join(readers[:-1])} or {readers[-1]}"
            raise ValueError(
                f"{name} is {_yaml(value)} with {chooser} {chosen!r}, which does not read it; it is for {listed}. "
                f"Set optim.{name} to {_yaml(default)} or optim.{chooser} to {listed}"
            )


def _yaml(value: Any) -> str:
    """A value as a recipe has it."""
    return json.dumps(value) if not isinstance(value, str) else value


@dataclass(frozen=True)
class Moment:
    """Where a training stands in its schedule.

    Attributes:
        step: steps done since the warm-up.
        num_steps: steps that follow the warm-up in all, at least 1.
        epochs: epochs done since the start of the training, with parts of one.
        steps_per_epoch: steps in one.
    """

    step: int
    num_steps: int
    epochs: float
    steps_per_epoch: int

    @property
    def progress(self) -> float:
        """0 to below 1."""
        return min(1.0, self.step / self.num_steps)


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule by name.

    Attributes:
        share: (config, moment) -> the share of `lr`.
        reads: the config's fields that it reads, of those that not every schedule reads.
    """

    share: Callable[[OptimConfig, Moment], float]
    reads: frozenset[str] = frozenset()


def _register(name: str, *reads: str) -> Callable[[Callable[[OptimConfig, Moment], float]], Schedule]:
    return lambda share: SCHEDULES.register(name)(Schedule(share, frozenset(reads)))


@_register("constant")
def _constant(_config: OptimConfig, _moment: Moment) -> float:
    return 1.0


@_register("step", "gamma", "step_epochs")
def _step(config: OptimConfig, moment: Moment) -> float:
    return _gamma(config) ** math.floor(moment.epochs / config.step_epochs)


@_register("multistep", "gamma", "milestones")
def _multistep(config: OptimConfig, moment: Moment) -> float:
    return _gamma(config) ** sum(moment.epochs >= milestone for milestone in config.milestones)


@_register("exponential", "gamma")
def _exponential(config: OptimConfig, moment: Moment) -> float:
    return math.pow(_gamma(config), moment.step / moment.steps_per_epoch)


@_register("cosine", "final_lr_ratio")
def _cosine(config: OptimConfig, moment: Moment) -> float:
    return _between(1.0, config.final_lr_ratio, moment.progress, "cosine")


@_register("polynomial", "final_lr_ratio", "power")
def _polynomial(config: OptimConfig, moment: Moment) -> float:
    return _between(config.final_lr_ratio, 1.0, math.pow(1 - moment.progress, config.power), "linear")


@_register("one-cycle", "final_lr_ratio", "cycle_rise", "cycle_start", "cycle_anneal", "cycle_momentum")
def _one_cycle(config: OptimConfig, moment: Moment) -> float:
    return _cycle(config, moment, config.cycle_start, 1.0, config.final_lr_ratio)


@_register("plateau", "gamma", "final_lr_ratio", "plateau_monitor", "plateau_patience")
def _plateau(_config: OptimConfig, _moment: Moment) -> float:
    return 1.0  # what `Plateau` makes of it is multiplied in `learning_rate`


def _cycle(config: OptimConfig, moment: Moment, start: float, peak: float, end: float) -> float:
    """From start to peak to end, at the steps at which torch's OneCycleLR is there."""
    top = config.cycle_rise * moment.num_steps - 1
    if moment.step <= top and top > 0:
        return _between(start, peak, moment.step / top, config.cycle_anneal)
    top = max(0.0, top)
    last = moment.num_steps - 1
    return _between(peak, end, min(1.0, (moment.step - top) / (last - top)) if last > top else 0.0, config.cycle_anneal)


def _between(start: float, end: float, share: float, anneal: str) -> float:
    """From start to end, at a share of the way in 0..1, in a straight line or half a cosine."""
    way = share if anneal == "linear" else 0.5 * (1 - math.cos(math.pi * share))
    return start + (end - start) * way


def learning_rate(config: OptimConfig, *, step: int, num_steps: int, steps_per_epoch: int, scale: float = 1.0) -> float:
    """The learning rate of step `step` (from 0) of `num_steps`.

    The warm-up's first step has a rate above 0, and the step after its last has the schedule's first; the schedule then
    runs over the remaining steps. `scale` is that of the plateau schedule.
    """
    moment = _moment(config, step=step, num_steps=num_steps, steps_per_epoch=steps_per_epoch)
    rate = config.lr * scale * SCHEDULES.get(config.schedule).share(config, moment)
    warmup = num_steps - moment.num_steps
    return rate * (step + 1) / (warmup + 1) if step < warmup else rate


def momentum(config: OptimConfig, *, step: int, num_steps: int, steps_per_epoch: int) -> float:
    """The momentum of step `step` (from 0) of `num_steps`; see `cycle_momentum`."""
    if config.cycle_momentum is None:
        return config.momentum
    moment = _moment(config, step=step, num_steps=num_steps, steps_per_epoch=steps_per_epoch)
    return _cycle(config, moment, config.momentum, config.cycle_momentum, config.momentum)


def _moment(config: OptimConfig, *, step: int, num_steps: int, steps_per_epoch: int) -> Moment:
    warmup = min(num_steps - 1, round(_warmup_epochs(config) * steps_per_epoch))
    return Moment(max(0, step - warmup), num_steps - warmup, step / steps_per_epoch, steps_per_epoch)


def _warmup_epochs(config: OptimConfig) -> float:
    default = 0.0 if config.schedule == "one-cycle" else 1.0
    return default if config.warmup_epochs is None else config.warmup_epochs


def _gamma(config: OptimConfig) -> float:
    default = 0.95 if config.schedule == "exponential" else 0.1
    return default if config.gamma is None else config.gamma


@dataclass
class Plateau:
    """The state of the plateau schedule, which torch's ReduceLROnPlateau has with a threshold of 0.

    Attributes:
        scale: what the learning rate is multiplied by.
        best: the best score so far; see `monitors.score`.
        bad_epochs: epochs since then, or since the learning rate was lowered.
    """

    scale: float = 1.0
    best: float = -math.inf
    bad_epochs: int = 0

    def observe(self, config: OptimConfig, value: float) -> None:
        """Take the metric of an epoch; lower the scale where it has not become better for too long."""
        found = score(config.plateau_monitor, value)
        if found > self.best:
            self.best, self.bad_epochs = found, 0
            return
        self.bad_epochs += 1
        if self.bad_epochs >= config.plateau_patience:
            self.scale = max(config.final_lr_ratio, self.scale * _gamma(config))
            self.bad_epochs = 0
