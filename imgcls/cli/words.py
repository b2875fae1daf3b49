"""The words of a command line: a recipe and its fields, and the job that they ask for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from imgcls.errors import UserError

if TYPE_CHECKING:
    from imgcls.jobs.signals import Signals
    from imgcls.recipe import Resolved

Command = TypeVar("Command", bound=Callable[..., Any])

OVERRIDABLE = {"ignore_unknown_options": True, "allow_extra_args": True}
"""Settings of a command that takes any field of a recipe by its dotted name."""


def recipe_words(metavar: str = "[RECIPE] [--SECTION.FIELD VALUE]...") -> Callable[[Command], Command]:
    """The argument `words` of such a command."""
    return click.argument("words", metavar=metavar, nargs=-1, type=click.UNPROCESSED)


@contextmanager
def job(words: tuple[str, ...]) -> "Iterator[tuple[Resolved, Signals]]":
    """The recipe of the words, while signals end the job in order; the run that `mlflow run` made is ended with it."""
    from imgcls.tracking.run import fail_attached_run

    with signalled(words) as (name, texts, signals):
        try:
            from imgcls.recipe import resolve

            resolved = resolve(name, texts=texts)
        except UserError as error:
            fail_attached_run(str(error))
            raise
        yield resolved, signals


@contextmanager
def signalled(words: tuple[str, ...]) -> "Iterator[tuple[str | None, dict[str, str], Signals]]":
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
