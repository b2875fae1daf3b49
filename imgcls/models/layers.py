"""Layers that a recipe chooses by name, shared by our own networks: activation, norm, attention, initial weights."""

import math
from typing import Literal

import torch
from torch import nn

from imgcls.models.family import ModelConfig

Activation = Literal["relu", "gelu", "silu", "mish", "leaky_relu"]
Norm = Literal["batch", "group", "layer", "none"]
Attention = Literal["none", "se", "eca", "cbam"]
Init = Literal["default", "kaiming", "xavier", "orthogonal"]


class LayersConfig(ModelConfig):
    """The fields that our own networks share."""

    activation: Activation = "relu"
    """The nonlinearity."""
    norm: Norm = "batch"
    """Normalisation: over the batch, over groups of channels or all channels of an image (`layer`), or none."""
    attention: Attention = "none"
    """Gates on the features: squeeze-and-excitation, efficient channel attention, or CBAM (channels and places)."""
    init: Init = "default"
    """Initial weights: torch's default (He, uniform, small), He normal, Glorot uniform, or orthogonal."""


def activation(name: Activation, *, inplace: bool = False) -> nn.Module:
    """The nonlinearity of that name.

    Args:
        name: GELU is Hendrycks and Gimpel 2016 (arXiv:1606.08415), SiLU Elfwing et al. 2017 (arXiv:1702.03118), Mish
            Misra 2019 (arXiv:1908.08681); the leaky ReLU's slope is 0.01.
        inplace: overwrite the input where the backward pass can do without it; only for an input that is read by
            nothing else.
    """
    if name == "relu":
        return nn.ReLU(inplace=inplace)
    if name == "leaky_relu":
        return nn.LeakyReLU(0.01, inplace=inplace)
    smooth: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU, "mish": nn.Mish}
    return smooth[name]()


def norm(name: Norm, channels: int) -> nn.Module:
    """The normalisation of (B, channels, H, W) features.

    `group` is Wu and He 2018 (arXiv:1803.08494) with at most 32 groups of at least 8 channels each; `layer` is their
    case of one group, which is Ba et al. 2016 (arXiv:1607.06450) over channels and places; `none` passes its input on.
    """
    if name == "batch":
        return nn.BatchNorm2d(channels)
    if name == "group":
        return nn.GroupNorm(_num_groups(channels), channels)
    if name == "layer":
        return nn.GroupNorm(1, channels)
    return nn.Identity()


def _num_groups(channels: int) -> int:
    return max(n for n in range(1, 33) if n == 1 or (channels % n == 0 and channels // n >= 8))


def attention(name: Attention, channels: int) -> nn.Module:
    """The gate on (B, channels, H, W) features; the output has the same shape.

    `se` is Hu et al. 2018 (arXiv:1709.01507), `eca` Wang et al. 2020 (arXiv:1910.03151), `cbam` Woo et al. 2018
    (arXiv:1807.06521); `none` passes its input on.
    """
    if name == "se":
        from torchvision.ops import SqueezeExcitation

        gate: nn.Module = SqueezeExcitation(channels, _squeezed(channels))
        return gate
    if name == "eca":
        return EfficientChannelAttention(channels)
    if name == "cbam":
        return ConvBlockAttention(channels)
    return nn.Identity()


def _squeezed(channels: int) -> int:
    """The papers' sixteenth, but never so few units that they may all be silent."""
    return max(8, channels // 16)


class EfficientChannelAttention(nn.Module):
    """Wang et al. 2020: each channel's gate from the means of its neighbours among the channels.

    Args:
        channels: of the features; the kernel's size grows with its logarithm (their equation 12, γ = 2, b = 1).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        size = int((math.log2(channels) + 1) / 2)
        size += 1 - size % 2
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) features to gated ones."""
        means = features.mean((2, 3)).unsqueeze(1)
        gates: torch.Tensor = self.conv(means).sigmoid().squeeze(1)
        return features * gates[:, :, None, None]


class ConvBlockAttention(nn.Module):
    """Woo et al. 2018: a gate for each channel, then one for each place.

    Args:
        channels: of the features.
        kernel_size: pixels on each side of the convolution that makes the places' gates; 7 in the paper.
    """

    def __init__(self, channels: int, kernel_size: int = 7) -> None:
        super().__init__()
        hidden = _squeezed(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels))
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) features to gated ones."""
        gates = (self.mlp(features.mean((2, 3))) + self.mlp(features.amax((2, 3)))).sigmoid()
        features = features * gates[:, :, None, None]
        places = torch.cat([features.mean(1, keepdim=True), features.amax(1, keepdim=True)], dim=1)
        gated: torch.Tensor = features * self.conv(places).sigmoid()
        return gated


def initialise(model: nn.Module, config: LayersConfig) -> None:
    """Draw the weights of every convolution and linear layer anew as `config.init` says; biases become zero.

    `kaiming` is He et al. 2015 (arXiv:1502.01852) by the inputs, `xavier` Glorot and Bengio 2010, `orthogonal` Saxe et
    al. 2013 (arXiv:1312.6120); `default` leaves everything as it is. Each group of a grouped convolution is drawn on
    its own: a depthwise one would else pass for a layer with as many inputs to an output as there are channels.
    """
    if config.init == "default":
        return
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            groups = 1 if isinstance(module, nn.Linear) else module.groups
            for weight in module.weight.detach().chunk(groups):
                _draw(weight, config.init, config.activation)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _draw(weight: torch.Tensor, init: Init, name: Activation) -> None:
    # torch knows no gain for GELU, SiLU and Mish, which are close to ReLU's.
    nonlinearity: Literal["relu", "leaky_relu"] = "leaky_relu" if name == "leaky_relu" else "relu"
    gain = nn.init.calculate_gain(nonlinearity)
    if init == "kaiming":
        nn.init.kaiming_normal_(weight, a=0.01, nonlinearity=nonlinearity)
    elif init == "xavier":
        nn.init.xavier_uniform_(weight, gain)
    else:
        nn.init.orthogonal_(weight, gain)
