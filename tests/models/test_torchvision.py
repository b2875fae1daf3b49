"""torchvision's networks as staged models: the same numbers, parameters and names as torchvision's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torchvision import models
from torchvision.models import regnet
from torchvision.ops import StochasticDepth

from imgcls.errors import UserError
from imgcls.models.family import FAMILIES, ModelConfig, StagedModel, build, num_parameters
from imgcls.models.torchvision import DeepConfig, DeepName, OtherName, ResNetConfig, ResNetName, TorchvisionConfig

pytestmark = pytest.mark.slow

NAMES = [*get_args(ResNetName), *get_args(DeepName), *get_args(OtherName)]
LEFT_OUT = ("alexnet", "googlenet", "inception", "mnasnet", "vgg")
QUICK = ["resnet18", "efficientnet_b0", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_0", "regnet_y_400mf"]
SLOW = ["wide_resnet50_2", "resnext50_32x4d", "efficientnet_v2_s", "convnext_tiny", "swin_t", "swin_v2_t", "maxvit_t",
        "vit_b_32", "mobilenet_v2", "regnet_x_400mf", "densenet121", "squeezenet1_1"]  # fmt: skip


def made(name: str, *, num_classes: int = 5, in_channels: int = 3, image_size: int = 64, **fields: Any) -> StagedModel:
    config = FAMILIES.get(name).config.model_validate({"family": name, **fields})
    return build(config, num_classes=num_classes, in_channels=in_channels, image_size=image_size)


@contextmanager
def without_numbers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks are built on the meta device; regnet computes its widths with tensors, which need a real one."""
    widths = regnet.BlockParams.from_init_params

    def on_cpu(*args: Any, **kwargs: Any) -> Any:
        with torch.device("cpu"):
            return widths(*args, **kwargs)

    monkeypatch.setattr(regnet.BlockParams, "from_init_params", on_cpu)
    with torch.device("meta"):
        yield


def test_every_network_of_these_architectures_has_its_name() -> None:
    theirs = [name for name in models.list_models(module=models) if not name.startswith(LEFT_OUT)]
    assert sorted(NAMES) == sorted(theirs)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_names_are_torchvisions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with without_numbers(monkeypatch):
        ours = made(name, num_classes=1000, image_size=224)
        theirs = models.get_model(name, weights=None)
    assert num_parameters(ours)[0] == sum(p.numel() for p in theirs.parameters())
    shapes = {ours.origin_names[key]: tensor.shape for key, tensor in ours.state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in theirs.state_dict().items()}


