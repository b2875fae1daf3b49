"""Figures, one file a subject; `base` and `sheet` hold what they share."""

from imgcls.evaluation.plots.base import save
from imgcls.evaluation.plots.compare import compared_curves
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
from imgcls.evaluation.plots.sweep import families, optimisation_history, pareto
from imgcls.evaluation.plots.sweep_fields import importance, parallel_coordinates, slices
from imgcls.evaluation.plots.training import confusion, curves

__all__ = [
    "MOST_PAIRS",
    "MOST_SAMPLED_CLASSES",
    "augmentation_preview",
    "class_histogram",
    "compared_curves",
    "confusion",
    "curves",
    "families",
    "image_pairs",
    "importance",
    "optimisation_history",
    "parallel_coordinates",
    "pareto",
    "range_test",
    "sample_grid",
    "save",
    "size_scatter",
    "slices",
]
