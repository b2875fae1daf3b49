"""Model families by name, each an ordered list of stages and a head."""

from imgcls.models import plaincnn as _plaincnn
from imgcls.models import quizdnn as _quizdnn
from imgcls.models import separable as _separable
from imgcls.models import timm as _timm
from imgcls.models import torchvision as _torchvision
from imgcls.models import widecnn as _widecnn

__all__ = ["_plaincnn", "_quizdnn", "_separable", "_timm", "_torchvision", "_widecnn"]
