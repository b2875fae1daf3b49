"""Optimisers and learning-rate schedules by name."""

import math
from collections.abc import Callable, Collection, Iterable
from typing import Any, Self

import torch
from pydantic import Field, field_validator, model_validator

from imgcls.models.family import StagedModel
from imgcls.plugins import Registry
from imgcls.sections import Section

Parameters = Iterable[dict[str, Any]]
"""torch's parameter groups."""

OPTIMIZERS: "Registry[Callable[[Parameters, OptimConfig], torch.optim.Optimizer]]" = Registry("optimizer")
SCHEDULES: "Registry[Callable[[float], float]]" = Registry("learning-rate schedule")
"""name -> factor in 0..1 as a function of the progress in 0..1 after the warm-up."""


class OptimConfig(Section):
    """How the weights are updated."""

    optimizer: str = "adamw"
    """adamw (Loshchilov and Hutter 2017, arXiv:1711.05101) or sgd."""
    lr: float = Field(1e-3, gt=0, le=100)
    """The highest learning rate, reached after the warm-up."""
    weight_decay: float = Field(1e-2, ge=0, le=1)
    """Decoupled (adamw) or L2 (sgd) decay of every trained weight."""
    decay_norms_and_biases: bool = True
    """Whether `weight_decay` is for biases and the weights of normalisations too, which are all parameters of one
    dimension. false is as in He et al. (2018, arXiv:1812.01187)."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """The head learns at the schedule's rate, and each stage towards the input at this share of the next one's (Clark
    et al. 2020, arXiv:2003.10555; Bao et al. 2021, arXiv:2106.08254, both by layer). 1 is the same rate for all."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """sgd: momentum. adamw: beta1."""
    nesterov: bool = False
    """sgd with momentum: Nesterov's form of it."""
    schedule: str = "cosine"
    """cosine (Loshchilov and Hutter 2016, arXiv:1608.03983) or constant; advances at every step."""
    warmup_epochs: float = Field(1.0, ge=0)
    """Epochs, or parts of one, in which the learning rate rises linearly from 0 to `lr`."""
    final_lr_ratio: float = Field(0.0, ge=0, le=1)
    """The learning rate at the end, as a share of `lr`."""

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
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError(
                f"nesterov is true with optimizer {self.optimizer!r} and momentum {self.momentum:g}; it needs sgd and "
                "a momentum above 0. Set optim.nesterov to false or optim.optimizer to sgd"
            )
        if self.final_lr_ratio and self.schedule == "constant":
            raise ValueError(
                f"final_lr_ratio is {self.final_lr_ratio:g} with a constant schedule, which has no end to reach. Set "
                "optim.final_lr_ratio to 0 or optim.schedule to cosine"
            )
        return self


@OPTIMIZERS.register("adamw")
def _adamw(parameters: Parameters, config: OptimConfig) -> torch.optim.Optimizer:
    betas = (config.momentum, 0.999)
    return torch.optim.AdamW(parameters, lr=config.lr, betas=betas, weight_decay=config.weight_decay)


@OPTIMIZERS.register("sgd")
def _sgd(parameters: Parameters, config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
    )


@SCHEDULES.register("constant")
def _constant(_progress: float) -> float:
    return 1.0


@SCHEDULES.register("cosine")
def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def learning_rate(config: OptimConfig, *, step: int, num_steps: int, steps_per_epoch: int) -> float:
    """The learning rate of step `step` (from 0) of `num_steps`.

    The warm-up's first step has a rate above 0 and its last has `lr`; the schedule then runs over the
    remaining steps.
    """
    warmup = min(num_steps - 1, round(config.warmup_epochs * steps_per_epoch))
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, num_steps - warmup)
    factor = SCHEDULES.get(config.schedule)(progress)
    return config.lr * (config.final_lr_ratio + (1 - config.final_lr_ratio) * factor)


def build_optimizer(config: OptimConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The configured optimiser over the model's trainable parameters."""
    return OPTIMIZERS.get(config.optimizer)(parameter_groups(config, model), config)


def parameter_groups(
    config: OptimConfig, model: torch.nn.Module, *, without: Collection[int] = ()
) -> list[dict[str, Any]]:
    """The trainable parameters, in the model's order, in one group for each learning rate and weight decay.

    A group's `lr_scale` is its share of the schedule's learning rate; see `set_learning_rate`.

    Args:
        config: the recipe's `optim` section.
        model: where it has stages, they share out the learning rate by `layer_decay`.
        without: ids of parameters to leave out.
    """
    stages = [model.stage(name) for name in model.stage_names] if isinstance(model, StagedModel) else [model]
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for number, stage in enumerate(stages):
        scale = config.layer_decay ** (len(stages) - 1 - number)
        for parameter in stage.parameters():
            if not parameter.requires_grad or id(parameter) in without:
                continue
            decays = config.decay_norms_and_biases or parameter.ndim > 1
            fresh = {"params": [], "lr_scale": scale, "weight_decay": config.weight_decay if decays else 0.0}
            groups.setdefault((scale, decays), fresh)["params"].append(parameter)
    return list(groups.values())


def add_thawed(optimizer: torch.optim.Optimizer, config: OptimConfig, model: torch.nn.Module) -> None:
    """Add the trainable parameters that the optimiser does not hold, as new groups; what it holds stays as it is.

    A state that was saved after a thaw loads into an optimiser that has been through the same thaws.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for group in parameter_groups(config, model, without=held):
        optimizer.add_param_group(group)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of the schedule's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
