"""Tables as text: Markdown for files, aligned columns for a terminal."""

import math
import numbers
from collections.abc import Mapping, Sequence

import pandas as pd

NOTHING = "–"
"""What stands for a value that is missing."""


def value_text(value: object, *, digits: int = 4) -> str:
    """One value for a person: so many significant digits of a fraction, `–` for what is missing."""
    if value is None or value is pd.NA or value is pd.NaT:
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return str(value)
    if isinstance(value, numbers.Integral):
        return str(int(value))
    number = float(value)
    if math.isnan(number):
        return NOTHING
    if number.is_integer() and abs(number) < 1e15:
        return str(int(number))
    return f"{number:.{digits}g}" if abs(number) < 10**digits else f"{number:.0f}"


def is_number(value: object) -> bool:
    """Whether it is a number (and no truth value)."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def markdown(table: pd.DataFrame, *, formats: Mapping[str, str] | None = None) -> str:
    """The table in Markdown, without its index; columns of numbers are set flush right.

    Args:
        table: values of any kind; what would break a cell (a bar, a new line) is written so that it does not.
        formats: column -> format of its numbers, such as ".4f"; of the others 4 significant digits are written.
    """
    names = [str(name) for name in table.columns]
    right = [all_numbers(table.iloc[:, k].tolist()) for k in range(len(names))]
    cells = [[_cell(name) for name in names], ["---:" if flush else "---" for flush in right]]
    for row in table.itertuples(index=False):
        cells.append([_cell(formatted(value, (formats or {}).get(n, ""))) for n, value in zip(names, row, strict=True)])
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def formatted(value: object, form: str) -> str:
    """`value_text`, or the number in this format where one is given."""
    if form and is_number(value) and math.isfinite(float(str(value))):
        return format(float(str(value)), form)
    return value_text(value)


def all_numbers(values: Sequence[object]) -> bool:
    """Whether there are only numbers, and what is missing."""
    kinds = [is_number(value) for value in values if value_text(value) != NOTHING]
    return bool(kinds) and all(kinds)


def _cell(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())


def aligned(rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> str:
    """Rows of equally many cells as lines with aligned columns; those in `left` flush left."""
    if not rows:
        return ""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "".join(line.rstrip() + "\n" for line in lines)
