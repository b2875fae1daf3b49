"""The verb `compare`: several runs, or the best trials of sweeps, side by side. It makes no run."""

import json
import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from imgcls.errors import UserError
from imgcls.evaluation import plots
from imgcls.evaluation.compare import (
    BEST,
    FIGURES,
    Entry,
    Significance,
    check_comparable,
    comparison,
    conclusion,
    differing_params,
    significance,
)
from imgcls.evaluation.markdown import NOTHING, aligned, formatted, markdown, value_text
from imgcls.evaluation.plots.base import short
from imgcls.jobs.console import Console
from imgcls.recipe import Recipe
from imgcls.tables import History, Predictions
from imgcls.tracking.read import FoundRun, finished_trials, read_history, read_predictions, read_run
from imgcls.tracking.store import MissingArtifact, Store, connect

MOST_TRIALS = 10
"""Of a sweep, the best."""
MOST_COLUMNS = 8
"""Runs beside each other on a terminal; more go below."""
LONGEST = 28
"""Characters of a value on a terminal."""
FOLDER = Path("compare")
TABLE, REPORT, CURVES = "compare.csv", "compare.md", "curves.png"
SIGN = "<!-- made by imgcls compare -->"
"""The report's first line, by which the folder is known as one that may be written again."""
FORMATS = dict.fromkeys(("behind", "low", "high"), "+.4f") | dict.fromkeys(
    ("mcnemar", "mcnemar_holm", "bootstrap", "bootstrap_holm"), ".3g"
)


@dataclass(frozen=True)
class CompareResult:
    """What a comparison gives.

    Attributes:
        table: a row a run, the best validation accuracy first; see `evaluation.compare.comparison`.
        significance: whether the others differ from the best.
        notes: what a reader has to know of the runs.
        files: what was written.
    """

    table: pd.DataFrame
    significance: Significance
    notes: tuple[str, ...]
    files: tuple[Path, ...]


def run_compare(
    targets: Sequence[str], console: Console, *, output: Path | None = None, as_json: bool = False
) -> CompareResult:
    """Compare runs: the params that differ, figures with intervals, significance, curves.

    Args:
        targets: run ids, runs:/<run id>, or sweeps, which stand for their 10 best finished trials.
        console: where it is told.
        output: the folder for compare.csv, compare.md and curves.png; None is `compare` in the current one.
        as_json: print the result as JSON on the standard output.

    Raises:
        UserError: a target is no run that can be read, there are fewer than two, or the folder has files of these names
            that are not an earlier comparison's.
    """
    folder = (FOLDER if output is None else output).absolute()
    check_folder(folder)
    store = connect()
    notes: list[str] = []
    runs = collect(store, targets, notes)
    entries = [_entry(store, run, name, notes) for run, name in zip(runs, _names(runs), strict=True)]
    check_comparable(entries)
    entries.sort(key=lambda entry: -entry.figures.get(BEST, -math.inf))
    table, found = comparison(entries), significance(entries)
    notes += found.notes
    figure = plots.compared_curves({entry.name: entry.history for entry in entries if entry.history is not None})
    texts = {TABLE: table.to_csv(index=False), REPORT: _report(table, found, notes)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        plots.save(figure, folder / CURVES)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}. Name another with --output.") from error
    result = CompareResult(table, found, tuple(notes), tuple(folder / name for name in (TABLE, REPORT, CURVES)))
    if as_json:
        sys.stdout.write(json.dumps(_as_json(result, entries), indent=1) + "\n")
    console.say(as_text(result, differing_params(entries)))
    console.say(f"saved in {folder}: {', '.join(path.name for path in result.files)}")
    return result


def check_folder(folder: Path) -> None:
    """Whether the three files may be written there: nothing is written over that another made.

    Raises:
        UserError: they may not.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; expected a folder for the comparison. Name another with --output.")
    there = [name for name in (TABLE, REPORT, CURVES) if (folder / name).exists()]
    if not there:
        return
    try:
        ours = (folder / REPORT).read_text(encoding="utf-8").startswith(SIGN)
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise UserError(
            f"{folder} has {', '.join(there)}, which no earlier comparison made ({REPORT} would begin with {SIGN}). "
            "Move them away, or name another folder with --output."
        )


def collect(store: Store, targets: Sequence[str], notes: list[str]) -> list[FoundRun]:
    """The runs of the targets, each once; sweeps are their best trials. Adds to the notes what is to be known.

    Raises:
        UserError: a target is no run that can be read, or a sweep without a finished trial.
    """
    found: dict[str, FoundRun] = {}
    for target in targets:
        run = read_run(store, target)
        if not run.is_sweep:
            found.setdefault(run.run_id, run)
            if run.status != "FINISHED":
                notes.append(f"{run.name} is {run.status}: its figures are those up to now or to its end.")
            continue
        trials = finished_trials(store, run)
        if not trials:
            raise UserError(
                f"the sweep {run.run_id} ({run.name}) has no finished trial to compare. Wait for one, or see in "
                "`imgcls ui` why its trials failed."
            )
        shown = f"the best {MOST_TRIALS} of" if len(trials) > MOST_TRIALS else "all of"
        notes.append(
            f"{run.name} is a sweep: {shown} its {len(trials)} finished trials are shown. The best of many is too good "
            "by chance: its accuracy on images that chose nothing will be lower."
        )
        found |= {trial.run_id: trial for trial in trials[:MOST_TRIALS] if trial.run_id not in found}
    return list(found.values())


def _names(runs: Sequence[FoundRun]) -> list[str]:
    """Each run's name, with the beginning of its id where two are called alike."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} ({run.run_id[:8]})" for run, name in zip(runs, names, strict=True)
    ]


