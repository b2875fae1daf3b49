"""QuizDNN: nine convolutions of one width, each fed with the sum of what came before it in its group."""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from imgcls.models.family import FAMILIES, Family, StagedModel
from imgcls.models.layers import LayersConfig, activation, attention, initialise, norm


class QuizDNNConfig(LayersConfig):
    """The fields of `family: quizdnn`."""

    family: Literal["quizdnn"] = "quizdnn"
    """A small network of densely summed convolutions, 299,018 parameters at 10 classes and 3 channels."""
    channels: int = Field(64, ge=1, le=1024)
    """Channels of every convolution."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the features set to zero before the head in training."""


def build_quizdnn(config: QuizDNNConfig, *, num_classes: int, in_channels: int, image_size: int) -> StagedModel:  # noqa: ARG001
    """The network of a quiz in The School of AI's course EVA: densely connected (Huang et al. 2017, arXiv:1608.06993)
    by addition instead of concatenation.

    With x1 the stem's output and f a convolution with ReLU and batch norm: x2 = f(x1), x3 = f(x1+x2),
    x4 = pool(x1+x2+x3); x5 = f(x4), x6 = f(x4+x5), x7 = f(x4+x5+x6), x8 = pool(x5+x6+x7); x9 = f(x8), x10 = f(x8+x9),
    x11 = f(x8+x9+x10), which is averaged over all places and classified.
    """
    width = config.channels
    model = StagedModel(
        {
            "stem": _unit(in_channels, config),
            "group1": nn.Sequential(_SummedGroup(2, config, output="all"), nn.MaxPool2d(2)),
            "group2": nn.Sequential(_SummedGroup(3, config, output="units"), nn.MaxPool2d(2)),
            "group3": _SummedGroup(3, config, output="last"),
        },
        pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        head=nn.Sequential(nn.Dropout(config.dropout), nn.Linear(width, num_classes)),
        num_features=width,
        cam_stage="group3",
        min_image_size=4,
    )
    initialise(model, config)
    return model


def _unit(before: int, config: QuizDNNConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, config.channels, 3, padding=1),
        activation(config.activation, inplace=True),
        norm(config.norm, config.channels),
        attention(config.attention, config.channels),
    )


class _SummedGroup(nn.Module):
    """Units that each take the sum of the group's input and of the units before.

    Args:
        num_units: units in the group.
        config: the family's fields.
        output: `all` sums the group's input and all units, `units` all units, `last` is the last unit alone.
    """

    def __init__(self, num_units: int, config: QuizDNNConfig, *, output: Literal["all", "units", "last"]) -> None:
        super().__init__()
        self.units = nn.Sequential(*(_unit(config.channels, config) for _ in range(num_units)))
        self._output = output

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, F, h, w) features to as many."""
        last: torch.Tensor = self.units[0](features)
        total = last
        for unit in self.units[1:]:
            last = unit(features + total)
            total = total + last
        if self._output == "last":
            return last
        return features + total if self._output == "all" else total


FAMILIES.register("quizdnn")(Family(QuizDNNConfig, build_quizdnn))
