"""What a competition's sample submission asks for: which classes its columns are, and which images its ids."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from imgcls.errors import UserError

NAMED = 3
"""Ids or columns that an error names."""
_SPELLINGS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("id", str),
    ("file name", lambda name: PurePosixPath(name).name),
    ("file name without its ending", lambda name: PurePosixPath(name).stem),
)
"""What an id of the sample may be of a prediction's, in the order they are tried."""


@dataclass(frozen=True)
class Sample:
    """A sample submission.

    Attributes:
        header: its columns; the first holds the ids.
        ids: N ids in its order.
    """

    header: tuple[str, ...]
    ids: tuple[str, ...]


def read_sample(path: Path) -> Sample:
    """Read a sample submission's columns and ids; what else is in its rows does not matter.

    Raises:
        UserError: it cannot be read as a CSV file in UTF-8, has less than two columns or no row, a row has another
            number of cells, or a column or an id occurs twice.
    """
    ids: list[str] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            rows = (row for row in reader if row)
            header = next(rows, [])
            for row in rows:
                if len(row) != len(header):
                    raise UserError(
                        f"line {reader.line_num} of the sample submission {path} has {len(row)} cells; expected "
                        f"{len(header)}, as its header has."
                    )
                ids.append(row[0])
    except FileNotFoundError:
        raise UserError(f"there is no sample submission {path}; expected a CSV file with ids and columns.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"the sample submission {path} cannot be read: {error}; expected a CSV file in UTF-8."
        ) from None
    if not ids or len(header) < 2:
        raise UserError(
            f"the sample submission {path} has {len(ids)} rows and {len(header)} columns; expected a header, a first "
            "column of ids, and a column for the label or one for each class."
        )
    for names, what in ((header, "column"), (ids, "id")):
        if len(set(names)) < len(names):
            raise UserError(
                f"the sample submission {path} has the {what} {_twice(names)!r} more than once; expected each once."
            )
    return Sample(tuple(header), tuple(ids))


def _twice(names: Sequence[str]) -> str:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    raise AssertionError("no name occurs twice")


def columns_of(sample: Sample, classes: tuple[str, ...]) -> list[int] | None:
    """The class of each column after the first, which holds the ids; None where the only one is for the label.

    Several columns are for the probabilities of the classes that they are called like, one for each class. A single one
    is for the label, unless it is itself called like a class: then it is for that class's probability.

    Raises:
        UserError: columns and classes do not agree.
    """
    named = sample.header[1:]
    place = {name: k for k, name in enumerate(classes)}
    if len(named) == 1:
        return [place[named[0]]] if named[0] in place else None
    unknown = [name for name in named if name not in place]
    if unknown:
        raise UserError(
            f"{len(unknown):,} of the sample submission's {len(named):,} columns after the ids are no class of the "
            f"model: {_few(unknown)}; expected a single column for the label, or one for each of the "
            f"{len(classes):,} classes: {_few(classes)}."
        )
    there = set(named)
    lacking = [name for name in classes if name not in there]
    if lacking:
        raise UserError(
            f"the sample submission has no column for {len(lacking):,} of the model's {len(classes):,} classes: "
            f"{_few(lacking)}. Expected a column for each, or a model of the sample's classes."
        )
    return [place[name] for name in named]


def rows_of(sample: Sample, ids: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The image of each of the sample's ids, as a row of `ids`.

    An id of the sample may be an image's id, its file name, or that without its ending; the first of these under which
    all agree counts.

    Raises:
        UserError: an id is missing or too much, under each of these spellings.
    """
    wanted = set(sample.ids)
    best: tuple[int, str, list[str]] | None = None
    for spelling, spelled in _SPELLINGS:
        names = [spelled(name) for name in ids]
        found = set(names)
        if found == wanted and len(names) == len(wanted):
            place = {name: row for row, name in enumerate(names)}
            return np.array([place[name] for name in sample.ids], dtype=np.int64)
        shared = len(found & wanted)
        if best is None or shared > best[0]:
            best = shared, spelling, names
    assert best is not None
    _, spelling, names = best
    raise UserError(_disagreement(sample, names, spelling))


def _disagreement(sample: Sample, names: list[str], spelling: str) -> str:
    predicted = set(names)
    missing = [name for name in sample.ids if name not in predicted]
    known = set(sample.ids)
    extra = [name for name in names if name not in known]
    said = []
    if missing:
        said.append(f"{len(missing):,} of its {len(sample.ids):,} ids are not predicted: {_few(missing)}")
    if extra:
        said.append(f"{len(extra):,} of {len(names):,} predicted images are not in it: {_few(extra)}")
    if not said:
        said.append(f"two predicted images go by the {spelling} {_twice(names)!r}")
    return (
        f"the predictions do not fit the sample submission (compared by {spelling}): {'; '.join(said)}. "
        "Predict exactly the sample's images."
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:NAMED]) + (", …" if len(names) > NAMED else "")
