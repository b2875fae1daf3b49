"""Where a network looked: Grad-CAM heat maps of single images, for any family (the door to captum)."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import isqrt

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.func import functional_call

from imgcls.data.decode import Pixels
from imgcls.errors import UserError
from imgcls.inference.classifier import Classifier, exact_convolutions
from imgcls.models.family import StagedModel

INNER = ("blocks", "stages", "layers", "features")
"""What a library's network that is one stage as a whole calls its sequence of layers."""


@dataclass(frozen=True)
class Explanation:
    """Why one image was taken for one class.

    Attributes:
        pixels: (S, S, C) uint8, what the network saw.
        heat: (S, S) float32 in 0..1; 1 where most speaks for the class. All 0 where nothing does.
        target: the explained class, an index into `classes`.
        probs: (num_classes,) float32 probabilities of the image.
        classes: names of the classes.
        stage: where in the network the map was read.
    """

    pixels: Pixels
    heat: npt.NDArray[np.float32]
    target: int
    probs: npt.NDArray[np.float32]
    classes: tuple[str, ...]
    stage: str

    @property
    def label(self) -> str:
        """The explained class."""
        return self.classes[self.target]

    @property
    def probability(self) -> float:
        """Of the explained class, 0..1."""
        return float(self.probs[self.target])

    @property
    def predicted(self) -> int:
        """The most probable class, an index into `classes`."""
        return int(self.probs.argmax())


def explain(
    classifier: Classifier,
    images: Sequence[bytes | Pixels],
    *,
    targets: Sequence[int | str] | None = None,
    stage: str | None = None,
    batch_size: int = 16,
) -> list[Explanation]:
    """Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) of each image: a heat map of the network's input.

    The map is the sum of a stage's channels, each weighted with the mean of the class's logit's gradient towards it,
    of which what speaks against the class is cut off; enlarged bilinearly and divided by its largest value. Of a
    transformer's tokens those of patches count as places, the others are left out.

    The classifier is as before afterwards: no hooks, no gradients, the same training mode. While it is explained it
    must not be used by another thread.

    Args:
        classifier: any; frozen or not, on any device.
        images: N images, each encoded bytes or (H, W[, 3]) uint8 pixels.
        targets: N classes, by name or by index, which may be a text, too, that is no class's name; None explains the
            predicted ones.
        stage: where the map is read; None takes the last place before the head whose output is a grid of more than
            one place that the logits depend on.
        batch_size: images that are computed at once.

    Raises:
        UserError: an unknown stage, one whose output is no grid or does not reach the logits, a network without any,
            or targets that are not N of the classes.
        DecodeError: bytes that are not a readable image.
    """
    wanted = None if targets is None else _indices(targets, len(images), classifier.classes)
    if stage is not None:
        _check_known(stage, classifier.module)
    if not images:
        return []
    found: list[Explanation] = []
    with classifier.module.evaluating(), exact_convolutions():
        place = _place(classifier, classifier.preprocessing.load(images[0]), stage)
        for start in range(0, len(images), batch_size):
            pixels = np.stack([classifier.preprocessing.load(image) for image in images[start : start + batch_size]])
            some = None if wanted is None else wanted[start : start + batch_size]
            raw, chosen, probs = _attribute(classifier, pixels, place, some)
            heat = _heat(raw, classifier.preprocessing.image_size)
            found += [
                Explanation(*row, classifier.classes, place.name)
                for row in zip(pixels, heat, chosen.tolist(), probs, strict=True)
            ]
    return found


@dataclass(frozen=True)
class _Place:
    """A point in the network whose output is a grid.

    Attributes:
        name: of the stage, or of the layer in it.
        module: the layer.
        to_map: from its output to a map (B, F, h, w).
        back: from such a map and the output to what the output would be with that map.
        is_tokens: whether the output is a sequence of tokens, of which the logits may leave the patches' unread.
    """

    name: str
    module: nn.Module
    to_map: Callable[[torch.Tensor], torch.Tensor]
    back: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    is_tokens: bool = False


