"""Figures, one file a subject; `base` holds what they share."""

from imgcls.evaluation.plots.base import save
from imgcls.evaluation.plots.training import confusion, curves

__all__ = ["confusion", "curves", "save"]
