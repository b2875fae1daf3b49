"""What a sweep's trials say: their states, what counts against the budget, whose turn it is. Pure functions."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from imgcls.tuning.space import Space, point

WORKER, REASON, DUPLICATE_OF, SURPLUS, RETRY_OF, TRIES, CURVE = (
    "worker",
    "reason",
    "duplicate_of",
    "surplus",
    "retry_of",
    "tries",
    "curve",
)
"""The user attributes that a sweep itself writes."""
OWN = frozenset({WORKER, REASON, DUPLICATE_OF, SURPLUS, RETRY_OF, TRIES, CURVE})
COUNTED = frozenset({"complete", "pruned", "failed", "running"})
"""The states that count against the budget."""
STATES = ("complete", "pruned", "failed", "running", "waiting", "duplicate", "surplus", "requeued")
"""Every state a trial can have."""
MOST_TRIES = 3
"""Times that a trial whose process dies is begun, before it counts as failed."""
MOST_DUPLICATES = 20
"""Duplicates in a row after which a family is taken to be exhausted."""
COLUMNS = ("family", "number", "state", "started", "seconds", "worker", "run_id", "reason", "epochs", "curve")
_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def states(trials: Iterable[FrozenTrial]) -> list[str]:
    """The state of each of a family's trials; see STATES."""
    trials = list(trials)
    retried = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    return [_state(trial, retried) for trial in trials]


def _state(trial: FrozenTrial, retried: set[Any]) -> str:
    if trial.state == TrialState.WAITING:
        return "waiting"
    if DUPLICATE_OF in trial.user_attrs:
        return "duplicate"
    if SURPLUS in trial.user_attrs:
        return "surplus"
    if trial.state == TrialState.FAIL and trial.number in retried:
        return "requeued"
    return _STATES[trial.state]


def counted(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials of a family that count against the budget."""
    trials = list(trials)
    return [trial for trial, state in zip(trials, states(trials), strict=True) if state in COUNTED]


def waits_again(trials: Iterable[FrozenTrial]) -> bool:
    """Whether a trial that lost its process waits for another."""
    return any(trial.state == TrialState.WAITING and RETRY_OF in trial.user_attrs for trial in trials)


def duplicates_in_a_row(trials: Iterable[FrozenTrial]) -> int:
    """Duplicates since a family's last other trial."""
    found = 0
    trials = list(trials)
    for state in reversed(states(trials)):
        if state == "duplicate":
            found += 1
        elif state in COUNTED:
            break
    return found


def exhausted(trials: Sequence[FrozenTrial], space: Space) -> str | None:
    """Why a family has nothing left to try, in words, or None."""
    if waits_again(trials):
        return None
    if duplicates_in_a_row(trials) >= MOST_DUPLICATES:
        return f"the last {MOST_DUPLICATES} proposals had been tried before"
    size = space.cardinality()
    if size is not None and len({point(space.load(trial.params)) for trial in counted(trials)}) >= size:
        return f"all {size} points of its space have been tried"
    return None


def earlier(trials: Iterable[FrozenTrial], values: Mapping[str, Any], space: Space, number: int) -> FrozenTrial | None:
    """The trial that these values were tried in, or are being: one with a result before one without."""
    trials = list(trials)
    tried = [
        trial
        for trial, state in zip(trials, states(trials), strict=True)
        if state in ("complete", "pruned", "running")
        and trial.number != number
        and point(space.load(trial.params)) == point(values)
    ]
    order = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING]
    return min(tried, key=lambda trial: order.index(trial.state), default=None)


def seconds(trial: FrozenTrial, now: datetime) -> float:
    """How long a trial took, or has taken; NaN before it begins."""
    if trial.datetime_start is None:
        return math.nan
    return ((trial.datetime_complete or now) - trial.datetime_start).total_seconds()


def seconds_used(trials: Iterable[FrozenTrial]) -> float:
    """How long a family's trials took together."""
    now = datetime.now()
    return sum(seconds(trial, now) for trial in trials if trial.datetime_start is not None)


def best_value(trials: Iterable[FrozenTrial], direction: str) -> float | None:
    """The best complete value of the first objective."""
    values = [float(trial.values[0]) for trial in trials if trial.state == TrialState.COMPLETE and trial.values]
    if not values:
        return None
    return max(values) if direction == "maximize" else min(values)


