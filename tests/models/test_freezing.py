"""Depths and thaws against the stages there are, and what a frozen stage does and does not do."""

import pytest
import torch
from torch import nn

from imgcls.errors import UserError
from imgcls.models.family import StagedModel, build, num_parameters
from imgcls.models.freezing import in_words, resolve_depth, thaw_schedule
from imgcls.models.plaincnn import PlainCNNConfig

STAGES = ("stem", "layer1", "layer2", "head")


@pytest.mark.parametrize(
    ("depth", "frozen"), [(0, 0), (1, 1), (3, 3), ("all", 3), ("stem", 1), ("layer1", 2), ("layer2", 3)]
)
def test_a_depth_is_a_number_all_or_a_stage(depth: int | str, frozen: int) -> None:
    assert resolve_depth(depth, STAGES, field="f") == frozen


@pytest.mark.parametrize("depth", [4, -1, "head", "4", ""])
def test_a_depth_out_of_range_lists_the_stages(depth: int | str) -> None:
    with pytest.raises(UserError) as caught:
        resolve_depth(depth, STAGES, field="model.freeze_depth")
    assert f"model.freeze_depth: found {depth!r}; expected 0" in str(caught.value)
    assert "1 stem, 2 layer1, 3 layer2 (or all). The head, which comes last, is always trained" in str(caught.value)


def test_a_stage_that_is_not_there_has_a_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'layer2'"):
        resolve_depth("layer22", STAGES, field="f")


def test_thaws_are_in_the_order_of_the_epochs() -> None:
    assert list(thaw_schedule({9: 0, 4: "stem"}, STAGES, "all").items()) == [(4, 1), (9, 0)]
    assert thaw_schedule({}, STAGES, 0) == {}


def test_a_thaw_that_freezes_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"epoch 5: found 'layer2', which freezes 3 .* than 2, for model.freeze_depth is 2"
    ):
        thaw_schedule({5: "layer2"}, STAGES, 2)
    with pytest.raises(UserError, match=r"epoch 6: found 1, .* fewer than 1, for 1 are frozen from epoch 5 on"):
        thaw_schedule({5: 1, 6: 1}, STAGES, 2)
    with pytest.raises(UserError, match=r"expected fewer than 0, for model.freeze_depth is 0"):
        thaw_schedule({5: 0}, STAGES, 0)
    with pytest.raises(UserError, match=r"^train\.unfreeze, epoch 5: found 7; expected 0"):
        thaw_schedule({5: 7}, STAGES, 2)


def test_frozen_stages_are_told_in_words() -> None:
    assert [in_words(STAGES, depth) for depth in range(4)] == ["none", "stem", "stem to layer1", "stem to layer2"]


def network(depth: int | str = 0) -> StagedModel:
    torch.manual_seed(0)
    config = PlainCNNConfig(num_blocks=3, channels=4, freeze_depth=depth)
    return build(config, num_classes=3, in_channels=3, image_size=16)


def test_a_built_network_is_frozen_as_its_config_says() -> None:
    assert [network(depth).freeze_depth for depth in (0, 2, "block2", "all")] == [0, 2, 2, 3]
    total, trained = num_parameters(network("all"))
    assert trained == sum(p.numel() for p in network().head.parameters()) < total


def test_frozen_stages_stay_in_evaluation_mode_and_record_nothing() -> None:
    model = network(2)
    images = torch.randn(4, 3, 16, 16, requires_grad=True)
    before = {name: tensor.clone() for name, tensor in model.stages.state_dict().items()}
    model.train()
    assert [stage.training for stage in model.stages.values()] == [False, False, True]
    outputs = model(images)
    torch.autograd.backward(outputs.sum())
    assert images.grad is None
    changed = {
        name.split(".")[0] for name, tensor in model.stages.state_dict().items() if not tensor.equal(before[name])
    }
    assert changed == {"block3"}  # the statistics of its batch norms
    assert {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None} == {"block3", "1"}


def test_in_evaluation_mode_gradients_go_back_to_the_images() -> None:
    images = torch.randn(1, 3, 16, 16, requires_grad=True)
    torch.autograd.backward(network("all").eval()(images).sum())
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_freezing_changes_no_prediction() -> None:
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(network("all").eval()(images), network().eval()(images))


def test_dropout_in_frozen_stages_is_off() -> None:
    def made(depth: int) -> StagedModel:
        stages = {"a": nn.Sequential(nn.Conv2d(3, 8, 1), nn.Dropout(0.9))}
        pool, head = nn.Flatten(), nn.Linear(8 * 16, 2)
        model = StagedModel(stages, pool=pool, head=head, num_features=128, cam_stage="a", min_image_size=4)
        model.freeze(depth)
        return model.train()

    images = torch.randn(2, 3, 4, 4)
    frozen, free = made(1), made(0)
    assert torch.equal(frozen.features(images), frozen.features(images))
    assert not torch.equal(free.features(images), free.features(images))


def test_thawed_stages_train_again_but_for_what_the_family_never_trains() -> None:
    stages = {"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(4, 4, 1)}
    stages["a"].bias.requires_grad_(False)  # type: ignore[union-attr]
    model = StagedModel(
        stages, pool=nn.Flatten(), head=nn.Linear(4, 2), num_features=4, cam_stage="b", min_image_size=1
    )
    model.train()
    for depth in (2, 1, 0):
        model.freeze(depth)
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        expected = ["stages.a.weight", "stages.b.weight", "stages.b.bias", "head.weight", "head.bias"]
        assert trained == expected[[0, 1, 3][depth] :]
        assert [stage.training for stage in model.stages.values()] == [depth < 1, depth < 2]


def test_norms_that_keep_their_statistics_are_trained_all_the_same() -> None:
    torch.manual_seed(0)
    config = PlainCNNConfig(num_blocks=3, channels=4, weights="mine.pth", freeze_norms=True)
    model = build(config, num_classes=3, in_channels=3, image_size=16).train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    before = {name: tensor.clone() for name, tensor in model.named_buffers() if "running" in name}
    torch.autograd.backward(model(torch.randn(8, 3, 16, 16)).square().mean())
    assert len(before) == 2 * len(norms) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers() if name in before)
    assert all(norm.weight.grad is not None for norm in norms)
    model.freeze(1)
    assert not any(norm.training for norm in norms)
    assert model.head.training


def test_norms_without_statistics_cannot_keep_them() -> None:
    with pytest.raises(ValueError, match="freeze_norms is true, but weights is none: fresh batch norms have no"):
        PlainCNNConfig(freeze_norms=True)
