"""Any network of the library timm as a staged model, by the name `timm:<name>`."""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from imgcls.errors import UserError
from imgcls.models.family import FAMILIES, Family, ModelConfig, StagedModel

Share = Annotated[float, Field(ge=0, lt=1)]
_CONTAINERS = ("blocks", "stages", "layers", "features")
"""What timm's networks call a sequence of stages."""


class TimmConfig(ModelConfig):
    """The fields of `family: timm:<name>`."""

    family: Annotated[str, Field(pattern=r"^timm:.+$")] = "timm:resnet18"
    """`timm:` and the name of a network of timm, as `timm.list_models()` lists them."""
    dropout: Share = 0.0
    """Share of the features set to zero before the last layer in training."""
    stochastic_depth: Share = 0.0
    """Share of the images that skip the last block in training (timm's `drop_path_rate`; Huang et al. 2016,
    arXiv:1603.09382), for networks that have it."""


class _Body(nn.Module):
    """All of a network up to its map or tokens, as one stage."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.net.forward_features(images)
        return outputs


class _Neck(nn.Module):
    """From the map or tokens to features, as the network does it; owns only the layers `rest` of the network."""

    def __init__(self, net: Any, rest: dict[str, nn.Module]) -> None:
        super().__init__()
        self.rest = nn.ModuleDict(rest)
        self._net = (net,)  # in a tuple, so that the network's other layers do not become this module's

    def forward(self, outputs: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self._net[0].forward_head(outputs, pre_logits=True)
        return features

    def put_back(self) -> None:
        """Let the network compute with the layers that have taken the place of its own in `rest`."""
        for name, layer in self.rest.items():
            if name in self._net[0]._modules:  # else a block of a container, whose own layers have been replaced
                setattr(self._net[0], name, layer)


def with_synced_norms(model: nn.Module) -> nn.Module:
    """A model with its batch normalisations made such as look at the images of all processes.

    Some of timm's have an activation in them, which torch's own conversion loses; timm's keeps it. A network without
    any layer of timm is left to torch, and timm need not be there.
    """
    convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
    if any(type(module).__module__.startswith("timm.") for module in model.modules()):
        from timm.layers.norm_act import convert_sync_batchnorm

        convert = convert_sync_batchnorm
    synced = convert(model)
    for module in synced.modules():
        if isinstance(module, _Neck):
            module.put_back()
    return synced


def build_timm(config: TimmConfig, *, num_classes: int, in_channels: int, image_size: int) -> StagedModel:
    """A network of timm (Wightman, github.com/huggingface/pytorch-image-models) with fresh weights.

    The stages are the network's own layers in order where running them in order is what the network does, which is
    tried; elsewhere (Vision Transformers among them) all but the head is one stage, `body`.

    Raises:
        UserError: timm is not installed, has no such network, or the network does not take such images or has no
            linear layer as its head.
    """
    with torch.device("cpu"):  # the stages are found by computing, which needs numbers
        net, least = _create(config, num_classes, in_channels, image_size)
        origins = {id(tensor): name for name, tensor in net.state_dict(keep_vars=True).items()}
        side = max(image_size, least)
        images = torch.randn(2, in_channels, side, side, generator=torch.Generator().manual_seed(0))
        linear = net.get_classifier()
        if not isinstance(linear, nn.Linear):
            raise UserError(f"{config.family} has no linear layer as its head. Choose another network.")
        try:
            model = _staged(config, net.eval(), linear, images, least)
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            raise UserError(
                f"{config.family} does not take images of {in_channels} × {side} × {side}: {error}. Choose another "
                "augment.image_size or another network."
            ) from error
    model.origin_names = {name: origins[id(t)] for name, t in model.state_dict(keep_vars=True).items()}
    return model.train()


@torch.no_grad()
def _staged(config: TimmConfig, net: Any, linear: nn.Linear, images: torch.Tensor, least: int) -> StagedModel:
    outputs, logits = net.forward_features(images), net(images)
    net.reset_classifier(0)
    stages, rest = _sequence(net, images, outputs) or ({"body": _Body(net)}, {})
    last = list(stages)[-1]
    pool: nn.Module = _Neck(net, rest)
    if any(True for _ in pool.parameters()):
        stages["neck"], pool = pool, nn.Identity()
    is_map = outputs.ndim == 4
    model = StagedModel(
        stages,
        pool=pool,
        head=nn.Sequential(nn.Dropout(config.dropout), linear),
        num_features=linear.in_features,
        cam_stage=last if is_map else None,
        min_image_size=least,
        to_map=_channels_first if is_map and getattr(net, "output_fmt", "NCHW") == "NHWC" else None,
    ).eval()
    if not torch.allclose(model(images), logits, rtol=1e-4, atol=1e-5):
        raise UserError(f"{config.family} is no sequence of features and a linear head. Choose another network.")
    return model


def _create(config: TimmConfig, num_classes: int, in_channels: int, image_size: int) -> tuple[Any, int]:
    """The network and the smallest image, in pixels: its stride."""
    try:
        import timm
    except ImportError as error:
        raise UserError(f"model.family {config.family} needs timm. Run: pip install 'imgcls[timm]'.") from error
    name = config.family.removeprefix("timm:")
    if name.partition(".")[0] not in (known := timm.list_models()):
        near = get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(f'timm:{match}' for match in near)}?" if near else ""
        raise UserError(f"timm {timm.__version__} has no network {name!r}; it has {len(known):,}.{hint}")
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels}
    if config.stochastic_depth:
        options["drop_path_rate"] = config.stochastic_depth
    try:
        cfg = timm.get_pretrained_cfg(name)
        if cfg is not None and cfg.fixed_input_size:
            least = _stride(timm.create_model(name, pretrained=False, num_classes=0))
            options["img_size"] = max(image_size, least)
        net = timm.create_model(name, pretrained=False, **options)
    except TypeError as error:
        raise UserError(f"{config.family} cannot be made with {options}: {error}. Leave out what it lacks.") from error
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"{config.family} cannot be made with {options}: {error}.") from error
    return net, _stride(net)


def _stride(net: Any) -> int:
    return max((int(info["reduction"]) for info in getattr(net, "feature_info", None) or []), default=1)


def _sequence(
    net: nn.Module, images: torch.Tensor, target: torch.Tensor
) -> tuple[dict[str, nn.Module], dict[str, nn.Module]] | None:
    """The layers whose running in order gives `target`, as stages, and the network's layers after them.

    None where no such order of layers holds all parameters.
    """
    layers = dict(_layers(net))
    groups: list[tuple[str, list[nn.Module]]] = []
    outputs = images
    for name, layer in list(layers.items()):
        del layers[name]  # what is left at the end comes after the map
        try:
            outputs = layer(outputs)
        except (RuntimeError, TypeError, ValueError, AssertionError, IndexError, NotImplementedError):
            return None
        joins = not list(layer.parameters()) or (_is_small(layer) and bool(groups) and _is_small(groups[-1][1][0]))
        if groups and joins:
            groups[-1][1].append(layer)
        else:
            groups.append((name, [layer]))
        if isinstance(outputs, torch.Tensor) and outputs.shape == target.shape and torch.equal(outputs, target):
            break
    else:
        return None
    rest = {name: layer for name, layer in layers.items() if list(layer.parameters())}
    held = {id(p) for layer in (*(m for _, ms in groups for m in ms), *rest.values()) for p in layer.parameters()}
    if held != {id(p) for p in net.parameters()}:
        return None
    return {name: modules[0] if len(modules) == 1 else nn.Sequential(*modules) for name, modules in groups}, rest


def _layers(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in net.named_children():
        if name in _CONTAINERS and isinstance(child, nn.Sequential):
            yield from ((f"{name}{number}", block) for number, block in enumerate(child))
        else:
            yield name, child


def _is_small(layer: nn.Module) -> bool:
    """A convolution, a norm or the like: such neighbours make one stage."""
    return isinstance(layer, nn.Conv2d | nn.BatchNorm2d) or not list(layer.children())


def _channels_first(outputs: torch.Tensor) -> torch.Tensor:
    return outputs.permute(0, 3, 1, 2)


FAMILIES.register("timm:<name>")(Family(TimmConfig, build_timm, "timm:"))
