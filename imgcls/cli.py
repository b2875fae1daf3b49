"""The command line: one click command a verb, which parses, calls a job and prints. Nothing heavy is imported here."""

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from imgcls import __version__
from imgcls.errors import UserError

if TYPE_CHECKING:
    from imgcls.jobs.signals import Signals
    from imgcls.recipe import Resolved

_OVERRIDABLE = {"ignore_unknown_options": True, "allow_extra_args": True}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="imgcls")
@click.option("--debug", is_flag=True, help="Show the traceback of an error; stands anywhere.")
def cli(debug: bool) -> None:
    """Train image classifiers as tracked, comparable MLflow runs.

    Runs are kept in MLFLOW_TRACKING_URI, or in ./mlflow.db where that is not set.
    """
    assert not debug  # main takes it off the line, wherever it stands; here it is for --help


@cli.command(context_settings=_OVERRIDABLE)
@click.argument("words", metavar="[RECIPE] [--SECTION.FIELD VALUE]...", nargs=-1, type=click.UNPROCESSED)
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
        with _job(words) as (resolved, signals):
            from imgcls.jobs.console import Console
            from imgcls.jobs.train import run_training

            result = run_training(resolved, Console(), signals)
    else:
        with _signals(words) as (name, texts, signals):
            from imgcls.jobs.console import Console
            from imgcls.jobs.train import RECIPE_AND_RESUME, resume_training

            if name is not None:
                raise UserError(RECIPE_AND_RESUME.format(name))
            result = resume_training(resume, Console(), signals, texts=texts)
    if result.unsent is not None:
        sys.exit(3)


@cli.command("lr-find", context_settings=_OVERRIDABLE)
@click.argument("words", metavar="[RECIPE] [--SECTION.FIELD VALUE]...", nargs=-1, type=click.UNPROCESSED)
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
    with _job(words) as (resolved, signals):
        from imgcls.jobs.console import Console
        from imgcls.jobs.lr_find import run_lr_find

        result = run_lr_find(resolved, Console(), signals, lowest=lowest, highest=highest, num_steps=steps)
    if result.unsent is not None:
        sys.exit(3)


@cli.command("batch-find", context_settings=_OVERRIDABLE)
@click.argument("words", metavar="[RECIPE] [--SECTION.FIELD VALUE]...", nargs=-1, type=click.UNPROCESSED)
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
    with _job(words) as (resolved, signals):
        from imgcls.jobs.batch_find import run_batch_find
        from imgcls.jobs.console import Console

        result = run_batch_find(resolved, Console(), signals, most=most, seconds=seconds, refine=refine)
    if result.unsent is not None:
        sys.exit(3)


@cli.command("profile", context_settings=_OVERRIDABLE)
@click.argument("words", metavar="[RECIPE] [--SECTION.FIELD VALUE]...", nargs=-1, type=click.UNPROCESSED)
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
    with _job(words) as (resolved, signals):
        from imgcls.jobs.console import Console
        from imgcls.jobs.profile import run_profile

        console = Console(quiet=as_json)
        result = run_profile(resolved, console, signals, seconds=seconds, turns=turns, as_json_text=as_json)
    if result.unsent is not None:
        sys.exit(3)


@cli.group()
def recipe() -> None:
    """Show, describe and compare recipes."""


@recipe.command("show", context_settings=_OVERRIDABLE)
@click.argument("words", metavar="[RECIPE] [--SECTION.FIELD VALUE]...", nargs=-1, type=click.UNPROCESSED)
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
def data() -> None:
    """Check, preview and cache data sets."""


@data.command("preview", context_settings=_OVERRIDABLE)
@click.argument("words", metavar="[RECIPE] [--SECTION.FIELD VALUE]...", nargs=-1, type=click.UNPROCESSED)
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
    from imgcls.jobs import data_preview as job
    from imgcls.jobs.console import Console
    from imgcls.recipe import resolve

    job.run(resolve(recipe, texts=texts), out, Console())


@data.command("check", context_settings=_OVERRIDABLE)
@click.argument("words", metavar="[RECIPE] [--SECTION.FIELD VALUE]...", nargs=-1, type=click.UNPROCESSED)
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
    with _job(words) as (resolved, signals):
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


