"""Image pipelines: random ones for training, the fixed one for evaluation and serving (the door to albumentations)."""

import io
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from imgcls.data.decode import Pixels, decode, shrink, to_channels
from imgcls.data.images import Images, name_of, read_encoded
from imgcls.errors import UserError
from imgcls.sections import Section
from imgcls.tables import Manifest

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for a newer version at import

import albumentations as A
import cv2

cv2.setNumThreads(0)  # batches are parallel over images already

SMALL = 64
"""Pixels: up to this size images are shifted whole, above it crops are taken from them."""
STORE_RATIO = 1.25
"""Decoded images keep this much more than the network's size on their shorter side, for crops to zoom into."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class AugmentConfig(Section):
    """How images are sized, varied and normalised."""

    image_size: Annotated[int, Field(ge=8, le=2048)] | Literal["auto"] = "auto"
    """Pixels on each side of what the network sees. auto: the images' median shorter side, 224 at most."""
    preset: Literal["none", "light", "standard"] = "standard"
    """Random variation in training: none; light (small shifts or 70-100 % crops); standard (wider, and colours)."""
    horizontal_flip: bool = True
    """Mirror half of the training images. Wrong for digits, letters and left/right classes."""
    normalize: Literal["imagenet", "dataset", "none"] = "imagenet"
    """Channel means and deviations: ImageNet's, measured on the training images, or none (0..1 as it is)."""


class Pipeline:
    """A sequence of albumentations transforms on (H, W, C) uint8 images.

    Args:
        transforms: the transforms.
        fixed_size: pixels a side of the square images that it leaves as they are; None: it may change any image.
    """

    def __init__(self, transforms: Sequence[Any], *, fixed_size: int | None = None) -> None:
        self._compose = A.Compose(list(transforms), seed=0)
        self._fixed_size = fixed_size

    def seed(self, seed: int) -> None:
        """Start the random stream anew: equal seeds give equal variations."""
        self._compose.set_random_seed(seed)

    def keeps(self, height: int, width: int) -> bool:
        """Whether images of this size come out as they are, so that a batch of them need not go through it."""
        return height == width == self._fixed_size

    def __call__(self, image: Pixels) -> Pixels:
        """The transformed image, (H', W', C) uint8."""
        result: Pixels = self._compose(image=image)["image"]
        return result


