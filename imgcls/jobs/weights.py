"""From `model.weights` to tensors and what is known of them, and from that to the recipe's `auto` values."""

import re
from pathlib import Path

from imgcls.data.augment import IMAGENET_MEAN, IMAGENET_STD, Normalization
from imgcls.data.cache import cache_dir
from imgcls.errors import UserError
from imgcls.inference.classifier import SPEC, Classifier
from imgcls.jobs.console import Console
from imgcls.models.family import ModelConfig, is_path
from imgcls.models.weights import Pretrained
from imgcls.models.weights_files import WeightsFile, read_weights, sha256_of
from imgcls.models.weights_torchvision import (
    TorchvisionWeights,
    fetch,
    is_torchvision,
    named_weights,
    recognised,
)
from imgcls.recipe import Recipe
from imgcls.tracking.model import download_classifier

IMAGENET_SIZE = 224
"""Pixels: what weights in torchvision's form are taken to be trained with where nothing says so."""


def open_weights(config: ModelConfig, console: Console, *, tensors: bool = True) -> Pretrained | None:
    """The weights that `model.weights` names, downloaded if need be; None for `none`.

    Args:
        config: the recipe's `model` section.
        console: where a download is told.
        tensors: False where only what is known of the weights is asked for: torchvision's are not downloaded then.

    Raises:
        UserError: there are no such weights, they cannot be read, or they are of another family.
    """
    named = config.weights
    if named == "none":
        return None
    if re.fullmatch(r"[0-9a-f]{32}", named) or named.startswith(("runs:", "models:")):
        with download_classifier(named) as found:
            name = f"{found.pinned} ({found.model_id})" if found.model_id not in found.pinned else found.pinned
            return _of_classifier(found.folder, config, name=name, pinned=found.pinned)
    if is_path(named):
        path = Path(named)
        if (path / SPEC).is_file():
            name = f"{path.name} sha256:{sha256_of(path / 'model.safetensors')[:16]}"
            return _of_classifier(path, config, name=name, pinned=named)
        return _of_file(path, config)
    known = named_weights(config.family, named)
    file = WeightsFile({}, "")
    if tensors:
        file = read_weights(fetch(known, cache_dir() / "weights", progress=console.shows_bars, say=console.say))
    return _of_torchvision(known, file, pinned=known.short_name, name=known.name)


def _of_torchvision(known: TorchvisionWeights, file: WeightsFile, *, pinned: str, name: str) -> Pretrained:
    return Pretrained(
        name, pinned, file.tensors, known.classes or None, known.image_size, 3, known.mean, known.std, {}, file.notices
    )


def _of_file(path: Path, config: ModelConfig) -> Pretrained:
    file = read_weights(path)
    name = f"{path.name} sha256:{file.sha256[:16]}"
    known = recognised(config.family, file.sha256)
    if known is not None:
        return _of_torchvision(known, file, pinned=str(path), name=f"{name} ({known.name})")
    # Our own checkpoints are known by their names; they may be of any size and normalisation.
    if is_torchvision(config.family) and not any(tensor.startswith("stages.") for tensor in file.tensors):
        mean, std = named_weights(config.family, "default").mean, named_weights(config.family, "default").std
        return Pretrained(name, str(path), file.tensors, None, IMAGENET_SIZE, 3, mean, std, {}, file.notices)
    return Pretrained(name, str(path), file.tensors, notices=file.notices)


def _of_classifier(folder: Path, config: ModelConfig, *, name: str, pinned: str) -> Pretrained:
    classifier = Classifier.load(folder)
    if classifier.config.family != config.family:
        raise UserError(
            f"the weights {name} are of a {classifier.config.family}, but model.family is {config.family}. Set "
            f"model.family to {classifier.config.family}, or give other weights."
        )
    steps = classifier.preprocessing
    return Pretrained(
        name,
        pinned,
        classifier.module.state_dict(),
        classifier.classes,
        steps.image_size,
        steps.channels,
        steps.mean,
        steps.std,
        classifier.config.model_dump(mode="json"),
    )


def normalization_of(weights: Pretrained | None) -> Normalization | None:
    """Mean and deviation that the weights were trained with, where that is known."""
    return None if weights is None or weights.mean is None or weights.std is None else (weights.mean, weights.std)


def with_defaults(recipe: Recipe, weights: Pretrained | None, console: Console) -> Recipe:
    """The recipe with what the weights decide: `auto` values, channels that nobody gave, and the weights' lasting name.

    What a user wrote stays. What the weights replace is said.

    Raises:
        UserError: the weights' normalisation is asked for, but is not known.
    """
    normalization = normalization_of(weights)
    if recipe.augment.normalize == "weights" and normalization is None:
        raise UserError(
            f"augment.normalize is weights, but those of model.weights ({recipe.model.weights}) are not known. "
            "Expected torchvision's weights or an earlier model there, or auto, imagenet, dataset or none as "
            "augment.normalize."
        )
    if weights is None:
        return recipe.replace({"augment.normalize": "imagenet"}) if recipe.augment.normalize == "auto" else recipe
    values: dict[str, object] = {}
    if recipe.augment.image_size == "auto" and weights.image_size is not None:
        values["augment.image_size"] = weights.image_size
    if recipe.augment.normalize == "auto":
        is_imagenet = normalization in (None, (IMAGENET_MEAN, IMAGENET_STD))
        values["augment.normalize"] = "imagenet" if is_imagenet else "weights"
    # A number is no `auto`: only the section itself knows whether somebody gave it.
    grey_model = weights.channels == 1 and recipe.data.channels == 3
    if grey_model and "channels" not in recipe.data.model_fields_set:
        values["data.channels"] = 1
    if values:
        told = ", ".join(f"{name} {value}" for name, value in values.items())
        console.say(f"note: as the weights were trained: {told}")
    return recipe.replace({**values, "model.weights": weights.pinned})
