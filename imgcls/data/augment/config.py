"""The recipe's section `augment`, and the training pipeline and image size that it asks for."""

import io
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from PIL import Image
from pydantic import Field, ValidationInfo, WithJsonSchema, field_validator, model_validator

from imgcls.data.augment.pipeline import Pipeline
from imgcls.data.augment.presets import Preset, preset_transforms
from imgcls.data.augment.written import SCHEMA, Steps, WrittenPipeline, checked
from imgcls.data.images import name_of, read_encoded
from imgcls.errors import UserError
from imgcls.sections import Section
from imgcls.tables import Manifest

MOST_AUTO = 224
"""Pixels: what an automatic image size is at most."""
GREY = 0.449
"""The mean of ImageNet's channels, 0..1: the colour of holes where no other is known."""


class AugmentConfig(Section):
    """How images are sized, varied, mixed and normalised."""

    image_size: Annotated[int, Field(ge=8, le=2048)] | Literal["auto"] = "auto"
    """Pixels on each side of what the network sees. auto: that which the weights of model.weights were trained with,
    where it is known; else the images' median shorter side, 224 at most."""
    preset: Preset | None = "standard"
    """Random variation in training: none; light (small shifts or 70-100 % crops); standard (wider, and colours); strong
    (TrivialAugment with shifts or crops and holes; arXiv:2103.10158); animals (70-100 % crops, turned by up to 30
    degrees); cifar (shifts, zoom and turns by up to 45 degrees, one hole of half the side filled with the mean). null:
    standard, or nothing beside a `pipeline`."""
    horizontal_flip: bool | None = True
    """Of presets: mirror half of the training images. Wrong for digits, letters and left/right classes. null: true, or
    nothing beside a `pipeline`."""
    pipeline: Annotated[Steps, WithJsonSchema(SCHEMA)] | None = None
    """Random variation in training written out, in place of a preset: a list of albumentations transforms with their
    arguments, such as [{RandomResizedCrop: {scale: [0.7, 1.0]}}, {HorizontalFlip: {p: 0.5}}]. A size that is left out
    is image_size; images that end at another size are brought to it, shorter side first, then the middle."""
    mixup: float = Field(0.0, ge=0, le=100)
    """MixUp, each training image laid over another of its batch: alpha of its Beta distribution, such as 0.2; 0 is off.
    Zhang et al. 2018, arXiv:1710.09412."""
    cutmix: float = Field(0.0, ge=0, le=100)
    """CutMix, a box of each training image taken from another of its batch: alpha of its Beta distribution, such as 1;
    0 is off; beside mixup each batch gets one of both. Yun et al. 2019, arXiv:1905.04899."""
    mix_prob: float = Field(1.0, gt=0, le=1)
    """Share of the training batches that mixup or cutmix mixes."""
    eval_crop: Annotated[float, Field(ge=0.8, le=1)] | Literal["auto"] = "auto"
    """Share of the shorter side that is seen in evaluation and serving, where the middle of the image is taken. auto:
    0.875 above 64 pixels, as published weights are measured, else 1. Objects look larger in random crops than in whole
    images, so a model that was trained on those may do better with less (Touvron et al. 2019, arXiv:1906.06423)."""
    normalize: Literal["auto", "imagenet", "dataset", "weights", "none"] = "auto"
    """Channel means and deviations: ImageNet's, measured on the training images, those that model.weights was trained
    with, or none (0..1 as it is). auto: the weights' where they are known, else ImageNet's."""

    @property
    def is_varied(self) -> bool:
        """Whether an epoch may show an image in another way than the one before; so may every written pipeline."""
        return self.pipeline is not None or self.preset != "none" or bool(self.horizontal_flip)

    @field_validator("pipeline", mode="before")
    @classmethod
    def _is_of_albumentations(cls, value: Any, info: ValidationInfo) -> Any:
        size = info.data.get("image_size")
        return None if value is None else checked(value, size=size if isinstance(size, int) else MOST_AUTO)

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_the_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        written = values.get("pipeline") is not None
        missing = [name for name in ("preset", "horizontal_flip") if values.get(name) is None]
        return {**values, **{name: None if written else cls.model_fields[name].default for name in missing}}

    @model_validator(mode="after")
    def _all_has_a_use(self) -> Self:
        if self.pipeline is not None:
            beside = {"preset": self.preset, "horizontal_flip": self.horizontal_flip}
            given = {name: value for name, value in beside.items() if value is not None}
            if given:
                found = " and ".join(f"{name} is {value!r}" for name, value in given.items())
                names = " and ".join(f"augment.{name}" for name in given)
                raise ValueError(
                    f"{found} beside a pipeline, which takes the place of a preset and its flips. Set {names} to null, "
                    "or augment.pipeline to null"
                )
        if self.mix_prob != 1 and not (self.mixup or self.cutmix):
            raise ValueError(
                f"mix_prob is {self.mix_prob:g}, but there is nothing to mix with. Set augment.mixup or augment.cutmix "
                "above 0, or augment.mix_prob to 1"
            )
        return self


def training_pipeline(
    config: AugmentConfig, *, size: int, channels: int, mean: Sequence[float] | None = None
) -> Pipeline:
    """The random pipeline of the preset or as it is written, giving (size, size, channels).

    Args:
        config: what to do.
        size: pixels on each side of the network's input.
        channels: 1 or 3, of the images.
        mean: (channels,) on the 0..1 scale: the colour of a preset's holes, mid-grey where None.

    Raises:
        UserError: a written transform does not work on such images.
    """
    if config.pipeline is not None:
        return WrittenPipeline(config.pipeline, size=size, channels=channels)
    assert config.preset is not None
    assert config.horizontal_flip is not None
    fill = tuple(255 * value for value in (mean or (GREY,) * channels))
    steps = preset_transforms(config.preset, size=size, channels=channels, flip=config.horizontal_flip, fill=fill)
    return Pipeline(steps, fixed_size=size if config.preset == "none" and not config.horizontal_flip else None)


def resolve_image_size(config: AugmentConfig, manifest: Manifest) -> int:
    """Pixels: the configured size, or for `auto` the median shorter side of up to 256 images, 8 to 224."""
    if config.image_size != "auto":
        return config.image_size
    if manifest.images is not None:
        return int(np.clip(min(manifest.images.shape[1:3]), 8, MOST_AUTO))
    sampled = range(0, len(manifest), max(1, math.ceil(len(manifest) / 256)))
    return int(np.clip(np.median([_short_side(manifest, index) for index in sampled]), 8, MOST_AUTO))


def _short_side(manifest: Manifest, index: int) -> int:
    try:
        with Image.open(io.BytesIO(read_encoded(manifest, index))) as image:
            return min(image.size)
    except UserError:
        raise
    except Exception as error:
        name = name_of(manifest, index)
        raise UserError(f"cannot read the image {name}: {error}. Mend or remove the file.") from error
