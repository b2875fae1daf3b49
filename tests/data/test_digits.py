"""The digits source: scikit-learn's scans as a manifest."""

import numpy as np
from sklearn.datasets import load_digits

from imgcls.data.source import DataConfig, scan
from imgcls.data.sources.digits import DigitsConfig


def test_the_digits_are_scikit_learns_images_spread_over_all_grey_levels() -> None:
    manifest = scan(DigitsConfig())
    digits = load_digits()
    assert manifest.images is not None
    assert manifest.images.shape == (1797, 8, 8)
    assert manifest.images.dtype == np.uint8
    assert (manifest.images.min(), manifest.images.max()) == (0, 255)
    assert np.array_equal(np.round(manifest.images / 255 * 16), digits.images)
    assert np.array_equal(manifest.labels, digits.target)
    assert manifest.classes == tuple("0123456789")


def test_digits_are_the_default_source() -> None:
    assert scan(DataConfig()).digest == scan(DigitsConfig()).digest
