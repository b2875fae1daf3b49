"""Figures, one file a subject; `base` and `sheet` hold what they share."""

from matplotlib.figure import Figure

from imgcls.evaluation.plots.base import save
from imgcls.evaluation.plots.classes import class_recalls
from imgcls.evaluation.plots.compare import compared_curves
from imgcls.evaluation.plots.confidence import coverage, reliability
from imgcls.evaluation.plots.confusion import confusion, most_confused
from imgcls.evaluation.plots.data import (
    MOST_PAIRS,
    MOST_SAMPLED_CLASSES,
    augmentation_preview,
    class_histogram,
    image_pairs,
    sample_grid,
    size_scatter,
)
from imgcls.evaluation.plots.explain import MOST_HEAT_MAPS, HeatMap, heat_maps
from imgcls.evaluation.plots.gallery import gallery
from imgcls.evaluation.plots.ranking import precision_recall, roc
from imgcls.evaluation.plots.rates import range_test
from imgcls.evaluation.plots.sweep import families, optimisation_history, pareto
from imgcls.evaluation.plots.sweep_fields import importance, parallel_coordinates, slices
from imgcls.evaluation.plots.training import curves

__all__ = [
    "MOST_HEAT_MAPS",
    "MOST_PAIRS",
    "MOST_SAMPLED_CLASSES",
    "Figure",
    "HeatMap",
    "augmentation_preview",
    "class_histogram",
    "class_recalls",
    "compared_curves",
    "confusion",
    "coverage",
    "curves",
    "families",
    "gallery",
    "heat_maps",
    "image_pairs",
    "importance",
    "most_confused",
    "optimisation_history",
    "parallel_coordinates",
    "pareto",
    "precision_recall",
    "range_test",
    "reliability",
    "roc",
    "sample_grid",
    "save",
    "size_scatter",
    "slices",
]
