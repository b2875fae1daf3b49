"""torchvision's networks cut into stages, a pooling and a head: the same modules, run in the same order."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Parts:
    """What a StagedModel is made of; see there.

    Attributes:
        stages: name -> module, in order.
        head: without the dropout that stands before its last layer.
        num_features: width of the features.
        cam_stage: the stage for class-activation maps.
        min_image_size: pixels.
        pool: global average pooling where none is named.
        to_map: from the output of `cam_stage` to a map.
        dropout: share of the features that the architecture itself drops before the head's last layer.
    """

    stages: dict[str, nn.Module]
    head: list[nn.Module]
    num_features: int
    cam_stage: str
    min_image_size: int = 32
    pool: nn.Module | None = None
    to_map: Callable[[torch.Tensor], torch.Tensor] | None = None
    dropout: float = 0.0


class PatchTokens(nn.Module):
    """Images (B, C, H, W) to a class token and the patches' tokens with their positions, (B, 1 + h * w, D).

    The first step of a Vision Transformer (Dosovitskiy et al. 2020, arXiv:2010.11929).
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.conv_proj = net.conv_proj
        self.class_token = net.class_token
        self.pos_embedding = net.encoder.pos_embedding
        self.dropout = net.encoder.dropout

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """One token a patch, the class token first."""
        patches = self.conv_proj(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        placed: torch.Tensor = self.dropout(tokens + self.pos_embedding)
        return placed


class FirstToken(nn.Module):
    """Tokens (B, N, D) to the class token (B, D)."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """The first of each."""
        return tokens[:, 0]


def tokens_to_map(tokens: torch.Tensor) -> torch.Tensor:
    """A class token and h * h patches' tokens (B, 1 + h * h, D) to (B, D, h, h)."""
    side = isqrt(tokens.shape[1] - 1)
    return tokens[:, 1:].transpose(1, 2).reshape(-1, tokens.shape[2], side, side)


def resnet(net: Any) -> Parts:
    """He et al. (2015), arXiv:1512.03385, and its wide and grouped forms."""
    # The small-image form has no max-pooling, and so a quarter of the stride.
    small = isinstance(net.maxpool, nn.Identity)
    stem = [net.conv1, net.bn1, net.relu] if small else [net.conv1, net.bn1, net.relu, net.maxpool]
    stages = {"stem": nn.Sequential(*stem), **{f"layer{k}": getattr(net, f"layer{k}") for k in range(1, 5)}}
    return Parts(stages, [net.fc], net.fc.in_features, "layer4", min_image_size=8 if small else 32)


def efficientnet(net: Any) -> Parts:
    """Tan and Le (2019, arXiv:1905.11946; 2021, arXiv:2104.00298): stem, stage1 …, last."""
    drop, linear = net.classifier
    return Parts(_features(net, "stage"), [linear], linear.in_features, "last", dropout=drop.p)


def mobilenet(net: Any) -> Parts:
    """Sandler et al. (2018), arXiv:1801.04381, and Howard et al. (2019), arXiv:1905.02244: stem, block1 …, last."""
    dropout = next(module.p for module in net.classifier if isinstance(module, nn.Dropout))
    head = [module for module in net.classifier if not isinstance(module, nn.Dropout)]
    return Parts(_features(net, "block"), head, head[0].in_features, "last", dropout=dropout)


def vit(net: Any) -> Parts:
    """Dosovitskiy et al. (2020), arXiv:2010.11929: patches, block1 …, norm.

    The last block's patch tokens do not reach the class token any more: the map is that of the block before.
    """
    blocks = list(net.encoder.layers)
    stages: dict[str, nn.Module] = {"patches": PatchTokens(net)}
    stages |= {f"block{k}": block for k, block in enumerate(blocks, start=1)}
    return Parts(
        {**stages, "norm": net.encoder.ln},
        [net.heads.head],
        net.hidden_dim,
        f"block{len(blocks) - 1}",
        min_image_size=net.patch_size,
        pool=FirstToken(),
        to_map=tokens_to_map,
    )


def swin(net: Any) -> Parts:
    """Liu et al. (2021, arXiv:2103.14030; 2022, arXiv:2111.09883): patches, stage1 … stage4, norm."""
    stages = _merged(net, "patches")
    return Parts({**stages, "norm": nn.Sequential(net.norm, net.permute)}, [net.head], net.head.in_features, "norm")


def convnext(net: Any) -> Parts:
    """Liu et al. (2022), arXiv:2201.03545: stem, stage1 … stage4; the head is a norm and a linear layer."""
    norm2d, _, linear = net.classifier
    # torchvision's norm wants a map of 1 × 1; the same norm of the pooled vector.
    norm = nn.LayerNorm(norm2d.normalized_shape, eps=norm2d.eps)
    norm.weight, norm.bias = norm2d.weight, norm2d.bias
    return Parts(_merged(net, "stem"), [norm, linear], linear.in_features, "stage4")


def regnet(net: Any) -> Parts:
    """Radosavovic et al. (2020), arXiv:2003.13678: stem, block1 … block4."""
    stages = {"stem": net.stem, **dict(net.trunk_output.named_children())}
    return Parts(stages, [net.fc], net.fc.in_features, "block4")


def densenet(net: Any) -> Parts:
    """Huang et al. (2016), arXiv:1608.06993: stem, block1 … block4, each but the last with its transition."""
    layers = dict(net.features.named_children())
    stem = [layers.pop(name) for name in ("conv0", "norm0", "relu0", "pool0")]
    stages: dict[str, nn.Module] = {"stem": nn.Sequential(*stem)}
    for k in (1, 2, 3):
        stages[f"block{k}"] = nn.Sequential(layers.pop(f"denseblock{k}"), layers.pop(f"transition{k}"))
    stages["block4"] = nn.Sequential(layers.pop("denseblock4"), layers.pop("norm5"), nn.ReLU(inplace=True))
    assert not layers
    return Parts(stages, [net.classifier], net.classifier.in_features, "block4")


def shufflenet(net: Any) -> Parts:
    """Ma et al. (2018), arXiv:1807.11164: stem, stage2 … stage4, last."""
    stages = {"stem": nn.Sequential(net.conv1, net.maxpool), "stage2": net.stage2, "stage3": net.stage3}
    return Parts({**stages, "stage4": net.stage4, "last": net.conv5}, [net.fc], net.fc.in_features, "last")


def squeezenet(net: Any) -> Parts:
    """Iandola et al. (2016), arXiv:1602.07360: stem, fires1 … fires3. Its head scores each place, then pools."""
    drop, conv, *rest = net.classifier
    layers = list(net.features)
    ends = [0, *(k + 1 for k, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)), len(layers)]
    names = ["stem", *(f"fires{k}" for k in range(1, len(ends) - 1))]
    stages: dict[str, nn.Module] = {
        name: nn.Sequential(*layers[start:end]) for name, (start, end) in zip(names, pairwise(ends), strict=True)
    }
    # Without padding, the smallest image is the one that leaves a pixel for every pooling: 1.0 has a 7 × 7 stem.
    least = 21 if layers[0].kernel_size == (7, 7) else 17
    head: list[nn.Module] = [nn.Sequential(conv, *rest, nn.Flatten())]
    return Parts(stages, head, conv.in_channels, names[-1], least, pool=nn.Identity(), dropout=drop.p)


def maxvit(net: Any) -> Parts:
    """Tu et al. (2022), arXiv:2204.01697: stem, block1 … block4."""
    _, _, norm, hidden, tanh, linear = net.classifier
    stages = {"stem": net.stem, **{f"block{k}": block for k, block in enumerate(net.blocks, start=1)}}
    return Parts(stages, [norm, hidden, tanh, linear], linear.in_features, "block4", min_image_size=64)


def _features(net: Any, word: str) -> dict[str, nn.Module]:
    """The modules of `net.features`, the first as `stem`, the last as `last`."""
    first, *middle, last = net.features
    return {"stem": first, **{f"{word}{k}": module for k, module in enumerate(middle, start=1)}, "last": last}


def _merged(net: Any, first: str) -> dict[str, nn.Module]:
    """Blocks and what halves the map before them, in pairs: `net.features` is first, blocks, (halving, blocks) × 3."""
    stem, blocks, *rest = net.features
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return {first: stem, "stage1": blocks, **{f"stage{k}": nn.Sequential(*pair) for k, pair in enumerate(pairs, 2)}}
