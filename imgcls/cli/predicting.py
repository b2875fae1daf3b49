"""Commands that use a trained model: predict."""

import sys
from pathlib import Path
from typing import Any

import click

from imgcls.cli.root import cli


@cli.command()
@click.argument("inputs", metavar="FOLDER|ARCHIVE|TABLE|IMAGE...", nargs=-1, required=True)
@click.option("--model", required=True, help="A run, runs:/<id>, models:/<name>@<alias> or /<version>, or a folder.")
@click.option("--output", type=click.Path(path_type=Path), help="CSV or Parquet; default predictions.csv.")
@click.option(
    "--submission",
    metavar="SAMPLE",
    type=click.Path(path_type=Path),
    help="Write exactly this sample's columns, ids and order; default output is submission.csv.",
)
@click.option("--tta", default=1, show_default=True, type=click.IntRange(1), help="Views of each image put together.")
@click.option(
    "--tta-views",
    "--tta_views",
    default="crops",
    show_default=True,
    type=click.Choice(["crops", "flips", "train"]),
    help="Middle and corners with their mirror images, mirror images, or variations as in training.",
)
@click.option(
    "--combine",
    default="mean",
    show_default=True,
    type=click.Choice(["mean", "vote"]),
    help="How views are put together.",
)
@click.option("--top-k", "--top_k", type=click.IntRange(1), help="Classes named for an image; default is the model's.")
@click.option("--probabilities", is_flag=True, help="Write the probability of every class, too.")
@click.option(
    "--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute."
)
@click.option(
    "--batch-size",
    "--batch_size",
    default=64,
    show_default=True,
    type=click.IntRange(1),
    help="Images computed together, of all views.",
)
@click.option(
    "--images", type=click.Path(path_type=Path), help="Folder that a table's paths start from; default its own."
)
@click.option("--path-column", "--path_column", help="A table's column of paths; default path, file, image, id, …")
@click.option("--extension", help="Ending of a table's paths that have none, such as .jpg.")
@click.option("--separator", type=click.Choice(["comma", "semicolon", "tab"]), help="Of a CSV table.")
@click.option("--no-run", is_flag=True, help="Make no MLflow run; needs no tracking store where MODEL is a folder.")
def predict(inputs: tuple[str, ...], no_run: bool, **options: Any) -> None:
    """Label images with a trained model: a table with label, probability and top k, or a submission.

    Takes a folder, an archive (zip, tar), a CSV or Parquet table of paths, or image files; labels are not needed. An
    image's id is its path below the folder or in the archive, the path as the table has it, or its file's name. Images
    that cannot be read are listed in <output>.unreadable.csv, and the rest is predicted.

    \b
    imgcls predict photos/ --model 0123456789abcdef0123456789abcdef
    imgcls predict photos.zip --model models:/animals@champion --tta 10 --output animals.parquet
    imgcls predict test/ --model models:/dogs/3 --submission sample_submission.csv

    Exit codes: 0 done; 2 a mistake to mend, and no output; 3 done, but images could not be read, or not all could be
    sent to the tracking server; 130, 143 and 129 stopped; no output unless it was complete already.
    """
    from imgcls.jobs.signals import Signals

    with Signals(ends_process=True) as signals:
        from imgcls.jobs.console import Console
        from imgcls.jobs.predict import run_predict
        from imgcls.jobs.predict_inputs import TableOptions

        table = TableOptions(
            **{name: options.pop(name) for name in ("images", "path_column", "extension", "separator")}
        )
        result = run_predict(inputs, Console(), signals, table=table, tracked=not no_run, **options)
    if not result.is_complete:
        sys.exit(3)
