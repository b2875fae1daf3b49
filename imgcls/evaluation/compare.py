"""Several trainings side by side: what differs between them, their figures, and whether those differ for sure."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from imgcls.errors import UserError
from imgcls.evaluation.intervals import Interval, bootstrap, holm, labelled, mcnemar, paired_bootstrap, wilson
from imgcls.evaluation.metrics import per_class_table
from imgcls.tables import History, Predictions

FIGURES = ("best/val_acc", "best/val_f1", "best/val_loss", "test/acc", "test/f1", "speed/images_per_s", "seconds")
"""Compared where a run has them."""
BEST = "best/val_acc"
LEVEL = 0.05
"""Below it a p-value, made larger for the number of tests, is called a difference."""


@dataclass(frozen=True)
class Entry:
    """One training.

    Attributes:
        run_id: its id.
        name: what it is called here; no two are called alike.
        params: the recipe's fields, as text.
        figures: of FIGURES those that it has.
        history: its epochs, or None.
        predictions: split -> predictions, of the splits that it has any for.
    """

    run_id: str
    name: str
    params: Mapping[str, str]
    figures: Mapping[str, float]
    history: History | None = None
    predictions: Mapping[str, Predictions] = field(default_factory=dict)


@dataclass(frozen=True)
class Significance:
    """Whether others differ from the best, on the validation images.

    Attributes:
        best: the run that the others are held against; "" where there is none.
        table: a row another run: run, behind (the best's accuracy less its own), low, high (the 95 % interval of
            that), mcnemar, mcnemar_holm, bootstrap, bootstrap_holm (p-values, and those made larger for their number).
        notes: which runs are not in it, and why.
    """

    best: str
    table: pd.DataFrame
    notes: tuple[str, ...]


def differing_params(entries: Sequence[Entry]) -> list[str]:
    """The fields that have not the same value in all runs, in the order of the first run that has them."""
    names = list(dict.fromkeys(name for entry in entries for name in entry.params))
    return [name for name in names if len({_normal(entry.params.get(name)) for entry in entries}) > 1]


def _normal(text: str | None) -> str | float | None:
    """1e-3 and 0.001 are the same, and so are the quotes that `mlflow run` puts around a value."""
    if text is None:
        return None
    try:
        words = shlex.split(text) if text.startswith("'") else [text]
        bare = words[0] if len(words) == 1 else text
    except ValueError:
        bare = text
    try:
        return float(bare)
    except ValueError:
        return bare


def comparison(entries: Sequence[Entry]) -> pd.DataFrame:
    """One row a run: run, run_id, the params that differ, and figures; accuracies and F1 with `<figure>_low` and
    `_high`, their 95 % intervals, where there are predictions (Wilson's for accuracies, the bootstrap's for F1)."""
    rows = []
    params = differing_params(entries)
    for entry in entries:
        row: dict[str, object] = {"run": entry.name, "run_id": entry.run_id}
        row |= {name: entry.params.get(name) for name in params}
        bounds = intervals_of(entry)
        for name in FIGURES:
            low, high = bounds.get(name, (np.nan, np.nan))
            row |= {name: entry.figures.get(name, np.nan), f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    table = pd.DataFrame(rows)
    empty = [name for name in table.columns[2 + len(params) :] if table[name].isna().all()]
    return table.drop(columns=empty)


def intervals_of(entry: Entry) -> dict[str, Interval]:
    """The 95 % intervals of those figures that the run has predictions for."""
    found: dict[str, Interval] = {}
    for split, prefix in (("val", "best/val_"), ("test", "test/")):
        predictions = entry.predictions.get(split)
        if predictions is None or not (predictions.labels >= 0).any():
            continue
        known = labelled(predictions)
        if f"{prefix}acc" in entry.figures:
            found[f"{prefix}acc"] = wilson(int((known.predicted == known.labels).sum()), len(known.ids))
        if f"{prefix}f1" in entry.figures:
            found[f"{prefix}f1"] = bootstrap(known, ["f1"])["f1"]
    return found


def why_not_paired(a: Predictions, b: Predictions) -> str | None:
    """Why two predictions cannot be held against each other image by image; None where they can."""
    if not a.manifest_digest or a.manifest_digest != b.manifest_digest:
        return f"their data sets differ (digests {a.manifest_digest or 'unknown'} and {b.manifest_digest or 'unknown'})"
    if set(a.ids) != set(b.ids):
        shared = len(set(a.ids) & set(b.ids))
        return (
            f"they are of other images: {shared:,} of {len(a.ids):,} and {len(b.ids):,} are the same "
            "(another split or seed)"
        )
    if a.classes != b.classes or not np.array_equal(a.labels, in_order_of(b, a).labels):
        return "the same images have other labels"
    return None


def in_order_of(predictions: Predictions, other: Predictions) -> Predictions:
    """The same predictions with the images in the order of another's, which has the same."""
    if predictions.ids == other.ids:
        return predictions
    place = {name: row for row, name in enumerate(predictions.ids)}
    rows = np.array([place[name] for name in other.ids], dtype=np.int64)
    return Predictions(
        list(other.ids),
        predictions.probs[rows],
        predictions.labels[rows],
        predictions.classes,
        predictions.split,
        predictions.manifest_digest,
    )


