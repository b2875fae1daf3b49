"""Commands on data sets: data preview, data check, data cache."""

import sys
from pathlib import Path

import click

from imgcls.cli.root import cli
from imgcls.cli.words import OVERRIDABLE, job, parse_words, recipe_words


@cli.group()
def data() -> None:
    """Check, preview and cache data sets."""


@data.command("preview", context_settings=OVERRIDABLE)
@recipe_words()
@click.option(
    "--out", default="preview.png", show_default=True, type=click.Path(path_type=Path), help="The PNG file to write."
)
def data_preview(words: tuple[str, ...], out: Path) -> None:
    """Draw training images beside what augmentation makes of them.

    The variants are drawn as train.seed would draw them in the first epochs. Only the images shown are decoded, and no
    run is made; every training logs the same figure as plots/augmentation.png.

    \b
    imgcls data preview
    imgcls data preview --data.root photos/ --augment.preset light --out light.png
    """
    recipe, texts = parse_words(words)
    from imgcls.jobs import data_preview
    from imgcls.jobs.console import Console
    from imgcls.recipe import resolve

    data_preview.run(resolve(recipe, texts=texts), out, Console())


@data.command("check", context_settings=OVERRIDABLE)
@recipe_words()
@click.option("--full", is_flag=True, help="Decode and compare all images; also measures their channels.")
@click.option("--json", "json_to", metavar="FILE", help="Write the report to a file; - prints it instead of the table.")
@click.option("--no-run", is_flag=True, help="Make no MLflow run, and so no figures.")
def data_check(words: tuple[str, ...], full: bool, json_to: str | None, no_run: bool) -> None:
    """Find the problems of a data set before training on it.

    Damaged and mislabelled files, unusual kinds of images, copies (across labels and splits), imbalance, sizes; with
    --full also pictures that cannot be decoded or look alike. Takes a recipe and its fields like `imgcls train`.

    \b
    imgcls data check --data.root photos/
    imgcls data check --data.root photos/ --full
    imgcls data check digits --json - --no-run

    Exit codes: 0 done, also with warnings; 1 images that cannot be decoded were found, and data.on_bad_image is error;
    2 a mistake to mend; 3 done but not all could be sent to the tracking server; 130, 143 and 129 stopped.
    """
    with job(words) as (resolved, signals):
        from imgcls.jobs.console import Console
        from imgcls.jobs.data_check import run_check

        console = Console(quiet=json_to == "-")
        result = run_check(resolved, console, signals, full=full, json_to=json_to, tracked=not no_run)
    sys.exit(1 if result.refuses else 0 if result.unsent is None else 3)


@data.command("cache")
@click.option(
    "--clear",
    metavar="[KIND]",
    is_flag=False,
    flag_value="all",
    default=None,
    help="Remove all that can be made again, or one kind; downloads only where KIND is torchvision or weights.",
)
@click.option(
    "--keep",
    metavar="GIB",
    type=click.FloatRange(min=0),
    help="Remove what was used least recently, down to this size.",
)
def data_cache(clear: str | None, keep: float | None) -> None:
    """List what is kept in the cache folder, and remove what is not needed.

    The folder is IMGCLS_CACHE, or ~/.cache/imgcls where that is not set. What is removed is made again when it is
    needed; a training that is using it goes on.

    \b
    imgcls data cache
    imgcls data cache --keep 10
    imgcls data cache --clear store
    """
    from imgcls.jobs import data_cache as job

    click.echo(job.run(clear=clear, keep_gib=keep), nl=False)
