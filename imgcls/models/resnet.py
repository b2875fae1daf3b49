"""torchvision's residual networks as staged models."""

from typing import Literal

from pydantic import Field
from torch import nn

from imgcls.models.family import FAMILIES, Family, ModelConfig, StagedModel


class ResNetConfig(ModelConfig):
    """The fields of `family: resnet18`."""

    family: Literal["resnet18"] = "resnet18"
    """torchvision's ResNet-18."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the features set to zero before the head in training."""


def build_resnet(config: ResNetConfig, *, num_classes: int, in_channels: int, image_size: int) -> StagedModel:  # noqa: ARG001
    """He et al. (2015), arXiv:1512.03385, in torchvision's form; the stages are stem, layer1 … layer4, head."""
    from torchvision.models import resnet18

    net = resnet18(weights=None)
    if in_channels != 3:
        old = net.conv1
        net.conv1 = nn.Conv2d(in_channels, old.out_channels, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    num_features = net.fc.in_features
    net.fc = nn.Linear(num_features, num_classes)
    origin = {id(tensor): name for name, tensor in net.state_dict(keep_vars=True).items()}
    stages = {
        "stem": nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool),
        "layer1": net.layer1,
        "layer2": net.layer2,
        "layer3": net.layer3,
        "layer4": net.layer4,
    }
    model = StagedModel(
        stages,
        pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        head=nn.Sequential(nn.Dropout(config.dropout), net.fc),
        num_features=num_features,
        cam_stage="layer4",
        min_image_size=32,
    )
    model.origin_names = {name: origin[id(tensor)] for name, tensor in model.state_dict(keep_vars=True).items()}
    return model


FAMILIES.register("resnet18")(Family(ResNetConfig, build_resnet))