def in_classes_of(predictions: Predictions, other: Predictions) -> Predictions:
    """The same predictions with the classes in another's order, where it has the same ones."""
    if predictions.classes == other.classes or sorted(predictions.classes) != sorted(other.classes):
        return predictions
    columns = np.array([predictions.classes.index(name) for name in other.classes])
    places = np.argsort(columns)
    labels = np.where(predictions.labels < 0, -1, places[predictions.labels]).astype(np.int64)
    return replace(predictions, probs=predictions.probs[:, columns], labels=labels, classes=other.classes)


def class_changes(challenger: Predictions, champion: Predictions) -> pd.DataFrame:
    """One row a class with images, the greatest fall of the recall first.

    Columns: class, support, recall, champion_recall, difference (of the two, 0..1), mcnemar (two-sided p-value), holm
    (the same, corrected for the number of classes). Images without a label are left out.

    Args:
        challenger: its predictions.
        champion: those of the champion for the same images and classes, both in any order.

    Raises:
        UserError: no image has a label.
    """
    a = labelled(challenger)
    b = labelled(in_order_of(in_classes_of(champion, challenger), challenger))
    tables = [per_class_table(one) for one in (a, b)]
    right_a, right_b = a.predicted == a.labels, b.predicted == b.labels
    p_values = [mcnemar(right_a[a.labels == k], right_b[a.labels == k]) for k in range(len(a.classes))]
    table = tables[0][["class", "support", "recall"]].assign(champion_recall=tables[1]["recall"])
    table["difference"] = table["recall"] - table["champion_recall"]
    table = table.assign(mcnemar=p_values)[table["support"] > 0]
    table["holm"] = holm(table["mcnemar"].to_numpy(dtype=np.float64))
    return table.sort_values("difference", kind="stable").reset_index(drop=True)


def significance(entries: Sequence[Entry]) -> Significance:
    """Hold each run against the one with the best validation accuracy: McNemar's exact test and the paired bootstrap,
    each p-value corrected by Holm for the number of runs. Only runs on the very same images are."""
    notes = []
    able = []
    for entry in entries:
        predictions = entry.predictions.get("val")
        if predictions is None:
            notes.append(f"{entry.name} has no predictions for validation images: no interval, and no test against it.")
        elif not (predictions.labels >= 0).any():
            notes.append(f"{entry.name} has predictions without any label: no interval, and no test against it.")
        else:
            able.append((entry, predictions))
    columns = ["run", "behind", "low", "high", "mcnemar", "mcnemar_holm", "bootstrap", "bootstrap_holm"]
    if not able:
        return Significance("", pd.DataFrame(columns=columns), tuple(notes))
    best, best_predictions = max(able, key=lambda pair: pair[0].figures.get(BEST, _accuracy(pair[1])))
    rows: list[list[object]] = []
    for entry, predictions in able:
        if entry is best:
            continue
        if (reason := why_not_paired(best_predictions, predictions)) is not None:
            notes.append(f"{entry.name} cannot be tested against {best.name}: {reason}.")
            continue
        a, b = labelled(best_predictions), labelled(in_order_of(predictions, best_predictions))
        gap = paired_bootstrap(a, b)
        p = mcnemar(a.predicted == a.labels, b.predicted == b.labels)
        rows.append([entry.name, gap.difference, gap.low, gap.high, p, np.nan, gap.p, np.nan])
    table = pd.DataFrame(rows, columns=columns)
    for name in ("mcnemar", "bootstrap"):
        table[f"{name}_holm"] = holm(table[name].to_numpy(dtype=np.float64))
    return Significance(best.name, table, tuple(notes))


def _accuracy(predictions: Predictions) -> float:
    known = labelled(predictions)
    return float((known.predicted == known.labels).mean())


def conclusion(found: Significance) -> str:
    """What the tests say, in words; "" where there is none."""
    if found.table.empty:
        return ""
    worse = found.table[found.table["mcnemar_holm"] < LEVEL]
    if len(worse) == len(found.table):
        return f"{found.best} is better than all others tested (McNemar, Holm-corrected p < {LEVEL})."
    rest = [str(name) for name in found.table["run"] if name not in set(worse["run"])]
    shown = ", ".join(rest[:5]) + (" …" if len(rest) > 5 else "")
    return f"Not told apart from {found.best} on these images (McNemar, Holm-corrected p >= {LEVEL}): {shown}."


def check_comparable(entries: Sequence[Entry]) -> None:
    """Whether there is anything to compare.

    Raises:
        UserError: fewer than two runs, or none with a figure of a training.
    """
    if len(entries) < 2:
        names = f"the run {entries[0].run_id}" if entries else "no run"
        raise UserError(f"found {names} to compare; expected two or more different runs, or a sweep with as many.")
    if not any(name in entry.figures for entry in entries for name in FIGURES[:5]):
        raise UserError(
            f"none of the {len(entries)} runs has a figure to compare; expected trainings or evaluations, with "
            f"{', '.join(FIGURES[:4])}."
        )
