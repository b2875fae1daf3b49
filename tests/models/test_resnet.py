"""torchvision's ResNet as a staged model."""

import pytest
import torch
from torchvision.models import resnet18

from imgcls.models.family import num_parameters
from imgcls.models.resnet import ResNetConfig, build_resnet


def test_it_has_as_many_parameters_as_torchvisions() -> None:
    with torch.device("meta"):
        ours = build_resnet(ResNetConfig(), num_classes=1000, in_channels=3, image_size=64)
        theirs = resnet18(weights=None)
    assert num_parameters(ours)[0] == sum(p.numel() for p in theirs.parameters()) == 11_689_512


def test_it_computes_what_torchvisions_computes() -> None:
    torch.manual_seed(0)
    ours = build_resnet(ResNetConfig(), num_classes=1000, in_channels=3, image_size=64).eval()
    theirs = resnet18(weights=None).eval()
    assert len(ours.state_dict()) == len(theirs.state_dict())
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    images = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


def test_a_grey_stem_has_a_third_of_the_weights() -> None:
    with torch.device("meta"):
        grey = build_resnet(ResNetConfig(), num_classes=2, in_channels=1, image_size=64)
        colour = build_resnet(ResNetConfig(), num_classes=2, in_channels=3, image_size=64)
    assert num_parameters(colour)[0] - num_parameters(grey)[0] == 2 * 64 * 49


@pytest.mark.parametrize("in_channels", [1, 3])
def test_the_stages_are_those_of_the_paper(in_channels: int) -> None:
    with torch.device("meta"):
        model = build_resnet(ResNetConfig(), num_classes=2, in_channels=in_channels, image_size=64)
    assert model.stage_names == ("stem", "layer1", "layer2", "layer3", "layer4", "head")
    assert model.num_features == 512
