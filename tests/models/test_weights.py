"""Weights into a network: what is matched, adapted, left fresh, and refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import imgcls.models  # noqa: F401  (registers the families)
from imgcls.errors import UserError
from imgcls.models.family import FAMILIES, StagedModel, build, is_path
from imgcls.models.plaincnn import PlainCNNConfig
from imgcls.models.weights import Pretrained, WeightsReport, load_weights

ABC = ("a", "b", "c")
PLAIN = PlainCNNConfig(num_blocks=2, channels=4)
RESNET = FAMILIES.get("resnet18").config.model_validate({"family": "resnet18"})


def plain(*, num_classes: int = 3, in_channels: int = 3, seed: int = 0) -> StagedModel:
    torch.manual_seed(seed)
    return build(PLAIN, num_classes=num_classes, in_channels=in_channels, image_size=16)


def resnet(*, num_classes: int = 3, seed: int = 0) -> StagedModel:
    torch.manual_seed(seed)
    return build(RESNET, num_classes=num_classes, in_channels=3, image_size=64)


def given(tensors: Mapping[str, torch.Tensor], **more: Any) -> Pretrained:
    return Pretrained("the file", "the file", tensors, **more)


def load(model: StagedModel, weights: Pretrained, classes: tuple[str, ...] = ABC, config: Any = PLAIN) -> WeightsReport:
    return load_weights(model, weights, config=config, classes=classes)


def outcomes(report: WeightsReport, outcome: str) -> dict[str, str]:
    return {row.tensor or row.source: row.how for row in report.rows if row.outcome == outcome}


def logits(model: StagedModel, channels: int = 3) -> torch.Tensor:
    torch.manual_seed(9)
    with torch.no_grad():
        result: torch.Tensor = model.eval()(torch.randn(2, channels, 32, 32))
    return result


def test_torchvisions_names_fill_a_staged_network_that_computes_what_torchvisions_does() -> None:
    from torchvision.models import resnet18

    torch.manual_seed(1)
    theirs = resnet18(weights=None)
    theirs.train()(torch.randn(2, 3, 32, 32))  # statistics of batch norm that a fresh network has not
    classes = tuple(f"class{k}" for k in range(1000))
    ours = resnet(num_classes=1000)
    report = load(ours, given(theirs.state_dict(), classes=classes), classes, RESNET)
    assert {row.outcome for row in report.rows} == {"loaded"}
    assert len(report.rows) == len(theirs.state_dict()) == len({row.source for row in report.rows})
    torch.manual_seed(9)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours.eval()(images), theirs.eval()(images))


def test_every_name_of_the_resnet_has_one_of_torchvisions() -> None:
    from torchvision.models import resnet18

    with torch.device("meta"):
        ours, theirs = build(RESNET, num_classes=1000, in_channels=3, image_size=64), resnet18(weights=None)
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert set(ours.origin_names.values()) == set(shapes)
    assert all(shapes[ours.origin_names[name]] == tensor.shape for name, tensor in ours.state_dict().items())


def test_the_output_layer_stays_fresh_for_other_classes_and_the_rest_is_loaded() -> None:
    source, model = plain(num_classes=5, seed=1), plain()
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load(model, given(source.state_dict(), classes=("a", "b", "x", "y", "z")))
    why = "of its 5 classes 2 are among the 3 here"
    assert outcomes(report, "fresh") == {"head.1.weight": why, "head.1.bias": why}
    assert report.summary == f"weights the file: tensors 24 loaded, 2 fresh ({why})"
    for name, tensor in model.state_dict().items():
        expected = fresh if name.startswith("head.") else source.state_dict()
        assert torch.equal(tensor, expected[name]), name


def test_the_classes_own_rows_are_taken_by_name_in_whatever_order() -> None:
    source, model = plain(seed=1), plain()
    report = load(model, given(source.state_dict(), classes=ABC), ("c", "a", "b"))
    how = "classes put into the order of this data set"
    assert outcomes(report, "adapted") == {"head.1.weight": how, "head.1.bias": how}
    assert torch.allclose(logits(model), logits(source)[:, [2, 0, 1]])


def test_as_many_classes_without_names_leave_the_output_layer_fresh() -> None:
    model = plain()
    before = model.head[1].weight.clone()  # type: ignore[index]
    report = load(model, given(plain(seed=1).state_dict()))
    assert set(outcomes(report, "fresh").values()) == {"the order of its classes is not known"}
    assert torch.equal(model.head[1].weight, before)  # type: ignore[index]


def test_weights_without_a_head_and_without_counters_are_enough() -> None:
    tensors = {
        name: tensor
        for name, tensor in plain(seed=1).state_dict().items()
        if not name.startswith("head.") and not name.endswith("num_batches_tracked")
    }
    report = load(plain(), given(tensors))
    assert set(outcomes(report, "fresh").values()) == {"not among the weights"}
    assert len(outcomes(report, "fresh")) == 4 + 2


def test_colour_weights_see_in_a_grey_image_what_they_saw_in_its_three_equal_channels() -> None:
    source, model = plain(seed=1), plain(in_channels=1)
    report = load(model, given(source.state_dict(), classes=ABC))
    assert outcomes(report, "adapted") == {"stages.block1.0.weight": "3 input channels summed into 1"}
    grey = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(grey), source.eval()(grey.repeat(1, 3, 1, 1)))


def test_grey_weights_see_in_a_colour_image_the_mean_of_its_channels() -> None:
    source, model = plain(in_channels=1, seed=1), plain()
    report = load(model, given(source.state_dict(), classes=ABC))
    assert outcomes(report, "adapted") == {"stages.block1.0.weight": "1 input channel spread over 3"}
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), source.eval()(images.mean(1, keepdim=True)))


def test_half_precision_weights_are_loaded_as_they_are() -> None:
    source, model = plain(seed=1), plain()
    halves = {name: t.half() if t.is_floating_point() else t for name, t in source.state_dict().items()}
    load(model, given(halves, classes=ABC))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    torch.testing.assert_close(logits(model), logits(source), atol=1e-2, rtol=1e-2)


def positions(grid: int) -> StagedModel:
    """A network with position embeddings as torchvision's vision transformer has them."""
    stage = nn.Module()
    stage.positions = nn.Parameter(torch.randn(1, 1 + grid**2, 4))
    return StagedModel(
        {"stem": stage},
        pool=nn.Identity(),
        head=nn.Linear(4, 3),
        num_features=4,
        cam_stage="stem",
        min_image_size=1,
        origin_names={
            "stages.stem.positions": "encoder.pos_embedding",
            "head.weight": "heads.head.weight",
            "head.bias": "heads.head.bias",
        },
    )


