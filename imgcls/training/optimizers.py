"""Optimisers by name, and which parameters they move at which share of the learning rate."""

from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import nn

from imgcls.errors import UserError
from imgcls.models.family import StagedModel
from imgcls.plugins import Registry
from imgcls.sections import Section

Parameters = Iterable[dict[str, Any]]
"""torch's parameter groups."""


class OptimizerConfig(Section):
    """What an optimiser is and what it minimises besides the loss."""

    optimizer: str = "adamw"
    """sgd, adam (Kingma and Ba 2014, arXiv:1412.6980), adamw (Loshchilov and Hutter 2017, arXiv:1711.05101), nadam
    (Dozat 2016), rmsprop (Hinton 2012, in torch's form), or muon (Jordan 2024; scaled to adamw's lr and weight_decay
    as by Liu et al. 2025, arXiv:2502.16982), which is for the matrices between the input and the head: linear layers,
    and convolutions over all channels with the kernel's places as columns, as in Jordan's training on CIFAR-10. It
    leaves all else to adamw."""
    lr: float = Field(1e-3, gt=0, le=100)
    """The highest learning rate, reached after the warm-up."""
    weight_decay: float = Field(1e-2, ge=0, le=1)
    """Decoupled (adamw, muon) or L2 (all others) decay of every trained weight."""
    decay_norms_and_biases: bool = True
    """Whether `weight_decay` and `l1` are for biases and the weights of normalisations too, which are all parameters of
    one dimension. false is as in He et al. (2018, arXiv:1812.01187)."""
    l1: float = Field(0.0, ge=0, le=1)
    """L1 penalty: this times the sum of the absolute values of the weights that decay is added to what is minimised,
    though not to the logged loss."""
    clip_norm: float | None = Field(None, gt=0)
    """The gradient of all weights together is scaled down to at most this L2 norm (Pascanu et al. 2012,
    arXiv:1211.5063); `train/grad_norm` is the mean of the norms before. null leaves it as it is."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """The head learns at the schedule's rate, and each stage towards the input at this share of the next one's (Clark
    et al. 2020, arXiv:2003.10555; Bao et al. 2021, arXiv:2106.08254, both by layer). 1 is the same rate for all."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """sgd, rmsprop: momentum. adam, adamw, nadam: beta1. muon: both, for what each part moves."""
    nesterov: bool = False
    """sgd with momentum: Nesterov's form of it. (nadam and muon have it always.)"""
    beta2: float = Field(0.999, ge=0, lt=1)
    """adam, adamw, nadam, and muon's adamw: how much of the mean of squared gradients each step keeps."""
    alpha: float = Field(0.99, ge=0, lt=1)
    """rmsprop: how much of the mean of squared gradients each step keeps."""
    eps: float = Field(1e-8, gt=0, le=1)
    """All but sgd: added to the root of the squared gradients; muon's adamw too."""


@dataclass(frozen=True)
class OptimizerPlugin:
    """An optimiser by name.

    Attributes:
        build: (groups, config, fused) -> optimiser; `fused` is whether one kernel may update many weights, for those
            that torch has it for.
        reads: those of the config's fields in `PARTICULAR` that it reads.
    """

    build: Callable[[Parameters, OptimizerConfig, bool], torch.optim.Optimizer]
    reads: frozenset[str]


PARTICULAR = ("nesterov", "beta2", "alpha", "eps")
"""Fields that some optimisers do not read."""
OPTIMIZERS: Registry[OptimizerPlugin] = Registry("optimizer")


