"""Several views of an image, for a classifier to look at each of them (test-time augmentation)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from imgcls.data.augment import (
    SMALL,
    AugmentConfig,
    Pipeline,
    Preprocessing,
    evaluation_pipeline,
    resizing_pipeline,
    training_pipeline,
)
from imgcls.data.decode import Pixels
from imgcls.errors import UserError

Kind = Literal["crops", "flips", "train"]
Combine = Literal["mean", "vote"]
KINDS, COMBINES = get_args(Kind), get_args(Combine)
MOST_FLIPS, MOST_CROPS, MOST_VIEWS = 4, 10, 1000
WIDE = 0.875
"""Share of the shorter side that a crop has where evaluation sees all of it."""


@dataclass(frozen=True)
class Views:
    """What a classifier looks at for one image.

    Attributes:
        num: views, from 1; one is what evaluation sees.
        kind: `crops`: the middle, its mirror image, the four corners and theirs, in this order, 10 at most (Krizhevsky
            et al. 2012); `flips`: as it is, mirrored left to right, upside down, both, 4 at most; `train`: the random
            variations of the training, the same ones for an image of the same name whenever it is asked.
        combine: `mean` of the views' probabilities, or the class that most views name (`vote`).
        augment: the training's, for `train`.
        seed: of the random variations.

    Raises:
        UserError: there are not so many views of this kind, or no training's variations are known.
    """

    num: int = 1
    kind: Kind = "crops"
    combine: Combine = "mean"
    augment: AugmentConfig | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        most = {"crops": MOST_CROPS, "flips": MOST_FLIPS, "train": MOST_VIEWS}[self.kind]
        if not 1 <= self.num <= most:
            more = "" if self.kind == "train" else "; views of the kind train can be any number up to 1,000"
            raise UserError(f"found {self.num} views of the kind {self.kind}; expected 1 to {most}{more}.")

    def needs_training(self) -> bool:
        """Whether `augment` must be given."""
        return self.kind == "train" and self.num > 1


ONE = Views()
"""What evaluation sees."""


class ViewMaker:
    """From an image to its views; one for each thread, for random variations have a state.

    Args:
        preprocessing: the network's.
        views: which.

    Raises:
        UserError: views are those of a training, which is not given.
    """

    def __init__(self, preprocessing: Preprocessing, views: Views) -> None:
        self._steps, self._views = preprocessing, views
        size = preprocessing.image_size
        self._varied: Pipeline | None = None
        if views.needs_training():
            if views.augment is None:
                raise UserError(
                    "views as in training need the training's recipe, which a model's files do not hold. Give the "
                    "model by its run or its name in the registry, or take views of the kind crops or flips."
                )
            steps = preprocessing
            self._varied = training_pipeline(views.augment, size=size, channels=steps.channels, mean=steps.mean)
        share = preprocessing.eval_crop or (1.0 if size <= SMALL else WIDE)
        self._resized = resizing_pipeline(round(size / (share if share < 1 else WIDE)))

    def __call__(self, image: bytes | Pixels, name: str = "") -> Pixels:
        """The (V, S, S, C) uint8 views of encoded bytes, or of (H, W[, C]) uint8 pixels.

        Args:
            image: the image.
            name: what random variations are drawn from.

        Raises:
            DecodeError: the bytes are no readable image.
        """
        steps, num = self._steps, self._views.num
        pixels = steps.pixels(image)
        if self._varied is not None:
            return self._random(self._varied, pixels, name)
        middle = evaluation_pipeline(steps.image_size, steps.eval_crop)(pixels)
        if num == 1:
            return middle[None]
        if self._views.kind == "flips":
            found = [middle, middle[:, ::-1], middle[::-1], middle[::-1, ::-1]]
        else:
            found = _mirrored([middle]) + (_mirrored(self._corners(pixels)) if num > 2 else [])
        return np.stack(found[:num])

    def _random(self, pipeline: Pipeline, pixels: Pixels, name: str) -> Pixels:
        made = []
        for number in range(self._views.num):
            text = f"{self._views.seed} {number} {name}".encode("utf-8", "surrogateescape")
            pipeline.seed(int.from_bytes(hashlib.blake2b(text, digest_size=6).digest()))
            made.append(pipeline(pixels))
        return np.stack(made)

    def _corners(self, pixels: Pixels) -> list[Pixels]:
        size, wide = self._steps.image_size, self._resized(pixels)
        return [wide[:size, :size], wide[:size, -size:], wide[-size:, :size], wide[-size:, -size:]]


def _mirrored(images: Sequence[Pixels]) -> list[Pixels]:
    """The images, then their mirror images."""
    return [*images, *(image[:, ::-1] for image in images)]
