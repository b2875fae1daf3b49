"""A plain convolutional network: blocks of two convolutions and a pooling, then a linear head."""

from typing import Literal

from pydantic import Field
from torch import nn

from imgcls.models.family import FAMILIES, Family, ModelConfig, StagedModel


class PlainCNNConfig(ModelConfig):
    """The fields of `family: plaincnn`."""

    family: Literal["plaincnn"] = "plaincnn"
    """A plain convolutional network."""
    num_blocks: int = Field(3, ge=1, le=8)
    """Blocks of two convolutions; each but the last halves the image's sides."""
    channels: int = Field(32, ge=1, le=2048)
    """Channels of the first block; each later block has twice as many, 512 at most (or as many as the first)."""
    kernel_size: Literal[1, 3, 5, 7] = 3
    """Pixels on each side of a convolution's kernel."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Share of the features set to zero before the head in training."""


def build_plaincnn(config: PlainCNNConfig, *, num_classes: int, in_channels: int, image_size: int) -> StagedModel:  # noqa: ARG001
    """Simonyan and Zisserman's (2014, arXiv:1409.1556) pattern with batch norm and global average pooling."""
    stages: dict[str, nn.Module] = {}
    before, width = in_channels, config.channels
    for number in range(1, config.num_blocks + 1):
        last = number == config.num_blocks
        stages[f"block{number}"] = _block(before, width, config.kernel_size, pool=not last)
        before, width = width, max(config.channels, min(512, width * 2))
    return StagedModel(
        stages,
        pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        head=nn.Sequential(nn.Dropout(config.dropout), nn.Linear(before, num_classes)),
        num_features=before,
        cam_stage=f"block{config.num_blocks}",
        min_image_size=2 ** (config.num_blocks - 1),
    )


def _block(before: int, width: int, kernel_size: int, *, pool: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, width):
        layers += [
            nn.Conv2d(channels, width, kernel_size, padding=kernel_size // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, nn.MaxPool2d(2)) if pool else nn.Sequential(*layers)


FAMILIES.register("plaincnn")(Family(PlainCNNConfig, build_plaincnn))