class MatrixMuon(torch.optim.Muon):
    """torch's Muon for convolutions too, each seen as an (outputs, inputs x height x width) matrix.

    In what order the columns stand, which memory layout decides, changes nothing of the step.
    """

    def __init__(self, groups: Parameters, **settings: Any) -> None:
        plain = torch.optim.Muon([torch.zeros(1, 1)], **settings)
        torch.optim.Optimizer.__init__(self, groups, plain.defaults)  # Muon's own refuses all but matrices

    def _init_group(
        self,
        group: MutableMapping[str, Any],
        params_with_grad: list[torch.Tensor],
        grads: list[torch.Tensor],
        muon_momentum_bufs: list[torch.Tensor],
    ) -> bool:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            order = (0, 1, 2, 3) if parameter.is_contiguous() else (0, 2, 3, 1)

            def as_matrix(values: torch.Tensor, order: tuple[int, ...] = order[: parameter.ndim]) -> torch.Tensor:
                return values.permute(order).flatten(1)

            params_with_grad.append(as_matrix(parameter))
            grads.append(as_matrix(parameter.grad))
            muon_momentum_bufs.append(as_matrix(state["momentum_buffer"]))
        return False


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon for the groups with a true `muon`, and AdamW for all others, as one optimiser.

    Both parts work on this optimiser's own groups and state, so that saving, loading and what sets learning rates see
    one optimiser.
    """

    def __init__(self, groups: Parameters, config: OptimizerConfig, fused: bool) -> None:
        self._config, self._fused = config, fused
        self._parts: dict[bool, torch.optim.Optimizer] = {}
        super().__init__(groups, {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the part that it is for."""
        config, which = self._config, bool(param_group["muon"])
        if which in self._parts:
            self._parts[which].add_param_group(param_group)
        elif which:
            self._parts[which] = MatrixMuon(
                [param_group], lr=config.lr, momentum=config.momentum, adjust_lr_fn="match_rms_adamw"
            )
        else:
            self._parts[which] = _adamw([param_group], config, self._fused)
        self.param_groups.append(param_group)
        self._share()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state, for both parts."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all weights; there is no closure to call."""
        assert closure is None
        for part in self._parts.values():
            part.step()

    def _share(self) -> None:
        for which, part in self._parts.items():
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group["muon"] is which]


def _adaptive(
    kind: Callable[..., torch.optim.Optimizer], groups: Parameters, config: OptimizerConfig, **more: Any
) -> torch.optim.Optimizer:
    return kind(groups, lr=config.lr, betas=(config.momentum, config.beta2), eps=config.eps, **more)


def _adamw(groups: Parameters, config: OptimizerConfig, fused: bool) -> torch.optim.Optimizer:
    return _adaptive(torch.optim.AdamW, groups, config, weight_decay=config.weight_decay, fused=fused)


def _adam(groups: Parameters, config: OptimizerConfig, fused: bool) -> torch.optim.Optimizer:
    return _adaptive(torch.optim.Adam, groups, config, weight_decay=config.weight_decay, fused=fused)


def _nadam(groups: Parameters, config: OptimizerConfig, _fused: bool) -> torch.optim.Optimizer:
    return _adaptive(torch.optim.NAdam, groups, config, weight_decay=config.weight_decay)