def _indices(targets: Sequence[int | str], count: int, classes: tuple[str, ...]) -> list[int]:
    if len(targets) != count:
        raise UserError(f"found {len(targets)} target classes for {count} images; give one for each image, or none.")
    indices = []
    for target in targets:
        index = _index(target) if isinstance(target, str) else target
        if isinstance(target, str) and target in classes:
            indices.append(classes.index(target))
        elif index is not None and 0 <= index < len(classes):
            indices.append(int(index))
        else:
            near = get_close_matches(str(target), classes, n=3)
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            listed = ", ".join(classes[:10]) + (", …" if len(classes) > 10 else "")
            raise UserError(
                f"unknown target class {target!r}; expected one of the {len(classes)} classes ({listed}) or its index, "
                f"0 to {len(classes) - 1}.{hint}"
            )
    return indices


def _index(target: str) -> int | None:
    """The index that a text is, as the command line has all its words."""
    return int(target) if re.fullmatch(r"[0-9]{1,9}", target) else None


def _layers(model: StagedModel) -> dict[str, nn.Module]:
    """The stages before the head and, of a library's network that is one stage as a whole, its blocks; in order."""
    layers: dict[str, nn.Module] = {}
    for name, stage in model.stages.items():
        net = getattr(stage, "net", None)
        for word in INNER if isinstance(net, nn.Module) else ():
            blocks = getattr(net, word, None)
            if isinstance(blocks, nn.Sequential | nn.ModuleList):
                layers |= {f"{name}.{word}{number}": block for number, block in enumerate(blocks)}
        layers[name] = stage
    return layers


def _check_known(stage: str, model: StagedModel) -> None:
    known = list(_layers(model))
    if stage not in known:
        near = get_close_matches(stage, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"unknown stage {stage!r}; the network's stages before its head: {', '.join(known)}.{hint}")


def _place(classifier: Classifier, first: Pixels, stage: str | None) -> _Place:
    """The named place, or the last that serves; `first` is what the network sees of one image."""
    model, batch = classifier.module, np.stack([first])
    places = _places(classifier, batch)
    what = f"{classifier.config.family} with images of {classifier.preprocessing.image_size} pixels"
    if not places:
        raise UserError(
            f"{what} has no stage whose output is a grid of places, so there is no heat map of it. Explain a network "
            "that keeps a grid up to its head, or give it larger images."
        )
    if stage is not None:
        if stage not in places:
            raise UserError(
                f"the output of stage {stage!r} of {what} is no grid of several places. Choose one of: "
                f"{', '.join(places)}."
            )
        if _reaches(classifier, batch, places[stage]):
            return places[stage]
        raise UserError(
            f"the patches in the output of stage {stage!r} of {what} have no influence on its features, which are "
            "another token's. Choose an earlier stage, or name none."
        )
    names = list(_layers(model))
    end = len(names) if model.cam_stage is None else names.index(model.cam_stage) + 1
    for name in reversed(names[:end]):
        if name in places and _reaches(classifier, batch, places[name]):
            return places[name]
    raise UserError(f"{what} has grids of places ({', '.join(places)}), but none that its features depend on.")


