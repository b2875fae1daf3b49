"""Commands that train, and that measure a training: train, lr-find, batch-find, profile."""

import sys

import click

from imgcls.cli.root import cli
from imgcls.cli.words import OVERRIDABLE, job, recipe_words, signalled
from imgcls.errors import UserError


@cli.command(context_settings=OVERRIDABLE)
@recipe_words()
@click.option("--resume", metavar="RUN", help="Go on with an interrupted run: its id, or its folder outputs/<id>.")
def train(words: tuple[str, ...], resume: str | None) -> None:
    """Train a classifier and log it as an MLflow run.

    RECIPE is a YAML file or the name of a built-in recipe. Left out, it is `folder` where --data.root,
    --data.table or --data.parquet is given, and `digits` elsewhere. Any field of the recipe can be given by its dotted
    name; `imgcls recipe show` lists them.

    \b
    imgcls train
    imgcls train --data.root photos/ --train.epochs 10
    imgcls train experiments/digits.yaml --optim.lr 1e-3
    imgcls train --resume 0123456789abcdef0123456789abcdef

    With --resume the run goes on with its own recipe from its last checkpoint, and on a CPU ends bit by bit as it would
    have without the interruption. Only fields that do not change the result can be given, such as --data.num_workers.

    Exit codes: 0 done, 2 a mistake to mend, 3 done but not all could be sent to the tracking server, 130, 143
    and 129 stopped by Ctrl-C, SIGTERM and a closed terminal.
    """
    if resume is None:
        with job(words) as (resolved, signals):
            from imgcls.jobs.console import Console
            from imgcls.jobs.train import run_training

            result = run_training(resolved, Console(), signals)
    else:
        with signalled(words) as (name, texts, signals):
            from imgcls.jobs.console import Console
            from imgcls.jobs.train import RECIPE_AND_RESUME, resume_training

            if name is not None:
                raise UserError(RECIPE_AND_RESUME.format(name))
            result = resume_training(resume, Console(), signals, texts=texts)
    if result.unsent is not None:
        sys.exit(3)


@cli.command("lr-find", context_settings=OVERRIDABLE)
@recipe_words()
@click.option("--lowest", default=1e-6, show_default=True, type=float, help="The first learning rate.")
@click.option("--highest", default=10.0, show_default=True, type=float, help="The last learning rate, 100 at most.")
@click.option("--steps", default=100, show_default=True, type=int, help="Batches from the first to the last.")
def lr_find(words: tuple[str, ...], lowest: float, highest: float, steps: int) -> None:
    """Find a learning rate: train a copy at rising rates and look where the loss falls.

    The range test of arXiv:1506.01186, with all of the recipe but its rate and schedule. Suggested is the rate of the
    steepest descent; the run has the figure and the loss of each step. Takes a recipe and its fields like
    `imgcls train`.

    \b
    imgcls lr-find
    imgcls lr-find --data.root photos/ --model.family resnet18

    Exit codes: 0 done, also where no rate can be suggested; others as for `imgcls train`.
    """
    with job(words) as (resolved, signals):
        from imgcls.jobs.console import Console
        from imgcls.jobs.lr_find import run_lr_find

        result = run_lr_find(resolved, Console(), signals, lowest=lowest, highest=highest, num_steps=steps)
    if result.unsent is not None:
        sys.exit(3)


@cli.command("batch-find", context_settings=OVERRIDABLE)
@recipe_words()
@click.option("--most", default=4096, show_default=True, type=click.IntRange(2), help="The largest size to try.")
@click.option(
    "--seconds", default=60.0, show_default=True, type=click.FloatRange(0), help="Begin no size that ends later."
)
@click.option("--refine", is_flag=True, help="Look between powers of two as well.")
def batch_find(words: tuple[str, ...], most: int, seconds: float, refine: bool) -> None:
    """Find the largest batch that memory holds, and the fastest.

    Trains copies on batches of 8, 16, 32, … images. On a GPU until memory runs out; on a CPU only as far as the memory
    of an image says that 80 % of what is free suffices. Takes a recipe and its fields like `imgcls train`.

    \b
    imgcls batch-find
    imgcls batch-find --data.root photos/ --model.family resnet18 --refine

    Exit codes: as for `imgcls train`.
    """
    with job(words) as (resolved, signals):
        from imgcls.jobs.batch_find import run_batch_find
        from imgcls.jobs.console import Console

        result = run_batch_find(resolved, Console(), signals, most=most, seconds=seconds, refine=refine)
    if result.unsent is not None:
        sys.exit(3)


@cli.command("profile", context_settings=OVERRIDABLE)
@recipe_words()
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, and nothing else.")
@click.option(
    "--seconds",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0, 86_400, min_open=True),
    help="For measuring; more where three batches a turn take longer.",
)
@click.option("--turns", default=5, show_default=True, type=click.IntRange(1, 100), help="How often all is measured.")
def profile(words: tuple[str, ...], as_json: bool, seconds: float, turns: int) -> None:
    """Measure how fast a training is, and what holds it up.

    In images a second: (a) compute alone on one batch, (b) data alone, (c) the loop of `imgcls train` with checkpoints
    and tracking, in turn; (c) / min(a, b); and the setting that would help. Takes a recipe and its fields like
    `imgcls train`.

    \b
    imgcls profile
    imgcls profile --data.root photos/ --model.family resnet18 --seconds 120
    imgcls profile digits --json

    Exit codes: as for `imgcls train`.
    """
    with job(words) as (resolved, signals):
        from imgcls.jobs.console import Console
        from imgcls.jobs.profile import run_profile

        console = Console(quiet=as_json)
        result = run_profile(resolved, console, signals, seconds=seconds, turns=turns, as_json_text=as_json)
    if result.unsent is not None:
        sys.exit(3)
