"""Commands that show what there is: recipe show, schema and diff; models list and describe."""

import click

from imgcls.cli.root import cli
from imgcls.cli.words import OVERRIDABLE, parse_words, recipe_words
from imgcls.errors import UserError


@cli.group()
def recipe() -> None:
    """Show, describe and compare recipes."""


@recipe.command("show", context_settings=OVERRIDABLE)
@recipe_words()
def recipe_show(words: tuple[str, ...]) -> None:
    """Print the resolved recipe: every field with its value."""
    name, texts = parse_words(words)
    from imgcls.jobs import recipes

    click.echo(recipes.show(name, texts), nl=False)


@recipe.command("schema")
def recipe_schema() -> None:
    """Print the JSON schema of recipe files, for completion in editors."""
    from imgcls.jobs import recipes

    click.echo(recipes.schema(), nl=False)


@recipe.command("diff")
@click.argument("a")
@click.argument("b")
def recipe_diff(a: str, b: str) -> None:
    """Print the fields that differ between A and B: recipe files, built-in recipes or MLflow run ids."""
    from imgcls.jobs import recipes

    click.echo(recipes.diff(a, b), nl=False)


@cli.group()
def models() -> None:
    """List and describe the networks there are."""


@models.command("list")
@click.option("--filter", "text", default="", metavar="TEXT", help="Only families with this in their name.")
def models_list(text: str) -> None:
    """List the model families: stages, parameters, size and the pretrained weights that torchvision has."""
    from imgcls.jobs import models as job

    click.echo(job.list_families(text), nl=False)


@models.command("describe", context_settings=OVERRIDABLE)
@recipe_words("NAME [--model.FIELD VALUE]...")
@click.option("--image-size", default=224, show_default=True, type=click.IntRange(1, 4096), help="Pixels on each side.")
@click.option("--num-classes", default=1000, show_default=True, type=click.IntRange(2), help="Classes of the head.")
@click.option("--channels", default="3", show_default=True, type=click.Choice(["1", "3"]), help="Grey or colour.")
@click.option("--freeze-depth", metavar="DEPTH", help="Stages frozen: a number, all, or the last one's name.")
def models_describe(
    words: tuple[str, ...], image_size: int, num_classes: int, channels: str, freeze_depth: str | None
) -> None:
    """Print what a network is made of, stage by stage: output, parameters, multiply-accumulates, receptive field.

    Every training logs the same table as tables/model.csv.

    \b
    imgcls models describe resnet18 --num-classes 50 --freeze-depth all
    imgcls models describe plaincnn --image-size 32 --model.num_blocks 4
    """
    name, texts = parse_words(words)
    if freeze_depth is not None:
        if "model.freeze_depth" in texts:
            raise UserError("--freeze-depth and --model.freeze_depth are the same; give one of them.")
        texts["model.freeze_depth"] = freeze_depth
    from imgcls.jobs import models as job

    click.echo(
        job.describe_family(name, texts, image_size=image_size, num_classes=num_classes, in_channels=int(channels)),
        nl=False,
    )
