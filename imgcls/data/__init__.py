"""Where images come from, and how they become checked, split, decoded, augmented batches."""

from imgcls.data.sources import csv as _csv
from imgcls.data.sources import digits as _digits
from imgcls.data.sources import folder as _folder
from imgcls.data.sources import parquet as _parquet
from imgcls.data.sources import torchvision as _torchvision

__all__ = ["_csv", "_digits", "_folder", "_parquet", "_torchvision"]
