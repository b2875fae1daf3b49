"""A sequence of transforms with one random stream, and the fixed sequence that evaluation and serving use."""

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import albumentations as A
import cv2
import numpy as np

from imgcls.data.decode import Pixels

cv2.setNumThreads(0)  # batches are parallel over images already

SMALL = 64
"""Pixels: up to this size images are shifted whole, above it crops are taken from them."""
STORE_RATIO = 1.25
"""Decoded images keep this much more than the network's size on their shorter side, for crops to zoom into."""


class Pipeline:
    """A sequence of albumentations transforms on (H, W, C) uint8 images.

    All transforms draw from the same two generators. Left to `Compose.set_random_seed`, each would have its own,
    seeded alike, so that a flip and a blur of probability 0.5 would always come together or not at all.

    Args:
        transforms: the transforms.
        fixed_size: pixels a side of the square images that it leaves as they are; None: it may change any image.
    """

    def __init__(self, transforms: Sequence[Any], *, fixed_size: int | None = None) -> None:
        self._compose = A.Compose(list(transforms))
        self._fixed_size = fixed_size
        self._python, self._numpy = random.Random(0), np.random.default_rng(0)
        self._compose.set_random_state(self._numpy, self._python)

    def seed(self, seed: int) -> None:
        """Start the random stream anew: equal seeds give equal variations, whatever was drawn before."""
        self._python.seed(seed)
        self._numpy.bit_generator.state = np.random.PCG64(seed).state

    def keeps(self, height: int, width: int) -> bool:
        """Whether images of this size come out as they are, so that a batch of them need not go through it."""
        return height == width == self._fixed_size

    def __call__(self, image: Pixels) -> Pixels:
        """The transformed image, (H', W', C) uint8."""
        result: Pixels = self._compose(image=image)["image"]
        return result


def store_size(image_size: int) -> int:
    """Pixels: what the shorter side of a decoded image is shrunk to for a network that takes `image_size`."""
    return round(image_size * STORE_RATIO)


def middle(size: int, side: int | None = None) -> list[Any]:
    """Without randomness: the shorter side to `side` (`size` where None), then (size, size) of the middle."""
    return [A.SmallestMaxSize(side or size, interpolation=cv2.INTER_AREA), A.CenterCrop(size, size)]


@lru_cache(maxsize=16)
def evaluation_pipeline(size: int, crop: float | None = None) -> Pipeline:
    """The middle of the image.

    Args:
        size: pixels a side of what it gives.
        crop: share of the image's shorter side that is seen, above 0 to 1. None: 0.875 above 64 pixels, else all.
    """
    crop = crop or (1.0 if size <= SMALL else 0.875)
    if crop == 1:
        return Pipeline(middle(size), fixed_size=size)
    return Pipeline(middle(size, round(size / crop)))


@lru_cache(maxsize=16)
def resizing_pipeline(side: int) -> Pipeline:
    """The whole image with its shorter side at `side` pixels."""
    return Pipeline([A.SmallestMaxSize(side, interpolation=cv2.INTER_AREA)])
