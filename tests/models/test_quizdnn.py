"""QuizDNN: its published parameter count and its wiring, written out."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from imgcls.models.family import build, num_parameters
from imgcls.models.quizdnn import QuizDNNConfig, build_quizdnn


def test_it_has_299018_parameters_at_10_classes_and_3_channels() -> None:
    model = build_quizdnn(QuizDNNConfig(), num_classes=10, in_channels=3, image_size=32)
    assert num_parameters(model) == (299_018, 299_018)


def test_it_is_wired_as_the_quiz_says() -> None:
    torch.manual_seed(0)
    model = build_quizdnn(QuizDNNConfig(channels=4), num_classes=3, in_channels=3, image_size=32).double().eval()
    units: list[nn.Module] = []
    for name in ("group1.0", "group2.0", "group3"):
        group = model.stages.get_submodule(name).get_submodule("units")
        assert isinstance(group, nn.Sequential)
        units += list(group)
    f2, f3, f5, f6, f7, f9, f10, f11 = units
    pool = nn.MaxPool2d(2)
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    x1 = model.stage("stem")(images)
    x2 = f2(x1)
    x3 = f3(x1 + x2)
    x4 = pool(x1 + x2 + x3)
    x5 = f5(x4)
    x6 = f6(x4 + x5)
    x7 = f7(x4 + x5 + x6)
    x8 = pool(x5 + x6 + x7)
    x9 = f9(x8)
    x10 = f10(x8 + x9)
    x11 = f11(x8 + x9 + x10)
    assert torch.allclose(model.head(x11.mean((2, 3))), model(images), atol=1e-12, rtol=0)


def test_a_unit_is_a_convolution_then_the_activation_then_the_norm() -> None:
    model = build_quizdnn(QuizDNNConfig(), num_classes=10, in_channels=3, image_size=32)
    assert [type(layer) for layer in model.stage("stem").children()][:3] == [nn.Conv2d, nn.ReLU, nn.BatchNorm2d]


@pytest.mark.parametrize("size", [4, 5, 7, 28, 32, 96])
def test_the_logits_have_the_same_shape_at_any_size_from_4_on(size: int) -> None:
    model = build(QuizDNNConfig(channels=4), num_classes=10, in_channels=3, image_size=size)
    assert model.train()(torch.randn(2, 3, size, size)).shape == (2, 10)


def test_three_pixels_leave_none_after_two_poolings() -> None:
    model = build_quizdnn(QuizDNNConfig(channels=4), num_classes=10, in_channels=3, image_size=32)
    assert model.min_image_size == 4
    with pytest.raises(RuntimeError, match="too small"):
        model(torch.randn(2, 3, 3, 3))


def test_the_stages_are_the_groups_between_the_poolings() -> None:
    model = build_quizdnn(QuizDNNConfig(channels=4), num_classes=10, in_channels=3, image_size=32)
    assert model.stage_names == ("stem", "group1", "group2", "group3", "head")
    outputs, sides = torch.randn(2, 3, 32, 32), []
    for name in model.stage_names[:-1]:
        outputs = model.stage(name)(outputs)
        sides.append(outputs.shape[-1])
    assert sides == [32, 16, 8, 8]


@pytest.mark.parametrize("fields", [{"channels": 0}, {"channels": 1025}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_a_field_out_of_range_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        QuizDNNConfig.model_validate(fields)