def test_resnet18_has_the_known_number_of_parameters() -> None:
    with torch.device("meta"):
        assert num_parameters(made("resnet18", num_classes=1000))[0] == 11_689_512


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
@pytest.mark.parametrize("image_size", [64, pytest.param(224, marks=pytest.mark.slow)])
def test_the_logits_are_torchvisions(name: str, image_size: int) -> None:
    torch.manual_seed(0)
    ours = made(name, image_size=image_size).eval()
    with torch.no_grad():
        for parameter in ours.parameters():  # off the zeros that some heads and scales start with
            parameter.add_(torch.randn_like(parameter) * 0.02)
    theirs = torchvisions(name, image_size).eval()
    theirs.load_state_dict({ours.origin_names[key]: tensor for key, tensor in ours.state_dict().items()})
    images = torch.randn(2, 3, image_size, image_size)
    with torch.no_grad():
        expected = theirs(images)
        assert expected.std() > 0
        assert torch.allclose(ours(images), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def torchvisions(name: str, image_size: int) -> nn.Module:
    net: nn.Module
    if name == "maxvit_t" and image_size != 224:
        net = models.maxvit.MaxVit(
            (image_size, image_size), stem_channels=64, partition_size=image_size // 32,
            block_channels=[64, 128, 256, 512], block_layers=[2, 2, 5, 2], head_dim=32, stochastic_depth_prob=0.2,
            num_classes=5,
        )  # fmt: skip
    else:
        size = {"image_size": image_size} if name.startswith("vit") else {}
        net = models.get_model(name, weights=None, num_classes=5, **size)
    return net


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_a_network_without_a_fixed_grid_takes_other_sizes_than_it_was_built_for(name: str) -> None:
    model = made(name).eval()
    assert model(torch.randn(2, 3, 40, 71)).shape == (2, 5)


@pytest.mark.parametrize("in_channels", [1, 3])
def test_the_stages_of_a_resnet_are_those_of_the_paper(in_channels: int) -> None:
    with torch.device("meta"):
        model = made("resnet18", in_channels=in_channels)
    assert model.stage_names == ("stem", "layer1", "layer2", "layer3", "layer4", "head")
    assert (model.num_features, model.cam_stage) == (512, "layer4")


def test_the_same_seed_gives_the_weights_that_it_always_gave() -> None:
    torch.manual_seed(3)
    ours = made("resnet18", in_channels=1)
    torch.manual_seed(3)
    net = models.resnet18(weights=None)
    conv = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    head = nn.Linear(512, 5)
    assert torch.equal(ours.state_dict()["stages.stem.0.weight"], conv.weight)
    assert torch.equal(ours.state_dict()["stages.layer4.1.conv2.weight"], net.layer4[1].conv2.weight)
    assert torch.equal(ours.state_dict()["head.1.weight"], head.weight)


def test_the_small_stem_keeps_the_resolution() -> None:
    model = made("resnet18", stem="small", image_size=32).eval()
    stem = model.stage("stem")
    assert stem(torch.randn(1, 3, 32, 32)).shape == (1, 64, 32, 32)
    assert (len(list(stem.children())), model.min_image_size) == (3, 8)
    with torch.device("meta"):
        assert num_parameters(made("resnet18"))[0] - num_parameters(model)[0] == 3 * 64 * (49 - 9)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_a_grey_network_starts_as_the_colour_one_sees_a_grey_image(name: str) -> None:
    torch.manual_seed(0)
    grey = made(name, in_channels=1).eval()
    torch.manual_seed(0)
    colour = made(name).eval()
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.allclose(grey(images), colour(images.expand(-1, 3, -1, -1)), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "own"),
    [("resnet18", 0.0), ("efficientnet_b0", 0.2), ("mobilenet_v3_small", 0.2), ("squeezenet1_1", 0.5), ("vit_b_32", 0)],
)
def test_dropout_stands_before_the_last_layer_once(name: str, own: float) -> None:
    with torch.device("meta"):
        for given, expected in ((None, own), (0.35, 0.35)):
            model = made(name) if given is None else made(name, dropout=given)
            assert [m.p for m in model.head.modules() if isinstance(m, nn.Dropout)] == [expected]


@pytest.mark.parametrize(("name", "own"), [("convnext_tiny", 0.1), ("swin_t", 0.2), ("maxvit_t", 0.2)])
def test_stochastic_depth_rises_to_the_given_share(name: str, own: float) -> None:
    with torch.device("meta"):
        for given, last in ((None, own), (0.6, 0.6), (0.0, 0.0)):
            model = made(name) if given is None else made(name, stochastic_depth=given)
            shares = [m.p for m in model.modules() if isinstance(m, StochasticDepth)]
            assert shares[0] == 0
            assert shares == sorted(shares)
            assert shares[-1] == pytest.approx(last)


def test_a_field_that_an_architecture_has_no_use_for_is_unknown_to_it() -> None:
    for name, field in (("resnet18", "stochastic_depth"), ("vit_b_16", "stochastic_depth"), ("swin_t", "stem")):
        with pytest.raises(ValidationError, match=field):
            FAMILIES.get(name).config.model_validate({"family": name, field: 0.1})
    with pytest.raises(ValidationError):
        ResNetConfig.model_validate({"family": "vit_b_16"})


@pytest.mark.parametrize(
    ("config", "image_size", "sizes"),
    [(TorchvisionConfig(family="vit_b_16"), 100, "Use 96 or 112."), (DeepConfig(family="maxvit_t"), 230, "224 or 256")],
)
def test_a_size_that_the_patches_do_not_divide_is_an_error_that_names_the_next(
    config: ModelConfig, image_size: int, sizes: str
) -> None:
    with torch.device("meta"), pytest.raises(UserError) as caught:
        build(config, num_classes=2, in_channels=3, image_size=image_size)
    assert f"augment.image_size {image_size} does not fit {config.family}" in str(caught.value)
    assert sizes in str(caught.value)


@pytest.mark.parametrize(("name", "least"), [("squeezenet1_0", 21), ("squeezenet1_1", 17)])
def test_one_pixel_less_than_the_least_does_not_go_through_a_network_without_padding(name: str, least: int) -> None:
    model = made(name).eval()
    assert model.min_image_size == least
    assert model(torch.randn(1, 3, least, least)).shape == (1, 5)
    with pytest.raises(RuntimeError, match="too small"):
        model(torch.randn(1, 3, least - 1, least - 1))
