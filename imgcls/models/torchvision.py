"""torchvision's classification networks by torchvision's own names, as staged models for any classes and channels."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

from pydantic import Field
from torch import nn

from imgcls.errors import UserError
from imgcls.models import parts
from imgcls.models.family import FAMILIES, Family, ModelConfig, StagedModel

ResNetName = Literal[
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2",
    "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d",
]  # fmt: skip
DeepName = Literal[
    "efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_b4", "efficientnet_b5",
    "efficientnet_b6", "efficientnet_b7", "efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l",
    "convnext_tiny", "convnext_small", "convnext_base", "convnext_large",
    "swin_t", "swin_s", "swin_b", "swin_v2_t", "swin_v2_s", "swin_v2_b", "maxvit_t",
]  # fmt: skip
OtherName = Literal[
    "vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14",
    "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large",
    "regnet_x_400mf", "regnet_x_800mf", "regnet_x_1_6gf", "regnet_x_3_2gf", "regnet_x_8gf", "regnet_x_16gf",
    "regnet_x_32gf", "regnet_y_400mf", "regnet_y_800mf", "regnet_y_1_6gf", "regnet_y_3_2gf", "regnet_y_8gf",
    "regnet_y_16gf", "regnet_y_32gf", "regnet_y_128gf",
    "densenet121", "densenet161", "densenet169", "densenet201",
    "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0",
    "squeezenet1_0", "squeezenet1_1",
]  # fmt: skip
Share = Annotated[float, Field(ge=0, lt=1)]

_PARTS: dict[str, Callable[[Any], parts.Parts]] = {
    "resnet": parts.resnet, "wide_resnet": parts.resnet, "resnext": parts.resnet,
    "efficientnet_": parts.efficientnet, "convnext_": parts.convnext, "swin_": parts.swin, "maxvit_": parts.maxvit,
    "vit_": parts.vit, "mobilenet_": parts.mobilenet, "regnet_": parts.regnet, "densenet": parts.densenet,
    "shufflenet_": parts.shufflenet, "squeezenet": parts.squeezenet,
}  # fmt: skip
_MAXVIT_T = {
    "stem_channels": 64, "block_channels": [64, 128, 256, 512], "block_layers": [2, 2, 5, 2], "head_dim": 32,
    "stochastic_depth_prob": 0.2,
}  # fmt: skip


class TorchvisionConfig(ModelConfig):
    """The fields of torchvision's networks that have neither stochastic depth nor a choice of stem."""

    family: OtherName = "mobilenet_v3_small"
    """A network of torchvision, by its name there."""
    dropout: Share | Literal["auto"] = "auto"
    """Share of the features set to zero before the head's last layer in training; auto: the architecture's own."""


class DeepConfig(ModelConfig):
    """The fields of torchvision's networks with stochastic depth."""

    family: DeepName = "efficientnet_b0"
    """A network of torchvision, by its name there."""
    dropout: Share | Literal["auto"] = "auto"
    """Share of the features set to zero before the head's last layer in training; auto: the architecture's own."""
    stochastic_depth: Share | Literal["auto"] = "auto"
    """Share of the images that skip the last block in training (Huang et al. 2016, arXiv:1603.09382), rising in a
    straight line from none at the first; auto: the architecture's own."""


class ResNetConfig(ModelConfig):
    """The fields of torchvision's residual networks."""

    family: ResNetName = "resnet18"
    """A network of torchvision, by its name there."""
    dropout: Share | Literal["auto"] = "auto"
    """Share of the features set to zero before the head in training; auto: none."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """imagenet: a 7×7 convolution of stride 2 and a max-pooling, for 32 px and more; small: a 3×3 convolution of stride
    1 without pooling, for images of about 32 px (He et al. 2015, section 4.2)."""


def build_torchvision(
    config: ResNetConfig | DeepConfig | TorchvisionConfig, *, num_classes: int, in_channels: int, image_size: int
) -> StagedModel:
    """A network of torchvision with fresh weights, drawn as torchvision draws them.

    Raises:
        UserError: an image size that the network's patches or windows do not divide.
    """
    if isinstance(config, ResNetConfig):
        net = _residual(config, num_classes, in_channels)
    else:
        net = _network(config.family, num_classes, image_size)
        _take_channels(net, in_channels)
    origins = {id(tensor): name for name, tensor in net.state_dict(keep_vars=True).items()}
    cut = _PARTS[_prefix(config.family)](net)
    if isinstance(config, DeepConfig) and config.stochastic_depth != "auto":
        _set_stochastic_depth(net, config.stochastic_depth)
    dropout = cut.dropout if config.dropout == "auto" else config.dropout
    model = StagedModel(
        cut.stages,
        pool=cut.pool or nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        head=nn.Sequential(*cut.head[:-1], nn.Dropout(dropout), cut.head[-1]),
        num_features=cut.num_features,
        cam_stage=cut.cam_stage,
        min_image_size=cut.min_image_size,
        to_map=cut.to_map,
    )
    model.origin_names = {name: origins[id(t)] for name, t in model.state_dict(keep_vars=True).items()}
    return model


def _prefix(family: str) -> str:
    return next(prefix for prefix in _PARTS if family.startswith(prefix))


def _residual(config: ResNetConfig, num_classes: int, in_channels: int) -> Any:
    from torchvision import models

    net = models.get_model(config.family, weights=None)
    small = config.stem == "small"
    if small or in_channels != 3:
        size, stride = (3, 1) if small else (7, 2)
        net.conv1 = nn.Conv2d(in_channels, 64, size, stride=stride, padding=size // 2, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    if small:
        net.maxpool = nn.Identity()
    net.fc = nn.Linear(net.fc.in_features, num_classes)
    return net


def _network(family: str, num_classes: int, image_size: int) -> Any:
    from torchvision import models

    if family.startswith("vit_"):
        patch = int(family.rpartition("_")[2])
        size = _fitting(family, max(image_size, patch), patch, "patches")  # below a patch, build() tells the least
        return models.get_model(family, weights=None, num_classes=num_classes, image_size=size)
    if family == "maxvit_t":
        size = _fitting(family, max(image_size, 64), 32, "strides")
        # The paper's rule: as many windows at every size, so their sides grow with the image's; 7 pixels at 224.
        window = 7 if size % 224 == 0 else size // 32
        return models.maxvit.MaxVit((size, size), partition_size=window, num_classes=num_classes, **_MAXVIT_T)
    return models.get_model(family, weights=None, num_classes=num_classes)


def _fitting(family: str, image_size: int, step: int, what: str) -> int:
    if image_size % step:
        below = image_size // step * step
        raise UserError(
            f"augment.image_size {image_size} does not fit {family}, whose {what} need a multiple of {step} pixels. "
            f"Use {below} or {below + step}."
        )
    return image_size


def _take_channels(net: Any, in_channels: int) -> None:
    """Let the first convolution take grey images, with the sum of the colour channels' fresh weights."""
    conv = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    assert conv.in_channels == 3
    if in_channels == 1:
        conv.in_channels = 1
        conv.weight = nn.Parameter(conv.weight.detach().sum(1, keepdim=True))


def _set_stochastic_depth(net: Any, last: float) -> None:
    from torchvision.ops import StochasticDepth

    found = [module for module in net.modules() if isinstance(module, StochasticDepth)]
    most = max(module.p for module in found)
    for module in found:
        module.p = last * module.p / most


for _config, _names in ((ResNetConfig, ResNetName), (DeepConfig, DeepName), (TorchvisionConfig, OtherName)):
    for _name in get_args(_names):
        FAMILIES.register(_name)(Family(_config, build_torchvision, _prefix(_name)))
