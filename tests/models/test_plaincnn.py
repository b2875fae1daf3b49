"""The plain CNN: widths, sizes and parameters counted by hand."""

import pytest
import torch

from imgcls.models.family import num_parameters
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