def test_positions_of_another_grid_are_interpolated_and_the_class_token_stays() -> None:
    torch.manual_seed(0)
    old = torch.randn(1, 1 + 9, 4)
    old[:, 1:] = torch.linspace(0, 1, 3).repeat(3)[None, :, None]  # a ramp from left to right
    model = positions(5)
    report = load(model, given({"encoder.pos_embedding": old}))
    assert outcomes(report, "adapted") == {"stages.stem.positions": "positions of a 3x3 grid interpolated"}
    new = model.state_dict()["stages.stem.positions"]
    assert torch.equal(new[:, 0], old[:, 0])
    rows = new[0, 1:, 0].reshape(5, 5)
    assert torch.allclose(rows, rows[0].expand(5, 5))
    assert torch.allclose(rows[0, [0, 2, 4]], torch.tensor([0, 0.5, 1.0]), atol=1e-6)
    assert (rows[0].diff() > 0).all()


def test_positions_of_another_width_are_an_error() -> None:
    with pytest.raises(UserError, match=r"encoder\.pos_embedding is 1x10x8, here 1x26x4"):
        load(positions(5), given({"encoder.pos_embedding": torch.zeros(1, 10, 8)}))


def test_weights_of_another_architecture_are_named_and_nothing_is_loaded() -> None:
    from torchvision.models import resnet34

    model = resnet()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load(model, given(resnet34(weights=None).state_dict()), config=RESNET)
    text = str(caught.value)
    assert "the weights the file do not fit this resnet18 (122 tensors; 218 given): 96 have no place in it" in text
    assert "(layer1.2.conv1.weight, layer1.2.bn1.weight, layer1.2.bn1.bias, …)" in text
    change = "set model.family to resnet34, or " if "resnet34" in FAMILIES.names() else ""
    assert f"These look like weights of resnet34: {change}give weights of a resnet18." in text
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_another_architecture_is_known_by_its_size_whatever_its_classes() -> None:
    from torchvision.models import mobilenet_v2

    with torch.device("meta"):
        tensors = mobilenet_v2(weights=None, num_classes=7).state_dict()
    with pytest.raises(UserError, match=r"are not among them \(conv1\.weight, .*look like weights of mobilenet_v2"):
        load(resnet(), given(tensors), config=RESNET)