def next_family(
    trials: Mapping[str, Sequence[FrozenTrial]],
    finished: Iterable[str],
    *,
    budget: int | None,
    leader: bool,
    time_share: float,
    direction: str,
) -> str | None:
    """Whose turn it is.

    Args:
        trials: family -> its trials.
        finished: families that have nothing left to try.
        budget: trials of all families together; None where only the time is limited.
        leader: the family with the best value gets what the equal half of the budget leaves.
        time_share: the share of the time limit that is used, 0..1.
        direction: maximize or minimize.

    Returns:
        The family, or None where the budget is used, the trials that run included, or none has anything to try.
    """
    again = [family for family in trials if waits_again(trials[family])]
    left = [family for family in trials if family not in set(finished)]
    begun = {family: len(counted(trials[family])) for family in trials}
    if budget is not None and sum(begun.values()) >= budget:
        return None
    if again:  # its place in the budget is its own
        return again[0]
    if not left:
        return None
    share = max(1, (budget or 0) // 2 // len(trials))
    half_is_over = time_share >= 0.5 if budget is None else all(begun[family] >= share for family in left)
    if leader and half_is_over:
        values = {family: best_value(trials[family], direction) for family in left}
        leaders = [(value, family) for family, value in values.items() if value is not None]
        if leaders:
            top = (max if direction == "maximize" else min)(value for value, _ in leaders)
            return next(family for value, family in leaders if value == top)
    if budget is None:
        used = {family: seconds_used(trials[family]) for family in left}
        return min(left, key=lambda family: (begun[family] > 0, used[family]))
    return min(left, key=lambda family: begun[family])


def is_done(trials: Mapping[str, Sequence[FrozenTrial]], finished: Iterable[str], budget: int | None) -> bool:
    """Whether no trial runs and none is to come."""
    every = {family: states(found) for family, found in trials.items()}
    if any("running" in found for found in every.values()):
        return False
    used = Counter(state for found in every.values() for state in found)
    if budget is not None and sum(used[state] for state in COUNTED) >= budget:
        return True
    return set(trials) <= set(finished)


def is_surplus(mine: FrozenTrial, family: str, trials: Mapping[str, Sequence[FrozenTrial]], budget: int | None) -> bool:
    """Whether a trial is over the budget: as many others have ended, or were begun before it."""
    if budget is None:
        return False
    others = [
        trial
        for name, found in trials.items()
        for trial in counted(found)
        if (name, trial.number) != (family, mine.number)
        and (trial.state.is_finished() or trial._trial_id < mine._trial_id)
    ]
    return len(others) >= budget


def table(
    trials: Mapping[str, Sequence[FrozenTrial]], spaces: Mapping[str, Space], objectives: Sequence[str]
) -> pd.DataFrame:
    """One row a trial; see `Sweep.table`."""
    now = datetime.now()
    starts = [trial.datetime_start for found in trials.values() for trial in found if trial.datetime_start]
    first = min(starts, default=now)
    fields = list(dict.fromkeys(name for space in spaces.values() for name in space.ranges))
    rows = []
    for family, found in trials.items():
        for trial, state in zip(found, states(found), strict=True):
            stored = trial.params or trial.system_attrs.get("fixed_params", {})
            values = spaces[family].load(stored)
            rows.append(
                {
                    **_row(family, trial, state, now, first),
                    **dict(zip(objectives, trial.values or [math.nan] * len(objectives), strict=True)),
                    **{name: values.get(name) for name in fields},
                }
            )
    head, tail = COLUMNS[:3], COLUMNS[3:]
    frame = pd.DataFrame(rows, columns=pd.Index([*head, *objectives, *tail, *fields]))
    numbers = dict.fromkeys([*objectives, "started", "seconds"], "float64")
    texts = dict.fromkeys(["family", "state", "worker", "run_id", "reason", "curve", *fields], "object")
    frame = frame.astype({**numbers, "number": "int64", "epochs": "Int64"})
    for name in texts:  # pandas would make texts of its own kind, and NaN of None
        frame[name] = pd.Series([row[name] for row in rows], dtype=object, index=frame.index)
    return frame


def _row(family: str, trial: FrozenTrial, state: str, now: datetime, first: datetime) -> dict[str, Any]:
    curve = trial.intermediate_values or {int(k): v for k, v in trial.user_attrs.get(CURVE, {}).items()}
    steps = sorted(curve)
    started = math.nan if trial.datetime_start is None else (trial.datetime_start - first).total_seconds()
    return {
        "family": family,
        "number": trial.number,
        "state": state,
        "started": started,
        "seconds": seconds(trial, now),
        "worker": trial.user_attrs.get(WORKER),
        "run_id": trial.user_attrs.get("run_id"),
        "reason": reason(trial, state),
        "epochs": steps[-1] if steps else None,
        "curve": [curve[step] for step in steps],
    }


def reason(trial: FrozenTrial, state: str) -> str | None:
    """Why a trial ended as it did, in words; None where it needs none."""
    if REASON in trial.user_attrs:
        return str(trial.user_attrs[REASON])
    if state == "duplicate":
        return f"the parameters of trial {trial.user_attrs[DUPLICATE_OF]}"
    if state == "surplus":
        return str(trial.user_attrs[SURPLUS])
    return "its process ended without a word" if state in ("failed", "requeued") else None
