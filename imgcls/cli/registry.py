"""Commands on the models that are in use: promote, registry show and rollback."""

import sys

import click

from imgcls.cli.root import cli
from imgcls.cli.words import OVERRIDABLE, recipe_words, signalled
from imgcls.errors import UserError


@cli.command(context_settings=OVERRIDABLE)
@recipe_words("[--SECTION.FIELD VALUE]...")
@click.option("--run", required=True, metavar="ID", help="The run whose model is to be promoted.")
@click.option("--name", required=True, help="The registered model; made where there is none.")
@click.option("--alias", default="champion", show_default=True, help="The alias that the model is to get.")
@click.option("--force", metavar="REASON", help="Promote it whatever the gates say; the history keeps the reason.")
def promote(words: tuple[str, ...], run: str, name: str, alias: str, force: str | None) -> None:
    """Register a run's model, and make it the champion where the gates of its recipe let it through.

    It is held against the present champion on the test images of its own run, which it has not seen: accuracy and each
    class's recall by paired tests, calibration, latency, size, packages. The gates are the recipe's section `promote`;
    any of its fields can be given, such as --promote.min_gain, and --data.root where the images were moved. One that is
    refused stays a version, tagged as rejected with the reason.

    \b
    imgcls promote --run 0123456789abcdef0123456789abcdef --name animals
    imgcls promote --run 0123456789abcdef0123456789abcdef --name animals --promote.min_metrics.acc 0.9
    imgcls promote --run 0123456789abcdef0123456789abcdef --name animals --force "the old one leaks memory"

    Exit codes: 0 promoted, or the champion already; 4 refused; 2 and 3 as for `imgcls train`.
    """
    with signalled(words) as (recipe, texts, signals):
        from imgcls.jobs.console import Console
        from imgcls.jobs.promote import run_promote
        from imgcls.jobs.record import before_run

        console = Console()
        with before_run(console):
            if recipe is not None:
                raise UserError(f"found {recipe!r} beside the run to promote, which has its own recipe. Leave it out.")
        result = run_promote(run, console, signals, name=name, alias=alias, force=force, texts=texts)
    if result.outcome == "refused":
        sys.exit(4)
    if result.unsent is not None:
        sys.exit(3)


@cli.group()
def registry() -> None:
    """Show the versions of a registered model, and return to an earlier one."""


@registry.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, with all gates' figures.")
def registry_show(name: str, as_json: bool) -> None:
    """Print the versions of the registered model NAME, and who replaced whom, when and why."""
    from imgcls.jobs import registry as job

    click.echo(job.show(name, as_json=as_json), nl=False)


@registry.command("rollback")
@click.argument("name")
@click.option("--reason", required=True, metavar="TEXT", help="Why; the history keeps it.")
@click.option("--alias", default="champion", show_default=True, help="The alias that returns.")
def registry_rollback(name: str, reason: str, alias: str) -> None:
    """Let the previous champion of the registered model NAME return; twice goes two back."""
    from imgcls.jobs import registry as job

    click.echo(job.rollback(name, alias=alias, reason=reason))
