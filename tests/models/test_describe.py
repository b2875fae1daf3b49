"""What a network costs and sees, against counting every multiplication and disturbing every pixel."""

import itertools
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import nn

from imgcls.errors import UserError
from imgcls.models.describe import GLOBAL, check_contracts, describe, receptive_fields, size_mb
from imgcls.models.family import ModelConfig, StagedModel, build
from imgcls.models.plaincnn import PlainCNNConfig, build_plaincnn
from imgcls.models.torchvision import ResNetConfig


class Residual(nn.Module):
    """Two 3x3 convolutions beside a strided 1x1."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(True), nn.Conv2d(6, 6, 3, padding=1)
        )
        self.skip = nn.Conv2d(4, 6, 1, stride=2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = self.branch(inputs) + self.skip(inputs)
        return total


class Gate(nn.Module):
    """Squeeze-and-excitation, which lets every position depend on all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        gated: torch.Tensor = inputs * self.fc(inputs.mean((2, 3), keepdim=True)).sigmoid()
        return gated


class ChannelsLast(nn.Module):
    """A ConvNeXt block: depthwise 7x7, then layer norm and a dense layer over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.dense = nn.Conv2d(4, 4, 7, padding=3, groups=4), nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = self.dense(self.norm(self.conv(inputs).permute(0, 2, 3, 1)))
        total: torch.Tensor = inputs + outputs.permute(0, 3, 1, 2)
        return total


class Attention(nn.Module):
    """Multi-head self-attention over all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        tokens = inputs.flatten(2).transpose(1, 2)
        mixed: torch.Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return mixed.transpose(1, 2).reshape(inputs.shape)


def network(stages: Mapping[str, nn.Module], width: int) -> StagedModel:
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    last = list(stages)[-1]
    head = nn.Linear(width, 5)
    return StagedModel(stages, pool=pool, head=head, num_features=width, cam_stage=last, min_image_size=1)


def strided() -> StagedModel:
    return network({"a": nn.Conv2d(3, 4, 5, stride=2), "b": nn.Conv2d(4, 4, 3, stride=3, padding=1)}, 4)


def dilated() -> StagedModel:
    first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=2, dilation=2), nn.ReLU())
    return network({"a": first, "b": nn.Conv2d(4, 4, 3, padding=5, dilation=5)}, 4)


def residual() -> StagedModel:
    return network({"stem": nn.Conv2d(3, 4, 3, padding=1), "block": Residual(), "last": nn.Conv2d(6, 6, 2)}, 6)


def pooled() -> StagedModel:
    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    return network({"a": first, "b": nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.AvgPool2d(4))}, 4)


def separable() -> StagedModel:
    block = [nn.Conv2d(4, 4, 5, padding=2, groups=4), nn.Hardswish(), nn.Conv2d(4, 8, 1), nn.GroupNorm(2, 8)]
    return network({"stem": nn.Conv2d(3, 4, 3, stride=2, padding=1), "block": nn.Sequential(*block)}, 8)


def channels_last() -> StagedModel:
    return network({"stem": nn.Conv2d(3, 4, 4, stride=4), "block": nn.Sequential(ChannelsLast(), ChannelsLast())}, 4)


def plaincnn() -> StagedModel:
    return build_plaincnn(PlainCNNConfig(num_blocks=3, channels=4), num_classes=5, in_channels=3, image_size=64)


def resnet18() -> StagedModel:
    return build(ResNetConfig(), num_classes=5, in_channels=3, image_size=64)


NETWORKS = [strided, dilated, residual, pooled, separable, channels_last, plaincnn, resnet18]
BUDGET = 55
"""Pixels; the fields of later stages, which disturbing every pixel would take minutes for, are looked up."""


