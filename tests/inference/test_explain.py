"""Heat maps: for every family, in every layout of a network's outputs, at the evidence, and without a trace."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from imgcls.data.augment import Preprocessing
from imgcls.errors import UserError
from imgcls.inference.classifier import Classifier
from imgcls.inference.explain import Explanation, _as_grid, explain
from imgcls.models.family import FAMILIES, ModelConfig, StagedModel, build
from imgcls.models.parts import FirstToken
from imgcls.models.plaincnn import PlainCNNConfig
from imgcls.models.torchvision import ResNetConfig
from tests.inference.test_classifier import MIXED, Pixels, classifier, noise, png

FAMILY_STAGES = {
    "plaincnn": (32, "block3"),
    "quizdnn": (32, "group3"),
    "separable": (32, "block4"),
    "widecnn": (32, "group4"),
    "resnet18": (64, "layer4"),
    "regnet_x_400mf": (64, "block4"),
    "shufflenet_v2_x0_5": (64, "last"),
    "squeezenet1_1": (64, "fires3"),
    "mobilenet_v2": (64, "last"),
    "efficientnet_b0": (64, "last"),
    "densenet121": (64, "block4"),
    "convnext_tiny": (64, "stage4"),
    "vit_b_16": (64, "block11"),
    "vit_b_32": (64, "block11"),
    "swin_t": (64, "norm"),
    "maxvit_t": (64, "block4"),
    "timm:test_efficientnet": (64, "conv_head"),
    "timm:test_vit": (64, "body.blocks4"),
    "timm:test_vit3": (64, "body"),
    "timm:mixer_s32_224": (64, "norm"),
    "timm:swin_tiny_patch4_window7_224": (224, "norm"),
}
"""Pixels that a network is built for, and where its map is read."""
SLOW = {"vit_b_16", "vit_b_32", "swin_t", "maxvit_t", "densenet121", "convnext_tiny", "timm:mixer_s32_224"}
SLOW |= {"widecnn", "timm:swin_tiny_patch4_window7_224", "regnet_x_400mf", "efficientnet_b0"}


def stirred(given: Classifier) -> Classifier:
    """With noise on every weight, for some heads start with zeros; and what speaks for class 0 speaks against 1."""
    with torch.no_grad():
        for parameter in given.module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        last = [layer for layer in given.module.head.modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1]
        last.weight[1] = -last.weight[0]
    return given


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in FAMILY_STAGES]
)
def test_every_kind_of_family_is_explained(family: str) -> None:
    if family.startswith("timm:"):
        pytest.importorskip("timm")
    size, stage = FAMILY_STAGES[family]
    model = stirred(classifier(FAMILIES.get(family).config.model_validate({"family": family}), size=size))
    found = explain(model, [MIXED[0], png(MIXED[3])])
    # A class that all places speak against has a map of zeros, but not class 0 and class 1 at once.
    found += explain(model, [MIXED[0]] * 2, targets=[0, 1])
    probs = model.probabilities([MIXED[0], MIXED[3]])
    for row, expected in zip(found, probs, strict=False):
        assert np.allclose(row.probs, expected, atol=1e-5)
        assert row.target == row.predicted == expected.argmax()
        assert row.label == model.classes[expected.argmax()]
        assert row.probability == pytest.approx(expected.max(), abs=1e-5)
    assert {row.stage for row in found} == {stage}
    assert np.array_equal(found[0].pixels, model.preprocessing.load(MIXED[0]))
    for row in found:
        assert row.heat.shape == (size, size)
        assert row.heat.dtype == np.float32
        assert np.isfinite(row.heat).all()
        assert row.heat.min() >= 0
        assert row.heat.max() in (0, 1)
    assert max(row.heat.std() for row in found[-2:]) > 1e-3, "a map of one value shows no place"


# --- one function as a network of maps, of maps with the channels last, and of tokens


class _Patches(nn.Module):
    """4 × 4 pixels to their brightness and their darkness, as a map."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 4, stride=4)
        self._layout = layout
        with torch.no_grad():
            self.conv.weight[0], self.conv.weight[1] = 1 / 16, -1 / 16
            self.conv.bias.copy_(torch.tensor([0.0, 1.0]))  # type: ignore[union-attr]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        grid: torch.Tensor = self.conv(images).relu()
        if self._layout == "channels last":
            return grid.permute(0, 2, 3, 1)
        if self._layout.startswith("tokens"):
            first = torch.full((len(images), int(self._layout.removeprefix("tokens")), 2), 7.0)
            return torch.cat([first, grid.flatten(2).transpose(1, 2)], dim=1)
        return grid


