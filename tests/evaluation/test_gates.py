"""The gates of a promotion: what each demands, and how often chance lets through or refuses."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from imgcls.errors import UserError
from imgcls.evaluation.gates import (
    Gate,
    PromoteConfig,
    Verdict,
    verdict,
)
from imgcls.tables import Predictions

Bools = npt.NDArray[np.bool_]
NUM_SIMULATED = 300


def predictions(right: Any, labels: Any = None, *, num_classes: int = 2, confidence: float = 0.9) -> Predictions:
    """Of N images: `right` says which are; the wrong ones are called the next class."""
    right = np.asarray(right, dtype=bool)
    known = np.zeros(len(right), np.int64) if labels is None else np.asarray(labels, np.int64)
    named = np.where(right, known, (known + 1) % num_classes)
    probs = np.full((len(right), num_classes), (1 - confidence) / (num_classes - 1), np.float32)
    probs[np.arange(len(right)), named] = confidence
    classes = tuple(f"c{k}" for k in range(num_classes))
    return Predictions([str(k) for k in range(len(right))], probs, known, classes, "test", "digest")


def held(challenger: Predictions, champion: Predictions | None, **config: Any) -> Verdict:
    return verdict(
        challenger, champion, PromoteConfig(**config), model_mb=10, latency_ms=5, same_data=True, installable=True
    )


def gate(found: Verdict, name: str) -> Gate:
    [one] = [gate for gate in found.gates if gate.name == name]
    return one


def counted(only_challenger: int, only_champion: int, both: int = 50) -> tuple[Predictions, Predictions]:
    """Challenger and champion by how many images only one of them, or both, have right; ten more are wrong in both."""
    parts = [only_challenger, only_champion, both, 10]
    return (
        predictions(np.repeat([True, False, True, False], parts)),
        predictions(np.repeat([False, True, True, False], parts)),
    )


def simulated(rng: np.random.Generator, gain: float, *, num: int = 250, differ: float = 0.2) -> tuple[Bools, Bools]:
    """Two models, on average `gain` apart, that differ on about a share `differ` of the images."""
    kind = rng.choice(3, size=num, p=[(differ + gain) / 2, (differ - gain) / 2, 1 - differ])
    shared = rng.random(num) < 0.8
    return (kind == 0) | ((kind == 2) & shared), (kind == 1) | ((kind == 2) & shared)


def share_passed(gain: float, **config: Any) -> int:
    """How many of NUM_SIMULATED challengers that far ahead pass the gate of the gain."""
    passed = 0
    for seed in range(NUM_SIMULATED):
        challenger, champion = simulated(np.random.default_rng([17, seed]), gain)
        passed += gate(held(predictions(challenger), predictions(champion), **config), "gain").passed
    return passed


# --- how often chance decides


@given(
    better=st.integers(0, 60), worse=st.integers(0, 60), both=st.integers(0, 40), level=st.sampled_from([0.01, 0.05])
)
@settings(max_examples=60, deadline=None)
def test_no_candidate_that_is_worse_by_more_than_chance_is_promoted(
    better: int, worse: int, both: int, level: float
) -> None:
    found = held(*counted(better, worse, both), significance=level)
    is_worse = better + worse > 0 and stats.binomtest(better, better + worse, 0.5, alternative="less").pvalue < level
    assert gate(found, "gain").passed == (not is_worse)
    if is_worse:
        assert not found.passed


@given(better=st.integers(0, 60), worse=st.integers(0, 60), wanted=st.sampled_from([0.01, 0.05]))
@settings(max_examples=40, deadline=None)
def test_where_a_gain_is_demanded_none_is_promoted_that_has_not_even_that_many_more_right(
    better: int, worse: int, wanted: float
) -> None:
    challenger, champion = counted(better, worse)
    if held(challenger, champion, min_gain=wanted).passed:
        assert (better - worse) / len(challenger.ids) > wanted
        assert stats.binomtest(better, better + worse, 0.5, alternative="greater").pvalue < 0.05


def test_an_equally_good_challenger_is_refused_for_chance_in_no_more_than_five_percent() -> None:
    refused = NUM_SIMULATED - share_passed(0.0, significance=0.05)
    assert stats.binomtest(refused, NUM_SIMULATED, 0.05, alternative="greater").pvalue > 0.01
    assert refused > 0  # the test is not so cautious that it never refuses


def test_a_clearly_worse_challenger_is_refused_nearly_always() -> None:
    assert share_passed(-0.15) <= 0.02 * NUM_SIMULATED


@pytest.mark.slow
@pytest.mark.parametrize("gain", [0.0, 0.04])
def test_one_that_has_not_more_than_the_gain_demanded_passes_in_no_more_than_five_percent(gain: float) -> None:
    passed = share_passed(gain, min_gain=0.04, significance=0.05)
    assert stats.binomtest(passed, NUM_SIMULATED, 0.05, alternative="greater").pvalue > 0.01


def test_one_that_is_far_ahead_of_the_gain_demanded_passes_nearly_always() -> None:
    assert share_passed(0.15, min_gain=0.04) >= 0.9 * NUM_SIMULATED


def test_an_identical_challenger_is_not_refused_and_not_promoted_where_a_gain_is_demanded() -> None:
    same = predictions(np.random.default_rng(0).random(500) < 0.8)
    assert held(same, same).passed
    found = held(same, same, min_gain=0.001)
    assert [one.name for one in found.gates if not one.passed] == ["gain"]
    assert "not surely ahead by the 0.001 demanded" in found.reason


def test_few_images_are_no_proof_of_a_gain_however_it_looks() -> None:
    assert not held(*counted(4, 0, both=0), min_gain=0.01).passed
    assert held(*counted(30, 0, both=0), min_gain=0.01).passed


def test_the_bound_is_the_least_significance() -> None:
    assert held(*counted(60, 0), min_gain=0.01, significance=0.001).passed


# --- recall by class


def by_class(*counts: tuple[int, int, int, int]) -> tuple[Predictions, Predictions]:
    """Challenger and champion from (both right, only challenger, only champion, neither) a class."""
    labels = np.repeat(np.arange(len(counts)), [sum(count) for count in counts])
    first = np.concatenate([np.repeat([True, True, False, False], count) for count in counts])
    second = np.concatenate([np.repeat([True, False, True, False], count) for count in counts])
    num = max(2, len(counts))
    return predictions(first, labels, num_classes=num), predictions(second, labels, num_classes=num)


def test_a_class_that_is_lost_refuses_one_that_is_better_over_all() -> None:
    found = held(*by_class((50, 0, 15, 0), (50, 40, 0, 0)))
    assert gate(found, "gain").passed
    assert not found.passed
    lost = gate(found, "class_recall")
    assert lost.figure == pytest.approx(15 / 65)
    assert lost.sentence == "recall fell by more than 0.02 and by more than chance: c0 (-0.2308)"


def test_a_fall_that_may_be_chance_and_one_that_is_allowed_do_not_count() -> None:
    assert gate(held(*by_class((50, 1, 5, 0), (50, 40, 0, 0))), "class_recall").passed
    lost = by_class((50, 0, 15, 0), (50, 40, 0, 0))
    assert gate(held(*lost, max_recall_fall=0.25), "class_recall").passed
    assert gate(held(*lost, max_recall_fall=15 / 65), "class_recall").passed


def test_the_number_of_classes_is_accounted_for() -> None:
    one = by_class((50, 0, 6, 0), (50, 9, 0, 0))
    many = by_class((50, 0, 6, 0), *[(50, 9, 0, 0)] * 20)
    assert not gate(held(*one), "class_recall").passed
    assert gate(held(*many), "class_recall").passed


@pytest.mark.slow
def test_chance_refuses_no_more_than_five_percent_of_equal_challengers_over_all_classes_together() -> None:
    refused = 0
    for seed in range(NUM_SIMULATED):
        rng = np.random.default_rng([23, seed])
        labels = rng.integers(10, size=600)
        first, second = simulated(rng, 0.0, num=600, differ=0.4)
        pair = predictions(first, labels, num_classes=10), predictions(second, labels, num_classes=10)
        refused += not gate(held(*pair, max_recall_fall=0), "class_recall").passed
    assert stats.binomtest(refused, NUM_SIMULATED, 0.05, alternative="greater").pvalue > 0.01


def test_classes_with_too_few_images_to_tell_are_named_in_number() -> None:
    found = gate(held(*by_class((2, 0, 2, 0), (50, 5, 0, 0))), "class_recall")
    assert found.passed
    assert found.sentence.endswith("(1 of 2 classes have too few images for any fall to be told from chance)")


def test_many_lost_classes_are_named_worst_first_and_cut() -> None:
    found = gate(held(*by_class(*[(40, 0, 20 + k, 0) for k in range(7)])), "class_recall")
    assert found.sentence.endswith("c3 (-0.3651), c2 (-0.3548) and 2 more")
    assert "chance: c6 (-0.3939), c5" in found.sentence


# --- the other gates


def test_without_a_champion_the_comparative_gates_pass_and_say_so() -> None:
    found = verdict(
        predictions([True] * 9 + [False]), None, PromoteConfig(min_gain=0.1), model_mb=1, latency_ms=1, same_data=None,
        installable=True,
    )  # fmt: skip
    assert found.passed
    said = {one.name: one.sentence for one in found.gates if one.figure is None}
    assert set(said) == {"gain", "class_recall", "same_data"}
    assert set(said.values()) == {"there is no champion to compare with: not applicable"}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"min_metrics": {"acc": 0.91}}, "acc"),
        ({"min_metrics": {"balanced_acc": 0.91}}, "balanced_acc"),
        ({"min_metrics": {"f1": 0.96}}, "f1"),
        ({"max_ece": 0.01}, "ece"),
        ({"max_model_mb": 9.9}, "model_mb"),
        ({"max_latency_ms": 4.9}, "latency_ms"),
    ],
)
def test_a_figure_beyond_its_bound_refuses_and_one_within_does_not(config: dict[str, Any], name: str) -> None:
    model = predictions([True] * 18 + [False] * 2, confidence=0.8)
    found = held(model, model, **config)
    assert [one.name for one in found.gates if not one.passed] == [name]
    assert found.reason == gate(found, name).sentence
    bound = config.get(f"max_{name}", config.get("min_metrics", {}).get(name))
    assert f"{bound:g}" in gate(found, name).sentence
    easy = {"min_metrics": {name: 0.4}} if "min_metrics" in config else {next(iter(config)): 1 if name == "ece" else 99}
    assert held(model, model, **easy).passed
    assert gate(held(model, model, **easy), name).figure == gate(found, name).figure


def test_top_k_accuracy_can_be_demanded() -> None:
    model = predictions([True] * 5 + [False] * 5, num_classes=3)
    assert gate(held(model, None, min_metrics={"top3_acc": 1.0}), "top3_acc").passed


@pytest.mark.parametrize("known", [False, None])
def test_other_data_and_packages_that_cannot_be_installed_refuse_unless_that_is_allowed(known: bool | None) -> None:
    model = predictions([True] * 9 + [False])
    found = verdict(model, model, PromoteConfig(), model_mb=1, latency_ms=1, same_data=known, installable=known)
    assert [one.name for one in found.gates if not one.passed] == ["same_data", "installable"]
    assert found.gates[-1].sentence.endswith(
        "cannot be installed" if known is False else "can be installed is not known"
    )
    lax = PromoteConfig(require_same_data=False, require_installable=False)
    assert verdict(model, model, lax, model_mb=1, latency_ms=1, same_data=known, installable=known).passed


def test_a_score_that_these_images_do_not_have_passes_no_gate() -> None:
    model = predictions([True] * 9)
    found = verdict(
        model, None, PromoteConfig(min_metrics={"auc": 0.0}), model_mb=1, latency_ms=1, same_data=None, installable=True
    )
    assert [one.name for one in found.gates if not one.passed] == ["auc"]


# --- what is compared


def test_predictions_of_other_images_refuse_and_say_why() -> None:
    model = predictions([True] * 30)
    other = replace(model, ids=[f"x{k}" for k in range(30)])
    found = held(model, other)
    assert [one.name for one in found.gates if not one.passed] == ["gain", "class_recall"]
    assert "0 of 30 and 30 are the same" in found.reason
    assert "data sets differ" in held(model, replace(model, manifest_digest="e")).reason


def test_the_order_of_images_and_classes_does_not_matter() -> None:
    challenger, champion = by_class((50, 0, 15, 0), (50, 40, 0, 0), (20, 3, 4, 1))
    rows = np.random.default_rng(0).permutation(len(champion.ids))
    turned = Predictions(
        [champion.ids[row] for row in rows],
        champion.probs[rows][:, [2, 0, 1]],
        np.array([1, 2, 0])[champion.labels[rows]],
        ("c2", "c0", "c1"),
        "test",
        "digest",
    )
    assert held(challenger, turned) == held(challenger, champion)


def test_images_without_a_label_are_left_out_and_none_with_one_is_an_error() -> None:
    challenger, champion = counted(10, 3)
    labels = np.append(challenger.labels[:-1], -1)
    found = held(replace(challenger, labels=labels), replace(champion, labels=labels))
    assert found.passed
    with pytest.raises(UserError, match="none of the 73 images has a label"):
        held(replace(challenger, labels=np.full(73, -1)), None)


def test_an_id_that_stands_twice_and_a_probability_that_is_no_number_are_errors() -> None:
    model = predictions([True] * 3)
    with pytest.raises(UserError, match="champion's predictions have the id '0' more than once"):
        held(model, replace(model, ids=["0", "0", "1"]))
    with pytest.raises(UserError, match="challenger's probabilities for the image '0' are not all numbers"):
        held(replace(model, probs=np.full((3, 2), np.nan, np.float32)), None)


# --- words and settings


def test_the_report_says_the_decision_and_each_gate() -> None:
    found = held(*by_class((50, 0, 15, 0), (50, 40, 0, 0)), max_ece=0.5)
    text = found.markdown(title="animals, version 3")
    assert text.startswith("# animals, version 3\n\n**Refused** by 1 of 7 gates: recall fell by more than")
    assert text.count("\n|") == 2 + len(found.gates)
    assert "| latency_ms | 5 | – | yes | an image takes 5 ms; nothing is demanded |" in text
    same = predictions([True] * 30)
    assert "**Passed**: all 7 gates are passed." in held(same, same).markdown()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_metrics": {"accuracy": 0.9}}, "or top<k>_acc, not 'accuracy'"),
        ({"min_metrics": {"balanced_ac": 0.9}}, "Did you mean 'balanced_acc'"),
        ({"min_metrics": {"acc": 90.0}}, "a least value of acc from 0 to 1, not 90"),
        ({"min_gain": -0.1}, "greater than or equal to 0"),
        ({"significance": 0.0}, "greater than or equal to 0.001"),
        ({"max_recall_fall": 2.0}, "less than or equal to 1"),
        ({"max_model_mb": 0.0}, "greater than 0"),
        ({"max_size": 3}, "Extra inputs"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PromoteConfig(**values)