def _rmsprop(groups: Parameters, config: OptimizerConfig, _fused: bool) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(
        groups,
        lr=config.lr,
        alpha=config.alpha,
        eps=config.eps,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


def _sgd(groups: Parameters, config: OptimizerConfig, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
        fused=fused,
    )


_BETAS = frozenset({"beta2", "eps"})
OPTIMIZERS.register("adam")(OptimizerPlugin(_adam, _BETAS))
OPTIMIZERS.register("adamw")(OptimizerPlugin(_adamw, _BETAS))
OPTIMIZERS.register("muon")(OptimizerPlugin(MuonAdamW, _BETAS))
OPTIMIZERS.register("nadam")(OptimizerPlugin(_nadam, _BETAS))
OPTIMIZERS.register("rmsprop")(OptimizerPlugin(_rmsprop, frozenset({"alpha", "eps"})))
OPTIMIZERS.register("sgd")(OptimizerPlugin(_sgd, frozenset({"nesterov"})))


def check_optimizer(config: OptimizerConfig, model: nn.Module) -> None:
    """See that the optimiser suits the network.

    Raises:
        UserError: muon for a network that has no matrix for it.
    """
    if config.optimizer == "muon" and not _hidden_matrices(model):
        raise UserError(
            "optim.optimizer is muon, which is for linear layers and convolutions between the input and the head; this "
            "network has none. Set optim.optimizer to adamw or sgd."
        )


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The configured optimiser over the model's trainable parameters, which must be on their device already.

    Raises:
        UserError: muon for a network that has no matrix for it.
    """
    check_optimizer(config, model)
    # torch's fused kernels are for floats on these devices.
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in model.parameters())
    return OPTIMIZERS.get(config.optimizer).build(parameter_groups(config, model), config, fused)


def parameter_groups(
    config: OptimizerConfig, model: nn.Module, *, without: Collection[int] = ()
) -> list[dict[str, Any]]:
    """The trainable parameters, in the model's order, in one group for each learning rate, decay and way to update.

    A group's `lr_scale` is its share of the schedule's learning rate (see `set_learning_rate`), its `l1` the penalty on
    its weights, and `muon` whether that moves it.

    Args:
        config: the recipe's `optim` section.
        model: where it has stages, they share out the learning rate by `layer_decay`.
        without: ids of parameters to leave out.
    """
    stages = [model.stage(name) for name in model.stage_names] if isinstance(model, StagedModel) else [model]
    matrices = _hidden_matrices(model) if config.optimizer == "muon" else set()
    groups: dict[tuple[float, bool, bool], dict[str, Any]] = {}
    for number, stage in enumerate(stages):
        scale = config.layer_decay ** (len(stages) - 1 - number)
        for parameter in stage.parameters():
            if not parameter.requires_grad or id(parameter) in without:
                continue
            decays = config.decay_norms_and_biases or parameter.ndim > 1
            muon = id(parameter) in matrices
            fresh = {
                "params": [],
                "lr_scale": scale,
                "weight_decay": config.weight_decay if decays else 0.0,
                "l1": config.l1 if decays else 0.0,
                "muon": muon,
            }
            groups.setdefault((scale, decays, muon), fresh)["params"].append(parameter)
    return list(groups.values())


def add_thawed(optimizer: torch.optim.Optimizer, config: OptimizerConfig, model: nn.Module) -> None:
    """Add the trainable parameters that the optimiser does not hold, as new groups; what it holds stays as it is.

    A state that was saved after a thaw loads into an optimiser that has been through the same thaws.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for group in parameter_groups(config, model, without=held):
        optimizer.add_param_group(group)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of the schedule's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def set_momentum(optimizer: torch.optim.Optimizer, momentum: float) -> None:
    """Give every group this momentum, or this beta1."""
    for group in optimizer.param_groups:
        if "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        else:
            group["momentum"] = momentum


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state, laid out in memory as the parameters are.

    torch keeps the saved layout, and its fused kernels of the CPU take parameter and state for laid out alike: of a
    state from contiguous weights, they would update the wrong places of channels-last ones.
    """
    optimizer.load_state_dict(dict(state))
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def add_l1(optimizer: torch.optim.Optimizer) -> None:
    """Add the gradient of the L1 penalty, which is its factor times the sign of each weight, to the gradients."""
    for group in optimizer.param_groups:
        if group["l1"]:
            weights = [p.detach() for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in group["params"] if p.grad is not None]
            if weights:
                torch._foreach_add_(grads, torch._foreach_sign(weights), alpha=group["l1"])


def _hidden_matrices(model: nn.Module) -> set[int]:
    """ids of the weights of linear layers, attention and convolutions, but of the head's and of the first convolution.

    Tables of embeddings are none, and a convolution in groups is many small matrices.
    """
    body = list(model.stages.modules()) if isinstance(model, StagedModel) else list(model.modules())
    convolutions = [module for module in body if isinstance(module, nn.Conv2d)]
    left_out = {*convolutions[:1], *(module for module in convolutions if module.groups > 1)}
    return {
        id(parameter)
        for module in body
        if not isinstance(module, nn.Embedding) and module not in left_out
        for name, parameter in module.named_parameters(recurse=False)
        if name.endswith("weight") and (parameter.ndim == 2 or isinstance(module, nn.Conv2d))
    }
