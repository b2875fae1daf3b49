"""A plain convolutional network: blocks of convolutions and a pooling, then a linear head or a hidden layer and one."""

from typing import Literal

from pydantic import Field
from torch import nn

from imgcls.models.family import FAMILIES, Family, StagedModel
from imgcls.models.layers import LayersConfig, activation, attention, initialise, norm


class PlainCNNConfig(LayersConfig):
    """The fields of `family: plaincnn`."""

    family: Literal["plaincnn"] = "plaincnn"
    """A plain convolutional network."""
    num_blocks: int = Field(3, ge=1, le=8)
    """Blocks of convolutions; each but the last halves the image's sides."""
    convs_per_block: int = Field(2, ge=1, le=4)
    """Convolutions in a block; the network has `num_blocks` times as many."""
    channels: int = Field(32, ge=1, le=2048)
    """Channels of the first block."""
    growth: Literal["same", "double", "halve"] = "double"
    """Channels of each later block: as many, twice as many up to 512 (or the first's), or half as many, at least 1."""
    kernel_size: Literal[1, 3, 5, 7, 9, 11] = 3
    """Pixels on each side of a convolution's kernel."""
    dense_width: int = Field(0, ge=0, le=65_536)
    """Units of a hidden layer between the pooled features and the classes; 0 leaves it out."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Share of the last layer's inputs set to zero in training."""


def build_plaincnn(config: PlainCNNConfig, *, num_classes: int, in_channels: int, image_size: int) -> StagedModel:  # noqa: ARG001
    """Simonyan and Zisserman's (2014, arXiv:1409.1556) pattern with batch norm and global average pooling."""
    stages: dict[str, nn.Module] = {}
    before, width = in_channels, config.channels
    for number in range(1, config.num_blocks + 1):
        last = number == config.num_blocks
        stages[f"block{number}"] = _block(before, width, config, pool=not last)
        before, width = width, _next_width(width, config)
    model = StagedModel(
        stages,
        pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        head=_head(before, num_classes, config),
        num_features=before,
        cam_stage=f"block{config.num_blocks}",
        min_image_size=2 ** (config.num_blocks - 1),
    )
    initialise(model, config)
    return model


def _next_width(width: int, config: PlainCNNConfig) -> int:
    if config.growth == "double":
        return max(config.channels, min(512, width * 2))
    return width if config.growth == "same" else max(1, width // 2)


def _block(before: int, width: int, config: PlainCNNConfig, *, pool: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(config.convs_per_block):
        layers += [
            nn.Conv2d(
                before if number == 0 else width,
                width,
                config.kernel_size,
                padding=config.kernel_size // 2,
                bias=config.norm == "none",
            ),
            norm(config.norm, width),
            activation(config.activation, inplace=True),
        ]
    layers.append(attention(config.attention, width))
    return nn.Sequential(*layers, nn.MaxPool2d(2)) if pool else nn.Sequential(*layers)


def _head(before: int, num_classes: int, config: PlainCNNConfig) -> nn.Sequential:
    hidden: list[nn.Module] = []
    if config.dense_width:
        hidden = [nn.Linear(before, config.dense_width), activation(config.activation, inplace=True)]
    last = nn.Linear(config.dense_width or before, num_classes)
    return nn.Sequential(*hidden, nn.Dropout(config.dropout), last)


FAMILIES.register("plaincnn")(Family(PlainCNNConfig, build_plaincnn))
