"""Fused networks compute what they did before, with fewer modules."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from imgcls.models.family import FAMILIES, build
from imgcls.models.fusing import fused


@pytest.mark.parametrize("family", ["plaincnn", "quizdnn", "separable", "resnet18", "mobilenet_v2", "efficientnet_b0"])
def test_stages_compute_the_same_when_fused(family: str) -> None:
    torch.manual_seed(0)
    config = FAMILIES.get(family).config.model_validate({"family": family})
    model = build(config, num_classes=3, in_channels=3, image_size=32).train()
    for _ in range(3):
        model(torch.randn(8, 3, 32, 32))  # statistics that are not 0 and 1
    model.freeze(len(model.stages))
    model.eval()
    images = torch.randn(4, 3, 32, 32)
    expected = model.frozen_outputs(images)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stages = [fused(model.stage(name)) for name in model.stages]
    found = model.frozen_outputs(images, stages)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    norms = [
        sum(isinstance(m, nn.BatchNorm2d) for s in both for m in s.modules())
        for both in (model.stages.values(), stages)
    ]
    if family in ("resnet18", "mobilenet_v2", "efficientnet_b0"):
        assert norms[1] == 0 < norms[0]


def test_a_module_that_cannot_be_followed_is_copied() -> None:
    class Odd(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images if float(images.sum()) > 0 else -images

    odd = Odd()
    assert fused(odd) is not odd
    assert torch.equal(fused(odd)(torch.tensor([-1.0])), torch.tensor([1.0]))


def test_it_is_copied_once_and_the_copy_is_whole_where_following_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stage(nn.Sequential):
        pass

    class Spoiling(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.spoiled = True
            return images if float(images.sum()) > 0 else -images

    copied = []
    deepcopy = copy.deepcopy

    def counted(thing: Any, *more: Any) -> Any:
        copied.extend([thing] * isinstance(thing, Stage))
        return deepcopy(thing, *more)

    monkeypatch.setattr(copy, "deepcopy", counted)
    stage = Stage(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused(stage).modules())
    assert copied == [stage]
    assert not any(hasattr(module, "spoiled") for module in fused(Stage(Spoiling())).modules())
