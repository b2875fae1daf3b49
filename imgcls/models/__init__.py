"""Model families by name, each an ordered list of stages and a head."""

from imgcls.models import plaincnn as _plaincnn
from imgcls.models import resnet as _resnet

__all__ = ["_plaincnn", "_resnet"]
