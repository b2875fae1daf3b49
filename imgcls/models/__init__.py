"""Model families by name, each an ordered list of stages and a head."""

from imgcls.models import plaincnn as _plaincnn
from imgcls.models import timm as _timm
from imgcls.models import torchvision as _torchvision

__all__ = ["_plaincnn", "_timm", "_torchvision"]
