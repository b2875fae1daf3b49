"""The figures of a test set and their intervals, against values computed elsewhere."""

import numpy as np
import pytest
from sklearn.metrics import log_loss as reference_log_loss

from imgcls.evaluation.reading import log_loss, over_seeds, read_out
from imgcls.tables import Predictions


def predictions(count: int = 40, classes: int = 7) -> Predictions:
    probs = np.random.default_rng(0).dirichlet(np.ones(classes), count).astype(np.float32)
    labels = np.arange(count, dtype=np.int64) % classes
    return Predictions([str(k) for k in range(count)], probs, labels, tuple("abcdefgh"[:classes]), "test", "d" * 32)


def test_the_loss_is_that_of_scikit_learn_and_finite_where_a_probability_is_0() -> None:
    found = predictions()
    probs = found.probs.astype(float)
    expected = reference_log_loss(found.labels, probs / probs.sum(1, keepdims=True))
    assert log_loss(found) == pytest.approx(expected, rel=1e-5)
    sure = Predictions(["a"], np.array([[1, 0]], np.float32), np.array([1]), ("x", "y"))
    assert log_loss(sure) == pytest.approx(87.336, abs=1e-3)


def test_a_reading_has_the_figures_and_the_interval() -> None:
    found = predictions()
    read = read_out(found, top_k=3)
    assert list(read) == ["acc", "f1", "top3_acc", "loss", "acc_low", "acc_high"]
    assert read["acc"] == (found.predicted == found.labels).mean()
    assert read["acc_low"] < read["acc"] < read["acc_high"]
    assert "top7_acc" not in read_out(found, top_k=7)


def test_over_seeds_there_are_mean_deviation_and_interval() -> None:
    found = over_seeds([{"acc": 0.8, "f1": 0.5, "loss": 1.0}, {"acc": 0.9, "f1": 0.7, "loss": 2.0}])
    assert list(found) == [f"{name}_{what}" for name in ("acc", "f1") for what in ("mean", "std", "low", "high")]
    assert found["acc_mean"] == pytest.approx(0.85)
    assert found["acc_std"] == pytest.approx(0.1 / np.sqrt(2))
    assert found["acc_high"] - found["acc_mean"] == pytest.approx(12.7062 * 0.05, rel=1e-4)
    assert found["f1_mean"] == pytest.approx(0.6)
