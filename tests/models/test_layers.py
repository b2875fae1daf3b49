"""The named layers one by one, and in every network of ours."""

import math
from itertools import combinations
from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from torch import nn

import imgcls.models  # noqa: F401  (registers the families)
from imgcls.models.family import FAMILIES, StagedModel, build
from imgcls.models.layers import (
    Activation,
    Attention,
    Init,
    LayersConfig,
    Norm,
    activation,
    attention,
    initialise,
    norm,
)

OURS = [name for name in FAMILIES.names() if issubclass(FAMILIES.get(name).config, LayersConfig)]
GATES: tuple[Attention, ...] = ("se", "eca", "cbam")
OPTIONS = [
    *(("activation", name) for name in get_args(Activation)),
    *(("norm", name) for name in get_args(Norm)),
    *(("attention", name) for name in get_args(Attention)),
    *(("init", name) for name in get_args(Init)),
]
SMALL: dict[str, dict[str, int]] = {
    "plaincnn": {"num_blocks": 2, "channels": 8},
    "quizdnn": {"channels": 16},
    "separable": {"width": 8, "depth": 1},
    "widecnn": {"width": 8, "depth": 1},
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def small(family: str, **fields: object) -> StagedModel:
    config = FAMILIES.get(family).config.model_validate({"family": family, **SMALL[family], **fields})
    return build(config, num_classes=3, in_channels=3, image_size=32)


# --- activations


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("name", "at_minus_one"),
    [
        ("relu", 0.0),
        ("leaky_relu", -0.01),
        ("gelu", -(1 - math.erf(1 / math.sqrt(2))) / 2),
        ("silu", -1 / (1 + math.e)),
        ("mish", -math.tanh(math.log(1 + math.exp(-1)))),
    ],
)
def test_an_activation_has_the_papers_value(name: Activation, at_minus_one: float, inplace: bool) -> None:
    outputs = activation(name, inplace=inplace)(torch.tensor([-1.0, 0.0], dtype=torch.float64))
    assert outputs.tolist() == pytest.approx([at_minus_one, 0.0], abs=1e-12)


def test_only_the_rectifiers_overwrite_their_input_and_only_when_told_to() -> None:
    overwriting = []
    for name in get_args(Activation):
        for inplace in (False, True):
            values = torch.tensor([-1.0])
            activation(name, inplace=inplace)(values)
            overwriting += [(name, inplace)] * (values.item() != -1.0)
    assert overwriting == [("relu", True), ("leaky_relu", True)]


# --- norms


@pytest.mark.parametrize(("name", "over"), [("batch", (0, 2, 3)), ("layer", (1, 2, 3))])
def test_a_norm_makes_means_zero_and_variances_one_over_its_axes(name: Norm, over: tuple[int, ...]) -> None:
    outputs = norm(name, 6)(torch.randn(4, 6, 5, 5) * 3 + 2)
    assert torch.allclose(outputs.mean(over), torch.zeros(1), atol=1e-5)
    assert torch.allclose(outputs.var(over, correction=0), torch.ones(1), atol=1e-3)


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (8, 1), (16, 2), (17, 1), (48, 6), (256, 32), (1024, 32)])
def test_a_group_has_at_least_eight_channels_and_there_are_at_most_32(channels: int, groups: int) -> None:
    made = norm("group", channels)
    assert isinstance(made, nn.GroupNorm)
    assert made.num_groups == groups


def test_no_norm_passes_its_input_on() -> None:
    features = torch.randn(2, 3, 4, 4)
    assert norm("none", 3)(features) is features


# --- attention


@pytest.mark.parametrize(
    ("name", "channels", "parameters"),
    [
        ("none", 64, 0),
        ("se", 64, 2 * 64 * 8 + 8 + 64),
        ("se", 256, 2 * 256 * 16 + 16 + 256),
        ("eca", 1, 1),
        ("eca", 64, 3),
        ("eca", 256, 5),
        ("cbam", 64, 2 * 64 * 8 + 8 + 64 + 2 * 49),
    ],
)
def test_a_gate_has_the_papers_parameters_and_keeps_the_shape(name: Attention, channels: int, parameters: int) -> None:
    gate = attention(name, channels)
    assert sum(p.numel() for p in gate.parameters()) == parameters
    assert gate(torch.randn(2, channels, 5, 4)).shape == (2, channels, 5, 4)


@pytest.mark.parametrize("name", GATES)
def test_a_gate_scales_between_zero_and_one_as_its_input_says(name: Attention) -> None:
    gate = attention(name, 16)
    features = torch.rand(2, 16, 6, 6) + 0.5
    scales = gate(features) / features
    assert ((scales > 0) & (scales < 1)).all()
    assert not torch.allclose(scales[0], scales[1])


@pytest.mark.parametrize(("name", "reach"), [("se", 16), ("eca", 3), ("cbam", 16)])
def test_a_channels_gate_depends_on_as_many_channels_as_the_paper_says(name: Attention, reach: int) -> None:
    gate = attention(name, 16).double()
    features = (torch.rand(1, 16, 6, 6, dtype=torch.float64) + 0.5).requires_grad_()
    (gradient,) = torch.autograd.grad(gate(features)[0, 8, 0, 0], features)
    other_places = gradient[0, :, 3:, 3:]  # of the gate alone, the product with the feature is elsewhere
    assert (other_places.abs().amax((1, 2)) > 0).sum() == reach


