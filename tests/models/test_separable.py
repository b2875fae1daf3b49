"""The separable network: its parameters by hand, and what it sees by brute force."""

import pytest
import torch
from pydantic import ValidationError

from imgcls.models.family import StagedModel, build, num_parameters
from imgcls.models.separable import SeparableConfig, build_separable


def made(**fields: float) -> StagedModel:
    torch.manual_seed(0)
    config = SeparableConfig.model_validate(fields)
    return build_separable(config, num_classes=10, in_channels=3, image_size=32)


def receptive_field(model: StagedModel, *, side: int) -> tuple[int, int]:
    """(rows, columns) of the input that the middle position of the last map depends on, by gradient in fp64."""
    model = model.double().eval()
    images = torch.randn(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    outputs = images
    for name in model.stage_names[:-1]:
        outputs = model.stage(name)(outputs)
    middle = outputs.shape[-1] // 2
    (gradient,) = torch.autograd.grad(outputs[0, :, middle, middle].sum(), images)
    touched = gradient[0].abs().amax(0) > 0
    extents = []
    for axis in (1, 0):
        (lines,) = torch.nonzero(touched.any(axis), as_tuple=True)
        assert lines[0] > 0, "the image is too small to tell"
        assert lines[-1] < side - 1, "the image is too small to tell"
        extents.append(int(lines[-1] - lines[0]) + 1)
    return extents[0], extents[1]


def test_the_default_has_under_200000_parameters_at_10_classes_and_3_channels() -> None:
    depthwise = [48, 48, 48, 96, 96, 192, 192, 192]
    pointwise = [48, 48, 96, 96, 192, 192, 192, 192]
    by_hand = 27 * 48 + 2 * 48
    by_hand += sum(9 * c + 2 * c + c * width + 2 * width for c, width in zip(depthwise, pointwise, strict=True))
    by_hand += 192 * 10 + 10
    assert num_parameters(made())[0] == by_hand == 162_922 < 200_000


def test_the_default_sees_63_pixels() -> None:
    assert receptive_field(made(), side=160) == (63, 63)
    assert min(receptive_field(made(), side=160)) > 44


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # stem 3; block 1: 2 a unit; block 2: 2, then 4; block 3: 4, then 8; block 4: 8 a unit; dilation multiplies.
        ({"dilation": 1}, 3 + 2 * 2 + (2 + 4) + (4 + 8) + 2 * 8),
        ({"dilation": 3}, 3 + (2 + 6) + (2 + 12) + (4 + 24) + (8 + 24)),
        ({"depth": 1}, 3 + 4 + 2 + 4 + 16),
        ({"depth": 3}, 3 + (2 + 2 + 4) + (2 + 4 + 8) + (4 + 8 + 16) + (8 + 8 + 16)),
    ],
)
def test_what_an_output_sees_follows_from_depth_and_dilation(fields: dict[str, int], expected: int) -> None:
    assert receptive_field(made(width=8, **fields), side=240) == (expected, expected)


def test_depth_and_width_are_those_asked_for() -> None:
    model = made(width=6, depth=3)
    widths = []
    for name in model.stage_names[1:-1]:
        block = model.stage(name)
        widths.append([int(p.shape[0]) for key, p in block.named_parameters() if key.endswith("layers.3.weight")])
    assert widths == [[6] * 3, [12] * 3, [24] * 3, [24] * 3]
    assert model.num_features == 24


def test_two_blocks_halve_the_sides_and_nothing_pools() -> None:
    model = made(width=4)
    outputs, sides = torch.randn(2, 3, 32, 32), []
    for name in model.stage_names[:-1]:
        outputs = model.stage(name)(outputs)
        sides.append(outputs.shape[-1])
    assert model.stage_names == ("stem", "block1", "block2", "block3", "block4", "head")
    assert sides == [32, 32, 16, 8, 8]
    assert not [layer for layer in model.stages.modules() if "Pool" in type(layer).__name__]


def test_a_unit_that_keeps_the_shape_adds_its_input() -> None:
    model = made(width=4).eval()
    shortcuts = {}
    for name in model.stage_names[1:-1]:
        for number, unit in enumerate(model.stage(name).children()):
            if number < 2:  # the third is the dropout
                layers = unit.get_submodule("layers")
                features = torch.randn(1, layers.get_parameter("0.weight").shape[0], 8, 8)
                plain, given = layers(features), unit(features)
                shortcuts[f"{name}.{number}"] = not torch.equal(given, plain)
                assert torch.equal(given, features + plain if shortcuts[f"{name}.{number}"] else plain)
    assert [name for name, there in shortcuts.items() if not there] == ["block2.0", "block3.0"]


@pytest.mark.parametrize("size", [4, 5, 31, 64])
def test_it_takes_any_size_from_4_on(size: int) -> None:
    model = build(SeparableConfig(width=4), num_classes=10, in_channels=3, image_size=size)
    assert model.train()(torch.randn(2, 3, size, size)).shape == (2, 10)


def test_dropout_silences_whole_channels_in_training_only() -> None:
    block = made(width=16, dropout=0.5).stage("block4")
    outputs = block.train()(torch.rand(2, 64, 4, 4))
    silent = (outputs == 0).all(3).all(2).float().mean()
    assert 0.3 < silent < 0.7
    features = torch.rand(2, 64, 4, 4)
    assert torch.equal(block.eval()(features), block(features))


@pytest.mark.parametrize(
    "fields", [{"width": 0}, {"width": 1025}, {"depth": 0}, {"depth": 17}, {"dilation": 0}, {"dilation": 9}]
)
def test_a_field_out_of_range_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        SeparableConfig.model_validate(fields)