@torch.enable_grad()
def _reaches(classifier: Classifier, batch: Pixels, place: _Place) -> bool:
    """Whether the features depend on the map: those of a network that reads the class token last do not."""
    if not place.is_tokens:
        return True
    maps: list[torch.Tensor] = []

    def through_map(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        maps.append(place.to_map(output.detach()).requires_grad_())
        return place.back(maps[-1], output)

    handle = place.module.register_forward_hook(through_map)
    try:
        features = classifier.module.features(_inputs(classifier, batch))
    finally:
        handle.remove()
    # Any uneven sum: the plain sum and the sum of squares of normalised features do not change with anything.
    score = (features * torch.linspace(-1, 1, features.shape[1], device=features.device)).sum()
    return bool((torch.autograd.grad(score, maps[-1])[0] != 0).any())


def _places(classifier: Classifier, batch: Pixels) -> dict[str, _Place]:
    """All places with a grid, by one pass of one image."""
    model, outputs, handles = classifier.module, {}, []

    def recorder(name: str) -> Callable[..., None]:
        def record(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, torch.Tensor):
                outputs[name] = output

        return record

    layers = _layers(model)
    try:
        handles += [layer.register_forward_hook(recorder(name)) for name, layer in layers.items()]
        with torch.no_grad():
            model(_inputs(classifier, batch))
    finally:
        for handle in handles:
            handle.remove()
    made = ((name, _as_grid(name, layer, outputs.get(name), model)) for name, layer in layers.items())
    return {name: place for name, place in made if place is not None}


def _as_grid(name: str, layer: nn.Module, output: torch.Tensor | None, model: StagedModel) -> _Place | None:
    """The place, or None where the output is no grid of more than one place."""
    if output is None or output.ndim not in (3, 4):
        return None
    if output.ndim == 3:
        return _of_tokens(name, layer, output.shape[1], model)
    _, first, middle, last = output.shape
    # The images are square, and so are their grids.
    channels_last = first == middle and (first != last or _is_channels_last(model))
    sides = (first, middle) if channels_last else (middle, last)
    if sides[0] != sides[1] or sides[0] < 2:
        return None
    if channels_last:
        return _Place(name, layer, lambda x: x.permute(0, 3, 1, 2), lambda grid, _: grid.permute(0, 2, 3, 1))
    return _Place(name, layer, lambda x: x, lambda grid, _: grid)


def _is_channels_last(model: StagedModel) -> bool:
    """Whether the network's maps are (B, h, w, F), where the numbers leave it open."""
    from torchvision.models.swin_transformer import SwinTransformerBlock

    if any(isinstance(layer, SwinTransformerBlock) for layer in model.modules()):
        return True
    return tuple(model.cam_map(torch.zeros(1, 2, 3, 4)).shape) != (1, 2, 3, 4)


def _of_tokens(name: str, layer: nn.Module, count: int, model: StagedModel) -> _Place | None:
    """`count` tokens as a square grid of patches after those of no place: of the class, of distillation, registers."""
    said = [getattr(getattr(stage, "net", None), "num_prefix_tokens", None) for stage in model.stages.values()]
    for before in (*(number for number in said if isinstance(number, int)), 0, 1, 2):
        side = isqrt(max(0, count - before))
        if side > 1 and side * side == count - before:
            break
    else:
        return None

    def to_map(tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, before:].transpose(1, 2).reshape(len(tokens), -1, side, side)

    def back(grid: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return torch.cat([tokens[:, :before], grid.flatten(2).transpose(1, 2)], dim=1)

    return _Place(name, layer, to_map, back, is_tokens=True)


def _inputs(classifier: Classifier, pixels: Pixels) -> torch.Tensor:
    device = next(classifier.module.parameters()).device
    return classifier.preprocessing.to_input(torch.from_numpy(pixels).to(device))


def _attribute(
    classifier: Classifier, pixels: Pixels, place: _Place, targets: list[int] | None
) -> tuple[torch.Tensor, torch.Tensor, npt.NDArray[np.float32]]:
    """The signed map (B, h, w), the explained classes (B,), and the probabilities (B, num_classes)."""
    from captum.attr import LayerGradCam  # type: ignore[import-untyped]

    model = classifier.module
    # Without gradients of their own, so that the record of the pass begins at the map and none is kept for weights.
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    grid = nn.Identity()
    logits: list[torch.Tensor] = []
    chosen: list[torch.Tensor] = []

    def through_grid(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return place.back(grid(place.to_map(output)), output)

    def scores(inputs: torch.Tensor) -> torch.Tensor:
        logits.append(functional_call(model, weights, (inputs,)).float())
        own = logits[-1].argmax(1) if targets is None else torch.tensor(targets, device=inputs.device)
        chosen.append(own)
        return logits[-1].gather(1, own[:, None])[:, 0]

    handle = place.module.register_forward_hook(through_grid)
    try:
        raw = LayerGradCam(scores, grid).attribute(_inputs(classifier, pixels))
    finally:
        handle.remove()
    probs: npt.NDArray[np.float32] = logits[-1].detach().softmax(1).cpu().numpy()
    return raw.detach()[:, 0].float(), chosen[-1], probs


def _heat(raw: torch.Tensor, size: int) -> npt.NDArray[np.float32]:
    """(B, h, w) signed maps as (B, size, size) in 0..1."""
    large = nn.functional.interpolate(raw.relu()[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]
    most = large.amax((1, 2), keepdim=True)
    heat: npt.NDArray[np.float32] = torch.where(most > 0, large / most.clamp(min=1e-38), 0).clamp(0, 1).cpu().numpy()
    return heat
