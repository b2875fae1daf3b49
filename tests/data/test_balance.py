"""Class weights, and the sampling that they drive."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgcls.data.augment import evaluation_pipeline
from imgcls.data.balance import Balance, class_weights
from imgcls.data.loading import Loader
from imgcls.data.source import DataConfig

MODES: tuple[Balance, ...] = ("none", "oversample", "class_weights", "effective_number")


@given(counts=st.lists(st.integers(1, 5000), min_size=2, max_size=20), beta=st.floats(0, 0.99999))
@pytest.mark.parametrize("balance", MODES)
def test_weights_have_a_mean_of_one_over_the_images_and_larger_classes_get_no_more(
    balance: Balance, counts: list[int], beta: float
) -> None:
    sizes = np.array(counts)
    weights = class_weights(sizes, balance, beta=beta)
    assert (weights * sizes).sum() / sizes.sum() == pytest.approx(1)
    assert (weights > 0).all()
    assert (np.diff(weights[np.argsort(sizes)]) <= 1e-9).all()


def test_class_weights_are_inverse_to_the_sizes() -> None:
    weights = class_weights(np.array([10, 40]), "class_weights")
    assert weights[0] / weights[1] == pytest.approx(4)


def test_effective_numbers_are_those_of_the_paper() -> None:
    counts, beta = np.array([2, 100]), 0.9
    weights = class_weights(counts, "effective_number", beta=beta)
    effective = (1 - beta**counts) / (1 - beta)
    assert weights[0] / weights[1] == pytest.approx(effective[1] / effective[0])


@pytest.mark.parametrize(("beta", "ratio"), [(0.0, 1.0), (0.9999999, 50.0)])
def test_beta_leads_from_equal_weights_to_inverse_sizes(beta: float, ratio: float) -> None:
    weights = class_weights(np.array([2, 100]), "effective_number", beta=beta)
    assert weights[0] / weights[1] == pytest.approx(ratio, rel=1e-3)


def loader(labels: npt.NDArray[np.int64], chances: npt.NDArray[np.float64] | None) -> Loader:
    images = [np.full((8, 8, 1), label, np.uint8) for label in labels]
    return Loader(images, labels, evaluation_pipeline(8), batch_size=50, seed=3, shuffle=True, chances=chances)


def drawn(batches: Loader, epoch: int) -> list[int]:
    return [int(label) for batch in batches.epoch(epoch) for label in batch.labels]


def test_oversampling_draws_every_class_about_equally_often_and_repeats_by_epoch() -> None:
    labels = np.array([0] * 950 + [1] * 50)
    weights = class_weights(np.bincount(labels), "oversample")
    balanced = loader(labels, weights[labels])
    first = drawn(balanced, 1)
    assert len(first) == 1000
    assert 0.42 < np.mean(first) < 0.58
    assert first == drawn(balanced, 1) != drawn(balanced, 2)
    assert sum(drawn(loader(labels, None), 1)) == 50


def test_a_beta_that_nothing_uses_is_an_error() -> None:
    with pytest.raises(ValueError, match="only effective_number uses it"):
        DataConfig(balance="oversample", balance_beta=0.9)
    assert DataConfig(balance="effective_number", balance_beta=0.9).balance_beta == 0.9
