"""Optimisers and learning-rate schedules by name."""

import math
from collections.abc import Callable, Iterable
from typing import Self

import torch
from pydantic import Field, field_validator, model_validator

from imgcls.plugins import Registry
from imgcls.sections import Section

Parameters = Iterable[torch.nn.Parameter]

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
    parameters = [p for p in model.parameters() if p.requires_grad]
    return OPTIMIZERS.get(config.optimizer)(parameters, config)
