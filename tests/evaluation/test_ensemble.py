"""Predictions go together by id; weights never make an ensemble worse than its members where they were fitted."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgcls.errors import UserError
from imgcls.evaluation.ensemble import aligned, average, fit_weights, greedy, vote
from imgcls.evaluation.reading import log_loss
from imgcls.tables import Predictions
from tests.evaluation.test_compare import shuffled
from tests.evaluation.test_intervals import acc, predictions
from tests.evaluation.test_scores import quick


def members(num: int = 3, num_images: int = 120) -> list[Predictions]:
    return [predictions(num_images, 4, skill=0.5 + 0.5 * k, seed=k) for k in range(num)]


def test_the_mean_is_taken_by_id_whatever_the_order() -> None:
    a, b = members(2)
    expected = (a.probs + b.probs) / 2
    found = average([a, shuffled(b)])
    assert found.probs == pytest.approx(expected, abs=1e-6)
    assert (found.ids, found.classes, found.split, found.manifest_digest) == (a.ids, a.classes, "val", "d")
    assert np.array_equal(found.labels, a.labels)
    assert average([a]).probs == pytest.approx(a.probs, abs=1e-7)


def test_weights_are_of_any_sum() -> None:
    a, b = members(2)
    assert average([a, b], [3, 1]).probs == pytest.approx(0.75 * a.probs + 0.25 * b.probs, abs=1e-6)
    assert np.array_equal(average([a, b], [0, 2]).probs, b.probs)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0, 1.0], [0.0, 0.0, 0.0], [1.0, np.nan, 1.0], []])
def test_weights_that_do_not_fit_are_an_error(weights: list[float]) -> None:
    with pytest.raises(UserError, match="for 3 models; expected one number a model"):
        average(members(), weights)


@quick
@given(st.integers(1, 6), st.integers(0, 50))
def test_a_vote_elects_the_class_with_most_votes_and_ties_go_by_mean_probability(num: int, seed: int) -> None:
    several = [predictions(30, 4, skill=0.3, seed=seed + k) for k in range(num)]
    found = vote(several)
    assert found.probs.sum(axis=1) == pytest.approx(np.ones(30), abs=1e-5)
    mean = np.mean([member.probs for member in several], axis=0)
    for row, chosen in enumerate(found.predicted):
        votes = np.bincount([member.predicted[row] for member in several], minlength=4)
        best = np.flatnonzero(votes == votes.max())
        assert chosen == best[mean[row, best].argmax()]


def test_a_majority_outvotes_a_single_model_that_is_sure() -> None:
    def one(probs: list[float]) -> Predictions:
        return Predictions(["x"], np.array([probs], np.float32), np.array([0]), ("a", "b"))

    several = [one([0.51, 0.49]), one([0.51, 0.49]), one([0.0, 1.0])]
    assert vote(several).predicted.tolist() == [0]
    assert average(several).predicted.tolist() == [1]


@quick
@given(st.integers(1, 5), st.integers(0, 100))
def test_fitted_weights_have_the_least_loss_of_all(num: int, seed: int) -> None:
    several = [predictions(60, 3, skill=0.4 * k, seed=seed + k) for k in range(num)]
    weights = fit_weights(several)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    best = log_loss(average(several, weights))
    rng = np.random.default_rng(seed)
    for other in [*rng.dirichlet(np.ones(num), 50), *np.eye(num), weights + 0.01 * rng.random(num)]:
        assert best <= log_loss(average(several, other)) + 1e-6


def test_a_member_that_only_harms_gets_no_weight_at_all() -> None:
    good = predictions(300, 4, skill=4.0)
    assert fit_weights([good, predictions(300, 4, skill=-4.0, seed=1)]).tolist() == [1, 0]


def test_weights_are_fitted_beside_probabilities_of_0() -> None:
    good, bad = members(2)
    certain = np.eye(4, dtype=np.float32)[bad.predicted]
    weights = fit_weights([replace(bad, probs=certain), good])
    assert log_loss(average([replace(bad, probs=certain), good], weights)) <= log_loss(good) + 1e-9


def test_greedy_selection_does_what_a_search_step_by_step_does() -> None:
    several = members(4)
    counts = np.zeros(4)
    trail = []
    for _ in range(6):
        losses = [log_loss(average(several, counts + np.eye(4)[k])) for k in range(4)]
        counts[int(np.argmin(losses))] += 1
        trail.append((min(losses), counts / counts.sum()))
    expected = min(trail, key=lambda pair: pair[0])[1]
    assert greedy(several, num_rounds=6) == pytest.approx(expected)


@pytest.mark.parametrize("metric", ["loss", "acc"])
def test_greedy_selection_is_never_worse_than_the_best_member(metric: str) -> None:
    several = members(4)
    weights = greedy(several, metric="acc" if metric == "acc" else "loss", num_rounds=20)
    mixed = average(several, weights)
    assert weights.sum() == pytest.approx(1)
    if metric == "acc":
        assert acc(mixed) > max(acc(member) for member in several)
    else:
        assert log_loss(mixed) < min(log_loss(member) for member in several)
    assert greedy(several[:1]).tolist() == [1]


def test_weights_need_labels_and_leave_out_images_without() -> None:
    several = members(2)
    labels = several[0].labels.copy()
    labels[50:] = -1
    part = [Predictions(member.ids[:50], member.probs[:50], member.labels[:50], member.classes) for member in several]
    cut = [replace(member, labels=labels) for member in several]
    assert fit_weights(cut) == pytest.approx(fit_weights(part))
    assert greedy(cut) == pytest.approx(greedy(part))
    with pytest.raises(UserError, match="none of the 120 images has a label"):
        fit_weights([replace(member, labels=np.full(120, -1)) for member in several])


def test_a_label_that_only_one_member_knows_is_known() -> None:
    a, b = members(2)
    assert np.array_equal(average([replace(a, labels=np.full(120, -1)), shuffled(b)]).labels, b.labels)


def test_predictions_of_other_data_go_together_without_a_digest() -> None:
    a, b = members(2)
    assert average([a, replace(b, manifest_digest="e", split="test")]).manifest_digest == ""


def test_what_does_not_go_together_is_an_error_that_says_what_differs() -> None:
    a, b = members(2)
    with pytest.raises(UserError, match="found no predictions"):
        aligned([])
    with pytest.raises(UserError, match=r"predictions 2 .* without 'c3', with 'dog' besides"):
        aligned([a, replace(b, classes=("c0", "c1", "c2", "dog"))])
    with pytest.raises(UserError, match="in another order"):
        aligned([a, replace(b, classes=("c1", "c0", "c2", "c3"))])
    with pytest.raises(UserError, match=r"lack 1 of their images \('119'\) and have 1 that those lack \('x'\)"):
        aligned([a, replace(b, ids=[*b.ids[:-1], "x"])])
    with pytest.raises(UserError, match="predictions 1 have the image '0' twice"):
        aligned([replace(a, ids=["0", *a.ids[:-1]]), b])
    wrong = b.labels.copy()
    wrong[3] = (wrong[3] + 1) % 4
    with pytest.raises(UserError, match=r"1 images have other labels in predictions 2 .* the first '3'"):
        aligned([a, replace(b, labels=wrong)])
