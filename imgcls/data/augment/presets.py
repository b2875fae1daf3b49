"""The random variations that have a name, from published recipes; each works on 1 and 3 channels and at any size."""

import math
from typing import Any, Literal

import albumentations as A
import cv2

from imgcls.data.augment.pipeline import SMALL, middle

Preset = Literal["none", "light", "standard", "strong", "animals", "cifar"]
Fill = tuple[float, ...]
"""A colour, one value from 0 to 255 a channel."""


def preset_transforms(preset: Preset, *, size: int, channels: int, flip: bool, fill: Fill) -> list[Any]:
    """The transforms of a preset, ending at (size, size).

    Args:
        preset: its name; see `AugmentConfig.preset`.
        size: pixels on each side of the network's input.
        channels: 1 or 3.
        flip: whether half of the images are mirrored.
        fill: the colour of what is cut out or moved in.
    """
    flips: list[Any] = [A.HorizontalFlip(p=0.5)] if flip else []
    if preset == "none":
        return [*middle(size), *flips]
    if preset == "animals":
        return [_crop(size, 0.7), *flips, A.Rotate(limit=30, border_mode=cv2.BORDER_REFLECT_101, p=1)]
    if preset == "cifar":
        return [*middle(size), *flips, _shift_scale_rotate(), _cutout(size, fill)]
    if preset == "strong":
        return _strong(size, channels, flips, fill)
    return _plain(preset == "standard", size, channels, flips)


def _crop(size: int, smallest: float) -> Any:
    """A crop of `smallest` to all of the image's area (Szegedy et al. 2015, arXiv:1409.4842)."""
    return A.RandomResizedCrop((size, size), scale=(smallest, 1.0), ratio=(3 / 4, 4 / 3))


def _plain(wide: bool, size: int, channels: int, flips: list[Any]) -> list[Any]:
    """light, and where `wide` standard."""
    if size <= SMALL:
        shift, turn, zoom = (0.12, 15, 0.15) if wide else (0.08, 8, 0.08)
        moved = A.Affine(translate_percent=(-shift, shift), rotate=(-turn, turn), scale=(1 - zoom, 1 + zoom), p=0.9)
        return [*middle(size), moved, *flips]
    colour: list[Any] = []
    if wide:
        grey = A.RandomBrightnessContrast(brightness_limit=0.3, contrast_limit=0.3, p=0.8)
        colour = [A.ColorJitter(0.3, 0.3, 0.3, 0.05, p=0.8) if channels == 3 else grey]
    return [_crop(size, 0.35 if wide else 0.7), *flips, *colour]


def _strong(size: int, channels: int, flips: list[Any], fill: Fill) -> list[Any]:
    """Small images: the CIFAR recipe of Müller and Hutter 2021 (arXiv:2103.10158), shifts by an eighth of the side,
    TrivialAugment, a cutout. Large ones: crops, TrivialAugment, and random erasing (Zhong et al. 2017,
    arXiv:1708.04896) of a quarter of the images, as timm's and torchvision's training scripts have them."""
    trivial = A.OneOf(_trivial_augment(channels, fill), p=1)
    if size <= SMALL:
        shifted = [A.Pad(max(1, size // 8), border_mode=cv2.BORDER_REFLECT_101), A.RandomCrop(size, size)]
        return [*middle(size), *shifted, *flips, trivial, _cutout(size, fill)]
    erased = A.Erasing(scale=(0.02, 0.33), ratio=(0.3, 3.3), fill=fill, p=0.25)
    return [_crop(size, 0.2), *flips, trivial, erased]


def _cutout(size: int, fill: Fill) -> Any:
    """In half of the images one square hole of half the side, 16 pixels of CIFAR's 32 (DeVries and Taylor 2017,
    arXiv:1708.04552; their hole may hang over the edge, so they cut every image)."""
    side = size // 2
    return A.CoarseDropout((1, 1), (side, side), (side, side), fill=fill, p=0.5)


def _shift_scale_rotate() -> Any:
    """albumentations' ShiftScaleRotate as it was by default: 6.25 % shift, 10 % zoom, 45 degrees, mirrored edges."""
    return A.Affine(
        translate_percent=(-0.0625, 0.0625),
        scale=(0.9, 1.1),
        rotate=(-45, 45),
        border_mode=cv2.BORDER_REFLECT_101,
        p=0.5,
    )


def _trivial_augment(channels: int, fill: Fill) -> list[Any]:
    """The operations of TrivialAugment (Müller and Hutter 2021, arXiv:2103.10158, the ranges of their RA space), of
    which each image gets one, as strongly as it falls. Inside a OneOf, p is the weight of an operation."""
    slant, most, still = math.degrees(math.atan(0.3)), 10 / 32, (1.0, 1.0)
    factor = (0.1, 1.9)

    def enhance(brightness: Any = still, contrast: Any = still, saturation: Any = still) -> Any:
        return A.ColorJitter(brightness, contrast, saturation, (0.0, 0.0), p=1)

    return [
        A.NoOp(p=1),
        A.Affine(shear={"x": (-slant, slant), "y": (0, 0)}, fill=fill, p=1),
        A.Affine(shear={"x": (0, 0), "y": (-slant, slant)}, fill=fill, p=1),
        A.Affine(translate_percent={"x": (-most, most), "y": (0, 0)}, fill=fill, p=1),
        A.Affine(translate_percent={"x": (0, 0), "y": (-most, most)}, fill=fill, p=1),
        A.Rotate(limit=30, fill=fill, p=1),
        enhance(brightness=factor),
        enhance(contrast=factor),
        *([enhance(saturation=factor)] if channels == 3 else []),
        # Half of the weight each: Pillow's sharpness of 1.9 adds 0.9 / 13 of the difference to the eight neighbours,
        # and its sharpness of 0.1 is nearly this blur.
        A.Sharpen(alpha=(0.0, 0.9 / 13), lightness=still, p=0.5),
        A.GaussianBlur(blur_limit=3, sigma_limit=(0.1, 0.7), p=0.5),
        A.Posterize(num_bits=(4, 8), p=1),
        A.Solarize(threshold_range=(0.0, 1.0), p=1),
        A.AutoContrast(p=1),
        A.Equalize(p=1),
    ]