class _IntoFirst(nn.Module):
    """Tokens whose first becomes the mean of the patches'."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self._before = before

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mean = tokens[:, self._before :].mean(1, keepdim=True) * self.scale
        return torch.cat([mean, tokens[:, 1:]], dim=1)


class _Mean(nn.Module):
    def __init__(self, *dims: int) -> None:
        super().__init__()
        self._dims = dims

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        return grid.mean(self._dims)


def brightness(layout: str, *, size: int = 16) -> Classifier:
    """A classifier of bright images ("light") and dark ones ("dark"), by the mean over 4 × 4 patches."""
    head = nn.Linear(2, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[3.0, -1.0], [-1.0, 3.0]]))
        head.bias.zero_()
    stages: dict[str, nn.Module] = {"patches": _Patches(layout)}
    pool: nn.Module = _Mean(1, 2) if layout == "channels last" else _Mean(2, 3)
    if layout == "tokens0":
        pool = _Mean(1)
    elif layout.startswith("tokens"):
        stages["mix"] = _IntoFirst(int(layout.removeprefix("tokens")))
        pool = FirstToken()
    return wrapped(stages, pool, head, size=size)


def wrapped(stages: Mapping[str, nn.Module], pool: nn.Module, head: nn.Linear, *, size: int) -> Classifier:
    model = StagedModel(
        stages, pool=pool, head=head, num_features=head.in_features, cam_stage=None, min_image_size=1
    ).eval()
    return Classifier(model, ModelConfig(), Preprocessing(1, size, (0.0,), (1.0,)), ("light", "dark"), 1)


def spotted(size: int, top: int, left: int) -> Pixels:
    """Dark, with a bright square of 4 pixels a side."""
    image = np.full((size, size, 1), 20, np.uint8)
    image[top : top + 4, left : left + 4] = 250
    return image


def by_hand(image: Pixels, target: int) -> npt.NDArray[np.float32]:
    """Grad-CAM of `brightness`: the mean gradient is the head's weight over the number of places, any factor apart."""
    values = torch.from_numpy(image[:, :, 0].astype(np.float32) / 255)
    light = nn.functional.avg_pool2d(values[None, None], 4)[0]
    maps = torch.cat([light, 1 - light])
    weights = torch.tensor([[3.0, -1.0], [-1.0, 3.0]])[target]
    raw = (weights[:, None, None] * maps).sum(0).relu()
    large = nn.functional.interpolate(raw[None, None], (16, 16), mode="bilinear")[0, 0]
    heat: npt.NDArray[np.float32] = (large / large.max()).numpy()
    return heat


