"""All figures equal scikit-learn's, and their intervals are those of the figures of resampled images."""

import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from imgcls.errors import UserError
from imgcls.evaluation import ranking, scores
from imgcls.evaluation.intervals import bootstrap, resamples
from imgcls.evaluation.ranking import mean_pr, mean_roc, one_vs_rest, pr_curve, roc_curve
from imgcls.tables import Predictions
from tests.evaluation.test_intervals import predictions
from tests.evaluation.test_metrics import cases

quick = settings(deadline=None, database=None, max_examples=40)


def picked(known: Predictions, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Predictions:
    return replace(known, ids=[str(k) for k in range(len(rows))], probs=known.probs[rows], labels=known.labels[rows])


def coarse(known: Predictions) -> Predictions:
    """The same with few different probabilities, so that many are equal."""
    probs = np.round(known.probs * 4) + 0.5
    return replace(known, probs=(probs / probs.sum(1, keepdims=True)).astype(np.float32))


@quick
@given(cases())
def test_figures_of_labels_equal_scikit_learns(known: Predictions) -> None:
    true, guess = known.labels, known.predicted
    found = scores.scores(known)
    assert found["acc"] == pytest.approx(sk.accuracy_score(true, guess))
    recalls = sk.recall_score(true, guess, labels=np.unique(true), average="macro", zero_division=0)
    assert found["balanced_acc"] == pytest.approx(recalls)  # balanced_accuracy_score warns of classes never seen
    for average, suffix in (("macro", ""), ("micro", "_micro"), ("weighted", "_weighted")):
        expected = sk.precision_recall_fscore_support(true, guess, average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), expected[:3], strict=True):
            assert found[name + suffix] == pytest.approx(value)
    if len(np.unique(np.r_[true, guess])) > 1:
        assert found["kappa"] == pytest.approx(sk.cohen_kappa_score(true, guess), abs=1e-9)
        assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(true, guess), abs=1e-9)
    else:
        assert found["kappa"] == found["mcc"] == 0


@quick
@given(cases())
def test_figures_of_probabilities_equal_scikit_learns(known: Predictions) -> None:
    probs, true, num = known.probs.astype(np.float64), known.labels, len(known.classes)
    probs /= probs.sum(1, keepdims=True)
    onehot = np.eye(num)[true]
    found = scores.scores(known)
    assert found["loss"] == pytest.approx(sk.log_loss(true, probs, labels=range(num)), abs=1e-5)
    assert found["brier"] == pytest.approx(((probs - onehot) ** 2).sum(1).mean(), abs=1e-5)
    theirs = sk.brier_score_loss(true, probs, labels=list(range(num)), scale_by_half=False)
    assert found["brier"] == pytest.approx(theirs, abs=1e-5)


@quick
@given(cases(), st.booleans())
def test_auc_and_average_precision_equal_scikit_learns(known: Predictions, rounded: bool) -> None:
    known = coarse(known) if rounded else known
    aucs, aps = [], []
    for k in range(len(known.classes)):
        is_k = known.labels == k
        if is_k.any():
            aps.append(sk.average_precision_score(is_k, known.probs[:, k]))
        if is_k.any() and not is_k.all():
            aucs.append(sk.roc_auc_score(is_k, known.probs[:, k]))
    found = scores.scores(known)
    assert found["ap"] == pytest.approx(np.mean(aps))
    assert ("auc" in found) == bool(aucs)
    if aucs:
        assert found["auc"] == pytest.approx(np.mean(aucs))


@quick
@given(cases(), st.booleans(), st.integers(0, 100), st.sampled_from([(0, 10**6), (64, 10**6), (64, 30), (3, 50)]))
def test_weighted_auc_and_average_precision_equal_scikit_learns_by_either_way(
    known: Predictions, rounded: bool, seed: int, limits: tuple[int, int]
) -> None:
    known = coarse(known) if rounded else known
    weights = np.random.default_rng(seed).poisson(1.0, (len(known.ids), 3)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "MOST_COMPARED", limits[0])
        patch.setattr(ranking, "MOST_CELLS", limits[1])
        auc, ap = one_vs_rest(known, weights)
    for (k, b), found in np.ndenumerate(auc):
        kept = weights[:, b] > 0
        is_k, values, weight = (known.labels == k)[kept], known.probs[kept, k], weights[kept, b]
        assert np.isnan(found) == (not is_k.any() or is_k.all())
        assert np.isnan(ap[k, b]) == (not is_k.any())
        if not np.isnan(found):
            assert found == pytest.approx(sk.roc_auc_score(is_k, values, sample_weight=weight))
        if is_k.any():
            assert ap[k, b] == pytest.approx(sk.average_precision_score(is_k, values, sample_weight=weight))


