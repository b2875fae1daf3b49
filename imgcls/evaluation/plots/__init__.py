"""Figures, one file a subject; `base` and `sheet` hold what they share."""

from imgcls.evaluation.plots.base import save
from imgcls.evaluation.plots.data import (
    MOST_PAIRS,
    MOST_SAMPLED_CLASSES,
    augmentation_preview,
    class_histogram,
    image_pairs,
    sample_grid,
    size_scatter,
)
from imgcls.evaluation.plots.rates import range_test
from imgcls.evaluation.plots.training import confusion, curves

__all__ = [
    "MOST_PAIRS",
    "MOST_SAMPLED_CLASSES",
    "augmentation_preview",
    "class_histogram",
    "confusion",
    "curves",
    "image_pairs",
    "range_test",
    "sample_grid",
    "save",
    "size_scatter",
]
