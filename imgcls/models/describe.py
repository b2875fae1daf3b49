"""What a network costs and sees, stage by stage: output shapes, parameters, multiply-accumulates, receptive field."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from imgcls.errors import UserError
from imgcls.models.family import ModelConfig, StagedModel

GLOBAL = "global"
WIDTHS, HEIGHTS = (32, 128, 512), (2, 16, 128)
"""Pixels of the strips that a stage is probed with, the first at which it shows its receptive field."""

Tensors = dict[str, torch.Tensor]


def describe(model: StagedModel, *, image_size: int, in_channels: int) -> pd.DataFrame:
    """A row a stage, from input to head, for one image.

    The columns are stage, output (such as 64x12x12), parameters, trainable, macs and receptive_field. macs are the
    multiply-accumulates of convolutions and matrix products, attention's included, as torch's flop counter has them;
    biases, normalisations, activations and poolings count nothing. receptive_field is that of `receptive_fields`, in
    pixels, or "global".

    Nothing is computed with the model's weights, which may be on any device, meta too; no random number is drawn.

    Args:
        model: comes back as it was.
        image_size: pixels on each side of the image.
        in_channels: 1 or 3.
    """
    was_training = model.training
    model.eval()
    try:
        fields = receptive_fields(model, in_channels=in_channels)
        rows, shape = [], torch.Size((1, in_channels, image_size, image_size))
        for name in model.stage_names:
            macs, shape = _cost(model, name, shape)
            parameters = list(model.stage(name).parameters())
            rows.append(
                {
                    "stage": name,
                    "output": "x".join(map(str, shape[1:])),
                    "parameters": sum(p.numel() for p in parameters),
                    "trainable": sum(p.numel() for p in parameters if p.requires_grad),
                    "macs": macs,
                    "receptive_field": fields[name] or GLOBAL,
                }
            )
    finally:
        model.train(was_training)
    return pd.DataFrame(rows)


def size_mb(model: nn.Module) -> float:
    """Megabytes (10^6 bytes) of the weights and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6


def check_contracts(config: ModelConfig, table: pd.DataFrame, *, image_size: int) -> None:
    """Hold a network against the limits of the recipe.

    Args:
        config: the recipe's `model` section.
        table: what `describe` says of the network.
        image_size: what it was described at, in pixels.

    Raises:
        UserError: it breaks one or more of them; the message gives each figure found.
    """
    found = []
    parameters, macs = int(table["parameters"].sum()), int(table["macs"].sum())
    last = table.iloc[-2]
    if config.max_parameters is not None and parameters > config.max_parameters:
        found.append(f"model.max_parameters is {config.max_parameters:,}, but it has {parameters:,} parameters.")
    if config.max_macs is not None and macs > config.max_macs:
        found.append(f"model.max_macs is {config.max_macs:,}, but it takes {macs:,} at {image_size} pixels.")
    wanted, field = config.min_receptive_field, last["receptive_field"]
    if wanted is not None and field != GLOBAL and field < wanted:
        found.append(f"model.min_receptive_field is {wanted:,}, but its {last['stage']} sees {field:,} pixels.")
    if found:
        raise UserError(
            f"this {config.family} breaks the recipe's contract: {' '.join(found)} Change the network's fields, take "
            "another family, or change the limit."
        )


def receptive_fields(model: StagedModel, *, in_channels: int) -> dict[str, int | None]:
    """stage -> side in pixels of the square that one position of its output depends on; None for the whole image.

    Found by experiment, whatever the stage is made of: columns of its input are made not-a-number, and which columns of
    its output turn so too tells how far it looks; the stages' fields are then put together. It is the theoretical
    field, which may be larger than an image; where it is no square, its shorter side. What a global average or a group
    norm inside a stage brings in (the gates of squeeze-and-excitation) is held constant, as is usual when fields are
    quoted.
    A stage whose output has no rows and columns, such as a transformer's tokens, counts as seeing everything, as does
    one that looks further than 256 positions of its own input or takes inputs of one size only.

    Args:
        model: in evaluation mode.
        in_channels: 1 or 3.
    """
    fields: dict[str, int | None] = {}
    sides: list[tuple[Fraction, Fraction]] | None = [(Fraction(1), Fraction(1))] * 2  # width and stride, by axis
    channels = in_channels
    for name, stage in model.stages.items():
        local = None if sides is None else _local_fields(stage, channels)
        if sides is None or local is None:
            sides = None
        else:
            channels = local[0].channels
            sides = [
                (width + (side.field - 1) * stride, stride * side.stride)
                for (width, stride), side in zip(sides, local, strict=True)
            ]
        fields[name] = None if sides is None else int(min(width for width, _ in sides))
    return {**fields, model.stage_names[-1]: None}


class _Side(NamedTuple):
    """What a stage does along one axis of its own input."""

    field: int
    stride: Fraction
    channels: int


def _local_fields(stage: nn.Module, channels: int) -> tuple[_Side, _Side] | None:
    tensors = _tensors(stage, "cpu"), _tensors(stage, "meta")
    for height in HEIGHTS:
        for width in WIDTHS:
            try:
                rows, columns = (_local_field(stage, *tensors, channels, axis, width, height) for axis in (2, 3))
            except (RuntimeError, ValueError, AssertionError):  # too low for the stage, or not its size at all
                break
            if rows is not None and columns is not None:
                return rows, columns
        else:
            return None  # no taller, for what looks everywhere takes the square of the positions
    return None


