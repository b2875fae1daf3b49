"""The verb `recipe`: show, schema and diff."""

import json
from collections.abc import Mapping
from pathlib import Path

from imgcls import recipe as recipes
from imgcls.errors import UserError
from imgcls.tracking.store import artifact


def show(recipe: str | None, texts: Mapping[str, str]) -> str:
    """The resolved recipe as YAML, notices as comments before it."""
    resolved = recipes.resolve(recipe, texts=texts)
    notes = "".join(f"# note: {notice}\n" for notice in resolved.notices)
    return notes + resolved.recipe.to_yaml()


def schema() -> str:
    """The JSON schema of a recipe file."""
    return json.dumps(recipes.json_schema(), indent=2) + "\n"


def diff(a: str, b: str) -> str:
    """A table of the fields that differ between two recipe files, built-in recipes or MLflow runs."""
    rows = recipes.diff(_load(a), _load(b))
    if not rows:
        return "no difference\n"
    cells = [("field", a, b), *((name, _cell(left), _cell(right)) for name, left, right in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    return "".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() + "\n" for row in cells)


def _load(name: str) -> recipes.Recipe:
    if Path(name).is_file() or name in recipes.built_in():
        return recipes.resolve(name, partial=True).recipe
    if len(name) == 32 and all(letter in "0123456789abcdef" for letter in name):
        with artifact(name, "recipe.yaml") as path:
            return recipes.resolve(path).recipe
    raise UserError(
        f"{name!r} is neither a recipe file, nor a built-in recipe ({', '.join(recipes.built_in())}), nor a run id "
        "(32 hexadecimal digits)."
    )


def _cell(value: object) -> str:
    return "-" if value is None else json.dumps(value) if not isinstance(value, str) else value
