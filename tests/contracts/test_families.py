"""What every model family promises."""

import pytest
import torch

import imgcls.models  # noqa: F401  (registers the families)
from imgcls.errors import UserError
from imgcls.models.describe import describe
from imgcls.models.family import FAMILIES, ModelConfig, StagedModel, build, num_parameters
from imgcls.models.plaincnn import PlainCNNConfig
from imgcls.models.quizdnn import QuizDNNConfig
from imgcls.models.separable import SeparableConfig
from imgcls.models.timm import TimmConfig
from imgcls.models.torchvision import DeepConfig, ResNetConfig, TorchvisionConfig
from imgcls.models.widecnn import WideCNNConfig

SIZE = 64
"""Pixels: what the networks are built for here."""
CONFIGS: dict[str, ModelConfig] = {
    "plaincnn": PlainCNNConfig(num_blocks=3, channels=4),
    "quizdnn": QuizDNNConfig(channels=8),
    "resnet18": ResNetConfig(dropout=0.1),
    "separable": SeparableConfig(width=8, depth=1),
    "widecnn": WideCNNConfig(width=8, depth=1),
    "resnet18 of small images": ResNetConfig(stem="small"),
    "wide_resnet50_2": ResNetConfig(family="wide_resnet50_2"),
    "resnext50_32x4d": ResNetConfig(family="resnext50_32x4d"),
    "efficientnet_b0": DeepConfig(family="efficientnet_b0", stochastic_depth=0),
    "efficientnet_v2_s": DeepConfig(family="efficientnet_v2_s", stochastic_depth=0),
    "convnext_tiny": DeepConfig(family="convnext_tiny", stochastic_depth=0),
    "swin_t": DeepConfig(family="swin_t", stochastic_depth=0),
    "swin_v2_t": DeepConfig(family="swin_v2_t", stochastic_depth=0),
    "maxvit_t": DeepConfig(family="maxvit_t", stochastic_depth=0),
    "vit_b_32": TorchvisionConfig(family="vit_b_32", dropout=0.1),
    "mobilenet_v2": TorchvisionConfig(family="mobilenet_v2"),
    "mobilenet_v3_small": TorchvisionConfig(family="mobilenet_v3_small"),
    "regnet_x_400mf": TorchvisionConfig(family="regnet_x_400mf"),
    "regnet_y_400mf": TorchvisionConfig(family="regnet_y_400mf"),
    "densenet121": TorchvisionConfig(family="densenet121"),
    "shufflenet_v2_x0_5": TorchvisionConfig(family="shufflenet_v2_x0_5"),
    "squeezenet1_0": TorchvisionConfig(family="squeezenet1_0"),
    "squeezenet1_1": TorchvisionConfig(family="squeezenet1_1"),
    "timm:test_efficientnet": TimmConfig(family="timm:test_efficientnet"),
}
QUICK = {"plaincnn", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "timm:test_efficientnet"}
"""Those whose every test runs in the quick set; of the others the tests that compute are marked slow."""
SLOW_ONES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(CONFIGS)]


@pytest.fixture(params=SLOW_ONES)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    torch.manual_seed(0)
    return CONFIGS[request.param]


@pytest.fixture(params=sorted(CONFIGS))
def any_config(request: pytest.FixtureRequest) -> ModelConfig:
    """For tests that compute nothing."""
    return CONFIGS[request.param]


def sketched(config: ModelConfig, *, num_classes: int = 5, in_channels: int = 3) -> StagedModel:
    """The network without numbers; regnet's widths need some while it is built."""
    if config.family.startswith("regnet"):
        return made(config, num_classes=num_classes, in_channels=in_channels)
    with torch.device("meta"):
        return made(config, num_classes=num_classes, in_channels=in_channels)


