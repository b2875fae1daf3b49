"""A trained network with its preprocessing and class names: what is saved, served and predicted with."""

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch

import imgcls.models  # noqa: F401  (registers the families)
from imgcls.data.augment import Preprocessing
from imgcls.data.decode import DecodeError, Pixels
from imgcls.errors import UserError
from imgcls.inference.decoding import Loaded, decoded
from imgcls.models.family import FAMILIES, ModelConfig, StagedModel, build

WEIGHTS, SPEC = "model.safetensors", "model.json"


def exact_convolutions() -> AbstractContextManager[None]:
    """Within it a GPU's convolutions are computed in full fp32, as a served model computes them on a CPU.

    TF32, which cuDNN takes otherwise, would differ from that by far more than rounding.
    """
    # `flags` switches off what it is not told, and that would be cuDNN as a whole.
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return flags


@dataclass(frozen=True)
class Classifier:
    """A network that takes images as they come.

    Attributes:
        module: the network.
        config: the `model` section it was built from.
        preprocessing: from image files to its input.
        classes: names of its logits.
        top_k: classes it names for an image.
    """

    module: StagedModel
    config: ModelConfig
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    top_k: int

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` (weights) and `model.json` (all else); neither holds code."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.module.state_dict().items()}
        safetensors.torch.save_file(weights, folder / WEIGHTS)
        spec = {
            "model": self.config.model_dump(mode="json"),
            "preprocessing": self.preprocessing.as_dict(),
            "classes": self.classes,
            "top_k": self.top_k,
        }
        (folder / SPEC).write_text(json.dumps(spec, indent=2, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Classifier":
        """The inverse of `save`, on the CPU and in evaluation mode.

        Raises:
            UserError: the folder does not hold a saved classifier, or its weights do not fit its description.
        """
        try:
            spec: dict[str, Any] = json.loads((folder / SPEC).read_text(encoding="utf-8"))
            config = FAMILIES.get(spec["model"]["family"]).config.model_validate(spec["model"])
            preprocessing = Preprocessing.from_dict(spec["preprocessing"])
            classes, top_k = tuple(spec["classes"]), int(spec["top_k"])
            weights = safetensors.torch.load_file(folder / WEIGHTS)
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            why = f"{type(error).__name__}: {error}"
            raise UserError(f"{folder} holds no saved classifier ({SPEC} and {WEIGHTS}): {why}") from error
        module = build(
            config,
            num_classes=len(classes),
            in_channels=preprocessing.channels,
            image_size=preprocessing.image_size,
        )
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(f"the weights in {folder / WEIGHTS} do not fit {SPEC}: {error}") from error
        return cls(module.eval(), config, preprocessing, classes, top_k)

    def probabilities(self, images: Sequence[bytes | Pixels], *, batch_size: int = 64) -> npt.NDArray[np.float32]:
        """(N, C) probabilities of N images, each encoded bytes or (H, W[, 3]) uint8 pixels.

        Raises:
            DecodeError: bytes that are not a readable image.
        """
        [probs], _ = of_images([self], images, batch_size=batch_size, past_errors=False)
        return probs

    def try_probabilities(
        self, images: Sequence[bytes | Pixels], *, batch_size: int = 64
    ) -> tuple[npt.NDArray[np.float32], list[DecodeError | None]]:
        """As `probabilities`, but an image that cannot be read spoils its own row only.

        Returns:
            (N, C) probabilities, NaN in the rows that have none, and for each image why it has none, or None.
        """
        [probs], errors = of_images([self], images, batch_size=batch_size)
        return probs, errors

    def _decoded(self, images: Sequence[bytes | Pixels], batch_size: int) -> Iterator[list[Loaded]]:
        on_cpu = next(self.module.parameters()).device.type == "cpu"
        busy = torch.get_num_threads() if on_cpu else 0
        return decoded(images, self.preprocessing.load, batch_size=batch_size, busy_cores=busy)

    @torch.no_grad()
    def of_pixels(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """(B, num_classes) probabilities of (B, S, S, C) uint8 images of the network's size."""
        batch = torch.from_numpy(pixels).to(next(self.module.parameters()).device)
        logits = [self.module(self.preprocessing.to_input(part)).float() for part in self.preprocessing.parts(batch)]
        probs: npt.NDArray[np.float32] = torch.cat(logits).softmax(1).cpu().numpy()
        return probs


def of_images(
    classifiers: Sequence[Classifier],
    images: Sequence[bytes | Pixels],
    *,
    batch_size: int,
    past_errors: bool = True,
) -> tuple[list[npt.NDArray[np.float32]], list[DecodeError | None]]:
    """What classifiers of the same preprocessing say of images, each of which is decoded once for all of them.

    Args:
        classifiers: one or more, on the same device.
        images: N images, each encoded bytes or (H, W[, 3]) uint8 pixels.
        batch_size: images that are computed at once.
        past_errors: whether an image that cannot be read spoils its own row only.

    Returns:
        (N, C) probabilities of each classifier, NaN in the rows that have none, and for each image why it has none, or
        None.

    Raises:
        DecodeError: an image cannot be read, unless the others are to be labelled all the same.
    """
    first = classifiers[0]
    assert all(one.preprocessing == first.preprocessing for one in classifiers)
    probs = [np.full((len(images), len(one.classes)), np.nan, np.float32) for one in classifiers]
    errors: list[DecodeError | None] = []
    for batch in first._decoded(images, batch_size):
        good = {len(errors) + k: one for k, one in enumerate(batch) if not isinstance(one, DecodeError)}
        found = [one if isinstance(one, DecodeError) else None for one in batch]
        if not past_errors and (error := next(filter(None, found), None)) is not None:
            raise error
        errors += found
        if good:
            pixels = np.stack(list(good.values()))
            for rows, one in zip(probs, classifiers, strict=True):
                rows[list(good)] = one.of_pixels(pixels)
    return probs, errors
