"""Image pipelines: random ones for training, the fixed one for evaluation and serving (the door to albumentations)."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for a newer version at import

from imgcls.data.augment.config import AugmentConfig, resolve_image_size, training_pipeline
from imgcls.data.augment.pipeline import (
    SMALL,
    STORE_RATIO,
    Pipeline,
    evaluation_pipeline,
    resizing_pipeline,
    store_size,
)
from imgcls.data.augment.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Normalization, Preprocessing, preprocessing

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "SMALL",
    "STORE_RATIO",
    "AugmentConfig",
    "Normalization",
    "Pipeline",
    "Preprocessing",
    "evaluation_pipeline",
    "preprocessing",
    "resizing_pipeline",
    "resolve_image_size",
    "store_size",
    "training_pipeline",
]