@torch.no_grad()
def disturbed_columns(model: StagedModel, last: str, size: int, height: int) -> list[int]:
    """The columns of an image whose disturbing is seen at the middle of a stage's output."""
    for name, parameter in model.named_parameters():  # nothing cancels out, and no activation is at its flat side
        if name.endswith("weight"):
            parameter.copy_(torch.rand_like(parameter).add_(0.5) / parameter[0].numel())
        else:
            parameter.zero_()
    names = model.stage_names[: model.stage_names.index(last) + 1]
    # A group norm and a layer norm of like channels are as flat as can be: their centring is left out.
    part = nn.Sequential(*(model.stage(name) for name in names)).double().eval()
    for module in list(part.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm | nn.LayerNorm):
                setattr(module, name, nn.Identity())
    images = torch.ones(size + 1, 3, height, size, dtype=torch.float64)
    for column in range(size):
        images[column, :, :, column] += 100
    outputs = torch.cat([part(chunk) for chunk in torch.split(images, 40)])
    middle = outputs[..., outputs.shape[-1] // 2].flatten(1)
    differs: list[int] = (middle != middle[-1:]).any(1).nonzero().flatten().tolist()
    return differs


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_the_receptive_field_is_where_a_disturbed_pixel_is_seen(make: Callable[[], StagedModel]) -> None:
    torch.manual_seed(0)
    model = make()
    table = describe(model, image_size=64, in_channels=3).set_index("stage")
    checked = 0
    for name in model.stage_names[:-1]:
        field = table["receptive_field"][name]
        if field > BUDGET:
            continue
        columns = disturbed_columns(make(), name, size=field + 36, height=16)
        assert columns[-1] - columns[0] + 1 == field, name
        checked += 1
    assert checked >= 2
    assert table["receptive_field"]["head"] == GLOBAL


def macs_by_hand(model: StagedModel, size: int) -> dict[str, int]:
    """Every multiplication of a convolution's kernel and of a dense layer, by stage."""
    counts = dict.fromkeys(model.stage_names, 0)

    def add(stage: str) -> Callable[[nn.Module, object, torch.Tensor], None]:
        def hook(layer: nn.Module, _inputs: object, outputs: torch.Tensor) -> None:
            if isinstance(layer, nn.Conv2d):
                kernel = layer.kernel_size[0] * layer.kernel_size[1] * (layer.in_channels // layer.groups)
                counts[stage] += sum(kernel for _ in itertools.product(*map(range, outputs.shape)))
            elif isinstance(layer, nn.Linear):
                counts[stage] += layer.in_features * outputs.numel()

        return hook

    for name in model.stage_names:
        for layer in model.stage(name).modules():
            if not list(layer.children()):
                layer.register_forward_hook(add(name))
    model.eval()(torch.zeros(1, 3, size, size))
    return counts


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_the_macs_are_the_multiplications_counted_one_by_one(make: Callable[[], StagedModel]) -> None:
    table = describe(make(), image_size=40, in_channels=3)
    assert dict(zip(table["stage"], table["macs"], strict=True)) == macs_by_hand(make(), 40)


def test_resnet18_has_the_fields_that_are_published() -> None:
    fields = receptive_fields(resnet18().eval(), in_channels=3)
    # Araujo, Norris and Sim (2019), "Computing Receptive Fields of Convolutional Neural Networks", Distill.
    assert fields == {"stem": 11, "layer1": 43, "layer2": 99, "layer3": 211, "layer4": 435, "head": None}


def test_attention_sees_everything_and_its_products_count() -> None:
    model = network({"stem": nn.Conv2d(3, 4, 3, padding=1), "mix": Attention(), "last": nn.Conv2d(4, 4, 1)}, 4)
    table = describe(model, image_size=6, in_channels=3).set_index("stage")
    assert list(table["receptive_field"]) == [3, GLOBAL, GLOBAL, GLOBAL]
    tokens = 36
    projections = tokens * 4 * 4 * 4  # queries, keys, values, output
    assert table["macs"]["mix"] == projections + 2 * tokens * tokens * 4


@pytest.mark.parametrize(
    "average",
    [Gate(4), nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1)), nn.InstanceNorm2d(4)],
    ids=["gate", "group norm", "instance norm"],
)
def test_what_an_average_over_the_image_brings_in_is_held_constant(average: nn.Module) -> None:
    model = network({"a": nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), average)}, 4)
    assert receptive_fields(model.eval(), in_channels=3)["a"] == 3


def test_a_stage_that_ends_in_an_average_over_the_image_sees_everything() -> None:
    model = network({"a": nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)), "b": nn.Conv2d(4, 4, 1)}, 4)
    assert receptive_fields(model.eval(), in_channels=3) == {"a": None, "b": None, "head": None}


@pytest.mark.parametrize(("kernel", "field"), [((1, 7), 1), ((3, 5), 3), ((9, 2), 2)])
def test_of_a_field_that_is_no_square_the_shorter_side_counts(kernel: tuple[int, int], field: int) -> None:
    assert receptive_fields(network({"a": nn.Conv2d(3, 4, kernel)}, 4).eval(), in_channels=3)["a"] == field


def test_a_stage_that_needs_tall_images_is_seen_through() -> None:
    stage = nn.Sequential(nn.Conv2d(3, 4, 7), nn.MaxPool2d(4), nn.Conv2d(4, 4, 3))
    assert receptive_fields(network({"a": stage}, 4).eval(), in_channels=3)["a"] == 7 + 3 + 2 * 4


def test_a_description_needs_no_weights_and_leaves_the_model_and_the_generator_as_they_were() -> None:
    with torch.device("meta"):
        bare = plaincnn()
    model = plaincnn()
    model.freeze(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    table = describe(model, image_size=32, in_channels=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [stage.training for stage in model.stages.values()] == [False, True, True]
    assert list(table["trainable"]) == [0, *table["parameters"][1:]]
    columns = ["stage", "output", "parameters", "macs", "receptive_field"]
    assert describe(bare, image_size=32, in_channels=3)[columns].equals(table[columns])
    assert list(table["output"]) == ["4x16x16", "8x8x8", "16x8x8", "5"]


def test_the_size_is_that_of_weights_and_buffers() -> None:
    model = network({"a": nn.Conv2d(3, 4, 1), "b": nn.BatchNorm2d(4)}, 4)
    floats = 3 * 4 + 4 + 4 * 4 + 4 * 5 + 5
    assert size_mb(model) == pytest.approx((4 * floats + 8) / 1e6)


def test_a_broken_contract_gives_each_figure_found() -> None:
    table = describe(plaincnn(), image_size=32, in_channels=3)
    total, macs = table["parameters"].sum(), table["macs"].sum()
    config = ModelConfig(max_parameters=10, min_receptive_field=33, max_macs=1000)
    with pytest.raises(UserError) as caught:
        check_contracts(config, table, image_size=32)
    assert str(caught.value) == (
        f"this plaincnn breaks the recipe's contract: model.max_parameters is 10, but it has {total:,} parameters. "
        f"model.max_macs is 1,000, but it takes {macs:,} at 32 pixels. model.min_receptive_field is 33, but its block3 "
        "sees 32 pixels. Change the network's fields, take another family, or change the limit."
    )


def test_a_contract_kept_to_the_last_parameter_is_kept() -> None:
    table = describe(plaincnn(), image_size=32, in_channels=3)
    parameters, macs = int(table["parameters"].sum()), int(table["macs"].sum())
    kept = ModelConfig(max_parameters=parameters, max_macs=macs, min_receptive_field=32)
    check_contracts(kept, table, image_size=32)
    everything = table.assign(receptive_field=GLOBAL)
    check_contracts(ModelConfig(min_receptive_field=10_000), everything, image_size=32)