@dataclass(frozen=True)
class Preprocessing:
    """All that happens to an image between its file and the network, as it is stored with a model.

    Attributes:
        channels: 1 or 3.
        image_size: pixels on each side of the network's input.
        mean, std: per channel, on the 0..1 scale.
    """

    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def store_size(self) -> int:
        """Pixels: the longest shorter side that an image is kept at before the pipelines see it."""
        return store_size(self.image_size)

    def load(self, image: "bytes | Pixels") -> Pixels:
        """Encoded bytes, or (H, W), (H, W, 1) or (H, W, 3) uint8 pixels, as (image_size, image_size, channels) uint8.

        Raises:
            DecodeError: the bytes are not a readable image.
        """
        if isinstance(image, bytes):
            pixels = decode(image, channels=self.channels, short_side=self.store_size)
        else:
            pixels = shrink(to_channels(image, self.channels), self.store_size)
        return evaluation_pipeline(self.image_size)(pixels)

    def to_input(self, batch: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) uint8 as the network's input, (B, C, H, W) float32, on the batch's device."""
        size, row = batch.shape, batch.shape[2] * batch.shape[3]
        mean = (torch.tensor(self.mean, device=batch.device) * 255).repeat(size[2])
        scale = 1 / (torch.tensor(self.std, device=batch.device) * 255).repeat(size[2])
        # In place, and a row of pixels at a time: over the three channels alone it takes three times as long.
        scaled = batch.reshape(size[0], size[1], row).float().sub_(mean).mul_(scale)
        return scaled.view(size).permute(0, 3, 1, 2)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `Preprocessing.from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """The inverse of `as_dict`."""
        return cls(values["channels"], values["image_size"], tuple(values["mean"]), tuple(values["std"]))


def store_size(image_size: int) -> int:
    """Pixels: what the shorter side of a decoded image is shrunk to for a network that takes `image_size`."""
    return round(image_size * STORE_RATIO)


@lru_cache(maxsize=16)
def evaluation_pipeline(size: int) -> Pipeline:
    """The middle of the image: the shorter side to `size` (above 64 pixels to size / 0.875), then a centre crop."""
    side = size if size <= SMALL else round(size / 0.875)
    steps = [A.SmallestMaxSize(side, interpolation=cv2.INTER_AREA), A.CenterCrop(size, size)]
    return Pipeline(steps, fixed_size=size if side == size else None)


def training_pipeline(config: AugmentConfig, *, size: int, channels: int) -> Pipeline:
    """The random pipeline of the preset, for images of `channels` channels, giving (size, size, channels)."""
    flip = [A.HorizontalFlip(p=0.5)] if config.horizontal_flip else []
    if config.preset == "none":
        fixed = [A.SmallestMaxSize(size, interpolation=cv2.INTER_AREA), A.CenterCrop(size, size)]
        return Pipeline([*fixed, *flip], fixed_size=None if flip else size)
    strong = config.preset == "standard"
    if size <= SMALL:
        shift, turn, zoom = (0.12, 15, 0.15) if strong else (0.08, 8, 0.08)
        moved = A.Affine(translate_percent=(-shift, shift), rotate=(-turn, turn), scale=(1 - zoom, 1 + zoom), p=0.9)
        fixed = [A.SmallestMaxSize(size, interpolation=cv2.INTER_AREA), A.CenterCrop(size, size)]
        return Pipeline([*fixed, moved, *flip])
    smallest = 0.35 if strong else 0.7
    crop = A.RandomResizedCrop((size, size), scale=(smallest, 1.0), ratio=(3 / 4, 4 / 3))
    colour: list[Any] = []
    if strong:
        grey = A.RandomBrightnessContrast(brightness_limit=0.3, contrast_limit=0.3, p=0.8)
        colour = [A.ColorJitter(0.3, 0.3, 0.3, 0.05, p=0.8) if channels == 3 else grey]
    return Pipeline([crop, *flip, *colour])


def resolve_image_size(config: AugmentConfig, manifest: Manifest) -> int:
    """Pixels: the configured size, or for `auto` the median shorter side of up to 256 images, 8 to 224."""
    if config.image_size != "auto":
        return config.image_size
    if manifest.images is not None:
        return int(np.clip(min(manifest.images.shape[1:3]), 8, 224))
    sampled = range(0, len(manifest), max(1, math.ceil(len(manifest) / 256)))
    return int(np.clip(np.median([_short_side(manifest, index) for index in sampled]), 8, 224))


def _short_side(manifest: Manifest, index: int) -> int:
    try:
        with Image.open(io.BytesIO(read_encoded(manifest, index))) as image:
            return min(image.size)
    except UserError:
        raise
    except Exception as error:
        name = name_of(manifest, index)
        raise UserError(f"cannot read the image {name}: {error}. Mend or remove the file.") from error


def preprocessing(config: AugmentConfig, *, size: int, channels: int, train_images: Images) -> Preprocessing:
    """The preprocessing of a data set; `normalize: dataset` measures up to 2,000 training images."""
    if config.normalize == "none":
        return Preprocessing(channels, size, (0.0,) * channels, (1.0,) * channels)
    if config.normalize == "imagenet":
        if channels == 3:
            return Preprocessing(channels, size, IMAGENET_MEAN, IMAGENET_STD)
        return Preprocessing(channels, size, (round(float(np.mean(IMAGENET_MEAN)), 4),), (0.226,))
    pipeline = evaluation_pipeline(size)
    step = max(1, math.ceil(len(train_images) / 2000))
    sums, squares, count = np.zeros(channels), np.zeros(channels), 0
    for index in range(0, len(train_images), step):
        flat = pipeline(train_images[index]).reshape(-1, channels).astype(np.float64) / 255
        sums, squares, count = sums + flat.sum(0), squares + (flat**2).sum(0), count + len(flat)
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-6))
    return Preprocessing(channels, size, tuple(float(v) for v in mean.round(5)), tuple(float(v) for v in std.round(5)))