def _local_field(
    stage: nn.Module, zeros: Tensors, shapes: Tensors, channels: int, axis: int, width: int, height: int
) -> _Side | None:
    """What the stage does along an axis, or None where this width does not show its field's ends."""
    middle = width // 2

    def strips(count: int, length: int, device: str) -> torch.Tensor:
        shape = (count, channels, length, height) if axis == 2 else (count, channels, height, length)
        return torch.zeros(shape, device=device)

    def reached(start: int) -> list[list[int]]:
        """Output positions that depend on columns `start` on, on those from the next on; the same from the far end."""
        inputs = strips(4, width, "cpu")
        by_column = inputs.movedim(axis, 1)
        for number in range(2):
            by_column[number, start + number :] = torch.nan
            by_column[2 + number, : width - start - number] = torch.nan
        with _Dependence():
            outputs = _call(stage, zeros, inputs)
        found: list[list[int]] = [
            hit.nonzero().flatten().tolist() for hit in outputs.isnan().movedim(axis, 1).flatten(2).any(2)
        ]
        return found

    def furthest(side: int, position: int) -> int:
        """The last start from which on the position depends on columns; of the far end where `side` is 2."""
        column = middle
        while position in (found := seen.setdefault(column, reached(column)))[side + 1]:
            column += 1
        assert position in found[side]
        return column

    doubled = _call(stage, shapes, strips(1, 2 * width, "meta"))
    length = _call(stage, shapes, strips(1, width, "meta")).shape[axis] if doubled.ndim == 4 else 0
    if doubled.ndim != 4 or doubled.shape[axis] == length:
        return None
    seen = {middle: reached(middle)}
    right, _, left, _ = seen[middle]
    if not right or not left or right[0] == 0 or left[-1] == length - 1:
        return None
    stride = Fraction(width, doubled.shape[axis] - length)
    last, first = furthest(0, right[0]), width - 1 - furthest(2, left[-1])
    return _Side(int(last - first + 1 - stride * (right[0] - left[-1])), stride, doubled.shape[1])


def _cost(model: StagedModel, name: str, shape: torch.Size) -> tuple[int, torch.Size]:
    """(multiply-accumulates, output shape) of a stage for an input of this shape."""
    inputs = torch.zeros(shape, device="meta")
    # Fused attention is one operation that the counter may not know.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        if name == model.stage_names[-1]:
            inputs = _call(model.pool, _tensors(model.pool, "meta"), inputs)
        outputs = _call(model.stage(name), _tensors(model.stage(name), "meta"), inputs)
    return counter.get_total_flops() // 2, outputs.shape


def _tensors(module: nn.Module, device: str) -> Tensors:
    """Zeros for a module's weights and buffers; whole numbers, such as indices, are kept where they can be."""

    def stand_in(tensor: torch.Tensor) -> torch.Tensor:
        if device == "cpu" and not tensor.is_floating_point() and not tensor.is_meta:
            return tensor.cpu()
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)

    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: stand_in(tensor) for name, tensor in named}


@torch.no_grad()
def _call(module: nn.Module, tensors: Tensors, inputs: torch.Tensor) -> torch.Tensor:
    with torch.device(inputs.device):  # for what a forward pass makes of its own
        outputs: torch.Tensor = functional_call(module, tensors, (inputs,))
    return outputs


class _Dependence(TorchFunctionMode):
    """Computes only what not-a-number comes from: each output of a dense layer depends on all channels alike, and
    averages over a whole image are held constant."""

    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.conv2d:
            return _conv2d(*args, **kwargs)
        if func is F.linear:
            return _linear(*args, **kwargs)
        if func in (F.group_norm, F.instance_norm):
            return args[0].clone()
        outputs = func(*args, **kwargs)
        if func is F.adaptive_avg_pool2d:
            over_all = tuple(outputs.shape[2:]) == (1, 1)
        elif func in (torch.mean, torch.Tensor.mean, torch.norm, torch.Tensor.norm):
            dims = kwargs.get("dim", args[-1] if len(args) > 1 else None)
            over_all = isinstance(dims, list | tuple) and len(dims) == 2
        else:
            return outputs
        return torch.nan_to_num(outputs) if over_all else outputs


def _conv2d(
    inputs: torch.Tensor, weight: torch.Tensor, _bias: torch.Tensor | None = None, *args: Any, **kwargs: Any
) -> torch.Tensor:
    kwargs.pop("bias", None)
    if (args[3] if len(args) > 3 else kwargs.get("groups", 1)) != 1:
        return F.conv2d(inputs, weight, None, *args, **kwargs)
    outputs = F.conv2d(inputs.sum(1, keepdim=True), weight[:1, :1], None, *args, **kwargs)
    return outputs.expand(-1, len(weight), -1, -1).contiguous()


def _linear(inputs: torch.Tensor, weight: torch.Tensor, _bias: torch.Tensor | None = None) -> torch.Tensor:
    outputs = inputs.sum(-1, keepdim=True)
    return outputs.expand(*outputs.shape[:-1], len(weight)).contiguous()