def _entry(store: Store, run: FoundRun, name: str, notes: list[str]) -> Entry:
    sections = tuple(f"{section}." for section in Recipe.model_fields)
    params = {field: text for field, text in run.params.items() if field.startswith(sections)}
    figures = {figure: run.metrics[figure] for figure in FIGURES if figure in run.metrics}
    if run.seconds is not None:
        figures["seconds"] = run.seconds
    predictions: dict[str, Predictions] = {}
    for split in ("val", "test"):
        with suppress(MissingArtifact):
            predictions[split] = read_predictions(store, run, split)
    history: History | None = None
    with suppress(MissingArtifact):
        history = read_history(store, run)
    if history is None:
        notes.append(f"{name} has no history.json: it has no curve.")
    return Entry(run.run_id, name, params, figures, history, predictions)


def as_text(result: CompareResult, params: Sequence[str]) -> str:
    """The comparison for a terminal: runs beside each other, then the tests, then the notes."""
    table = result.table
    numbers = [str(k + 1) for k in range(len(table))]
    lines = [aligned([*zip(numbers, table["run"], table["run_id"], strict=True)], left=(0, 1, 2))]
    for begin in range(0, len(table), MOST_COLUMNS):
        part = table.iloc[begin : begin + MOST_COLUMNS]
        rows = [["", *numbers[begin : begin + MOST_COLUMNS]]]
        rows += [[name, *(short(value_text(value), LONGEST) for value in part[name])] for name in params]
        for name in [name for name in FIGURES if name in table.columns]:
            rows.append([name, *(formatted(value, _form(name)) for value in part[name])])
            if f"{name}_low" in table.columns:
                bounds = zip(part[f"{name}_low"], part[f"{name}_high"], strict=True)
                rows.append(["  95 % interval", *(_interval(low, high) for low, high in bounds)])
        lines.append(aligned(rows))
    if not params:
        lines.append("No field of the recipe differs.\n")
    found = result.significance
    if len(found.table):
        place = dict(zip(table["run"], numbers, strict=True))
        rows = [
            ["run", f"behind {place[found.best]} by", "95 % interval", "McNemar p", "(Holm)", "bootstrap p", "(Holm)"]
        ]
        for row in found.table.to_dict("records"):
            values = [format(row[name], ".3g") for name in ("mcnemar", "mcnemar_holm", "bootstrap", "bootstrap_holm")]
            gap = f"{row['behind']:+.4f}"
            rows.append([place[row["run"]], gap, _interval(row["low"], row["high"], sign="+"), *values])
        lines.append(f"val acc, on the same images:\n{aligned(rows)}{conclusion(found)}\n")
    lines += [f"note: {note}\n" for note in result.notes]
    return "\n".join(lines).rstrip("\n")


def _form(figure: str) -> str:
    return ",.0f" if figure.startswith("speed/") else ",.1f" if figure == "seconds" else ".4f"


def _interval(low: float, high: float, *, sign: str = "") -> str:
    return NOTHING if math.isnan(low) else f"{low:{sign}.4f} to {high:{sign}.4f}"


def _report(table: pd.DataFrame, found: Significance, notes: Sequence[str]) -> str:
    figures = [name for name in FIGURES if name in table.columns]
    shown = table.copy()
    for name in figures:
        if f"{name}_low" in shown.columns:
            bounds = zip(shown.pop(f"{name}_low"), shown.pop(f"{name}_high"), strict=True)
            shown.insert(list(shown.columns).index(name) + 1, f"95 % of {name}", [_interval(*pair) for pair in bounds])
    parts = [
        f"{SIGN}\n# {len(table)} runs compared\n",
        markdown(shown, formats={name: _form(name) for name in figures}),
    ]
    if len(found.table):
        parts.append(f"## Validation accuracy, on the same images, held against {found.best}\n")
        parts.append(markdown(found.table, formats=FORMATS))
        parts.append(
            "`behind`: the accuracy of the best run less this one's, with its 95 % interval (paired bootstrap). "
            "p-values: McNemar's exact test and the paired bootstrap, `_holm` corrected for the number of runs.\n"
        )
        parts.append(f"{conclusion(found)}\n")
    if notes:
        parts.append("".join(f"- {note}\n" for note in notes))
    parts.append(f"![curves]({CURVES})\n")
    return "\n".join(parts)


def _as_json(result: CompareResult, entries: Sequence[Entry]) -> dict[str, Any]:
    params = differing_params(entries)
    rows = [{str(k): _json_value(v) for k, v in row.items()} for row in result.table.to_dict("records")]
    tests = [{str(k): _json_value(v) for k, v in row.items()} for row in result.significance.table.to_dict("records")]
    return {
        "params": params,
        "runs": rows,
        "best": result.significance.best,
        "significance": tests,
        "notes": list(result.notes),
        "files": [str(path) for path in result.files],
    }


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