def test_the_calibration_error_is_that_of_a_count_by_hand() -> None:
    # Bins of a fifteenth: 0.6 is the upper end of the ninth, 0.61 and 0.65 are in the tenth, 0.9 is in the fourteenth.
    first = np.array([0.61, 0.65, 0.9, 0.9], np.float32)
    known = Predictions(list("abcd"), np.column_stack([first, 1 - first]), np.array([0, 1, 0, 1]), ("x", "y"))
    expected = abs(1 - (0.61 + 0.65)) / 4 + abs(1 - 1.8) / 4
    assert scores.scores(known)["ece"] == pytest.approx(expected)


@quick
@given(cases(), st.integers(0, 100))
def test_an_interval_is_that_of_the_figures_of_the_resampled_images(known: Predictions, seed: int) -> None:
    values = [scores.scores(picked(known, rows)) for draws in resamples(known, 12, seed) for rows in draws]
    found = scores.score_intervals(known, 12, seed)
    assert set(found) <= set(scores.scores(known))
    for name, interval in found.items():
        expected = np.quantile([row[name] for row in values if name in row], [0.025, 0.975])
        assert interval == pytest.approx(tuple(expected)), name


def test_intervals_do_not_depend_on_the_size_of_the_chunks_and_agree_with_the_bootstrap() -> None:
    known = predictions(150, 8)
    found = scores.score_intervals(known, 60, 5)
    assert found == scores.score_intervals(known, 60, 5)
    assert set(found) == set(scores.scores(known))
    others = bootstrap(known, ["acc", "f1", "top5_acc"], num=60, seed=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imgcls.evaluation.intervals.MOST_CELLS", 1500)
        patch.setattr(scores, "MOST_WEIGHTS", 4000)
        chunked = scores.score_intervals(known, 60, 5)
    for name, interval in found.items():
        assert chunked[name] == pytest.approx(interval)
        assert others.get(name, interval) == pytest.approx(interval)
        assert interval[0] < interval[1]


def test_auc_uses_fewer_resamples_where_there_are_very_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    known = predictions(100)
    whole = scores.score_intervals(known, 40)
    assert scores.most_ranked(known, 1000) == 1000
    monkeypatch.setattr(scores, "MOST_RANKED", 1.0)
    monkeypatch.setattr(scores, "FEWEST_RESAMPLES", 20)
    assert scores.most_ranked(known, 1000) == 20
    fewer = scores.score_intervals(known, 40)
    assert fewer["acc"] == whole["acc"]
    assert fewer["auc"] == scores.score_intervals(known, 20)["auc"] != whole["auc"]


def test_top_k_follows_its_k_and_is_left_out_where_it_says_nothing() -> None:
    known = predictions(60)
    assert "top3_acc" in scores.scores(known, top_k=3)
    assert "top3_acc" in scores.score_intervals(known, 10, top_k=3)
    assert not [name for name in scores.scores(known, top_k=5) if name.startswith("top")]
    assert not [name for name in scores.scores(known, top_k=1) if name.startswith("top")]


def test_images_without_a_label_are_left_out_and_none_is_an_error() -> None:
    known = predictions(40)
    labels = np.where(np.arange(40) < 30, known.labels, -1)
    assert scores.scores(replace(known, labels=labels)) == scores.scores(picked(known, np.arange(30)))
    with pytest.raises(UserError, match="none of the 40 images has a label"):
        scores.scores(replace(known, labels=np.full(40, -1)))


def test_probabilities_that_are_not_numbers_are_an_error_that_names_the_first_image() -> None:
    known = predictions(40)
    probs = known.probs.copy()
    probs[[7, 9], 1] = np.nan
    with pytest.raises(UserError, match="for 2 of 40 images, the first '7'"):
        scores.score_intervals(replace(known, probs=probs), 5)


def test_one_class_only_has_no_auc() -> None:
    known = replace(predictions(5), labels=np.zeros(5, np.int64))
    found = scores.scores(known)
    assert "auc" not in found
    assert found["ap"] == 1
    assert "auc" not in scores.score_intervals(known, 10)


@quick
@given(cases(), st.booleans())
def test_curves_have_the_areas_of_the_figures(known: Predictions, rounded: bool) -> None:
    known = coarse(known) if rounded else known
    auc, ap = one_vs_rest(known)
    for k in np.unique(known.labels):
        assert pr_curve(known, int(k)).area == pytest.approx(ap[k, 0])
        if not np.isnan(auc[k, 0]):
            curve = roc_curve(known, int(k))
            assert curve.area == pytest.approx(auc[k, 0])
            assert (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1]) == (0, 0, 1, 1)
    found = scores.scores(known)
    mean = mean_roc(known)
    assert (mean is None) == ("auc" not in found)
    if mean is not None:
        assert mean.area == pytest.approx(found["auc"])
        assert (np.diff(mean.y) >= -1e-9).all()
    assert mean_pr(known).area == pytest.approx(found["ap"])


@pytest.mark.slow
def test_ten_thousand_images_of_1500_classes_take_seconds_and_little_memory() -> None:
    known = predictions(10_000, 1500, skill=4.0)
    begin = time.process_time()
    assert len(scores.score_intervals(known)) == 19
    assert time.process_time() - begin < 40  # 6 s on one idle core
    tracemalloc.start()
    scores.score_intervals(known, 150)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 600e6
