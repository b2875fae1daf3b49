"""timm's networks as staged models; skipped where timm is not installed, but for the error that says so."""

import sys
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from imgcls.errors import UserError
from imgcls.models.family import FAMILIES, StagedModel, build, num_parameters
from imgcls.models.timm import TimmConfig, with_synced_norms

NAMES = {
    "test_resnet": 64,
    "test_efficientnet": 64,
    "test_convnext": 64,
    "test_vit": 48,
    "swin_tiny_patch4_window7_224": 64,
}
FINE = ("test_resnet", "test_efficientnet", "test_convnext", "swin_tiny_patch4_window7_224")


def made(name: str, *, num_classes: int = 5, in_channels: int = 3, image_size: int = 64, **fields: Any) -> StagedModel:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    config = TimmConfig.model_validate({"family": f"timm:{name}", **fields})
    return build(config, num_classes=num_classes, in_channels=in_channels, image_size=image_size)


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_timms_network(name: str, in_channels: int) -> None:
    timm = pytest.importorskip("timm")
    size = NAMES[name]
    ours = made(name, in_channels=in_channels, image_size=size).eval()
    fixed = {"img_size": size} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    theirs = timm.create_model(name, pretrained=False, num_classes=5, in_chans=in_channels, **fixed).eval()
    theirs.load_state_dict({ours.origin_names[key]: tensor for key, tensor in ours.state_dict().items()})
    assert num_parameters(ours)[0] == sum(p.numel() for p in theirs.parameters())
    images = torch.randn(2, in_channels, size, size)
    with torch.no_grad():
        assert ours.features(images).shape == (2, ours.num_features)
        assert torch.allclose(ours(images), theirs(images), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_stages_hold_every_parameter_exactly_once_and_make_a_map(name: str) -> None:
    model = made(name, image_size=NAMES[name]).eval()
    held = [id(p) for stage in model.stage_names for p in model.stage(stage).parameters()]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in model.parameters()}
    assert (len(model.stage_names) > 4, model.cam_stage is not None) == (name in FINE, name in FINE)
    outputs = torch.randn(2, 3, NAMES[name], NAMES[name])
    for stage in model.stage_names[:-1]:
        outputs = model.stage(stage)(outputs)
        if stage == model.cam_stage:
            assert model.cam_map(outputs).shape == (2, model.num_features, 2, 2)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
def test_it_trains_exports_and_is_copied_whole(name: str) -> None:
    model = made(name, image_size=NAMES[name], dropout=0.5)
    images = torch.randn(3, 3, NAMES[name], NAMES[name])
    torch.autograd.backward(model(images).square().sum())
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    model.zero_grad()
    model.eval()
    shapes = {"images": {0: torch.export.Dim("batch", min=1, max=64)}}
    exported = torch.export.export(model, (images[:2],), dynamic_shapes=shapes).module()
    copied = deepcopy(model)
    with torch.no_grad():
        assert torch.allclose(exported(images), model(images), atol=1e-5)
        assert torch.equal(copied(images), model(images))
        for parameter in copied.parameters():
            parameter.zero_()
        assert copied(images).abs().sum() == 0
        assert model(images).abs().sum() > 0


def test_small_layers_in_a_row_are_one_stage() -> None:
    blocks = [f"blocks{k}" for k in range(5)]
    assert made("test_efficientnet").stage_names == ("conv_stem", *blocks, "conv_head", "head")


def test_an_image_below_the_stride_is_an_error_that_names_it() -> None:
    with pytest.raises(UserError, match=r"augment\.image_size 31 is too small for this timm:test_resnet.* at least 32"):
        made("test_resnet", image_size=31)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("resnet10x", {}, r"has no network 'resnet10x'; it has .*Did you mean timm:resnet10t"),
        ("hf-hub:someone/network", {}, "has no network 'hf-hub:someone/network'"),
        ("deit_tiny_distilled_patch16_224", {}, "has no linear layer as its head"),
        ("densenet121", {"stochastic_depth": 0.2}, "cannot be made with .*drop_path_rate.* Leave out what it lacks"),
        ("test_vit", {"image_size": 50}, "timm:test_vit does not take images of 3 × 50 × 50"),
    ],
)
def test_what_cannot_be_made_is_an_error(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(name, **fields)


def test_without_timm_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"timm:resnet18 needs timm\. Run: pip install 'imgcls\[timm\]'"):
        build(TimmConfig(), num_classes=2, in_channels=3, image_size=64)


def test_a_name_behind_the_librarys_is_found_and_an_empty_one_is_not() -> None:
    assert FAMILIES.get("timm:anything").config is TimmConfig
    for name in ("timm:", "tim:resnet18", "timm"):
        with pytest.raises(UserError, match=f"unknown model family '{name}'"):
            FAMILIES.get(name)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "mobilenetv4_conv_small"])
def test_synced_norms_keep_their_activations(name: str) -> None:
    """The last of them has a norm behind the map, which its network's own pass computes with."""
    model = made(name)
    images = torch.randn(4, 3, 64, 64)
    model(images)  # so that the statistics are not those of the beginning
    model.eval()
    with torch.no_grad():
        before = model(images)
        after = with_synced_norms(model).eval()(images)
    assert torch.equal(after, before)
    seen = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(module, nn.SyncBatchNorm) for module in seen)
    calls = []
    for module in seen:
        module.register_forward_hook(lambda *_: calls.append(1))
    model(images)
    assert len(calls) == len(seen), "each is computed with"


def test_norms_of_other_networks_are_synced_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.layers", None)
    synced = with_synced_norms(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    assert [type(module) for module in synced.children()] == [nn.Conv2d, nn.SyncBatchNorm]
