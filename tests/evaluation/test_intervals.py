"""Intervals cover what they say, and tests agree with scipy's or with a count by hand."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from imgcls.errors import UserError
from imgcls.evaluation import intervals
from imgcls.evaluation.intervals import bootstrap, holm, mcnemar, paired_bootstrap, t_interval, wilson
from imgcls.evaluation.metrics import accuracy, confusion_matrix, macro_f1, summary, top_k_accuracy
from imgcls.tables import Predictions


def predictions(num_images: int = 200, num_classes: int = 5, *, skill: float = 1.0, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(0)  # the same labels whatever the model
    labels = rng.integers(num_classes, size=num_images)
    logits = np.random.default_rng(seed + 1).normal(size=(num_images, num_classes))
    logits[np.arange(num_images), labels] += skill
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    classes = tuple(f"c{k}" for k in range(num_classes))
    return Predictions([str(k) for k in range(num_images)], probs.astype(np.float32), labels, classes, "val", "d")


def f1(given: Predictions) -> float:
    return macro_f1(confusion_matrix(given.labels, given.predicted, len(given.classes)))


def acc(given: Predictions) -> float:
    return accuracy(confusion_matrix(given.labels, given.predicted, len(given.classes)))


# --- bootstrap


@given(num_images=st.integers(1, 40), num_classes=st.integers(2, 7), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_the_fast_metrics_are_those_of_the_functions_on_the_same_draws(
    num_images: int, num_classes: int, seed: int
) -> None:
    given = predictions(num_images, num_classes, seed=seed)
    fast = bootstrap(given, ["acc", "f1", "top2_acc", "top99_acc"], num=20, seed=seed)
    slow = bootstrap(
        given,
        {
            "acc": acc,
            "f1": f1,
            "top2_acc": lambda p: top_k_accuracy(p, 2),
            "top99_acc": lambda p: top_k_accuracy(p, 99),
        },
        num=20,
        seed=seed,
    )
    assert {name: pytest.approx(bounds) for name, bounds in slow.items()} == fast


def test_the_interval_does_not_depend_on_the_size_of_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bootstrap(predictions(), ["acc", "f1"], num=50)
    monkeypatch.setattr(intervals, "MOST_CELLS", 700)
    assert bootstrap(predictions(), ["acc", "f1"], num=50) == whole


def test_equal_seeds_give_equal_intervals_and_others_do_not() -> None:
    given = predictions()
    assert bootstrap(given, ["f1"], num=100, seed=3) == bootstrap(given, ["f1"], num=100, seed=3)
    assert bootstrap(given, ["f1"], num=100, seed=3) != bootstrap(given, ["f1"], num=100, seed=4)


def test_an_interval_holds_the_figure_of_all_images() -> None:
    given = predictions(500)
    figures = summary(given, top_k=3)
    for name, (low, high) in bootstrap(given, list(figures)).items():
        assert low < figures[name] < high
        assert high - low < 0.12


def test_the_interval_of_accuracy_is_that_of_scipy() -> None:
    given = predictions(300)
    right = (given.predicted == given.labels).astype(float)
    theirs = stats.bootstrap((right,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert bootstrap(given, ["acc"], num=4000)["acc"] == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_the_bootstrap_covers_the_true_accuracy_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(1), 0
    for seed in range(200):
        right = rng.random(150) < 0.7
        probs = np.where(right[:, None], [[0.9, 0.1]], [[0.1, 0.9]]).astype(np.float32)
        given = Predictions([str(k) for k in range(150)], probs, np.zeros(150, np.int64), ("a", "b"))
        low, high = bootstrap(given, ["acc"], num=300, seed=seed)["acc"]
        covered += low <= 0.7 <= high
    assert 0.90 <= covered / 200 <= 0.985


def test_images_without_a_label_are_left_out() -> None:
    whole = predictions(60)
    more = Predictions(
        [*whole.ids, "x"], np.vstack([whole.probs, whole.probs[:1]]), np.append(whole.labels, -1), whole.classes
    )
    assert bootstrap(more, ["acc", "f1"], num=50) == bootstrap(whole, ["acc", "f1"], num=50)
    none = Predictions(whole.ids, whole.probs, np.full(60, -1), whole.classes)
    with pytest.raises(UserError, match="none of the 60 images has a label"):
        bootstrap(none)


def test_an_unknown_metric_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="found the metric 'accuracy'; expected acc, f1, top<k>_acc"):
        bootstrap(predictions(), ["accuracy"])


@pytest.mark.slow
def test_ten_thousand_images_of_fifteen_hundred_classes_need_less_than_a_gigabyte() -> None:
    given = predictions(10_000, 1500, skill=3.0)
    other = predictions(10_000, 1500, skill=3.0, seed=1)
    tracemalloc.start()
    bootstrap(given, ["acc", "f1", "top5_acc"], num=100)
    bootstrap(given, {"f1": f1}, num=2)
    paired_bootstrap(given, other, "f1", num=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 600e6, "beside the two tables of 60 MB"


# --- wilson


@given(n=st.integers(1, 5000), share=st.floats(0, 1))
@settings(deadline=None)
def test_wilson_is_that_of_scipy(n: int, share: float) -> None:
    hits = round(share * n)
    theirs = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_has_a_width_at_both_ends() -> None:
    assert wilson(0, 20)[0] == 0 < wilson(0, 20)[1] < 0.2
    assert 0.8 < wilson(20, 20)[0] < wilson(20, 20)[1] == 1
    assert wilson(0, 0) == (0, 1)


# --- mcnemar


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
@settings(deadline=None)
def test_mcnemar_is_the_sum_of_the_binomial_tails(pairs: list[tuple[bool, bool]]) -> None:
    a, b = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    only = sorted([sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs)])
    n = sum(only)
    tail = sum(math.comb(n, k) for k in range(only[0] + 1)) / 2**n
    assert mcnemar(a, b) == pytest.approx(min(1, 2 * tail))
    assert mcnemar(a, b) == pytest.approx(mcnemar(b, a))


def test_mcnemar_of_models_that_agree_everywhere_is_one() -> None:
    assert mcnemar([True, False], [True, False]) == 1


# --- the paired bootstrap


def test_a_better_model_is_ahead_of_a_worse_one_and_the_other_way_round() -> None:
    good, bad = predictions(400, skill=3.0), predictions(400, skill=1.0, seed=1)
    found, turned = paired_bootstrap(good, bad), paired_bootstrap(bad, good)
    assert found.difference == pytest.approx(acc(good) - acc(bad))
    assert found.low < found.difference < found.high
    assert found.low > 0
    assert found.p == pytest.approx(2 / 1001)
    assert (turned.difference, turned.p) == pytest.approx((-found.difference, found.p))
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_a_model_does_not_differ_from_itself() -> None:
    given = predictions()
    for metric in ("acc", "f1", f1):
        found = paired_bootstrap(given, given, metric, num=50)
        assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_the_paired_difference_is_surer_than_the_two_intervals_where_models_err_alike() -> None:
    given = predictions(400)
    probs = given.probs.copy()
    wrong = np.flatnonzero(given.predicted == given.labels)[:12]
    probs[wrong] = np.roll(np.eye(5, dtype=np.float32)[given.labels[wrong]], 1, axis=1)
    worse = Predictions(given.ids, probs, given.labels, given.classes)
    found = paired_bootstrap(given, worse)
    assert found.low > 0
    alone, other = bootstrap(given, ["acc"])["acc"], bootstrap(worse, ["acc"])["acc"]
    assert alone[0] < other[1]


def test_under_no_difference_one_in_twenty_is_found_at_most_about() -> None:
    rng, found, mcnemars = np.random.default_rng(5), 0, 0
    labels = np.zeros(120, np.int64)
    for seed in range(150):
        both = [np.where(rng.random((120, 1)) < 0.8, [[1, 0]], [[0, 1]]).astype(np.float32) for _ in range(2)]
        a, b = (Predictions([str(k) for k in range(120)], probs, labels, ("a", "b")) for probs in both)
        found += paired_bootstrap(a, b, num=200, seed=seed).p < 0.05
        mcnemars += mcnemar(a.predicted == labels, b.predicted == labels) < 0.05
    assert found <= 15
    assert mcnemars <= 12


def test_the_paired_p_value_can_be_against_another_difference_than_none() -> None:
    a, b = predictions(400, skill=3.0, seed=1), predictions(400, skill=1.0, seed=2)
    gap = paired_bootstrap(a, b)
    assert paired_bootstrap(a, b, against=gap.difference).p > 0.5
    assert paired_bootstrap(a, b, against=gap.high).p == pytest.approx(0.05, abs=0.02)
    beyond = paired_bootstrap(a, b, against=2 * gap.difference)
    assert beyond.p < 0.01
    assert (beyond.difference, beyond.low, beyond.high) == (gap.difference, gap.low, gap.high)


def test_other_images_cannot_be_paired() -> None:
    with pytest.raises(UserError, match=r"not of the same images .* found 50 and 60 images"):
        paired_bootstrap(predictions(50), predictions(60))


# --- Holm, Student


def test_holm_multiplies_by_the_number_that_is_left() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.2))
@settings(deadline=None)
def test_holm_rejects_what_the_stepwise_procedure_rejects(p_values: list[float], level: float) -> None:
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    rejected = set()
    for step, k in enumerate(order):
        if p_values[k] * (len(p_values) - step) > level:
            break
        rejected.add(k)
    assert {k for k, p in enumerate(holm(p_values)) if p <= level} == rejected


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20).filter(lambda values: np.std(values) > 1e-6))
@settings(deadline=None)
def test_the_interval_over_seeds_is_students(values: list[float]) -> None:
    theirs = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert t_interval(values) == pytest.approx((np.mean(values), *theirs))


def test_one_seed_has_a_mean_and_no_interval_and_none_is_an_error() -> None:
    mean, low, high = t_interval([0.5])
    assert mean == 0.5
    assert math.isnan(low)
    assert math.isnan(high)
    with pytest.raises(UserError, match="found no value"):
        t_interval([])
