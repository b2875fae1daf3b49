"""A wide residual network with dropout and attention, sized for thousands of classes of small images."""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from imgcls.models.family import FAMILIES, Family, StagedModel
from imgcls.models.layers import Attention, LayersConfig, activation, attention, initialise, norm

NUM_GROUPS = 4


class WideCNNConfig(LayersConfig):
    """The fields of `family: widecnn`."""

    family: Literal["widecnn"] = "widecnn"
    """A wide residual network with attention; the defaults suit about 1,500 classes at 64 to 96 pixels."""
    attention: Attention = "se"
    """Gates at the end of each residual branch: squeeze-and-excitation, efficient channel attention, CBAM or none."""
    width: int = Field(40, ge=1, le=512)
    """Channels of the first of four groups of residual blocks; each later group has twice as many."""
    depth: int = Field(2, ge=1, le=16)
    """Residual blocks, of two convolutions each, in a group."""
    stem_stride: Literal[1, 2] = 2
    """2 halves the sides before the first group; 1 suits images of 32 pixels or fewer, at four times the work."""
    block_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of the values set to zero between a residual block's convolutions in training."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Share of the features set to zero before the head in training."""


def build_widecnn(config: WideCNNConfig, *, num_classes: int, in_channels: int, image_size: int) -> StagedModel:  # noqa: ARG001
    """Zagoruyko and Komodakis's wide residual network (2016, arXiv:1605.07146) of four groups.

    The blocks normalise and activate before each convolution (He et al. 2016, arXiv:1603.05027); each residual branch
    ends in an attention gate (Hu et al. 2018, arXiv:1709.01507, unless another is chosen).
    """
    stages: dict[str, nn.Module] = {
        "stem": nn.Conv2d(in_channels, config.width, 3, config.stem_stride, padding=1, bias=config.norm == "none")
    }
    before = config.width
    for number in range(1, NUM_GROUPS + 1):
        width = config.width * 2 ** (number - 1)
        blocks = [_WideBlock(before, width, 1 if number == 1 else 2, config)]
        blocks += [_WideBlock(width, width, 1, config) for _ in range(config.depth - 1)]
        # The sum of the last block has been neither normalised nor activated.
        end = [norm(config.norm, width), activation(config.activation)] if number == NUM_GROUPS else []
        stages[f"group{number}"] = nn.Sequential(*blocks, *end)
        before = width
    model = StagedModel(
        stages,
        pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        head=nn.Sequential(nn.Dropout(config.dropout), nn.Linear(before, num_classes)),
        num_features=before,
        cam_stage=f"group{NUM_GROUPS}",
        min_image_size=config.stem_stride * 2 ** (NUM_GROUPS - 1),  # one pixel at the end that is none of the padding's
    )
    initialise(model, config)
    return model


class _WideBlock(nn.Module):
    """Norm, activation, convolution, and the same again after a dropout, gated and added to the input.

    Args:
        before: channels of the input.
        width: channels of the output.
        stride: of the first convolution.
        config: the family's fields.
    """

    def __init__(self, before: int, width: int, stride: int, config: WideCNNConfig) -> None:
        super().__init__()
        bias = config.norm == "none"
        # Not in place: without a norm, the activation's input is the block's.
        self.before = nn.Sequential(norm(config.norm, before), activation(config.activation))
        self.branch = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, padding=1, bias=bias),
            norm(config.norm, width),
            activation(config.activation, inplace=True),
            nn.Dropout(config.block_dropout),
            nn.Conv2d(width, width, 3, padding=1, bias=bias),
            attention(config.attention, width),
        )
        self.shortcut = None
        if stride != 1 or before != width:
            self.shortcut = nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, before, h, w) features to (B, width, h / stride, w / stride)."""
        activated = self.before(features)
        branch: torch.Tensor = self.branch(activated)
        return branch + (features if self.shortcut is None else self.shortcut(activated))


FAMILIES.register("widecnn")(Family(WideCNNConfig, build_widecnn))
