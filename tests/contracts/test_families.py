"""What every model family promises."""

import pytest
import torch

import imgcls.models  # noqa: F401  (registers the families)
from imgcls.errors import UserError
from imgcls.models.describe import describe
from imgcls.models.family import FAMILIES, ModelConfig, StagedModel, build, num_parameters
from imgcls.models.plaincnn import PlainCNNConfig
from imgcls.models.resnet import ResNetConfig

CONFIGS: dict[str, ModelConfig] = {
    "plaincnn": PlainCNNConfig(num_blocks=3, channels=4),
    "resnet18": ResNetConfig(dropout=0.1),
}


@pytest.fixture(params=sorted(CONFIGS))
def config(request: pytest.FixtureRequest) -> ModelConfig:
    torch.manual_seed(0)
    return CONFIGS[request.param]


def made(config: ModelConfig, *, num_classes: int = 5, in_channels: int = 3) -> StagedModel:
    return build(config, num_classes=num_classes, in_channels=in_channels, image_size=64)


def test_every_family_is_under_contract() -> None:
    assert sorted(CONFIGS) == FAMILIES.names()


def test_the_config_is_that_of_the_registered_family(config: ModelConfig) -> None:
    assert type(config) is FAMILIES.get(config.family).config
    assert FAMILIES.get(config.family).config().family == config.family


def test_the_stages_hold_every_parameter_and_buffer_exactly_once_and_the_head_is_last(config: ModelConfig) -> None:
    model = made(config)
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
    images = torch.randn(2, in_channels, 40, 48)
    with torch.no_grad():
        assert model.features(images).shape == (2, model.num_features)
        assert model(images).shape == (2, num_classes)


def test_the_forward_pass_is_the_stages_the_pooling_and_the_head(config: ModelConfig) -> None:
    model = made(config).eval()
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        outputs = images
        for name in model.stage_names[:-1]:
            outputs = model.stage(name)(outputs)
            if name == model.cam_stage:
                assert outputs.ndim == 4
                assert outputs.shape[1] == model.num_features
        assert torch.equal(model.head(model.pool(outputs)), model(images))


def test_the_gradient_reaches_every_parameter(config: ModelConfig) -> None:
    model = made(config).train()
    loss = torch.nn.functional.cross_entropy(model(torch.randn(4, 3, 40, 40)), torch.arange(4))
    torch.autograd.backward(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_a_state_dict_carries_the_whole_network(config: ModelConfig) -> None:
    first, second = made(config), made(config)
    first.train()(torch.randn(4, 3, 40, 40))
    images = torch.randn(2, 3, 40, 40)
    assert not torch.equal(first.eval()(images), second.eval()(images))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(images), second(images))


def test_seeded_weights_repeat(config: ModelConfig) -> None:
    torch.manual_seed(5)
    first = made(config).state_dict()
    torch.manual_seed(5)
    second = made(config).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_it_exports_with_a_dynamic_batch(config: ModelConfig) -> None:
    model = made(config).eval()
    shapes = {"images": {0: torch.export.Dim("batch", min=1, max=64)}}
    exported = torch.export.export(model, (torch.randn(2, 3, 40, 40),), dynamic_shapes=shapes).module()
    images = torch.randn(5, 3, 40, 40)
    with torch.no_grad():
        assert torch.allclose(exported(images), model(images), atol=1e-5)


def test_the_smallest_image_trains_and_a_smaller_one_is_an_error_that_names_it(config: ModelConfig) -> None:
    smallest = made(config).min_image_size
    model = build(config, num_classes=3, in_channels=1, image_size=smallest)
    assert model.train()(torch.randn(2, 1, smallest, smallest)).shape == (2, 3)
    with pytest.raises(UserError) as caught:
        build(config, num_classes=3, in_channels=1, image_size=smallest - 1)
    assert f"augment.image_size {smallest - 1} is too small" in str(caught.value)
    assert f"at least {smallest} pixels" in str(caught.value)


def test_all_parameters_are_trained_at_first(config: ModelConfig) -> None:
    total, trained = num_parameters(made(config))
    assert total == trained > 0


def test_it_freezes_and_thaws_to_any_depth(config: ModelConfig) -> None:
    depths = len(made(config).stage_names) - 1
    for depth in (*range(depths, 0, -1), 0):
        model = made(config.model_copy(update={"freeze_depth": depth})).train()
        torch.autograd.backward(model(torch.randn(4, 3, 64, 64)).sum())
        trained = {name for name in model.stage_names for p in model.stage(name).parameters() if p.grad is not None}
        assert trained == set(model.stage_names[depth:])


def test_it_can_be_described_and_the_figures_add_up(config: ModelConfig) -> None:
    model = made(config)
    table = describe(model, image_size=64, in_channels=3)
    assert list(table["stage"]) == list(model.stage_names)
    assert (table["parameters"].sum(), table["trainable"].sum()) == num_parameters(model)
    assert (table["macs"] >= 0).all()
    assert table["macs"].sum() > 0
    assert list(table["output"])[-1] == "5"


def test_a_frozen_network_exports(config: ModelConfig) -> None:
    model = made(config.model_copy(update={"freeze_depth": "all"})).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.allclose(torch.export.export(model, (images,)).module()(images), model(images), atol=1e-5)


def test_an_unknown_family_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown model family 'resnet'; known: plaincnn, resnet18"):
        build(ModelConfig(family="resnet"), num_classes=2, in_channels=1, image_size=32)