def test_ones_own_weights_of_other_fields_name_the_fields() -> None:
    config = PlainCNNConfig(num_blocks=2, channels=6)
    source = build(config, num_classes=3, in_channels=3, image_size=16)
    about = {**config.model_dump(mode="json"), "weights": "default"}
    with pytest.raises(UserError) as caught:
        load(plain(), given(source.state_dict(), config=about))
    assert "stages.block1.0.weight is 6x3x3x3, here 4x3x3x3, " in str(caught.value)
    assert str(caught.value).endswith("They were trained with model.channels 6: set that, or give other weights.")


def test_whole_numbers_in_the_place_of_weights_are_an_error() -> None:
    tensors = {**plain().state_dict(), "stages.block1.0.weight": torch.zeros(4, 3, 3, 3, dtype=torch.int8)}
    with pytest.raises(UserError, match=r"stages\.block1\.0\.weight is 4x3x3x3 int8, here 4x3x3x3"):
        load(plain(), given(tensors))


def test_weights_of_a_training_that_diverged_are_an_error_that_counts_them() -> None:
    source = plain(seed=1)
    source.stages["block1"][0].weight.data[0, 0, 0, 0] = torch.nan  # type: ignore[index]
    with pytest.raises(UserError, match=r"not finite \(nan or inf\), in 1 tensors \(stages\.block1\.0\.weight\)"):
        load(plain(), given(source.state_dict()))


def test_an_auxiliary_head_is_ignored_and_listed() -> None:
    tensors = {**plain(seed=1).state_dict(), "AuxLogits.fc.weight": torch.zeros(2, 2)}
    report = load(plain(), given(tensors, classes=ABC))
    assert outcomes(report, "ignored") == {"AuxLogits.fc.weight": "of an auxiliary head"}
    assert report.summary.endswith("26 loaded, 1 ignored (of an auxiliary head)")


def test_loading_draws_nothing_from_the_generator_of_the_weights() -> None:
    model, weights = plain(), given(plain(seed=1).state_dict())
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load(model, weights)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("none", False),
        ("default", False),
        ("ResNet18_Weights.IMAGENET1K_V1", False),
        ("runs:/0123/model", False),
        ("models:/animals@champion", False),
        ("0123456789abcdef" * 2, False),
        ("a.pth", True),
        ("a.PT", True),
        ("folder/", True),
        ("~/a.safetensors", True),
        ("./classifier", True),
    ],
)
def test_a_path_is_known_by_how_it_is_written_and_made_absolute(weights: str, expected: bool) -> None:
    assert is_path(weights) == expected
    absolute = str(Path(weights).expanduser().absolute())
    assert PlainCNNConfig(weights=weights).weights == (absolute if expected else weights)


def test_building_looks_at_no_weights() -> None:
    config = PlainCNNConfig(num_blocks=1, channels=2, weights="/nowhere/a.pth")
    assert build(config, num_classes=2, in_channels=1, image_size=8).num_features == 2
