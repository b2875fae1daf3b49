"""torchvision's pretrained weights by name: which there are, what they were trained with, and their download."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.hub import download_url_to_file

from imgcls.errors import UserError
from imgcls.models.weights_files import sha256_of
from imgcls.network import bounded_wait
from imgcls.plugins import nearest


@dataclass(frozen=True)
class TorchvisionWeights:
    """One of torchvision's files of weights, and what its own preset says.

    Attributes:
        name: as torchvision writes it, such as ResNet18_Weights.IMAGENET1K_V1.
        url: where the file is.
        image_size: pixels on each side of the crops that its figures were measured on.
        mean, std: per channel, on the 0..1 scale.
        classes: names of its logits.
    """

    name: str
    url: str
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]

    @property
    def short_name(self) -> str:
        """The name without the family's, such as IMAGENET1K_V1."""
        return self.name.rpartition(".")[2]

    @property
    def file_name(self) -> str:
        """The file's name, in which the first digits of its SHA-256 stand."""
        return self.url.rpartition("/")[2]

    @property
    def hash_prefix(self) -> str:
        """The first digits of the file's SHA-256."""
        found = re.search(r"-([0-9a-f]{8,})\.\w+$", self.file_name)
        return found[1] if found else ""


def is_torchvision(family: str) -> bool:
    """Whether torchvision has pretrained weights for a family of this name."""
    from torchvision import models

    return family in models.list_models(module=models)


def known_weights(family: str) -> list[TorchvisionWeights]:
    """All weights of a family of torchvision; the last is its default."""
    from torchvision import models

    enum = models.get_model_weights(family)
    entries = sorted(enum, key=lambda entry: entry is enum.DEFAULT)
    return [_described(entry) for entry in entries]


def _described(entry: Any) -> TorchvisionWeights:
    preset = entry.transforms()
    mean, std = (tuple(float(value) for value in values) for values in (preset.mean, preset.std))
    return TorchvisionWeights(
        str(entry), entry.url, int(preset.crop_size[0]), mean, std, tuple(entry.meta.get("categories") or ())
    )


def named_weights(family: str, name: str) -> TorchvisionWeights:
    """The weights that `model.weights` names.

    Args:
        family: a model family.
        name: `default`, or torchvision's name with or without its enum's.

    Raises:
        UserError: torchvision has none for the family, or none of this name; the message lists those that there are.
    """
    elsewhere = "a .pth, .pt or .safetensors file, a folder with a slash, or an earlier model (runs:/…, models:/…)"
    if not is_torchvision(family):
        raise UserError(
            f"model.weights: found {name!r}, but torchvision has no weights for model.family {family}. Expected none, "
            f"{elsewhere}."
        )
    known = known_weights(family)
    enum = known[-1].name.partition(".")[0]
    if name.casefold() == "default" or name == f"{enum}.DEFAULT":
        return known[-1]
    for weights in known:
        if name in (weights.name, weights.short_name):
            return weights
    owner = _owner(name)
    if owner is not None:
        raise UserError(
            f"model.weights: {name} are weights of {owner}, but model.family is {family}. Set model.family to {owner}, "
            f"or choose of {_names(known)}."
        )
    guess = nearest(name, [name for weights in known for name in (weights.short_name, weights.name)])
    hint = f" Did you mean {guess!r}?" if guess else ""
    raise UserError(
        f"model.weights: found {name!r}; torchvision's weights for {family} are {_names(known)}. Or give none, "
        f"{elsewhere}.{hint}"
    )


def _names(known: list[TorchvisionWeights]) -> str:
    return ", ".join(weights.short_name for weights in known) + f" (default is {known[-1].short_name})"


def _owner(name: str) -> str | None:
    """The family whose weights have this full name."""
    from torchvision import models

    if "." not in name:
        return None
    found = (f for f in models.list_models(module=models) if any(name == str(w) for w in models.get_model_weights(f)))
    return next(found, None)


def recognised(family: str, sha256: str) -> TorchvisionWeights | None:
    """The weights of this family that a file with this SHA-256 holds, under whatever name it lies."""
    if not is_torchvision(family):
        return None
    return next((w for w in known_weights(family) if w.hash_prefix and sha256.startswith(w.hash_prefix)), None)


def family_of_size(num_parameters: int) -> str | None:
    """The family of torchvision with that many parameters for ImageNet's classes; no two have as many."""
    from torchvision import models

    for family in models.list_models(module=models):
        if any(entry.meta.get("num_params") == num_parameters for entry in models.get_model_weights(family)):
            return str(family)
    return None


def likely_family(shapes: Mapping[str, torch.Size]) -> str | None:
    """The family of torchvision that a state dict is of, by its number of parameters; None where it is of none.

    Args:
        shapes: name -> shape of all floating-point tensors; the last two are the head's weight and bias.
    """
    names = [name for name in shapes if not name.endswith(("running_mean", "running_var"))]
    total = sum(shapes[name].numel() for name in names)
    candidates = [total]
    if len(names) >= 2 and len(shapes[names[-1]]) == 1 and shapes[names[-2]][:1] == shapes[names[-1]]:
        classes, per_class = shapes[names[-1]][0], shapes[names[-2]].numel() // shapes[names[-1]][0] + 1
        candidates.append(total + (1000 - classes) * per_class)
    return next((found for count in candidates if (found := family_of_size(count)) is not None), None)


def fetch(weights: TorchvisionWeights, folder: Path, *, progress: bool, say: Callable[[str], None]) -> Path:
    """The file of the weights in the folder, downloaded whole or not at all where it is not there yet.

    Args:
        weights: which.
        folder: where such files are kept; made if need be.
        progress: draw a bar on stderr.
        say: told before a download.

    Raises:
        UserError: it is not there and cannot be downloaded, or what is there is another file; the message names the
            address, the file and the folder.
    """
    path = folder / weights.file_name
    if path.is_file():
        found = sha256_of(path)
        if not found.startswith(weights.hash_prefix):
            raise UserError(
                f"{path} is damaged: its SHA-256 begins with {found[:8]}, expected {weights.hash_prefix} "
                f"({weights.name}). Delete it to have it downloaded, or put the file from {weights.url} there."
            )
        return path
    say(f"downloading {weights.name} from {weights.url}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with bounded_wait():
            download_url_to_file(weights.url, str(path), hash_prefix=weights.hash_prefix or None, progress=progress)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: another hash than the name's
        reason = " ".join(str(getattr(error, "reason", None) or error).split()).rstrip(".")
        raise UserError(
            f"the weights {weights.name} cannot be downloaded: {reason}. Expected the file {weights.file_name} (from "
            f"{weights.url}) in the folder {folder}: put it there by hand, or give its path as model.weights, or none "
            "to train from fresh weights. IMGCLS_CACHE names the folder above that one."
        ) from error
    return path
