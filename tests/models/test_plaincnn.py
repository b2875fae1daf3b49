"""The plain CNN: widths, sizes and parameters counted by hand."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from imgcls.errors import UserError
from imgcls.models.family import build, num_parameters
from imgcls.models.plaincnn import PlainCNNConfig, build_plaincnn


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
def test_the_number_of_parameters_equals_the_count_by_hand(kernel_size: int) -> None:
    config = PlainCNNConfig.model_validate({"num_blocks": 2, "channels": 4, "kernel_size": kernel_size})
    model = build_plaincnn(config, num_classes=5, in_channels=3, image_size=64)
    area = kernel_size**2
    block1 = area * (3 * 4 + 4 * 4) + 2 * (4 + 4)
    block2 = area * (4 * 8 + 8 * 8) + 2 * (8 + 8)
    head = 8 * 5 + 5
    assert num_parameters(model)[0] == block1 + block2 + head


def test_frozen_parameters_are_counted_apart() -> None:
    model = build_plaincnn(PlainCNNConfig(num_blocks=1, channels=2), num_classes=3, in_channels=1, image_size=64)
    for parameter in model.stages.parameters():
        parameter.requires_grad_(False)
    assert num_parameters(model) == (9 * (2 + 4) + 8 + 9, 9)


@pytest.mark.parametrize(
    ("channels", "widths"), [(8, [8, 16, 32, 64]), (200, [200, 400, 512, 512]), (600, [600, 600, 600, 600])]
)
def test_widths_double_up_to_512_and_never_shrink(channels: int, widths: list[int]) -> None:
    with torch.device("meta"):
        model = build_plaincnn(
            PlainCNNConfig(num_blocks=4, channels=channels), num_classes=2, in_channels=3, image_size=64
        )
    outputs = [model.stage(f"block{k}").get_parameter("3.weight").shape[0] for k in range(1, 5)]
    assert outputs == widths
    assert model.num_features == widths[-1]


def test_each_block_but_the_last_halves_the_sides() -> None:
    model = build_plaincnn(PlainCNNConfig(num_blocks=3, channels=2), num_classes=2, in_channels=1, image_size=64).eval()
    outputs = torch.randn(1, 1, 20, 12)
    sides = []
    for name in model.stage_names[:-1]:
        outputs = model.stage(name)(outputs)
        sides.append(tuple(outputs.shape[2:]))
    assert sides == [(10, 6), (5, 3), (5, 3)]


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model = build_plaincnn(
        PlainCNNConfig(num_blocks=1, channels=16, dropout=0.9), num_classes=2, in_channels=1, image_size=64
    )
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(model.eval()(images), model(images))
    features = model.features(images)
    model.head.train()
    assert not torch.equal(model.head(features), model.head(features))


def test_the_default_fields_draw_the_weights_that_they_always_drew() -> None:
    torch.manual_seed(7)
    model = build_plaincnn(PlainCNNConfig(num_blocks=2, channels=4), num_classes=5, in_channels=1, image_size=16)
    torch.manual_seed(7)
    drawn = [nn.Conv2d(i, o, 3, bias=False).weight for i, o in [(1, 4), (4, 4), (4, 8), (8, 8)]]
    head = nn.Linear(8, 5)
    names = ["block1.0.weight", "block1.3.weight", "block2.0.weight", "block2.3.weight"]
    for name, weight in zip(names, drawn, strict=True):
        assert torch.equal(model.stages.get_parameter(name), weight)
    assert torch.equal(model.head.get_parameter("1.weight"), head.weight)
    assert torch.equal(model.head.get_parameter("1.bias"), head.bias)


@pytest.mark.parametrize("convs_per_block", [1, 2, 4])
@pytest.mark.parametrize("num_blocks", [1, 5])
def test_there_are_as_many_convolutions_as_asked(num_blocks: int, convs_per_block: int) -> None:
    config = PlainCNNConfig(num_blocks=num_blocks, convs_per_block=convs_per_block, channels=4)
    model = build_plaincnn(config, num_classes=2, in_channels=3, image_size=64)
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == num_blocks * convs_per_block


@pytest.mark.parametrize(
    ("growth", "widths"),
    [("same", [20, 20, 20, 20]), ("double", [20, 40, 80, 160]), ("halve", [20, 10, 5, 2])],
)
def test_channels_grow_as_asked(growth: str, widths: list[int]) -> None:
    config = PlainCNNConfig.model_validate({"num_blocks": 4, "channels": 20, "growth": growth})
    model = build_plaincnn(config, num_classes=2, in_channels=3, image_size=64)
    assert [model.stage(f"block{k}").get_parameter("3.weight").shape[0] for k in range(1, 5)] == widths
    assert model.num_features == widths[-1]


def test_halving_stops_at_one_channel() -> None:
    config = PlainCNNConfig(num_blocks=4, channels=4, growth="halve")
    assert build_plaincnn(config, num_classes=2, in_channels=3, image_size=64).num_features == 1


def test_a_hidden_layer_stands_between_the_features_and_the_classes() -> None:
    torch.manual_seed(0)
    config = PlainCNNConfig(num_blocks=1, channels=4, dense_width=6, dropout=0.5)
    model = build_plaincnn(config, num_classes=3, in_channels=1, image_size=8).eval()
    assert num_parameters(model.head)[0] == 4 * 6 + 6 + 6 * 3 + 3
    features = torch.randn(5, 4)
    first, last = model.head.get_submodule("0"), model.head.get_submodule("3")
    assert torch.equal(model.head(features), last(torch.relu(first(features))))


def test_batch_norm_can_be_left_out() -> None:
    config = PlainCNNConfig(num_blocks=2, channels=4, norm="none")
    model = build_plaincnn(config, num_classes=5, in_channels=3, image_size=8)
    assert list(model.buffers()) == []
    assert num_parameters(model)[0] == (27 * 4 + 4) + (36 * 4 + 4) + (36 * 8 + 8) + (72 * 8 + 8) + (8 * 5 + 5)


@pytest.mark.parametrize("num_blocks", [1, 3, 5])
def test_the_smallest_image_leaves_one_pixel_and_a_smaller_one_none(num_blocks: int) -> None:
    config = PlainCNNConfig(num_blocks=num_blocks, channels=2)
    smallest = 2 ** (num_blocks - 1)
    model = build(config, num_classes=2, in_channels=1, image_size=smallest)
    assert model(torch.randn(2, 1, smallest, smallest)).shape == (2, 2)
    with pytest.raises(UserError, match=f"at least {smallest} pixels"):
        build(config, num_classes=2, in_channels=1, image_size=smallest - 1)
    if num_blocks > 1:
        with pytest.raises(RuntimeError):
            model(torch.randn(2, 1, smallest - 1, smallest - 1))


@pytest.mark.parametrize(
    "fields",
    [{"num_blocks": 9}, {"convs_per_block": 0}, {"convs_per_block": 5}, {"growth": "triple"}, {"kernel_size": 4},
     {"dense_width": -1}, {"channels": 0}, {"dropout": 1.0}],
)  # fmt: skip
def test_a_field_out_of_range_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        PlainCNNConfig.model_validate(fields)
