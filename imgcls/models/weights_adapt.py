"""Trained tensors in another shape: for another number of input channels, and for another image size."""

import math
from collections import OrderedDict
from collections.abc import Callable

import torch

Adapted = tuple[torch.Tensor, str]
"""A tensor in the network's own shape, and how it came to it."""


def adapt(name: str, given: torch.Tensor, own: torch.Tensor, *, first: bool) -> Adapted | None:
    """A trained tensor in the shape of the network's own; None where there is no well-known way.

    A first convolution's colour channels are summed for grey images, which a colour image of three equal channels gives
    too; a grey one's weights are spread over three channels. What a transformer learned of positions is interpolated
    (bicubic; Dosovitskiy et al. 2021, arXiv:2010.11929).

    Args:
        name: torchvision's name of the tensor.
        given: the trained tensor.
        own: the network's.
        first: it belongs to the network's first convolution.
    """
    rules: dict[str, Callable[[torch.Tensor, torch.Tensor], Adapted | None]] = {
        "pos_embedding": _positions,
        "relative_position_bias_table": _relative_positions,
        "relative_position_index": lambda _given, own: (own, "counted anew for this image size"),
    }
    rule = rules.get(name.rpartition(".")[2])
    if rule is not None:
        return rule(given, own)
    return _channels(given, own) if first else None


def _channels(given: torch.Tensor, own: torch.Tensor) -> Adapted | None:
    if given.ndim != 4 or given.shape[0] != own.shape[0] or given.shape[2:] != own.shape[2:]:
        return None
    if (given.shape[1], own.shape[1]) == (3, 1):
        return given.float().sum(1, keepdim=True), "3 input channels summed into 1"
    if (given.shape[1], own.shape[1]) == (1, 3):
        return given.float().repeat(1, 3, 1, 1) / 3, "1 input channel spread over 3"
    return None


def _positions(given: torch.Tensor, own: torch.Tensor) -> Adapted | None:
    """Embeddings (1, 1 + grid², width) of a class token and a square of patches."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    if given.ndim != 3 or given.shape[0] != 1 or given.shape[2] != own.shape[2]:
        return None
    grids = [math.isqrt(tensor.shape[1] - 1) for tensor in (given, own)]
    if grids[0] ** 2 != given.shape[1] - 1:
        return None
    name = "encoder.pos_embedding"
    resized = interpolate_embeddings(grids[1], 1, OrderedDict({name: given.float()}), interpolation_mode="bicubic")
    return resized[name], f"positions of a {grids[0]}x{grids[0]} grid interpolated"


def _relative_positions(given: torch.Tensor, own: torch.Tensor) -> Adapted | None:
    """Biases ((2 w - 1)², heads) of the distances inside a window of w by w."""
    if given.ndim != 2 or given.shape[1] != own.shape[1]:
        return None
    sides = [math.isqrt(tensor.shape[0]) for tensor in (given, own)]
    if sides[0] ** 2 != given.shape[0]:
        return None
    square = given.float().T.reshape(1, given.shape[1], sides[0], sides[0])
    resized = torch.nn.functional.interpolate(square, size=sides[1], mode="bicubic", align_corners=True)
    window = (sides[0] + 1) // 2
    return resized[0].flatten(1).T.contiguous(), f"positions in a {window}x{window} window interpolated"
