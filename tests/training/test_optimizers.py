"""Muon beside AdamW, the L1 penalty, fused kernels and memory layouts."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from imgcls.errors import UserError
from imgcls.models.family import StagedModel
from imgcls.training.optim import OptimConfig
from imgcls.training.optimizers import (
    OPTIMIZERS,
    MuonAdamW,
    add_l1,
    add_thawed,
    build_optimizer,
    load_optimizer,
    set_learning_rate,
    set_momentum,
)


def staged() -> StagedModel:
    """Convolution, then a hidden matrix, then a head."""
    torch.manual_seed(0)
    stages = {
        "stem": nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "hidden": nn.Sequential(nn.Linear(4, 6), nn.ReLU()),
    }
    return StagedModel(
        stages, pool=nn.Identity(), head=nn.Linear(6, 3), num_features=6, cam_stage=None, min_image_size=1
    )


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        loss = model(torch.rand(4, 1, 5, 5, generator=generator)).square().sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()


def test_muon_moves_the_hidden_matrices_and_adamw_all_else() -> None:
    model = staged()
    optimizer = build_optimizer(OptimConfig(optimizer="muon", momentum=0.8, beta2=0.95), model)
    moved = {id(p): g["muon"] for g in optimizer.param_groups for p in g["params"]}
    names = {name for name, p in model.named_parameters() if moved.pop(id(p))}
    assert names == {"stages.hidden.0.weight"}
    assert moved == {}
    settings = {g["muon"]: (g.get("momentum"), g.get("betas")) for g in optimizer.param_groups}
    assert settings == {True: (0.8, None), False: (None, (0.8, 0.95))}


def test_muon_and_adamw_take_the_steps_that_torchs_own_take() -> None:
    model, twin = staged(), staged()
    config = OptimConfig(optimizer="muon", lr=0.05, weight_decay=0.1)
    optimizer = build_optimizer(config, model)
    hidden = twin.stages["hidden"][0].weight  # type: ignore[index]
    rest = [p for p in twin.parameters() if p is not hidden]
    muon = torch.optim.Muon([hidden], lr=0.05, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=0.05, weight_decay=0.1, fused=True)
    learn(model, optimizer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        loss = twin(torch.rand(4, 1, 5, 5, generator=generator)).square().sum()
        twin.zero_grad()
        torch.autograd.backward(loss)
        muon.step()  # type: ignore[no-untyped-call]
        adamw.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_muon_is_one_optimiser_for_saving_rates_and_thaws() -> None:
    config = OptimConfig(optimizer="muon", layer_decay=0.5)
    models = [staged(), staged()]
    optimizers = []
    for model in models:
        model.freeze(2)
        optimizers.append(build_optimizer(config, model))
    learn(models[0], optimizers[0])
    for model, optimizer in zip(models, optimizers, strict=True):
        model.freeze(0)
        add_thawed(optimizer, config, model)
    learn(models[0], optimizers[0])
    models[1].load_state_dict(models[0].state_dict())
    load_optimizer(optimizers[1], copy.deepcopy(optimizers[0].state_dict()))
    for model, optimizer in zip(models, optimizers, strict=True):
        set_learning_rate(optimizer, 0.2)
        set_momentum(optimizer, 0.5)
        learn(model, optimizer)
    assert isinstance(optimizers[1], MuonAdamW)
    assert {(g["muon"], g["lr"]) for g in optimizers[1].param_groups} == {
        (True, 0.1),
        (False, 0.1),
        (False, 0.05),
        (False, 0.2),
    }
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_muon_without_a_matrix_to_move_is_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    with pytest.raises(UserError, match=r"this network has none\. Set optim\.optimizer to adamw or sgd"):
        build_optimizer(OptimConfig(optimizer="muon"), model)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_the_fused_kernels_take_the_steps_of_the_plain_ones(optimizer: str) -> None:
    fused, plain = staged(), staged()
    config = OptimConfig(optimizer=optimizer, lr=0.01)
    one = build_optimizer(config, fused)
    assert one.defaults["fused"] is True
    two = build_optimizer(config, plain)
    for group in two.param_groups:
        group["fused"] = False
    learn(fused, one)
    learn(plain, two)
    for a, b in zip(fused.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.names())
def test_a_state_of_contiguous_weights_loads_into_channels_last_ones(optimizer: str) -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4, 2))

    config = OptimConfig(optimizer=optimizer, lr=0.01)
    model = network()
    first = build_optimizer(config, model)
    learn(model, first)
    other = network()
    other.load_state_dict(model.state_dict())
    other.to(memory_format=torch.channels_last)
    second = build_optimizer(config, other)
    load_optimizer(second, copy.deepcopy(first.state_dict()))
    learn(model, first)
    learn(other, second)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("spared", [True, False])
def test_the_l1_penalty_has_the_gradient_that_autograd_gives_it(spared: bool) -> None:
    model = staged()
    optimizer = build_optimizer(OptimConfig(l1=0.3, decay_norms_and_biases=not spared), model)
    images = torch.rand(4, 1, 5, 5)
    penalised = [p for p in model.parameters() if p.ndim > 1 or not spared]
    loss = model(images).square().sum()
    expected: Any = torch.autograd.grad(loss + 0.3 * sum(p.abs().sum() for p in penalised), list(model.parameters()))
    torch.autograd.backward(model(images).square().sum())
    add_l1(optimizer)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient, atol=1e-4)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_muon_takes_a_convolution_for_a_matrix_in_any_layout(memory: torch.memory_format) -> None:
    def network() -> nn.Sequential:
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 6, 1, groups=6), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    model, twin = network().to(memory_format=memory), network()
    optimizer = build_optimizer(OptimConfig(optimizer="muon", lr=0.05, weight_decay=0.1), model)
    moved = {id(p) for group in optimizer.param_groups if group["muon"] for p in group["params"]}
    assert [name for name, p in model.named_parameters() if id(p) in moved] == ["1.weight"]
    assert isinstance(twin[1], nn.Conv2d)
    matrix = nn.Parameter(twin[1].weight.detach().flatten(1).clone())
    muon = torch.optim.Muon([matrix], lr=0.05, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        images = torch.rand(4, 1, 9, 9)
        for net in (model, twin):
            net.zero_grad()
            torch.autograd.backward(net(images).square().sum())
        assert twin[1].weight.grad is not None
        matrix.grad = twin[1].weight.grad.flatten(1)
        optimizer.step()
        muon.step()  # type: ignore[no-untyped-call]
        twin.load_state_dict(model.state_dict())
        assert isinstance(model[1], nn.Conv2d)
        # bfloat16 inside: another order of the columns rounds otherwise
        assert torch.allclose(model[1].weight.flatten(1), matrix, atol=2e-3)
        matrix.data.copy_(model[1].weight.detach().flatten(1))
