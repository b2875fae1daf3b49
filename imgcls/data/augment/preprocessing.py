"""What happens to an image on its way from its file to the network, in training as in serving."""

import contextlib
import functools
import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imgcls.data import cache
from imgcls.data.augment.config import AugmentConfig
from imgcls.data.augment.pipeline import evaluation_pipeline, store_size
from imgcls.data.decode import Pixels, decode, shrink, to_channels
from imgcls.data.images import Images
from imgcls.tables import Manifest

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Means and deviations of the channels, on the 0..1 scale."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOST_MEASURED = 2000
"""Training images that the channel statistics are measured on, at most."""
CACHED_VALUES = 2**17
"""Values that are normalised in one go on a CPU: half a mebibyte, less than a core's cache."""
MOST_PIXELS = 2**20
"""Of the images that a CPU computes at once."""
STATISTICS_VERSION = 1
"""Raised when the same images would give other statistics than those in the cache."""


@dataclass(frozen=True)
class Preprocessing:
    """All that happens to an image between its file and the network, as it is stored with a model.

    Attributes:
        channels: 1 or 3.
        image_size: pixels on each side of the network's input.
        mean, std: per channel, on the 0..1 scale.
        eval_crop: share of the image's shorter side that the network sees; None is that of `evaluation_pipeline`.
    """

    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    eval_crop: float | None = None

    @property
    def store_size(self) -> int:
        """Pixels: the longest shorter side that an image is kept at before the pipelines see it."""
        return store_size(self.image_size)

    def pixels(self, image: "bytes | Pixels") -> Pixels:
        """Encoded bytes, or (H, W), (H, W, 1) or (H, W, 3) uint8 pixels, as the pipelines take them: at `store_size`.

        Raises:
            DecodeError: the bytes are not a readable image, or the pixels have another shape.
        """
        if isinstance(image, bytes):
            return decode(image, channels=self.channels, short_side=self.store_size)
        return shrink(to_channels(image, self.channels), self.store_size)

    def load(self, image: "bytes | Pixels") -> Pixels:
        """An image as `pixels` takes it as (image_size, image_size, channels) uint8.

        Raises:
            DecodeError: as `pixels`.
        """
        return evaluation_pipeline(self.image_size, self.eval_crop)(self.pixels(image))

    def to_input(self, batch: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) uint8 as the network's input, (B, C, H, W) float32, on the batch's device."""
        count, height, width, channels = batch.shape
        # A row of pixels at a time: over the three channels alone it takes three times as long.
        mean, scale = _constants(self.mean, self.std, width, batch.device)
        rows = batch.reshape(count, height, width * channels)
        scaled = torch.empty(rows.shape, dtype=torch.float32, device=batch.device)
        # Few images at a time, so that a processor's cache holds them from the first step to the last.
        step = max(1, CACHED_VALUES // rows[0].numel()) if batch.device.type == "cpu" and count else max(1, count)
        for begin in range(0, count, step):
            scaled[begin : begin + step].copy_(rows[begin : begin + step]).sub_(mean).mul_(scale)
        return scaled.view(batch.shape).permute(0, 3, 1, 2)

    def parts(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, H, W, C) images in parts that a CPU computes a forward pass of fastest; whole on a GPU.

        What a network keeps of a million pixels between two layers is about what a processor's cache holds: MobileNet
        at 224 px gives 50 images a second in parts of 16 and 30 in one of 64.
        """
        num_pixels = batch[..., 0].numel()
        return batch.chunk(max(1, math.ceil(num_pixels / MOST_PIXELS))) if batch.device.type == "cpu" else (batch,)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `Preprocessing.from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """The inverse of `as_dict`."""
        mean, std = tuple(values["mean"]), tuple(values["std"])
        return cls(values["channels"], values["image_size"], mean, std, values.get("eval_crop"))


@functools.lru_cache(maxsize=64)
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(W * C,) what is taken off a row of pixels, and what it is multiplied by.

    Kept, for a GPU would be waited for at every copy of them to it.
    """
    with torch.inference_mode(False):  # else a training could not use what a prediction made
        offset = (torch.tensor(mean, device=device) * 255).repeat(width)
        return offset, 1 / (torch.tensor(std, device=device) * 255).repeat(width)


def preprocessing(
    config: AugmentConfig,
    *,
    size: int,
    channels: int,
    train_images: Images,
    train: Manifest | None = None,
    weights: Normalization | None = None,
) -> Preprocessing:
    """The preprocessing of a data set.

    Args:
        config: says which statistics; `dataset` measures up to 2,000 training images, once for all runs on them.
        size: pixels on each side of the network's input.
        channels: 1 or 3.
        train_images: the training images.
        train: their manifest, by whose contents the statistics are kept in the cache; None measures anew.
        weights: mean and deviation that the pretrained weights were trained with, where there are such.
    """
    mean, std = _normalization(config, size, channels, train_images, train, weights)
    crop = None if config.eval_crop == "auto" else config.eval_crop
    return Preprocessing(channels, size, mean, std, crop)


def _normalization(
    config: AugmentConfig,
    size: int,
    channels: int,
    train_images: Images,
    train: Manifest | None,
    weights: Normalization | None,
) -> Normalization:
    if config.normalize == "weights" or (config.normalize == "auto" and weights is not None):
        assert weights is not None, "whoever reads the weights says so before"
        return _for_channels(weights, channels)
    if config.normalize == "none":
        return (0.0,) * channels, (1.0,) * channels
    if config.normalize in ("auto", "imagenet"):
        if channels == 3:
            return IMAGENET_MEAN, IMAGENET_STD
        return (round(float(np.mean(IMAGENET_MEAN)), 4),), (0.226,)
    statistics = _statistics(train_images, size=size, channels=channels, train=train)
    return tuple(statistics["mean"]), tuple(statistics["std"])


def _for_channels(weights: Normalization, channels: int) -> Normalization:
    """The weights' mean and deviation; grey has the mean of three channels', and three channels each have grey's."""
    if len(weights[0]) == channels:
        return weights
    if channels == 3:
        return weights[0] * 3, weights[1] * 3
    mean, std = (round(float(np.mean(values)), 5) for values in weights)
    return (mean,), (std,)


def _statistics(images: Images, *, size: int, channels: int, train: Manifest | None) -> dict[str, list[float]]:
    """`_measure` by way of the cache folder, or without it where that cannot be used."""
    measured: list[dict[str, list[float]]] = []

    def build(folder: Path) -> None:
        measured.append(_measure(images, size=size, channels=channels))
        (folder / "statistics.json").write_text(json.dumps(measured[0]), encoding="utf-8")

    key = None if train is None else _key(train, size=size, channels=channels)
    if key is not None:
        with contextlib.suppress(OSError):  # no place to write: measured in vain, but measured
            kept = _read(cache.entry("statistics", key, build) / "statistics.json", channels)
            if kept is not None:
                return kept
    return measured[0] if measured else _measure(images, size=size, channels=channels)


def _read(path: Path, channels: int) -> dict[str, list[float]] | None:
    """The statistics in a file, or None where somebody damaged it."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        found = {name: [float(value) for value in kept[name]] for name in ("mean", "std")}
    except (ValueError, TypeError, KeyError):
        return None
    return found if all(len(values) == channels for values in found.values()) else None


def _key(train: Manifest, *, size: int, channels: int) -> str | None:
    """A name for the statistics of these images in this order (which decides the sample)."""
    contents = [str(content) for content in train.frame["content"]]
    if not all(contents):
        return None
    about = f"{STATISTICS_VERSION} {size} {channels} {store_size(size)} {MOST_MEASURED}"
    return hashlib.blake2b("\n".join([about, *contents]).encode(), digest_size=16).hexdigest()


def _measure(images: Images, *, size: int, channels: int) -> dict[str, list[float]]:
    """Mean and deviation of each channel, on the 0..1 scale, over evenly spaced images as evaluation sees them."""
    pipeline = evaluation_pipeline(size)
    step = max(1, math.ceil(len(images) / MOST_MEASURED))
    sums, squares, count = np.zeros(channels), np.zeros(channels), 0
    for index in range(0, len(images), step):
        flat = pipeline(images[index]).reshape(-1, channels).astype(np.float64) / 255
        sums, squares, count = sums + flat.sum(0), squares + (flat**2).sum(0), count + len(flat)
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-6))
    return {"mean": [float(value) for value in mean.round(5)], "std": [float(value) for value in std.round(5)]}
