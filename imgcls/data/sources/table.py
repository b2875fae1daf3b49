"""Columns of text from a CSV or Parquet file, with the line or row that each value stands in."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgcls.errors import UserError

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t"}
Choose = Callable[[Sequence[str]], dict[str, str]]
"""From the columns of a table to {role: column}; raises UserError where they do not fit."""


@dataclass(frozen=True)
class Table:
    """The chosen columns of a table.

    Attributes:
        columns: role -> one text a row, "" where there is no value.
        where: "line 2", "row 1", …: where each row stands in the file.
    """

    columns: dict[str, list[str]]
    where: list[str]


def read_table(path: Path, *, separator: str, choose: Choose) -> Table:
    """Read the columns that `choose` takes. Parquet is known by its first bytes, anything else is read as CSV.

    Args:
        path: the file.
        separator: a key of SEPARATORS, or "auto" for the one under which `choose` finds its columns.
        choose: picks the columns.

    Raises:
        UserError: no such file, a folder, no rows, no text, no Parquet, rows of unequal length, or what
            `choose` raises.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"data.table {path} does not exist; expected a CSV or Parquet file. Give an existing file, best as an "
            "absolute path: a relative one is taken from the current directory, which under `mlflow run` is the "
            "project's."
        ) from error
    except IsADirectoryError as error:
        raise UserError(
            f"data.table {path} is a folder; expected a CSV or Parquet file. For a folder of images give data.root."
        ) from error
    except (OSError, ValueError) as error:  # permissions, a name that is too long or holds a NUL
        raise UserError(f"data.table {str(path)[:200]!r} cannot be read: {error}. Mend its name or rights.") from error
    table = _from_parquet(path, choose) if data[:4] == b"PAR1" else _from_csv(path, data, separator, choose)
    if not table.where:
        raise UserError(f"data.table {path} has a header but no rows; expected one row an image.")
    return table


def _from_parquet(path: Path, choose: Choose) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            chosen = choose(file.schema_arrow.names)
            read = file.read(columns=list(dict.fromkeys(chosen.values())))
        columns = {role: [_text(value, name) for value in read[name].to_pylist()] for role, name in chosen.items()}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.table {path} begins like Parquet but cannot be read: {error}. Write or copy it again."
        ) from error
    except _NoText as error:
        raise UserError(f"data.table {path}: {error}") from error
    return Table(columns, [f"row {number + 1}" for number in range(read.num_rows)])


class _NoText(Exception):
    """A value of a Parquet column that is neither text nor a number."""


def _text(value: Any, name: str) -> str:
    if value is None or value != value:  # NaN, pandas' missing number
        return ""
    if isinstance(value, str | int | float):
        return str(value)
    raise _NoText(
        f"the column {name!r} holds values of the kind {type(value).__name__}; expected text or numbers (paths and "
        "labels, not the images' bytes). Choose another column."
    )


def _from_csv(path: Path, data: bytes, separator: str, choose: Choose) -> Table:
    text = _decoded(path, data)
    names = list(SEPARATORS) if separator == "auto" else [separator]
    headers: dict[str, list[str]] = {}
    problem: UserError | None = None
    for name in names:
        try:
            headers[name] = _header(path, text, SEPARATORS[name])
        except UserError as error:  # a quoted header is no CSV under another separator
            problem = problem or error
    if not headers and problem is not None:
        raise problem
    names, problem = sorted(headers, key=lambda name: -len(headers[name])), None
    for name in names:
        try:
            return _rows(path, text, name, choose(headers[name]))
        except _WrongShape as error:
            raise UserError(str(error)) from error
        except UserError as error:
            problem = problem or error
    assert problem is not None
    header = headers[names[0]]
    if len(header) > 1:
        raise problem
    raise UserError(
        f"data.table {path}: split at {' or '.join(names)}, its first line {header[0][:100]!r} has one column only; "
        "expected a header with a path and a label column. Give the separator as data.separator "
        f"({', '.join(SEPARATORS)} or auto), or write the table again with one of these."
    ) from problem


def _decoded(path: Path, data: bytes) -> str:
    if not data.strip():
        raise UserError(f"data.table {path} is empty; expected a header line and one line an image.")
    hint = "expected a CSV file in UTF-8 or a Parquet file. Save it as one of these."
    if b"\0" in data:
        raise UserError(f"data.table {path} is no text (found NUL bytes), nor Parquet; {hint}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"data.table {path} is no UTF-8 text (found the byte 0x{data[error.start]:02x} in line {line}), nor "
            f"Parquet; {hint}"
        ) from error


def _reader(text: str, separator: str) -> Any:
    # strict: a quote that is never closed would otherwise swallow the lines behind it.
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)


def _header(path: Path, text: str, separator: str) -> list[str]:
    try:
        return next([name.strip() for name in row] for row in _reader(text, separator) if row)
    except csv.Error as error:
        raise UserError(f"data.table {path} is no CSV: its first line, {error}. Mend its quotes.") from error


class _WrongShape(UserError):
    """The columns are there, but the lines below the header do not fit it."""


def _rows(path: Path, text: str, separator: str, chosen: dict[str, str]) -> Table:
    reader = _reader(text, SEPARATORS[separator])
    header: list[str] | None = None
    columns: dict[str, list[str]] = {role: [] for role in chosen}
    where: list[str] = []
    indices: dict[str, int] = {}
    try:
        for row in reader:
            if not row:  # an empty line
                continue
            if header is None:
                header = [name.strip() for name in row]
                indices = {role: header.index(name) for role, name in chosen.items()}
                continue
            if len(row) != len(header):
                raise _WrongShape(
                    f"data.table {path}: line {reader.line_num} has {len(row)} value{'s' * (len(row) != 1)}, but the "
                    f"header has {len(header)} columns ({', '.join(header)}), split at {separator}. Put a value that "
                    "holds the separator in double quotes, or set data.separator."
                )
            for role, index in indices.items():
                columns[role].append(row[index])
            where.append(f"line {reader.line_num}")
    except csv.Error as error:
        raise _WrongShape(
            f"data.table {path} is no CSV: line {reader.line_num}, {error}. Close or double the quotes there."
        ) from error
    return Table(columns, where)
