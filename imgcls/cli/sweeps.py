"""Commands on many trainings at once, and on what comes of them: tune, refit, compare."""

import sys
from pathlib import Path

import click

from imgcls.cli.root import cli
from imgcls.cli.words import OVERRIDABLE, job, recipe_words, signalled
from imgcls.errors import UserError


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


@cli.command(context_settings=OVERRIDABLE)
@click.argument("target", metavar="RUN_OR_SWEEP")
@recipe_words("[--SECTION.FIELD VALUE]...")
@click.option(
    "--seeds", default=1, show_default=True, type=click.IntRange(1, 1000), help="Trainings, each with a seed."
)
def refit(target: str, words: tuple[str, ...], seeds: int) -> None:
    """Train a run's recipe again on its validation images too, and read its test set once.

    RUN_OR_SWEEP is the id of a finished training, or of a sweep, whose best trial it is then. The training lasts as
    many steps as the run's best epoch came after. How often a test set has been read is counted in the tracking store
    and told. With --seeds 5 there are five networks, and the mean of their figures with its 95 % interval. Only fields
    that do not change the result can be given, such as --data.root.

    \b
    imgcls refit 0123456789abcdef0123456789abcdef
    imgcls refit 0123456789abcdef0123456789abcdef --seeds 5

    Exit codes: as for `imgcls train`.
    """
    with signalled(words) as (name, texts, signals):
        from imgcls.jobs.console import Console
        from imgcls.jobs.record import before_run
        from imgcls.jobs.refit import run_refit

        console = Console()
        with before_run(console):
            if name is not None:
                raise UserError(f"found {name!r} beside the run to refit, which has its own recipe. Leave it out.")
        result = run_refit(target, console, signals, seeds=seeds, texts=texts)
    if result.unsent is not None:
        sys.exit(3)


@cli.command()
@click.argument("runs", metavar="RUN|SWEEP...", nargs=-1, required=True)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for compare.csv, compare.md and curves.png; default ./compare.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON, and nothing else.")
def compare(runs: tuple[str, ...], output: Path | None, as_json: bool) -> None:
    """Compare runs: the params that differ, figures with 95 % intervals, significance, curves.

    RUN is a run id or runs:/<id>; a SWEEP (a run of `imgcls tune`) stands for its 10 best finished trials. Whether the
    others differ from the best is tested (McNemar and paired bootstrap, Holm-corrected) where runs have predictions for
    the same validation images. No run is made.

    \b
    imgcls compare 0123456789abcdef0123456789abcdef runs:/fedcba9876543210fedcba9876543210
    imgcls compare 0123456789abcdef0123456789abcdef --output reports/sweep --json
    """
    from imgcls.jobs.compare import run_compare
    from imgcls.jobs.console import Console

    run_compare(runs, Console(quiet=as_json), output=output, as_json=as_json)