LAYOUTS = ["map", "channels last", "tokens0", "tokens1", "tokens2"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_map_is_that_of_the_paper_s_formula_in_every_layout(layout: str) -> None:
    image = spotted(16, 4, 8)
    for target in (0, 1):
        (found,) = explain(brightness(layout), [image], targets=[target])
        assert found.stage == "patches"
        assert np.allclose(found.heat, by_hand(image, target), atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("top", "left"), [(0, 0), (4, 8), (12, 0), (8, 12)])
def test_the_hottest_place_is_the_bright_one(layout: str, top: int, left: int) -> None:
    (found,) = explain(brightness(layout), [spotted(16, top, left)], targets=["light"])
    y, x = np.unravel_index(found.heat.argmax(), found.heat.shape)
    assert top <= y < top + 4
    assert left <= x < left + 4
    assert found.heat[top : top + 4, left : left + 4].mean() > 5 * found.heat.mean()


@pytest.mark.parametrize("layout", ["map", "channels last"])
def test_as_many_channels_as_places_on_a_side_are_not_taken_for_places(layout: str) -> None:
    image = np.full((8, 8, 1), 20, np.uint8)
    image[4:, :4] = 250
    model = brightness(layout, size=8)
    if layout == "channels last":
        # Here only the network can say what its outputs are: 2 × 2 places of 2 channels.
        model.module._to_map = lambda outputs: outputs.permute(0, 3, 1, 2)
    (found,) = explain(model, [image], targets=["light"])
    y, x = np.unravel_index(found.heat.argmax(), found.heat.shape)
    assert y >= 4
    assert x < 4


@pytest.mark.parametrize(("family", "shape"), [("swin_t", (1, 4, 2, 3)), ("convnext_tiny", (1, 2, 3, 4))])
def test_at_384_pixels_the_first_stage_has_96_channels_and_96_places_on_a_side(
    family: str, shape: tuple[int, ...]
) -> None:
    config = FAMILIES.get(family).config.model_validate({"family": family})
    with torch.device("meta"):
        model = build(config, num_classes=2, in_channels=3, image_size=384)
    place = _as_grid("stage1", model.stage("stage1"), torch.zeros(1, 96, 96, 96), model)
    assert place is not None
    assert place.to_map(torch.zeros(1, 2, 3, 4)).shape == shape


def test_a_trained_network_s_map_is_where_the_deciding_patch_lies() -> None:
    torch.manual_seed(0)
    model = classifier(PlainCNNConfig(num_blocks=2, channels=8, dropout=0), channels=1, size=24)
    places = np.random.default_rng(0).integers(0, 18, (240, 2))
    images = np.stack([noise(24, 24, k, 1) // 4 for k in range(240)])
    labels = torch.arange(240) % 2
    for image, (top, left), label in zip(images, places, labels.tolist(), strict=True):
        image[top : top + 6, left : left + 6] = 255 if label else 100
    optimizer = torch.optim.Adam(model.module.parameters(), lr=0.02)
    inputs = model.preprocessing.to_input(torch.from_numpy(images))
    model.module.train()
    for step in range(40):
        rows = torch.arange(step * 40, step * 40 + 40) % 200
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model.module(inputs[rows]), labels[rows]))
        optimizer.step()
    found = explain(model, list(images[201::2]), targets=[1] * 20)
    assert np.mean([row.predicted == 1 for row in found]) > 0.9
    hits = []
    for row, (top, left) in zip(found, places[201::2], strict=True):
        y, x = np.unravel_index(row.heat.argmax(), row.heat.shape)
        hits.append(top - 2 <= y < top + 8 and left - 2 <= x < left + 8)  # a place of the grid is 2 pixels wide
    assert np.mean(hits) > 0.9, "of a random place one in six would hit"


# --- which place


def test_a_stage_is_chosen_by_its_name() -> None:
    model = classifier(ResNetConfig(), size=64)
    coarse, fine = (explain(model, MIXED[:1], stage=stage)[0] for stage in (None, "layer1"))
    assert (coarse.stage, fine.stage) == ("layer4", "layer1")
    assert not np.array_equal(coarse.heat, fine.heat)


def test_a_last_map_of_a_single_place_is_passed_over() -> None:
    model = classifier(ResNetConfig(), size=32)
    assert explain(model, MIXED[:1])[0].stage == "layer3"
    with pytest.raises(UserError) as caught:
        explain(model, MIXED[:1], stage="layer4")
    assert str(caught.value) == (
        "the output of stage 'layer4' of resnet18 with images of 32 pixels is no grid of several places. Choose one "
        "of: stem, layer1, layer2, layer3."
    )


def test_an_unknown_stage_lists_the_known_ones() -> None:
    model = classifier(ResNetConfig(), size=32)
    for images in (MIXED[:1], []):
        with pytest.raises(UserError) as caught:
            explain(model, images, stage="layer9")
        assert str(caught.value) == (
            "unknown stage 'layer9'; the network's stages before its head: stem, layer1, layer2, layer3, layer4. "
            "Did you mean 'layer4'?"
        )


def test_tokens_that_the_features_leave_unread_are_an_error_that_says_so() -> None:
    with pytest.raises(UserError, match=r"the patches in the output of stage 'mix' .* no influence on its features"):
        explain(brightness("tokens1"), [spotted(16, 0, 0)], stage="mix")


def test_a_network_without_a_grid_is_an_error_that_says_so() -> None:
    flat = wrapped({"flat": nn.Sequential(nn.Flatten(), nn.Linear(64, 6))}, nn.Identity(), nn.Linear(6, 2), size=8)
    with pytest.raises(UserError, match="plaincnn with images of 8 pixels has no stage whose output is a grid"):
        explain(flat, [noise(8, 8)])


# --- what is asked


def test_targets_are_indices_or_names() -> None:
    model = classifier()
    found = explain(model, MIXED[:3], targets=[2, "a", "b c"])
    assert [row.target for row in found] == [2, 0, 1]
    assert [row.label for row in found] == ["日本", "a", "b c"]
    probs = model.probabilities(MIXED[:3])
    assert [row.probability for row in found] == pytest.approx([probs[0, 2], probs[1, 0], probs[2, 1]], abs=1e-6)


def test_an_index_may_be_a_text_that_is_no_class_s_name() -> None:
    digits = replace(classifier(), classes=("2", "1", "0"))
    assert [row.target for row in explain(digits, MIXED[:3], targets=["2", "1", "0"])] == [0, 1, 2]
    assert [row.target for row in explain(classifier(), MIXED[:3], targets=["2", "00", "1"])] == [2, 0, 1]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([0], "found 1 target classes for 2 images; give one for each image, or none."),
        (
            [0, "bc"],
            "unknown target class 'bc'; expected one of the 3 classes (a, b c, 日本) or its index, 0 to 2. Did you "
            "mean 'b c'?",
        ),
        ([3, 0], "unknown target class 3; expected one of the 3 classes (a, b c, 日本) or its index, 0 to 2."),
        (["3", 0], "unknown target class '3'; expected one of the 3 classes (a, b c, 日本) or its index, 0 to 2."),
        ([-1, 0], "unknown target class -1; expected one of the 3 classes (a, b c, 日本) or its index, 0 to 2."),
    ],
)
def test_wrong_targets_are_errors(targets: list[int | str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        explain(classifier(), MIXED[:2], targets=targets)
    assert str(caught.value) == message


def test_no_images_give_no_maps() -> None:
    assert explain(classifier(), []) == []


def test_the_batch_size_changes_nothing() -> None:
    model, targets = classifier(), [0, 1, 2, 1]
    ones, all_at_once = (explain(model, MIXED, targets=targets, batch_size=size) for size in (1, 16))
    for one, other in zip(ones, all_at_once, strict=True):
        assert one.target == other.target
        assert np.allclose(one.heat, other.heat, atol=1e-4)
        assert np.array_equal(one.pixels, other.pixels)


# --- no trace


@pytest.mark.parametrize("layout", ["map", "tokens1"])
@pytest.mark.parametrize("fails", [False, True])
def test_it_leaves_nothing_behind(layout: str, fails: bool) -> None:
    model = brightness(layout)
    module = model.module.train()
    module.head.eval()
    next(module.parameters()).requires_grad_(False)

    def state() -> list[object]:
        layers = [(layer.training, len(layer._forward_hooks), len(layer._backward_hooks)) for layer in module.modules()]
        tensors = [(id(p), p.requires_grad, p.grad, p.detach().clone().tolist()) for p in module.parameters()]
        return [layers, tensors, list(dict(module.named_modules()))]

    before = state()
    if fails:
        with pytest.raises(UserError):
            explain(model, [spotted(16, 0, 0), b"no image"])
    else:
        explain(model, [spotted(16, 0, 0)])
    assert state() == before


def test_frozen_parameters_and_a_surrounding_no_grad_change_nothing() -> None:
    model = classifier(size=16)
    expected = explain(model, MIXED, targets=[0, 1, 2, 0])
    model.module.requires_grad_(False)
    with torch.no_grad():
        found = explain(model, MIXED, targets=[0, 1, 2, 0])

    def plain(rows: list[Explanation]) -> list[object]:
        return [(row.heat.tolist(), row.probs.tolist(), row.stage) for row in rows]

    assert plain(found) == plain(expected)


def test_a_network_in_training_mode_is_explained_as_it_predicts() -> None:
    model = classifier(PlainCNNConfig(num_blocks=2, channels=4, dropout=0.9))
    expected = model.probabilities(MIXED)
    statistics = {name: value.clone() for name, value in model.module.named_buffers()}
    model.module.train()
    assert np.allclose([row.probs for row in explain(model, MIXED)], expected, atol=1e-6)
    assert model.module.training
    assert all(torch.equal(value, statistics[name]) for name, value in model.module.named_buffers())
