"""Tables by class and by confidence hold what a count by hand gives."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from imgcls.errors import UserError
from imgcls.evaluation.classes import class_table, confused_pairs, easiest, hardest, worst_block
from imgcls.evaluation.confidence import coverage_curve, coverage_table, mistakes, reliability_table
from imgcls.evaluation.intervals import wilson
from imgcls.evaluation.metrics import confusion_matrix, per_class_table
from imgcls.evaluation.scores import scores
from imgcls.tables import Predictions
from tests.evaluation.test_intervals import predictions
from tests.evaluation.test_metrics import cases
from tests.evaluation.test_scores import quick


def decided(labels: list[int], predicted: list[int], sure: list[float] | None = None, num: int = 4) -> Predictions:
    """Predictions of these classes with these confidences (above a half)."""
    sure = sure or [0.9] * len(labels)
    probs = np.empty((len(labels), num), np.float32)
    for row, (k, confidence) in enumerate(zip(predicted, sure, strict=True)):
        probs[row] = (1 - confidence) / (num - 1)
        probs[row, k] = confidence
    names = tuple("abcdefgh"[:num])
    return Predictions([f"i{k}" for k in range(len(labels))], probs, np.array(labels), names)


@quick
@given(cases())
def test_the_class_table_has_the_rates_and_the_auc_of_scikit_learn(known: Predictions) -> None:
    table, plain = class_table(known), per_class_table(known)
    assert table[plain.columns].equals(plain)
    for k, (_, row) in enumerate(table.iterrows()):
        is_k = known.labels == k
        assert np.isnan(row["auc"]) == (is_k.all() or not is_k.any())
        if not np.isnan(row["auc"]):
            assert row["auc"] == pytest.approx(sk.roc_auc_score(is_k, known.probs[:, k]))
        assert row["recall_low"] <= row["recall"] <= row["recall_high"]


def test_the_hardest_is_the_class_with_the_lowest_recall_and_more_images_decide_equal_ones() -> None:
    known = decided([0, 0, 1, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0, 1])
    table = class_table(known)
    assert hardest(table, 2)["class"].tolist() == ["b", "c"]
    assert easiest(table, 9)["class"].tolist() == ["a", "b", "c"], "d has no image"
    assert table["recall_high"][1] == pytest.approx(wilson(0, 3)[1])


def test_confused_pairs_come_by_images_then_by_share() -> None:
    known = decided([0, 0, 0, 1, 1, 2, 3, 3], [1, 1, 2, 0, 1, 0, 3, 3])
    table = confused_pairs(known)
    assert table.values.tolist() == [
        ["a", "b", 2, pytest.approx(2 / 3), 1],
        ["c", "a", 1, 1.0, 1],
        ["b", "a", 1, 0.5, 2],
        ["a", "c", 1, pytest.approx(1 / 3), 1],
    ]
    assert len(confused_pairs(known, 1)) == 1
    assert confused_pairs(decided([0, 1], [0, 1])).empty


def test_tables_leave_out_images_without_a_label() -> None:
    known = decided([0, 1, 1], [0, 1, 0])
    more = decided([0, 1, 1, -1], [0, 1, 0, 2])
    for table in (class_table, confused_pairs, reliability_table, coverage_table, coverage_curve):
        assert table(more).equals(table(known))
    with pytest.raises(UserError, match="none of the 3 images has a label"):
        coverage_table(replace(known, labels=np.full(3, -1)))


@quick
@given(cases(), st.integers(2, 9))
def test_the_worst_block_holds_the_most_confused_classes(known: Predictions, num: int) -> None:
    counts = confusion_matrix(known.labels, known.predicted, len(known.classes))
    block = worst_block(counts, num)
    both = np.triu(counts + counts.T, 1)
    assert len(block) == len(set(block)) <= num
    if not both.any():
        assert block == []
        return
    a, b = np.unravel_index(both.argmax(), both.shape)
    assert {a, b} <= set(block)
    assert len(block) == min(num, len(np.unique(np.nonzero(both)))) or len(block) == num - 1


def test_classes_confused_with_each_other_stand_together_in_the_worst_block() -> None:
    counts = np.diag([9] * 6)
    counts[0, 5], counts[5, 0], counts[2, 3], counts[0, 4] = 3, 1, 3, 1
    assert worst_block(counts, 6) == [0, 4, 5, 2, 3]
    assert worst_block(counts, 4) == [0, 5, 2, 3]


def test_the_reliability_table_counts_every_image_once_and_gives_the_calibration_error() -> None:
    known = predictions(400, 4)
    table = reliability_table(known)
    assert table["images"].sum() == 400
    there = table[table["images"] > 0]
    gap = ((there["accuracy"] - there["confidence"]).abs() * there["images"]).sum() / 400
    assert gap == pytest.approx(scores(known)["ece"])
    inside = (there["confidence"] > there["low"]) & (there["confidence"] <= there["high"])
    assert inside.all()
    assert table[table["images"] == 0][["accuracy", "confidence", "accuracy_low"]].isna().all(axis=None)


def test_coverage_falls_with_the_threshold_and_its_accuracy_is_that_of_the_kept_images() -> None:
    known = decided([0, 1, 1, 2], [0, 1, 0, 2], [0.97, 0.8, 0.8, 0.6])
    table = coverage_table(known).set_index("threshold")
    assert table["images"][[0.0, 0.7, 0.9, 0.98]].tolist() == [4, 3, 1, 0]
    assert table["accuracy"][[0.0, 0.7, 0.9]].tolist() == pytest.approx([3 / 4, 2 / 3, 1])
    assert np.isnan(table["accuracy"][0.98])
    curve = coverage_curve(known)
    assert curve["images"].tolist() == [1, 3, 4], "images of equal confidence come together"
    assert curve["accuracy"].tolist() == pytest.approx([1, 2 / 3, 3 / 4])


def test_mistakes_come_the_worst_first_with_their_rows() -> None:
    known = decided([0, -1, 1, 2, 2], [0, 0, 0, 1, 2], [0.97, 0.9, 0.8, 0.95, 0.5])
    wrong = mistakes(known, 9, by="confidence")
    assert wrong["row"].tolist() == [3, 2]
    assert wrong.iloc[0][["id", "label", "predicted"]].tolist() == ["i3", "c", "b"]
    assert wrong["confidence"].tolist() == pytest.approx([0.95, 0.8])
    loss = mistakes(known, 3, by="loss")
    assert loss["row"].tolist() == [3, 2, 4]
    assert loss["loss"].tolist() == pytest.approx([-np.log(0.05 / 3), -np.log(0.2 / 3), -np.log(0.5)], abs=1e-4)
    assert mistakes(decided([0], [0]), 5, by="confidence").empty
