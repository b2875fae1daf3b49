"""The contract of a model family: a config class and a builder of a network with ordered stages and a head."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

from imgcls.errors import UserError
from imgcls.models.freezing import Depth, resolve_depth
from imgcls.plugins import Registry
from imgcls.sections import Section

WEIGHTS_ENDINGS = (".pth", ".pt", ".safetensors")


class ModelConfig(Section):
    """The fields that every model family has."""

    family: str = "plaincnn"
    """The name of a model family."""
    weights: str = Field("none", min_length=1)
    """What the training starts from. none: fresh weights. default, or a name such as IMAGENET1K_V2: torchvision's for
    the family. A .pth, .pt or .safetensors file, or a folder with a saved classifier (written with a slash). One's own
    earlier model: a run id, runs:/<run id>, models:/<name>/<version>, models:/<name>@<alias>. The image size and the
    normalisation that they were trained with replace `auto` in augment.image_size and augment.normalize."""
    freeze_depth: Depth = 0
    """Stages that are not trained, counted from the input: 0 trains all, `all` only the head; or the name of the last
    one that is frozen. `imgcls models describe` lists them. Their batch norms keep their statistics, and their dropout
    and stochastic depth are off."""
    freeze_norms: bool = False
    """Batch norms keep the statistics of the pretrained weights in the stages that are trained too, while their scales
    and shifts are trained: for fine-tuning on few images, of which a batch's statistics say little."""
    max_parameters: Annotated[int, Field(ge=1)] | None = None
    """Refuse to train a network with more parameters, frozen ones included."""
    min_receptive_field: Annotated[int, Field(ge=1)] | None = None
    """Pixels. Refuse to train a network whose last stage before the head sees a smaller square of the image."""
    max_macs: Annotated[int, Field(ge=1)] | None = None
    """Refuse to train a network that takes more multiply-accumulates for an image of `augment.image_size`."""

    @model_validator(mode="after")
    def _norms_have_statistics(self) -> Self:
        if self.freeze_norms and self.weights == "none":
            raise ValueError(
                "freeze_norms is true, but weights is none: fresh batch norms have no statistics to keep. Set "
                "model.weights, or model.freeze_norms to false"
            )
        return self

    @field_validator("weights")
    @classmethod
    def _paths_are_absolute(cls, weights: str) -> str:
        if not is_path(weights):
            return weights
        try:
            return str(Path(weights).expanduser().absolute())
        except RuntimeError as error:
            raise ValueError(f"{error} Expected a path; write it out") from error


def is_path(weights: str) -> bool:
    """Whether `model.weights` names a file or a folder, by how it is written: its ending, a slash, `~` or `.` first."""
    if weights.startswith(("runs:", "models:")):
        return False
    return "/" in weights or weights.startswith(("~", ".")) or weights.casefold().endswith(WEIGHTS_ENDINGS)