@cli.group()
def models() -> None:
    """List and describe the networks there are."""


@models.command("list")
@click.option("--filter", "text", default="", metavar="TEXT", help="Only families with this in their name.")
def models_list(text: str) -> None:
    """List the model families: stages, parameters, size and the pretrained weights that torchvision has."""
    from imgcls.jobs import models as job

    click.echo(job.list_families(text), nl=False)


@models.command("describe", context_settings=_OVERRIDABLE)
@click.argument("words", metavar="NAME [--model.FIELD VALUE]...", nargs=-1, type=click.UNPROCESSED)
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


@cli.command()
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="Port on 127.0.0.1.")
@click.option("--no-open", is_flag=True, help="Do not open a browser.")
def ui(port: int, no_open: bool) -> None:
    """Open the MLflow UI at the runs table."""
    from imgcls.jobs import ui as job

    job.run(port, open_browser=not no_open)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
def upload(folder: Path) -> None:
    """Send what a run could not send to its tracking server; FOLDER is named at the end of that run."""
    from imgcls.jobs import upload as job

    click.echo(job.run(folder))


@contextmanager
def _job(words: tuple[str, ...]) -> "Iterator[tuple[Resolved, Signals]]":
    """The recipe of the words, while signals end the job in order; the run that `mlflow run` made is ended with it."""
    from imgcls.tracking.run import fail_attached_run

    with _signals(words) as (name, texts, signals):
        try:
            from imgcls.recipe import resolve

            resolved = resolve(name, texts=texts)
        except UserError as error:
            fail_attached_run(str(error))
            raise
        yield resolved, signals


@contextmanager
def _signals(words: tuple[str, ...]) -> "Iterator[tuple[str | None, dict[str, str], Signals]]":
    """The recipe's name and the fields in the words, while signals end the job in order."""
    from imgcls.jobs.signals import Signals
    from imgcls.tracking.run import fail_attached_run

    with Signals(ends_process=True) as signals:
        try:
            name, texts = parse_words(words)
        except UserError as error:
            fail_attached_run(str(error))
            raise
        yield name, texts, signals


def parse_words(words: tuple[str, ...]) -> tuple[str | None, dict[str, str]]:
    """Split [RECIPE] [--section.field VALUE | --section.field=VALUE]... into the recipe and the fields.

    Raises:
        UserError: an option without a dot or without a value, a field given twice, or a second recipe.
    """
    recipe: str | None = None
    texts: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if "." not in name:
                raise UserError(_unknown_option(f"--{name}"))
            if not equals:
                if not rest:
                    raise UserError(f"--{name} has no value; expected --{name} VALUE.")
                value = rest.pop(0)
            if name in texts:
                raise UserError(f"--{name} is given twice: {texts[name]!r} and {value!r}. Give it once.")
            texts[name] = value
        elif word.startswith("-"):
            raise UserError(_unknown_option(word))
        elif recipe is None:
            recipe = word
        else:
            raise UserError(f"found two recipes, {recipe!r} and {word!r}; expected one. Fields begin with --.")
    return recipe, texts


def _unknown_option(word: str) -> str:
    return f"unknown option {word}; expected --section.field VALUE, such as --optim.lr 0.01."


def main() -> NoReturn:
    """Run the command line: 2 and one paragraph for a user's mistake, 128 + signal for a stop."""
    words = [word for word in sys.argv[1:] if word != "--debug"]  # at any place, for it is an afterthought
    debug = len(words) < len(sys.argv) - 1
    try:
        code: Any = cli.main(words, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except UserError as error:
        if debug:
            traceback.print_exc()
        click.echo(f"imgcls: error: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        if debug:
            traceback.print_exc()
        where = f" ({error.filename})" if error.filename else ""
        click.echo(f"imgcls: error: the disk is full{where}: {error.strerror}. Free space and run again.", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BaseException as error:
        signum = getattr(error, "signum", None)  # jobs.signals.Stopped, which is not imported for its name alone
        if signum is None:
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        # Python takes more than a second to shut down, in which a second Ctrl-C would change the exit code.
        os._exit(128 + signum)
    sys.exit(code if isinstance(code, int) else 0)