def stirred(model: StagedModel) -> StagedModel:
    """With noise on every weight: some networks start with a head or a scale of zeros, which hides what is before."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def made(config: ModelConfig, *, num_classes: int = 5, in_channels: int = 3) -> StagedModel:
    if config.family.startswith("timm:"):
        pytest.importorskip("timm")
    return build(config, num_classes=num_classes, in_channels=in_channels, image_size=SIZE)


def test_every_family_is_under_contract() -> None:
    tested = [config.family for config in CONFIGS.values()]
    groups = [{FAMILIES.get(name).prefix or name for name in names} for names in (tested, FAMILIES.names())]
    assert groups[0] == groups[1]


def test_the_config_is_that_of_the_registered_family(any_config: ModelConfig) -> None:
    assert type(any_config) is FAMILIES.get(any_config.family).config


def test_every_name_makes_a_config() -> None:
    for name in FAMILIES.names():
        assert FAMILIES.get(name).config.model_validate({"family": name}).family == name


def test_the_stages_hold_every_parameter_and_buffer_exactly_once_and_the_head_is_last(any_config: ModelConfig) -> None:
    model = sketched(any_config)
    assert model.stage_names[-1] == "head"
    assert len(set(model.stage_names)) == len(model.stage_names) >= 2
    of_stages = [id(p) for name in model.stage_names for p in model.stage(name).parameters()]
    assert len(of_stages) == len(set(of_stages))
    assert set(of_stages) == {id(p) for p in model.parameters()}
    buffers = {id(b) for name in model.stage_names for b in model.stage(name).buffers()}
    assert buffers == {id(b) for b in model.buffers()}
    assert all(list(model.stage(name).parameters()) for name in model.stage_names)


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("num_classes", [2, 7])
def test_it_takes_the_asked_channels_and_gives_the_asked_classes(
    config: ModelConfig, num_classes: int, in_channels: int
) -> None:
    model = made(config, num_classes=num_classes, in_channels=in_channels).eval()
    images = torch.randn(2, in_channels, SIZE, SIZE)
    with torch.no_grad():
        assert model.features(images).shape == (2, model.num_features)
        assert model(images).shape == (2, num_classes)


def test_the_forward_pass_is_the_stages_the_pooling_and_the_head(config: ModelConfig) -> None:
    model = made(config).eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        outputs = images
        for name in model.stage_names[:-1]:
            outputs = model.stage(name)(outputs)
            if name == model.cam_stage:
                shape = model.cam_map(outputs).shape
                assert (len(shape), *shape[:2]) == (4, 2, model.num_features)
        assert torch.equal(model.head(model.pool(outputs)), model(images))


def test_the_gradient_reaches_every_parameter(config: ModelConfig) -> None:
    model = stirred(made(config)).train()
    loss = torch.nn.functional.cross_entropy(model(torch.randn(4, 3, SIZE, SIZE)), torch.arange(4))
    torch.autograd.backward(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_a_state_dict_carries_the_whole_network(config: ModelConfig) -> None:
    first, second = stirred(made(config)), stirred(made(config))
    first.train()(torch.randn(4, 3, SIZE, SIZE))
    images = torch.randn(2, 3, SIZE, SIZE)
    assert not torch.equal(first.eval()(images), second.eval()(images))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(images), second(images))


def test_seeded_weights_repeat(config: ModelConfig) -> None:
    torch.manual_seed(5)
    first = made(config).state_dict()
    torch.manual_seed(5)
    second = made(config).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_it_exports_with_a_dynamic_batch_frozen_or_not(config: ModelConfig) -> None:
    model = stirred(made(config)).eval()
    model.freeze(len(model.stage_names) // 2)
    shapes = {"images": {0: torch.export.Dim("batch", min=1, max=64)}}
    exported = torch.export.export(model, (torch.randn(2, 3, SIZE, SIZE),), dynamic_shapes=shapes).module()
    images = torch.randn(5, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.allclose(exported(images), model(images), atol=1e-5)


def test_the_smallest_image_trains_and_a_smaller_one_is_an_error_that_names_it(config: ModelConfig) -> None:
    smallest = sketched(config).min_image_size
    model = build(config, num_classes=3, in_channels=1, image_size=smallest)
    assert model.train()(torch.randn(2, 1, smallest, smallest)).shape == (2, 3)
    with pytest.raises(UserError) as caught:
        build(config, num_classes=3, in_channels=1, image_size=smallest - 1)
    assert f"augment.image_size {smallest - 1} is too small" in str(caught.value)
    assert f"at least {smallest} pixels" in str(caught.value)


def test_all_parameters_are_trained_at_first(any_config: ModelConfig) -> None:
    total, trained = num_parameters(sketched(any_config))
    assert total == trained > 0


def test_it_freezes_and_thaws_to_any_depth(config: ModelConfig) -> None:
    model = made(config.model_copy(update={"freeze_depth": "all"})).train()
    depths = len(model.stage_names) - 1
    assert model.freeze_depth == depths
    for depth in (*range(depths, 0, -1), 0):
        model.freeze(depth)
        torch.autograd.backward(model(torch.randn(4, 3, SIZE, SIZE)).sum())
        trained = {name for name in model.stage_names for p in model.stage(name).parameters() if p.grad is not None}
        assert trained == set(model.stage_names[depth:])
        model.zero_grad()


def test_the_frozen_part_and_the_rest_give_the_logits_of_the_whole(config: ModelConfig) -> None:
    model = stirred(made(config))
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        logits = model.eval()(images)
        for depth in range(len(model.stage_names)):
            model.freeze(depth)
            outputs = model.frozen_outputs(images)
            with model.taking_frozen():
                assert torch.equal(model(outputs), logits)
            assert torch.equal(model(images), logits)


def test_it_can_be_described_and_the_figures_add_up(config: ModelConfig) -> None:
    model = made(config)
    table = describe(model, image_size=64, in_channels=3)
    assert list(table["stage"]) == list(model.stage_names)
    assert (table["parameters"].sum(), table["trainable"].sum()) == num_parameters(model)
    assert (table["macs"] >= 0).all()
    assert table["macs"].sum() > 0
    assert list(table["output"])[-1] == "5"


def test_an_unknown_family_lists_the_nearest_and_the_known_ones() -> None:
    with pytest.raises(UserError) as caught:
        build(ModelConfig(family="resnet"), num_classes=2, in_channels=1, image_size=32)
    message = str(caught.value)
    assert message.startswith(
        "unknown model family 'resnet'; known: convnext_{base, tiny, large, small}, densenet{121, "
    )
    assert ", plaincnn, " in message
    assert ", resnet{18, 34, 50, 101, 152}, resnext{" in message
    assert message.endswith("Did you mean 'resnet50' or 'resnet34' or 'resnet18'?")
