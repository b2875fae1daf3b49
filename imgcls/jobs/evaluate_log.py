"""What an evaluation writes into its run: figures with intervals, tables, plots, a report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from imgcls.data.decode import Pixels
from imgcls.evaluation import plots
from imgcls.evaluation.classes import class_table, confused_pairs, easiest, hardest
from imgcls.evaluation.confidence import coverage_table, mistakes, reliability_table
from imgcls.evaluation.intervals import Interval, labelled
from imgcls.evaluation.markdown import markdown
from imgcls.evaluation.metrics import confusion_matrix
from imgcls.evaluation.scores import score_intervals, scores
from imgcls.jobs.console import Console
from imgcls.tables import Predictions
from imgcls.tracking.run import TrackedRun

NUM_PAIRS, NUM_ENDS, NUM_SHOWN = 100, 10, 24
FORMATS = dict.fromkeys(("value", "low", "high", "precision", "recall", "f1", "auc", "share"), ".4f")
ABOUT = {
    "acc": "accuracy", "balanced_acc": "balanced accuracy (mean recall)", "precision": "precision, macro",
    "recall": "recall, macro", "f1": "F1, macro",
    "precision_micro": "precision, micro", "recall_micro": "recall, micro",
    "f1_micro": "F1, micro", "precision_weighted": "precision, weighted by support",
    "recall_weighted": "recall, weighted by support", "f1_weighted": "F1, weighted by support",
    "kappa": "Cohen's kappa", "mcc": "Matthews' correlation", "loss": "log loss (nats)",
    "brier": "Brier score (0..2)", "ece": "expected calibration error (15 bins)",
    "auc": "ROC AUC, macro, one against the rest", "ap": "average precision, macro",
}  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """What a set of predictions is worth.

    Attributes:
        figures: name -> value: see `evaluation.scores.scores`.
        intervals: name -> 95 % bootstrap interval.
    """

    figures: dict[str, float]
    intervals: dict[str, Interval]

    @property
    def table(self) -> pd.DataFrame:
        """One row a figure: figure, value, low, high, about."""
        rows = [
            [name, value, *self.intervals.get(name, (float("nan"), float("nan"))), describe(name)]
            for name, value in self.figures.items()
        ]
        return pd.DataFrame(rows, columns=["figure", "value", "low", "high", "about"])

    def metrics(self, split: str) -> dict[str, float]:
        """The names of MLflow's metrics: `<split>/<figure>`, and `_low` and `_high` of each."""
        found = {f"{split}/{name}": value for name, value in self.figures.items()}
        for name, (low, high) in self.intervals.items():
            found |= {f"{split}/{name}_low": low, f"{split}/{name}_high": high}
        return found


def describe(name: str) -> str:
    """A figure's name in words."""
    if name.startswith("top") and name.endswith("_acc"):
        return f"accuracy of the {name[3:-4]} most probable classes"
    return ABOUT[name]


def evaluate_predictions(predictions: Predictions, *, top_k: int) -> Evaluation:
    """All figures and their intervals; equal predictions give equal ones, to the last bit.

    Raises:
        UserError: no image has a label, or a probability is no number.
    """
    return Evaluation(scores(predictions, top_k=top_k), score_intervals(predictions, top_k=top_k))


