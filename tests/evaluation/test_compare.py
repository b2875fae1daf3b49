"""What differs between runs, and what can be tested."""

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from imgcls.errors import UserError
from imgcls.evaluation import classes
from imgcls.evaluation.compare import (
    Entry,
    check_comparable,
    class_changes,
    comparison,
    conclusion,
    differing_params,
    in_order_of,
    significance,
    why_not_paired,
)
from imgcls.evaluation.intervals import holm, mcnemar, wilson
from imgcls.tables import Predictions
from tests.evaluation.test_intervals import predictions


def entry(
    name: str, *, skill: float = 1.0, params: Mapping[str, str] | None = None, given: Predictions | None = None
) -> Entry:
    given = given or predictions(300, skill=skill, seed=ord(name) % 7)
    accuracy = float((given.predicted == given.labels).mean())
    figures = {"best/val_acc": accuracy, "best/val_f1": accuracy, "seconds": 3.0}
    return Entry(name * 32, name, params or {}, figures, None, {"val": given})


def shuffled(given: Predictions) -> Predictions:
    rows = np.random.default_rng(0).permutation(len(given.ids))
    return replace(given, ids=[given.ids[row] for row in rows], probs=given.probs[rows], labels=given.labels[rows])


def test_only_params_that_differ_are_compared() -> None:
    first = entry("a", params={"optim.lr": "0.001", "train.epochs": "3", "data.root": "'a b'", "optim.momentum": "0.9"})
    second = entry("b", params={"optim.lr": "1e-3", "train.epochs": "4", "data.root": "a b"})
    assert differing_params([first, second]) == ["train.epochs", "optim.momentum"]
    table = comparison([first, second])
    assert table["train.epochs"].tolist() == ["3", "4"]
    assert table["optim.momentum"].isna().tolist() == [False, True]
    assert "optim.lr" not in table.columns


def test_accuracies_have_their_intervals_where_there_are_predictions() -> None:
    with_them = entry("a")
    without = replace(entry("b"), predictions={})
    table = comparison([with_them, without])
    given = with_them.predictions["val"]
    expected = wilson(int((given.predicted == given.labels).sum()), 300)
    assert (table["best/val_acc_low"][0], table["best/val_acc_high"][0]) == pytest.approx(expected)
    assert table["best/val_f1_low"][0] < table["best/val_acc"][0] < table["best/val_f1_high"][0]
    assert table["best/val_acc_low"].isna().tolist() == [False, True]
    assert "test/acc" not in table.columns
    assert "seconds_low" not in table.columns


def test_test_accuracy_has_its_own_interval() -> None:
    given = predictions(100)
    tested = Entry("r", "a", {}, {"test/acc": 0.5}, None, {"test": given})
    table = comparison([tested, tested])
    expected = wilson(int((given.predicted == given.labels).sum()), 100)
    assert (table["test/acc_low"][0], table["test/acc_high"][0]) == pytest.approx(expected)


def test_the_others_are_held_against_the_best_with_corrected_p_values() -> None:
    entries = [entry("a", skill=1.0), entry("b", skill=4.0), entry("c", skill=1.2)]
    found = significance(entries)
    assert (found.best, found.notes) == ("b", ())
    assert found.table["run"].tolist() == ["a", "c"]
    assert found.table["mcnemar_holm"].tolist() == pytest.approx(holm(found.table["mcnemar"].tolist()))
    best, other = entries[1].predictions["val"], entries[0].predictions["val"]
    p = mcnemar(best.predicted == best.labels, other.predicted == other.labels)
    assert found.table["mcnemar"][0] == pytest.approx(p)
    assert (found.table["low"] > 0).all()
    assert conclusion(found) == "b is better than all others tested (McNemar, Holm-corrected p < 0.05)."


def test_runs_that_do_not_differ_are_named() -> None:
    given = predictions(100)
    found = significance([entry("a", given=given), entry("b", given=given)])
    assert found.table["mcnemar_holm"].tolist() == [1]
    assert conclusion(found).endswith("p >= 0.05): b.")


def test_the_order_of_the_images_does_not_matter() -> None:
    a, b = predictions(200, skill=3), predictions(200, skill=1, seed=1)
    straight = significance([entry("a", given=a), entry("b", given=b)])
    mixed = significance([entry("a", given=a), entry("b", given=shuffled(b))])
    assert mixed.table.equals(straight.table)
    assert in_order_of(shuffled(b), a).ids == a.ids


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"manifest_digest": "other"}, r"their data sets differ \(digests d and other\)"),
        ({"manifest_digest": ""}, r"their data sets differ \(digests d and unknown\)"),
        ({"ids": [str(k + 10) for k in range(50)]}, r"other images: 40 of 50 and 50 are the same"),
        ({"labels": np.zeros(50, np.int64)}, "the same images have other labels"),
    ],
)
def test_predictions_of_other_images_are_not_tested_and_it_is_said_why(change: dict[str, object], reason: str) -> None:
    a = predictions(50, skill=5)
    b = replace(predictions(50, seed=1), **change)  # type: ignore[arg-type]
    assert why_not_paired(a, a) is None
    text = why_not_paired(a, b) or ""
    assert re.search(reason, text)
    found = significance([entry("a", given=a), replace(entry("b", given=b), figures={"best/val_acc": 0.0})])
    assert found.table.empty
    assert found.notes == (f"b cannot be tested against a: {text}.",)
    assert conclusion(found) == ""


def test_a_run_without_predictions_or_labels_is_named() -> None:
    blind = predictions(20)
    blind = replace(blind, labels=np.full(20, -1))
    found = significance([entry("a"), replace(entry("b"), predictions={}), entry("c", given=blind)])
    assert [note.split(":")[0] for note in found.notes] == [
        "b has no predictions for validation images",
        "c has predictions without any label",
    ]
    assert significance([replace(entry("b"), predictions={})]).best == ""


def test_one_run_and_runs_without_figures_are_errors() -> None:
    with pytest.raises(UserError, match=r"found the run a+ to compare; expected two or more"):
        check_comparable([entry("a")])
    with pytest.raises(UserError, match="found no run"):
        check_comparable([])
    with pytest.raises(UserError, match="none of the 2 runs has a figure to compare"):
        check_comparable([replace(entry(name), figures={"seconds": 1.0}) for name in "ab"])


def test_a_class_s_recalls_are_held_against_each_other_without_anything_else_being_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(classes, "one_vs_rest", None)
    better, worse = predictions(300, skill=3.0), predictions(300, skill=1.0, seed=1)
    table = class_changes(better, shuffled(worse))
    assert list(table.columns) == [
        "class", "support", "recall", "champion_recall", "difference", "mcnemar", "holm",
    ]  # fmt: skip
    assert table["difference"].is_monotonic_increasing
    for row in table.to_dict("records"):
        of_class = better.labels == better.classes.index(row["class"])
        right = [(one.predicted == one.labels)[of_class] for one in (better, worse)]
        assert row["support"] == of_class.sum()
        assert [row["recall"], row["champion_recall"]] == pytest.approx([one.mean() for one in right])
        assert row["mcnemar"] == mcnemar(*right)
    assert table["holm"].tolist() == holm(table["mcnemar"].to_numpy())
