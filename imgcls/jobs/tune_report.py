"""What a sweep's run shows: the leaderboard, figures and best parameters, written anew while the sweep goes on."""

import time
from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import Any

import pandas as pd
import yaml

from imgcls.evaluation import plots
from imgcls.evaluation.leaderboard import leaderboard, leaderboard_markdown, trial_name
from imgcls.evaluation.plots import sweep as sweep_plots
from imgcls.evaluation.plots import sweep_fields
from imgcls.tracking.run import TrackedRun
from imgcls.tuning.sweep import Sweep

LEAST_S = 15.0
"""Seconds between two times that all is written, at least."""
MOST_SHARE = 0.05
"""What writing may take of a sweep's time."""
_OF_ONE = {
    "history": sweep_plots.optimisation_history,
    "parallel": sweep_fields.parallel_coordinates,
    "slices": sweep_fields.slices,
    "families": sweep_plots.families,
}
"""The figures of one objective."""
METRICS = {"val/acc": "best/val_acc", "val/f1": "best/val_f1", "val/loss": "best/val_loss"}


class Report:
    """Writes into the sweep's run.

    Args:
        run: the run.
        sweep: the sweep.

    Attributes:
        overheads: seconds outside of training of trials, but for each worker's first.
    """

    def __init__(self, run: TrackedRun, sweep: Sweep) -> None:
        self._run, self._sweep = run, sweep
        self.objectives = sweep.search.objectives
        self.overheads: list[float] = []
        self._next, self._ended = 0.0, -1

    def write_if_due(self, table: pd.DataFrame) -> None:
        """Write where trials have ended since, and not too soon after the last time."""
        if time.monotonic() >= self._next:
            self.write(table)

    def write(self, table: pd.DataFrame, *, final: bool = False) -> None:
        """Write all, where trials have ended since; the figures of the end also where none has."""
        ended = int(table["state"].isin(["complete", "pruned", "failed"]).sum())
        if ended == self._ended and not final:
            return
        began, self._ended = time.monotonic(), ended
        self._log_tables(table)
        for name, draw in self._figures(table).items():
            plots.save(draw(), self._run.file(f"plots/{name}.png"))
            self._run.log_file(f"plots/{name}.png")
        self._log_best(table, ended)
        took = time.monotonic() - began
        self._next = time.monotonic() + max(LEAST_S, took / MOST_SHARE)

    def in_words(self, table: pd.DataFrame) -> list[str]:
        """The end of the sweep in lines: the best trial of each family, and what the sweep itself took."""
        lines = []
        for family in self._sweep.families:
            best = self._sweep.best(family)
            count = int(((table["family"] == family) & table["state"].isin(["complete", "pruned", "failed"])).sum())
            what = "no complete trial" if best is None else self._trial_in_words(best)
            lines.append(f"{family}: {count} trials, {what}")
        if self.overheads:
            lines.append(f"outside of training: {fmean(self.overheads):.2f} s a trial after each worker's first")
        return lines

    def _trial_in_words(self, row: dict[str, Any]) -> str:
        values = ", ".join(f"{name} {_short(row[name])}" for name in self._sweep.spaces[row["family"]].ranges)
        figures = ", ".join(f"{name} {row[name]:.4f}" for name in self.objectives)
        return f"best {trial_name(row['family'], row['number'])} with {figures} ({values})"

    def _log_tables(self, table: pd.DataFrame) -> None:
        self._run.log_text(leaderboard(table).to_csv(index=False), "leaderboard.csv")
        self._run.log_text(leaderboard_markdown(table), "leaderboard.md")
        self._run.log_text(table.to_csv(index=False), "tables/trials.csv")

    def _figures(self, table: pd.DataFrame) -> dict[str, Callable[[], Any]]:
        figures: dict[str, Callable[[], Any]] = {}
        for objective in self.objectives:
            after = "" if objective == self.objectives[0] else "_" + objective.replace("/", "_")
            for name, draw in _OF_ONE.items():
                figures[name + after] = partial(draw, table, objective)
        if len(self.objectives) > 1:
            figures["pareto"] = partial(sweep_plots.pareto, table, self.objectives)
        known = {family: self._sweep.importance(family) for family in self._sweep.families}
        shares = {family: found[0] for family, found in known.items() if found is not None}
        if shares:
            evaluator = next(found[1] for found in known.values() if found is not None)
            figures["importance"] = partial(sweep_fields.importance, shares, evaluator)
        return figures

    def _log_best(self, table: pd.DataFrame, ended: int) -> None:
        best, step = self._sweep.best(), ended
        states = table["state"].value_counts()
        figures = {f"sweep/{state}": float(states.get(state, 0)) for state in ("complete", "pruned", "failed")}
        if self.overheads:
            figures["sweep/overhead_s"] = fmean(self.overheads)
        if best is not None:
            figures |= {METRICS.get(name, f"best/{name.replace('/', '_')}"): best[name] for name in self.objectives}
            values = {name: best[name] for name in self._sweep.spaces[best["family"]].ranges if best[name] is not None}
            chosen = {"model.family": best["family"], **values}
            self._run.log_text(yaml.safe_dump(chosen, sort_keys=False), "best_params.yaml")
            tags = {f"imgcls.best.{name}": _short(value) for name, value in chosen.items()}
            name = trial_name(best["family"], best["number"])
            self._run.set_tags({**tags, "imgcls.best_run_id": best["run_id"], "imgcls.best_trial": name})
        self._run.log_metrics(figures, step=step)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
