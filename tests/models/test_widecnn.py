"""The wide residual network: parameters by hand, shapes, dropout."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torchvision.ops import SqueezeExcitation

from imgcls.errors import UserError
from imgcls.models.family import StagedModel, build, num_parameters
from imgcls.models.widecnn import WideCNNConfig, build_widecnn


def made(*, num_classes: int = 10, **fields: float | str) -> StagedModel:
    torch.manual_seed(0)
    config = WideCNNConfig.model_validate(fields)
    return build_widecnn(config, num_classes=num_classes, in_channels=3, image_size=64)


def test_the_default_for_1500_classes_has_the_parameters_counted_by_hand() -> None:
    by_hand = 27 * 40 + 2 * 320 + 320 * 1500 + 1500
    before = 40
    for width in (40, 80, 160, 320):
        squeezed = max(8, width // 16)
        gate = 2 * width * squeezed + squeezed + width
        for inputs in (before, width):
            by_hand += 2 * inputs + 9 * inputs * width + 2 * width + 9 * width * width + gate
        by_hand += before * width if before != width else 0
        before = width
    assert num_parameters(made(num_classes=1500))[0] == by_hand == 4_882_992


@pytest.mark.parametrize(("stem_stride", "sides"), [(1, [64, 64, 32, 16, 8]), (2, [32, 32, 16, 8, 4])])
def test_the_stem_and_three_groups_halve_the_sides(stem_stride: int, sides: list[int]) -> None:
    model = made(width=4, stem_stride=stem_stride)
    outputs, found = torch.randn(2, 3, 64, 64), []
    for name in model.stage_names[:-1]:
        outputs = model.stage(name)(outputs)
        found.append(outputs.shape[-1])
    assert model.stage_names == ("stem", "group1", "group2", "group3", "group4", "head")
    assert (found, outputs.shape[1], model.num_features) == (sides, 32, 32)


@pytest.mark.parametrize("stem_stride", [1, 2])
def test_a_smaller_stride_of_the_stem_takes_smaller_images(stem_stride: int) -> None:
    config = WideCNNConfig.model_validate({"width": 4, "depth": 1, "stem_stride": stem_stride})
    smallest = 8 * stem_stride
    model = build(config, num_classes=3, in_channels=3, image_size=smallest)
    outputs = torch.randn(2, 3, smallest, smallest)
    for name in model.stage_names[:-1]:
        outputs = model.stage(name)(outputs)
    assert outputs.shape[2:] == (1, 1)
    with pytest.raises(UserError, match=f"at least {smallest} pixels"):
        build(config, num_classes=3, in_channels=3, image_size=smallest - 1)


@pytest.mark.parametrize("depth", [1, 3])
def test_a_group_has_as_many_blocks_as_asked_each_with_a_gate(depth: int) -> None:
    model = made(width=4, depth=depth)
    for name in model.stage_names[1:-1]:
        gates = [layer for layer in model.stage(name).modules() if isinstance(layer, SqueezeExcitation)]
        assert len(gates) == depth


def test_a_block_adds_its_input_to_the_gated_branch() -> None:
    block = made(width=8).stage("group1").get_submodule("0").eval()
    features = torch.randn(2, 8, 6, 6)
    before, branch = block.get_submodule("before"), block.get_submodule("branch")
    assert torch.equal(block(features), features + branch(before(features)))


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_block_leaves_its_input_as_it_was(norm: str) -> None:
    block = made(width=8, norm=norm).stage("group1").get_submodule("0").eval()
    features = torch.randn(2, 8, 6, 6)
    kept = features.clone()
    block(features)
    assert torch.equal(features, kept)


@pytest.mark.parametrize(("field", "where"), [("block_dropout", "stages"), ("dropout", "head")])
def test_each_dropout_acts_where_it_says(field: str, where: str) -> None:
    config = WideCNNConfig.model_validate({"width": 4, "depth": 1, "block_dropout": 0.0, "dropout": 0.0, field: 0.5})
    model = build_widecnn(config, num_classes=3, in_channels=3, image_size=16)
    acting = {name: layer.p for name, layer in model.named_modules() if isinstance(layer, nn.Dropout) and layer.p}
    assert {name.split(".")[0] for name in acting} == {where}
    assert set(acting.values()) == {0.5}
    images = torch.randn(2, 3, 16, 16)
    model.train()
    assert not torch.equal(model(images), model(images))


@pytest.mark.parametrize(
    "fields", [{"width": 0}, {"width": 513}, {"depth": 17}, {"stem_stride": 3}, {"block_dropout": 1.0}]
)
def test_a_field_out_of_range_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        WideCNNConfig.model_validate(fields)