def test_cbam_gates_places_too() -> None:
    features = torch.rand(1, 16, 12, 12) + 0.5
    with torch.no_grad():
        scales = {name: attention(name, 16)(features) / features for name in GATES}
    spread = {name: float(scale.std((2, 3)).max()) for name, scale in scales.items()}
    assert spread["cbam"] > 1e-3 > 1e-5 > max(spread["se"], spread["eca"])


@pytest.mark.parametrize("name", GATES)
def test_the_gradient_reaches_the_gates_parameters_and_its_input(name: Attention) -> None:
    gate = attention(name, 16)
    features = torch.randn(3, 16, 6, 6, requires_grad=True)
    torch.autograd.backward(gate(features).square().sum())
    for parameter in (features, *gate.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


# --- initial weights


def deviation(weight: torch.Tensor) -> float:
    return float(weight.detach().std(correction=0))


@pytest.mark.parametrize(
    ("init", "kind", "expected"),
    [
        ("kaiming", "conv", math.sqrt(2 / (9 * 64))),
        ("kaiming", "depthwise", math.sqrt(2 / 9)),
        ("kaiming", "linear", math.sqrt(2 / 512)),
        ("xavier", "conv", math.sqrt(2 * 2 / (9 * 64 + 9 * 128))),
        ("xavier", "depthwise", math.sqrt(2 * 2 / (9 + 9))),
        ("orthogonal", "linear", math.sqrt(2 / 512)),
    ],
)
def test_weights_are_as_wide_as_the_paper_says_for_their_own_inputs_and_outputs(
    init: Init, kind: str, expected: float
) -> None:
    layers: dict[str, nn.Conv2d | nn.Linear] = {
        "conv": nn.Conv2d(64, 128, 3),
        "depthwise": nn.Conv2d(2048, 2048, 3, groups=2048),
        "linear": nn.Linear(512, 256),
    }
    layer = layers[kind]
    initialise(layer, LayersConfig(init=init))
    assert deviation(layer.weight) == pytest.approx(expected, rel=0.03)
    assert layer.bias is not None
    assert layer.bias.abs().sum() == 0


def test_orthogonal_weights_are() -> None:
    layer = nn.Linear(32, 8)
    initialise(layer, LayersConfig(init="orthogonal"))
    assert torch.allclose(layer.weight @ layer.weight.T, 2 * torch.eye(8), atol=1e-5)


def test_the_leaky_rectifier_has_a_gain_of_its_own() -> None:
    widths = {}
    for name in ("relu", "gelu", "leaky_relu"):
        torch.manual_seed(0)
        layer = nn.Linear(512, 256)
        initialise(layer, LayersConfig(init="xavier", activation=name))
        widths[name] = deviation(layer.weight)
    assert widths["relu"] == widths["gelu"]
    assert widths["leaky_relu"] / widths["relu"] == pytest.approx(1 / math.sqrt(1 + 0.01**2), rel=1e-6)


def test_the_default_leaves_torchs_weights() -> None:
    layer = nn.Linear(4, 4)
    before = layer.weight.clone()
    initialise(layer, LayersConfig())
    assert torch.equal(layer.weight, before)


# --- in the networks


def test_our_networks_are_found() -> None:
    assert sorted(SMALL) == OURS


@pytest.mark.parametrize("family", OURS)
@pytest.mark.parametrize(("field", "value"), OPTIONS, ids=lambda value: str(value))
def test_every_option_works_in_every_network(family: str, field: str, value: str) -> None:
    model = small(family, **{field: value})
    loss = nn.functional.cross_entropy(model.train()(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 0]))
    torch.autograd.backward(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("family", OURS)
@pytest.mark.parametrize("field", ["activation", "norm", "attention", "init"])
def test_every_option_changes_the_logits_of_every_network(family: str, field: str) -> None:
    images, logits = torch.randn(2, 3, 32, 32), {}
    for value in [value for name, value in OPTIONS if name == field]:
        torch.manual_seed(1)
        with torch.no_grad():
            logits[value] = small(family, **{field: value}).train(mode=field == "norm")(images)
    assert [(a, b) for a, b in combinations(logits, 2) if torch.allclose(logits[a], logits[b])] == []


@pytest.mark.slow
@pytest.mark.parametrize("family", OURS)
@pytest.mark.parametrize("name", GATES)
def test_a_network_with_attention_exports_with_a_dynamic_batch(family: str, name: str) -> None:
    model = small(family, attention=name).eval()
    shapes = {"images": {0: torch.export.Dim("batch", min=1, max=64)}}
    exported = torch.export.export(model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=shapes).module()
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(exported(images), model(images), atol=1e-5)


@pytest.mark.parametrize("family", OURS)
@pytest.mark.parametrize(("field", "value"), [("norm", "batch"), ("norm", "group"), ("attention", "cbam")])
def test_a_network_computes_in_bfloat16(family: str, field: str, value: str) -> None:
    model = small(family, **{field: value}).eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(images)
    assert rough.dtype == torch.bfloat16
    assert torch.allclose(rough.float(), exact, atol=0.05 * float(exact.abs().max()))


@pytest.mark.parametrize("family", OURS)
def test_without_a_norm_convolutions_have_biases(family: str) -> None:
    convolutions = [layer for layer in small(family, norm="none").modules() if isinstance(layer, nn.Conv2d)]
    biased = [layer for layer in convolutions if layer.bias is not None]
    assert len(biased) == len(convolutions) - 3 * (family == "widecnn")  # its shortcuts are linear


@pytest.mark.parametrize("family", OURS)
@pytest.mark.parametrize("field", ["activation", "norm", "attention", "init"])
def test_an_unknown_option_is_refused(family: str, field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        small(family, **{field: "unheard_of"})