class StagedModel(nn.Module):
    """A classifier as a sequence of stages, a pooling and a head.

    The stages and the head together hold every parameter exactly once, so `stage_names` is the scale on which
    freezing is measured: the head is always the last stage.

    Args:
        stages: name -> module, from the input on; each takes the one before's output.
        pool: from the last stage's output to what the head takes: features (B, num_features) or, where the head scores
            every place of a map by itself, that map (B, num_features, h, w). Holds no parameters.
        head: from there to logits (B, num_classes).
        num_features: width of the features.
        cam_stage: the name of the stage that class-activation maps are drawn from; `cam_map` makes a map of its output.
            None where the network has no such map.
        min_image_size: pixels; the smallest input side that the stages can take.
        origin_names: name in this module's state dict -> name in that of the library's own module it was made from;
            empty where the network is our own. Files of pretrained weights use the library's names.
        to_map: from the output of `cam_stage` to (B, F, h, w); None where it is that already.
    """

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        *,
        pool: nn.Module,
        head: nn.Module,
        num_features: int,
        cam_stage: str | None,
        min_image_size: int,
        origin_names: Mapping[str, str] | None = None,
        to_map: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        assert "head" not in stages
        assert cam_stage is None or cam_stage in stages
        assert not list(pool.parameters()), "a pooling with parameters belongs into a stage"
        self.stages = nn.ModuleDict(dict(stages))
        self.pool = pool
        self.head = head
        self.num_features = num_features
        self.cam_stage = cam_stage
        self.min_image_size = min_image_size
        self.origin_names = dict(origin_names or {})
        self._to_map = to_map
        self._freeze_depth = 0
        self._keeps_statistics = False
        self._takes_frozen = False
        self._never_trained = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The names of the stages from input to head; the last is `head`."""
        return (*self.stages, "head")

    def stage(self, name: str) -> nn.Module:
        """The module of one stage."""
        return self.head if name == "head" else self.stages[name]

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) images to (B, num_features) features.

        In training mode the frozen stages record no gradients, not even towards the images. In evaluation mode they do
        where the images ask for it, as saliency maps do.
        """
        pooled = self._pooled(images)
        return pooled.mean((2, 3)) if pooled.ndim == 4 else pooled

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) images, or inside `taking_frozen` what `frozen_outputs` gave of them, to (B, C) logits."""
        logits: torch.Tensor = self.head(self._pooled(images))
        return logits

    def cam_map(self, outputs: torch.Tensor) -> torch.Tensor:
        """The output of the stage `cam_stage` as a map (B, F, h, w)."""
        return outputs if self._to_map is None else self._to_map(outputs)

    @torch.no_grad()
    def frozen_outputs(self, images: torch.Tensor, stages: Sequence[nn.Module] | None = None) -> torch.Tensor:
        """(B, C, H, W) images to what the frozen stages give of them; pooled, where only the head is trained.

        Args:
            images: the network's input.
            stages: what computes the same as the frozen stages, in their place.
        """
        outputs = images
        for stage in stages or [self.stages[name] for name in self.stage_names[: self._freeze_depth]]:
            outputs = stage(outputs)
        return self.pool(outputs) if self.only_head_trained else outputs

    @property
    def only_head_trained(self) -> bool:
        """Whether all stages before the head are frozen."""
        return self._freeze_depth == len(self.stages)

    @contextlib.contextmanager
    def taking_frozen(self) -> Iterator[None]:
        """A context in which `forward` takes what `frozen_outputs` gave in place of images."""
        self._takes_frozen = True
        try:
            yield
        finally:
            self._takes_frozen = False

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """A context in which the network is in evaluation mode; afterwards every layer is in its own mode again."""
        modes = {layer: layer.training for layer in self.modules()}
        self.eval()
        try:
            yield
        finally:
            for layer, mode in modes.items():
                layer.training = mode

    def _pooled(self, images: torch.Tensor) -> torch.Tensor:
        outputs = images
        if self._takes_frozen and self.only_head_trained:
            return outputs
        for number, stage in enumerate(self.stages.values()):
            if number < self._freeze_depth and self._takes_frozen:
                continue
            if number < self._freeze_depth and self.training:
                with torch.no_grad():
                    outputs = stage(outputs)
            else:
                outputs = stage(outputs)
        pooled: torch.Tensor = self.pool(outputs)
        return pooled

    @property
    def freeze_depth(self) -> int:
        """How many stages are frozen, counted from the input."""
        return self._freeze_depth

    def freeze(self, depth: int) -> None:
        """Freeze the first `depth` stages and train all others, but for parameters that the family never trains."""
        assert 0 <= depth < len(self.stage_names)
        self._freeze_depth = depth
        frozen = tuple(f"stages.{name}." for name in self.stage_names[:depth])
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen) and name not in self._never_trained)
            if not parameter.requires_grad:
                parameter.grad = None
        self.train(self.training)

    def freeze_norms(self) -> None:
        """From now on all batch norms keep their statistics; their scales and shifts are trained as before."""
        self._keeps_statistics = True
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Put the network into training mode, all but its frozen stages; or all of it into evaluation mode."""
        super().train(mode)
        for name in self.stage_names[: self._freeze_depth]:
            self.stages[name].eval()
        if self._keeps_statistics:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        config: the class of the recipe's `model` section for this family; several names may share one.
        build: (config, num_classes=…, in_channels=…, image_size=…) -> StagedModel with fresh weights.
        prefix: what its name shares with those of its relatives, which stand together in a list of names.
    """

    config: type[ModelConfig]
    build: Callable[..., StagedModel]
    prefix: str = ""


class Families(Registry[Family]):
    """The model families; one registered as `library:<name>` stands for every name of that library."""

    def get(self, name: str) -> Family:
        """The family called `name`.

        Raises:
            UserError: no family has that name; the message lists the nearest and the known ones.
        """
        library, colon, rest = name.partition(":")
        known = self.names()
        entry = f"{library}:<name>" if colon and rest else name
        if entry in known:
            return super().get(entry)
        near = get_close_matches(name.casefold(), known, n=3, cutoff=0.6)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise UserError(f"unknown {self.kind} {name!r}; known: {', '.join(self._listed())}.{hint}")

    def _listed(self) -> list[str]:
        endings: dict[str, list[str]] = {}
        for name in self.names():
            prefix = super().get(name).prefix or name
            endings.setdefault(prefix, []).append(name.removeprefix(prefix))
        return [
            prefix + (parts[0] if len(parts) == 1 else "{" + ", ".join(sorted(parts, key=lambda p: (len(p), p))) + "}")
            for prefix, parts in sorted(endings.items())
        ]


FAMILIES = Families("model family")


def build(config: ModelConfig, *, num_classes: int, in_channels: int, image_size: int) -> StagedModel:
    """The configured network with fresh weights drawn from torch's global generator, its first stages frozen as asked.

    Args:
        config: the recipe's `model` section.
        num_classes: width of the logits, at least 2.
        in_channels: 1 or 3.
        image_size: pixels on each side of the images to come.

    Raises:
        UserError: an unknown family, images too small for the network, or a freeze depth that it does not have.
    """
    model = FAMILIES.get(config.family).build(
        config, num_classes=num_classes, in_channels=in_channels, image_size=image_size
    )
    if image_size < model.min_image_size:
        raise UserError(
            f"augment.image_size {image_size} is too small for this {config.family}, which needs at least "
            f"{model.min_image_size} pixels. Enlarge augment.image_size or choose a smaller network."
        )
    if config.freeze_norms:
        model.freeze_norms()
    model.freeze(resolve_depth(config.freeze_depth, model.stage_names, field="model.freeze_depth"))
    return model


def num_parameters(model: nn.Module) -> tuple[int, int]:
    """(all parameters, those that are trained)."""
    sizes: list[tuple[int, Any]] = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)
