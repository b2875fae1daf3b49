"""scikit-learn's 1,797 scans of handwritten digits: real images that are there without a download."""

import hashlib
from typing import Literal

import numpy as np

from imgcls.data.source import SOURCES, DataConfig, ScanProgress, Source
from imgcls.tables import Manifest


class DigitsConfig(DataConfig):
    """`source: digits` has no fields of its own."""

    source: Literal["digits"] = "digits"
    """scikit-learn's digits: 1,797 images, 8x8 grey, 10 classes."""


def scan_digits(_config: DigitsConfig, _progress: ScanProgress) -> Manifest:
    """The digits, each 8x8 with its 17 grey levels spread over 0..255.

    Source: Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI; as in scikit-learn.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    rows = [
        {
            "id": f"digits/{k:04d}",
            "row": k,
            "label": int(label),
            "content": hashlib.blake2b(images[k].tobytes(), digest_size=16).hexdigest(),
        }
        for k, label in enumerate(digits.target)
    ]
    return Manifest.build(rows, classes=[str(k) for k in range(10)], images=images)


SOURCES.register("digits")(Source(DigitsConfig, scan_digits))
