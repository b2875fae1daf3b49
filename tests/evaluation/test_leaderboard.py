"""The best trial leads, and what is not complete leads nothing."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgcls.evaluation.leaderboard import (
    best_so_far,
    fields_of,
    leaderboard,
    leaderboard_markdown,
    objectives_of,
    pareto,
)
from tests.evaluation.trial_tables import FIELDS, trial_table


def table(values: list[float], *, objective: str = "val/acc", states: list[str] | None = None) -> pd.DataFrame:
    num = len(values)
    return pd.DataFrame(
        {
            "family": ["a", "b"] * (num // 2) + ["a"] * (num % 2),
            "number": [k // 2 for k in range(num)],
            "state": states or ["complete"] * num,
            objective: values,
            "started": [10.0 * k for k in range(num)],
            "seconds": [5.0] * num,
            "worker": "w",
            "run_id": [f"{k:032x}" for k in range(num)],
            "reason": "",
            "epochs": 3,
            "curve": [[] for _ in range(num)],
            "optim.lr": pd.Series([0.1] * num, dtype=object),
        }
    )


def test_objectives_and_fields_are_known_by_their_place() -> None:
    given = trial_table(3, fields=5)
    assert objectives_of(given) == ["val/acc", "speed/images_per_s"]
    assert fields_of(given) == list(FIELDS[:5])


def test_the_best_complete_trial_leads_and_the_others_have_no_rank() -> None:
    given = table([0.5, 0.9, 0.99, math.nan, 0.7], states=["complete", "complete", "pruned", "failed", "complete"])
    board = leaderboard(given)
    assert board["trial"].tolist() == ["b/000", "a/002", "a/000", "a/001", "b/001"]
    assert board["rank"].tolist()[:3] == [1, 2, 3]
    assert board["rank"].isna().tolist() == [False] * 3 + [True] * 2


def test_the_least_loss_leads() -> None:
    board = leaderboard(table([0.5, 0.2, 0.9], objective="val/loss"))
    assert board["val/loss"].tolist() == [0.2, 0.5, 0.9]


def test_a_complete_trial_whose_value_is_no_number_is_not_ranked() -> None:
    board = leaderboard(table([math.nan, math.inf, 0.1]))
    assert board["rank"].notna().tolist() == [True, False, False]
    assert board["val/acc"][0] == 0.1


def test_trials_that_wait_are_not_on_the_board() -> None:
    states = ["waiting", "surplus", "running", "duplicate"]
    assert leaderboard(table([math.nan] * 4, states=states))["state"].tolist() == ["running", "duplicate"]


@pytest.mark.parametrize("num", [0, 1, 60])
def test_the_markdown_counts_the_trials_and_shows_the_best(num: int) -> None:
    given = trial_table(num, families=3)
    text = leaderboard_markdown(given, most=10)
    lines = text.splitlines()
    if not num:
        assert text == "No trial yet.\n\nNo trial is complete yet.\n"
        return
    complete = int((given["state"] == "complete").sum())
    assert lines[0].startswith(f"{num} trials: {complete} complete")
    assert sum(line.startswith("|") for line in lines) == 2 + min(10, complete)
    best = float(given["val/acc"][given["state"] == "complete"].max())
    assert f"{best:.4f}" in next(line for line in lines if line.startswith("| 1 |"))


def test_a_sweep_without_a_complete_trial_says_so() -> None:
    text = leaderboard_markdown(trial_table(6, finished=False))
    assert text == "6 trials: 2 failed, 2 running, 2 waiting.\n\nNo trial is complete yet.\n"


def test_the_best_so_far_follows_the_order_in_which_trials_end() -> None:
    given = table([0.5, 0.4, 0.6, 0.9], states=["complete", "complete", "complete", "pruned"])
    given["seconds"] = [100.0, 5.0, 5.0, 5.0]
    found = best_so_far(given, "val/acc")
    assert found["value"].tolist() == [0.4, 0.6, 0.5]
    assert found["best"].tolist() == [0.4, 0.6, 0.6]
    assert found["ended"].tolist() == [15, 25, 100]
    assert best_so_far(table([0.5, 0.4, 0.6], objective="val/loss"), "val/loss")["best"].tolist() == [0.5, 0.4, 0.4]
    assert len(best_so_far(given.iloc[:0], "val/acc")) == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
@settings(deadline=None)
def test_the_front_is_what_no_other_trial_beats(points: list[tuple[int, int]]) -> None:
    frame = table([float(a) for a, _ in points], objective="val/loss")
    frame.insert(4, "speed/images_per_s", [float(b) for _, b in points])
    front = pareto(frame, ["val/loss", "speed/images_per_s"])
    expected = {
        k for k, (a, b) in enumerate(points) if not any(c <= a and d >= b and (c < a or d > b) for c, d in points)
    }
    assert set(front.index) == expected
    assert front["val/loss"].is_monotonic_increasing


def test_of_two_objectives_the_board_names_the_front() -> None:
    given = trial_table(30)
    board = leaderboard(given)
    assert board["front"].sum() == len(pareto(given, ["val/acc", "speed/images_per_s"])) > 1
    assert np.isnan(board.loc[board["front"], "val/acc"].astype(float)).sum() == 0
