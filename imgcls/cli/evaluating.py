"""The command that holds models against labelled images: evaluate."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from imgcls.cli.root import cli
from imgcls.cli.words import OVERRIDABLE, recipe_words, signalled
from imgcls.errors import UserError


@cli.command(context_settings=OVERRIDABLE)
@recipe_words("[--data.FIELD VALUE]...")
@click.option(
    "--model", "models", multiple=True, required=True, metavar="MODEL",
    help="Run id, runs:/<id>, models:/<name>@<alias>, models:/<name>/<version> or a folder; several (more options, or "
    "with commas) are put together.",
)  # fmt: skip
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test", "all"]),
    help="Which images; default test, or all of other data.",
)
@click.option("--tta", default=1, show_default=True, type=click.IntRange(1, 1000), help="Views of each image.")
@click.option(
    "--tta-views", "--tta_views", default="crops", show_default=True, type=click.Choice(["crops", "flips", "train"]),
    help="Middle and corners with their mirror images, mirror images alone, or random ones as in training.",
)  # fmt: skip
@click.option(
    "--combine", default="mean", show_default=True, type=click.Choice(["mean", "vote"]),
    help="Mean of the probabilities, or majority vote, of views and of models.",
)  # fmt: skip
@click.option(
    "--weights", default="equal", show_default=True, type=click.Choice(["equal", "fit", "greedy"]),
    help="Of several models: equal, or fitted on the validation images.",
)  # fmt: skip
@click.option(
    "--explain", default=0, show_default=True, type=click.IntRange(0, 32),
    help="Draw where the model looked in so many of its surest mistakes (Grad-CAM).",
)  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="Folder for copies of all artifacts.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, and nothing else.")
def evaluate(words: tuple[str, ...], models: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Hold a model against labelled images, in a run of its own.

    Accuracy, F1, AUC, log loss, calibration and more, each with a 95 % interval; tables by class, confusion matrix,
    ROC and precision-recall curves, galleries of mistakes. Without --data.root the images are the test split that the
    model's training left aside; each read of it is counted and told.

    \b
    imgcls evaluate --model 0123456789abcdef0123456789abcdef
    imgcls evaluate --model models:/animals@champion --data.root photos/
    imgcls evaluate --model models:/animals@champion --tta 5 --tta-views train --combine vote
    imgcls evaluate --model RUN_A --model RUN_B --weights greedy

    Exit codes: as for `imgcls train`.
    """
    with signalled(words) as (name, texts, signals):
        from imgcls.jobs.console import Console
        from imgcls.jobs.evaluate import run_evaluate
        from imgcls.jobs.evaluate_question import Question
        from imgcls.jobs.record import before_run

        console = Console(quiet=as_json)
        with before_run(console):
            if name is not None:
                raise UserError(f"found {name!r} beside the model, which has its own recipe. Leave it out.")
        each = tuple(model.strip() for text in models for model in text.split(",") if model.strip())
        result = run_evaluate(Question(each, **options), console, signals, texts=texts)
        if as_json:
            found = {
                figure: {"value": value, "interval": result.evaluation.intervals.get(figure)}
                for figure, value in result.evaluation.figures.items()
            }
            click.echo(json.dumps({"run_id": result.run_id, "figures": found, "reads": result.reads}))
    if result.unsent is not None:
        sys.exit(3)
