"""What a sweep's table of trials says: who leads, how the best value came about, which trials no other one beats.

The table has one row a trial: `family`, `number` (within the family), `state` (see STATES), a column an objective
(NaN where there is none), `started` (s since the sweep's first start), `seconds`, `worker`, `run_id`, `reason`,
`epochs`, `curve` (the values it reported), then a column a searched field by its dotted name (None where inactive).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from imgcls.evaluation.markdown import markdown

STATES = ("complete", "pruned", "failed", "running", "waiting", "duplicate", "surplus", "requeued")
BEFORE_OBJECTIVES, AFTER_OBJECTIVES, BEFORE_FIELDS = "state", "started", "curve"
"""Columns between which those of the objectives stand, and after which those of the searched fields."""
MINIMISED = frozenset({"val/loss"})
"""The objectives that are better where they are less; all others are better where they are more."""
MOST_ROWS = 20
"""Trials in the Markdown."""

Floats = npt.NDArray[np.float64]


def objectives_of(table: pd.DataFrame) -> list[str]:
    """The columns that are objectives."""
    names = [str(name) for name in table.columns]
    return names[names.index(BEFORE_OBJECTIVES) + 1 : names.index(AFTER_OBJECTIVES)]


def fields_of(table: pd.DataFrame) -> list[str]:
    """The columns that are searched fields."""
    names = [str(name) for name in table.columns]
    return names[names.index(BEFORE_FIELDS) + 1 :]


def is_minimised(objective: str) -> bool:
    """Whether less is better."""
    return objective in MINIMISED


def values_of(table: pd.DataFrame, objective: str) -> Floats:
    """(N,) values, NaN where there is none or it is infinite."""
    values = pd.to_numeric(table[objective], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    found: Floats = np.where(np.isfinite(values), values, np.nan)
    return found


def finished(table: pd.DataFrame, *objectives: str) -> pd.DataFrame:
    """The complete trials with a value of each of these objectives (finite numbers), in the table's order."""
    kept = (table["state"] == "complete").to_numpy()
    for objective in objectives:
        kept = kept & ~np.isnan(values_of(table, objective))
    return table[kept]


def trial_name(family: str, number: int) -> str:
    """How a trial is called, such as mobilenet_v2/017."""
    return f"{family}/{number:03d}"


def leaderboard(table: pd.DataFrame) -> pd.DataFrame:
    """All trials that have something to say, the best first.

    Complete trials are ranked by the first objective (equals by the number of seconds); after them come the pruned,
    failed and unfinished ones without a rank, and duplicates, in the order of their start. Columns: rank (<NA> where
    there is none), trial, state, objectives, epochs, seconds, searched fields, reason, run_id; of several objectives
    also `front`, whether it is one of `pareto`.
    """
    objectives, fields = objectives_of(table), fields_of(table)
    first = objectives[0]
    ranked = finished(table, first)
    keys = values_of(ranked, first) * (1 if is_minimised(first) else -1)
    seconds = pd.to_numeric(ranked["seconds"], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    ranked = ranked.iloc[np.lexsort((seconds, keys))]
    rest = table.drop(index=ranked.index)
    rest = rest[~rest["state"].isin(["waiting", "surplus"])].sort_values("started", kind="stable")
    both = pd.concat([part for part in (ranked, rest) if len(part)]) if len(ranked) + len(rest) else table.iloc[:0]
    names = [trial_name(str(f), int(n)) for f, n in zip(both["family"], both["number"], strict=True)]
    columns = ["state", *objectives, "epochs", "seconds", *fields, "reason", "run_id"]
    board = both[columns].copy()
    board.insert(0, "trial", names)
    ranks = [*range(1, len(ranked) + 1), *[None] * len(rest)]
    board.insert(0, "rank", pd.Series(ranks, index=board.index, dtype="Int64"))
    if len(objectives) > 1:
        front = set(pareto(table, objectives).index)
        board.insert(3, "front", [index in front for index in both.index])
    return board.reset_index(drop=True)


def leaderboard_markdown(table: pd.DataFrame, *, most: int = MOST_ROWS) -> str:
    """The best trials as a Markdown table, under a line that counts all of them by their state."""
    board = leaderboard(table)
    counts = table["state"].value_counts()
    states = [f"{counts[state]} {state}" for state in STATES if state in counts.index]
    headline = f"{len(table)} trials: {', '.join(states)}.\n" if len(table) else "No trial yet.\n"
    shown = board[board["rank"].notna()].head(most)
    if shown.empty:
        return headline + "\nNo trial is complete yet.\n"
    if len(shown) < int(board["rank"].notna().sum()):
        headline += f"\nThe best {len(shown)}:\n"
    columns = [name for name in shown.columns if name not in ("state", "reason")]
    shown = shown[columns].assign(seconds=[round(float(value)) for value in shown["seconds"].fillna(0)])
    accuracies = {name: ".4f" for name in columns if name.startswith("val/")}
    return f"{headline}\n{markdown(shown, formats=accuracies)}"


def best_so_far(table: pd.DataFrame, objective: str) -> pd.DataFrame:
    """The complete trials in the order in which they ended, with the best value up to each.

    Columns: `order` (from 1), `ended` (s since the sweep's first start), `family`, `number`, `value`, `best`.
    """
    done = finished(table, objective)
    ended = done["started"].to_numpy(dtype=np.float64) + done["seconds"].to_numpy(dtype=np.float64)
    done = done.iloc[np.argsort(ended, kind="stable")]
    values = values_of(done, objective)
    best = np.minimum.accumulate(values) if is_minimised(objective) else np.maximum.accumulate(values)
    return pd.DataFrame(
        {
            "order": np.arange(1, len(done) + 1),
            "ended": np.sort(ended, kind="stable"),
            "family": done["family"].to_numpy(),
            "number": done["number"].to_numpy(),
            "value": values,
            "best": best,
        }
    )


def pareto(table: pd.DataFrame, objectives: Sequence[str]) -> pd.DataFrame:
    """The complete trials that no other one beats, the best in the first objective first.

    A trial beats another where it is better in one objective and no worse in any; of equals all stay.
    """
    done = finished(table, *objectives)
    signs = [-1.0 if is_minimised(name) else 1.0 for name in objectives]
    points = np.stack([sign * values_of(done, name) for sign, name in zip(signs, objectives, strict=True)], axis=1)
    beaten = [bool(((points >= point).all(axis=1) & (points > point).any(axis=1)).any()) for point in points]
    kept = np.flatnonzero(~np.array(beaten, dtype=bool))
    return done.iloc[kept[np.argsort(-points[kept, 0], kind="stable")]]
