"""A small network of depthwise-separable convolutions, with strides and dilation where others pool."""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from imgcls.models.family import FAMILIES, Family, StagedModel
from imgcls.models.layers import LayersConfig, activation, attention, initialise, norm

STRIDES = (1, 2, 2, 1)
"""Of the blocks' first units."""
WIDTHS = (1, 2, 4, 4)
"""Of the blocks, as multiples of the stem's."""


class SeparableConfig(LayersConfig):
    """The fields of `family: separable`."""

    family: Literal["separable"] = "separable"
    """Depthwise-separable and dilated convolutions; under 200,000 parameters by default."""
    width: int = Field(48, ge=1, le=1024)
    """Channels of the stem and the first block; the others have 2, 4 and 4 times as many."""
    depth: int = Field(2, ge=1, le=16)
    """Separable convolutions in each of the four blocks; the second and third block's first halve the sides."""
    dilation: int = Field(2, ge=1, le=8)
    """Pixels from tap to tap in the kernel of each block's last convolution that does not halve; 1 is a common one."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """Share of the channels set to zero after each block, and of the features before the head, in training."""


def build_separable(config: SeparableConfig, *, num_classes: int, in_channels: int, image_size: int) -> StagedModel:  # noqa: ARG001
    """Howard et al.'s MobileNet units (2017, arXiv:1704.04861) with He et al.'s shortcuts where shapes allow.

    Strides stand for pooling (Springenberg et al. 2014, arXiv:1412.6806), and dilation widens what an output sees (Yu
    and Koltun 2015, arXiv:1511.07122): 63 pixels with the default fields.
    """
    width = config.width
    stages: dict[str, nn.Module] = {
        "stem": nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=config.norm == "none"),
            norm(config.norm, width),
            activation(config.activation, inplace=True),
        )
    }
    before = width
    for number, (stride, multiple) in enumerate(zip(STRIDES, WIDTHS, strict=True), start=1):
        stages[f"block{number}"] = _block(before, width * multiple, stride, config)
        before = width * multiple
    model = StagedModel(
        stages,
        pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        head=nn.Sequential(nn.Dropout(config.dropout), nn.Linear(before, num_classes)),
        num_features=before,
        cam_stage=f"block{len(STRIDES)}",
        min_image_size=4,  # one pixel at the end that is none of the padding's
    )
    initialise(model, config)
    return model


def _block(before: int, width: int, stride: int, config: SeparableConfig) -> nn.Sequential:
    units: list[nn.Module] = []
    for number in range(config.depth):
        own_stride = stride if number == 0 else 1
        # A stride over a dilated kernel would leave three pixels in four unread.
        dilation = config.dilation if number == config.depth - 1 and own_stride == 1 else 1
        units.append(_SeparableUnit(before if number == 0 else width, width, own_stride, dilation, config))
    return nn.Sequential(*units, nn.Dropout2d(config.dropout))


class _SeparableUnit(nn.Module):
    """A 3x3 convolution in each channel, then a 1x1 convolution over the channels.

    Args:
        before: channels of the input.
        width: channels of the output.
        stride: of the depthwise convolution.
        dilation: of the depthwise convolution.
        config: the family's fields.
    """

    def __init__(self, before: int, width: int, stride: int, dilation: int, config: SeparableConfig) -> None:
        super().__init__()
        bias = config.norm == "none"
        self.layers = nn.Sequential(
            nn.Conv2d(before, before, 3, stride, padding=dilation, dilation=dilation, groups=before, bias=bias),
            norm(config.norm, before),
            activation(config.activation, inplace=True),
            nn.Conv2d(before, width, 1, bias=bias),
            norm(config.norm, width),
            activation(config.activation, inplace=True),
            attention(config.attention, width),
        )
        self._has_shortcut = stride == 1 and before == width

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, before, h, w) features to (B, width, h / stride, w / stride)."""
        outputs: torch.Tensor = self.layers(features)
        return features + outputs if self._has_shortcut else outputs


FAMILIES.register("separable")(Family(SeparableConfig, build_separable))