def log_evaluation(
    run: TrackedRun,
    predictions: Predictions,
    evaluation: Evaluation,
    console: Console,
    *,
    name: str,
    about: Mapping[str, str],
    pixels: Callable[[str], Pixels] | None,
) -> None:
    """Log predictions, tables, plots and a report of all.

    Args:
        run: where.
        predictions: of a split.
        evaluation: their figures.
        console: shows progress.
        name: what was evaluated, for titles.
        about: what the report says of it first.
        pixels: an image by its id, for the galleries; None leaves them out.
    """
    split = predictions.split or "data"
    known = labelled(predictions)
    predictions.to_parquet(run.file(f"predictions/{split}.parquet"))
    run.log_file(f"predictions/{split}.parquet")
    tables = _tables(known, evaluation)
    for title, table in tables.items():
        run.log_text(table.to_csv(index=False), f"tables/{title}_{split}.csv")
    counts = confusion_matrix(known.labels, known.predicted, len(known.classes))
    head = f"{name}, {split}: {evaluation.figures['acc']:.1%} of {len(known.ids):,} images right"
    drawn: dict[str, Callable[[], plots.Figure]] = {
        "confusion": lambda: plots.confusion(counts, known.classes, title=head),
        "confusion_normalised": lambda: plots.confusion(counts, known.classes, title=head, normalised=True),
        "most_confused": lambda: plots.most_confused(counts, known.classes, title=head),
        "class_recall": lambda: plots.class_recalls(tables["per_class"], title=f"{name}, {split}: recall"),
        "roc": lambda: plots.roc(known, title=f"{name}, {split}: ROC, one against the rest"),
        "precision_recall": lambda: plots.precision_recall(known, title=f"{name}, {split}: precision and recall"),
        "reliability": lambda: plots.reliability(known, title=f"{name}, {split}: reliability"),
        "coverage": lambda: plots.coverage(known, title=f"{name}, {split}: accuracy of the surest images"),
    }
    if pixels is not None:
        drawn |= {
            "false_positives": lambda: _gallery(known, "confidence", pixels, f"{name}, {split}: surest mistakes"),
            "highest_loss": lambda: _gallery(known, "loss", pixels, f"{name}, {split}: highest losses"),
        }
    for number, (title, draw) in enumerate(drawn.items(), 1):
        plots.save(draw(), run.file(f"plots/{title}_{split}.png"))
        run.log_file(f"plots/{title}_{split}.png")
        console.count("drawing", number, len(drawn), unit="figures")
    run.log_text(_report(tables, about, title=head), f"evaluation_{split}.md")


def _tables(known: Predictions, evaluation: Evaluation) -> dict[str, pd.DataFrame]:
    counts = confusion_matrix(known.labels, known.predicted, len(known.classes))
    matrix = pd.DataFrame(counts, columns=list(known.classes))
    matrix.insert(0, "true \\ predicted", list(known.classes))
    return {
        "scores": evaluation.table,
        "per_class": class_table(known),
        "confusion": matrix,
        "confused_pairs": confused_pairs(known, NUM_PAIRS),
        "reliability": reliability_table(known),
        "coverage": coverage_table(known),
        "mistakes": mistakes(known, len(known.ids), by="confidence"),
        "highest_loss": mistakes(known, NUM_PAIRS, by="loss"),
    }


def _gallery(
    known: Predictions, by: Literal["confidence", "loss"], pixels: Callable[[str], Pixels], title: str
) -> plots.Figure:
    table = mistakes(known, NUM_SHOWN, by=by)
    items = []
    for row in table.to_dict("records"):
        wrong = row["label"] != row["predicted"]
        said = (
            f"taken for {row['predicted']} ({row['confidence']:.0%})"
            if wrong
            else f"right: {row['probability']:.0%} sure"
        )
        items.append((pixels(str(row["id"])), [str(row["label"]), said]))
    return plots.gallery(items, title=title)


def _report(tables: Mapping[str, pd.DataFrame], about: Mapping[str, str], *, title: str) -> str:
    """The evaluation as Markdown."""
    per_class = tables["per_class"]
    shown = ["class", "support", "precision", "recall", "f1", "auc", "most_confused_with", "confused"]
    parts = [f"# {title}\n", "".join(f"- {key}: {value}\n" for key, value in about.items())]
    for heading, table in (
        ("Figures, with 95 % bootstrap intervals", tables["scores"]),
        ("Hardest classes", hardest(per_class, NUM_ENDS)[shown]),
        ("Easiest classes", easiest(per_class, NUM_ENDS)[shown]),
        ("Pairs that are confused most", tables["confused_pairs"][:20]),
        ("Accuracy of the images of at least this confidence", tables["coverage"]),
    ):
        parts.append(f"## {heading}\n\n{markdown(table, formats=FORMATS)}")
    return "\n".join(parts)
