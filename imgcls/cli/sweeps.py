"""Commands on many trainings at once: tune."""

import sys

import click

from imgcls.cli.root import cli
from imgcls.cli.words import OVERRIDABLE, job, recipe_words


@cli.command(context_settings=OVERRIDABLE)
@recipe_words()
@click.option("--families", metavar="NAME,…", help="Model families, a study each; default is the recipe's own.")
@click.option("--trials", type=click.IntRange(1), help="Trials of all families together (search.trials).")
@click.option(
    "--time-limit", "--time_limit", metavar="TIME", help="Begin no trial after 90s, 30m, 2h, 1h30m (search.time_limit)."
)
@click.option("--workers", metavar="N", help="Processes on this machine, or auto (search.workers).")
@click.option("--storage", metavar="URL", help="Database of the studies, shared by all machines; default ./optuna.db.")
@click.option("--name", help="The sweep's name; the same command and name goes on with it, or joins it.")
@click.option(
    "--more-trials",
    "--more_trials",
    default=0,
    type=click.IntRange(0),
    help="Add so many trials to a sweep that there is.",
)
def tune(
    words: tuple[str, ...],
    families: str | None,
    trials: int | None,
    time_limit: str | None,
    workers: str | None,
    storage: str | None,
    name: str | None,
    more_trials: int,
) -> None:
    """Search the best values of a recipe's fields, for one or more model families.

    Learning rate, batch size and freeze depth, or what the recipe's `search` section says. Every trial is an MLflow run
    nested in its family's, and those in the sweep's, which has the leaderboard and figures while the sweep goes on.
    Takes a recipe and its fields like `imgcls train`.

    \b
    imgcls tune --trials 12 --families separable,quizdnn
    imgcls tune --data.root photos/ --model.weights default --families resnet18,mobilenet_v2 --time-limit 2h
    imgcls tune recipe.yaml --workers 2 --storage postgresql://me@host/sweeps

    Ctrl-C closes the running trials; the same command goes on. Exit codes: as for `imgcls train`.
    """
    given = {"trials": trials, "time_limit": time_limit, "workers": workers}
    texts = [word for key, value in given.items() if value is not None for word in (f"--search.{key}", str(value))]
    with job((*words, *texts)) as (resolved, signals):
        from imgcls.jobs.console import Console
        from imgcls.jobs.tune import run_tune

        result = run_tune(
            resolved,
            Console(),
            signals,
            families=[family.strip() for family in families.split(",")] if families else (),
            storage=storage,
            name=name,
            more_trials=more_trials,
        )
    if result.unsent is not None:
        sys.exit(3)
