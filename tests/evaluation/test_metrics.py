"""Metrics equal scikit-learn's on random cases."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from imgcls.evaluation.metrics import (
    accuracy,
    confusion_matrix,
    macro_f1,
    per_class,
    per_class_table,
    summary,
    top_k_accuracy,
)
from imgcls.tables import Predictions

Labels = npt.NDArray[np.int64]
quick = settings(deadline=None, database=None, max_examples=40)


@st.composite
def cases(draw: st.DrawFn) -> Predictions:
    """Random probabilities whose best class is often the true one; some classes may not occur."""
    num_classes, count = draw(st.integers(2, 8)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    labels = rng.integers(0, draw(st.integers(1, num_classes)), count)
    probs = rng.dirichlet(np.ones(num_classes), count)
    probs[np.arange(count), labels] += draw(st.floats(0, 1))
    probs /= probs.sum(1, keepdims=True)
    names = tuple(f"class {k}" for k in range(num_classes))
    return Predictions([str(k) for k in range(count)], probs.astype(np.float32), labels, names)


def confusion_of(predictions: Predictions) -> Labels:
    return confusion_matrix(predictions.labels, predictions.predicted, len(predictions.classes))


@quick
@given(cases())
def test_confusion_accuracy_and_rates_equal_scikit_learns(predictions: Predictions) -> None:
    true, guess, classes = predictions.labels, predictions.predicted, range(len(predictions.classes))
    found = confusion_of(predictions)
    assert np.array_equal(found, sk.confusion_matrix(true, guess, labels=classes))
    assert accuracy(found) == pytest.approx(sk.accuracy_score(true, guess))
    assert macro_f1(found) == pytest.approx(sk.f1_score(true, guess, average="macro", zero_division=0))
    expected = sk.precision_recall_fscore_support(true, guess, labels=classes, zero_division=0)
    for mine, theirs in zip(per_class(found), expected[:3], strict=True):
        assert mine == pytest.approx(theirs)


@quick
@given(cases(), st.integers(1, 9))
def test_top_k_accuracy_equals_scikit_learns(predictions: Predictions, k: int) -> None:
    num_classes = len(predictions.classes)
    found = top_k_accuracy(predictions, k)
    if k >= num_classes:
        assert found == 1
    elif num_classes > 2:
        expected = sk.top_k_accuracy_score(predictions.labels, predictions.probs, k=k, labels=range(num_classes))
        assert found == pytest.approx(expected)
    else:
        assert found == pytest.approx(accuracy(confusion_of(predictions)))


@quick
@given(cases())
def test_the_table_has_a_row_for_every_class(predictions: Predictions) -> None:
    table = per_class_table(predictions)
    found = confusion_of(predictions)
    assert tuple(table["class"]) == predictions.classes
    assert table["support"].tolist() == np.bincount(predictions.labels, minlength=len(table)).tolist()
    for row in range(len(table)):
        name, times = table["most_confused_with"][row], table["confused"][row]
        others = np.delete(found[row], row)
        assert times == others.max()
        assert (name == "") == (times == 0)
        if name:
            assert found[row, predictions.classes.index(name)] == times


def test_a_class_that_never_occurs_counts_nothing_in_macro_f1() -> None:
    found = confusion_matrix(np.array([0, 1, 1]), np.array([0, 1, 0]), 5)
    assert macro_f1(found) == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_no_images_give_zeros_and_no_warning() -> None:
    found = np.zeros((3, 3), np.int64)
    assert accuracy(found) == macro_f1(found) == 0


@pytest.mark.parametrize(
    ("top_k", "names"), [(1, {"acc", "f1"}), (2, {"acc", "f1", "top2_acc"}), (3, {"acc", "f1"}), (5, {"acc", "f1"})]
)
def test_the_summary_names_top_k_only_where_it_says_something(top_k: int, names: set[str]) -> None:
    probs = np.array([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]], np.float32)
    predictions = Predictions(["a", "b"], probs, np.array([1, 2]), ("x", "y", "z"))
    found = summary(predictions, top_k=top_k)
    assert set(found) == names
    assert found["acc"] == 0.5
    assert found.get("top2_acc", 1) == 1
