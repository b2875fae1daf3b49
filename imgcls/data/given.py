"""`data.split_from`: the split of a table, such as another run's tables/split.csv, given to these images."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from imgcls.data.names import SPLIT_NAMES, some
from imgcls.errors import UserError
from imgcls.tables import Manifest, Skipped

COLUMNS = ("id", "content", "label", "split")
"""The columns that are read; `split` and one of `id` and `content` must be there."""


def give_splits(manifest: Manifest, table: Path, *, name: str) -> Manifest:
    """The manifest with the table's splits in place of its own.

    An image is found by its content, for files may have been renamed or moved, else by its id. Rows of the table
    without an image are listed in the manifest's `skipped`.

    Args:
        manifest: the images.
        table: a CSV (UTF-8, commas) or Parquet file with the columns split, content and/or id, and perhaps label.
        name: what errors call the table; a run's is a copy in a folder that nobody knows.

    Raises:
        UserError: the table cannot be read or lacks a column, has unknown splits or ids twice, an image is not in it or
            with several splits, or a label in it is not the image's class.
    """
    frame = _read(table, name)
    _check(frame, name)
    found = _match(manifest, frame)
    missing = [id_ for id_, rows in zip(manifest.ids, found.rows, strict=True) if not rows]
    if missing:
        raise UserError(
            f"data.split_from {name} has no split for {len(missing):,} of {len(manifest):,} images ({some(missing)}), "
            "looked up by content, then by id. Expected a split for every image; add them, or split anew without it."
        )
    if "label" in frame:
        _check_labels(manifest, frame, found.rows, name)
    splits = frame["split"].tolist()
    several = [
        f"{id_} ({', '.join(sorted({splits[row] for row in rows}))})"
        for id_, rows in zip(manifest.ids, found.rows, strict=True)
        if len({splits[row] for row in rows}) > 1
    ]
    if several:
        raise UserError(
            f"data.split_from {name} has images of equal bytes in several splits, and no row with the id of "
            f"{some(several)}. Add the ids to it, or mend its splits."
        )
    skipped, notices = _left_over(frame, found)
    given = manifest.with_splits([splits[rows[0]] for rows in found.rows]).with_notices(notices)
    return given.without([], skipped=skipped)


def _read(path: Path, name: str) -> pd.DataFrame:
    """The known columns as text, "" where there is no value."""
    try:
        with path.open("rb") as file:
            parquet = file.read(4) == b"PAR1"
        table = pq.read_table(path) if parquet else _read_csv(path)
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: a path with a NUL
        reason = getattr(error, "strerror", None) or str(error).strip().split("\n")[0].rstrip(".")
        raise UserError(
            f"data.split_from {name[:300]} cannot be read: {reason}. Expected a CSV (UTF-8, commas) or Parquet file "
            "with the columns split and content or id, such as a run's tables/split.csv, or a run id."
        ) from error
    columns = [column for column in table.column_names if column in COLUMNS]
    if "split" not in columns or not {"id", "content"} & set(columns) or len(set(columns)) < len(columns):
        raise UserError(
            f"data.split_from {name} has the columns {some(table.column_names)}; expected split, content or id or "
            "both, and perhaps label, each once. Rename its columns."
        )
    return pd.DataFrame({c: ["" if v is None else str(v) for v in table[c].to_pylist()] for c in columns}, dtype=str)


def _read_csv(path: Path) -> pa.Table:
    types = dict.fromkeys(COLUMNS, pa.string())
    return csv.read_csv(
        path,
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types=types, strings_can_be_null=False),
    )


def _check(frame: pd.DataFrame, name: str) -> None:
    """Bring the splits to their names; an error for unknown ones and for ids that stand twice."""
    given = frame["split"].str.strip().str.casefold()
    unknown = frame.index[~given.isin(list(SPLIT_NAMES))]
    if len(unknown):
        shown = [f"{frame['split'][row]!r} in row {row + 1}" for row in unknown]
        raise UserError(
            f"data.split_from {name}: {len(unknown):,} of {len(frame):,} rows have an unknown split ({some(shown)}); "
            f"expected {', '.join(SPLIT_NAMES)}. Mend them."
        )
    frame["split"] = given.map(SPLIT_NAMES)
    if "id" in frame:
        twice = [id_ for id_, count in Counter(frame["id"].tolist()).items() if id_ and count > 1]
        if twice:
            raise UserError(
                f"data.split_from {name}: {len(twice):,} id{'s stand' if len(twice) > 1 else ' stands'} more than once "
                f"({some(twice)}). Keep one row for each."
            )


@dataclass(frozen=True)
class _Found:
    """For every image, the rows of the table that may be its; how many images were found by their id alone."""

    rows: list[list[int]]
    num_by_id: int


def _match(manifest: Manifest, frame: pd.DataFrame) -> _Found:
    ids = frame["id"].tolist() if "id" in frame else [""] * len(frame)
    of_content: dict[str, list[int]] = {}
    for row, content in enumerate(frame["content"].tolist() if "content" in frame else []):
        if content:
            of_content.setdefault(content, []).append(row)
    rows = [of_content.get(content, []) for content in manifest.frame["content"].tolist()]
    # A row whose bytes are found is of that image, also where another file has its name by now.
    used = {row for found in rows for row in found}
    of_id = {name: row for row, name in enumerate(ids) if name and row not in used}
    num_by_id = 0
    for k, name in enumerate(manifest.ids):
        if not rows[k] and name in of_id:
            rows[k] = [of_id[name]]
            num_by_id += 1
        elif same := [row for row in rows[k] if ids[row] == name]:
            rows[k] = same
    return _Found(rows, num_by_id)


def _check_labels(manifest: Manifest, frame: pd.DataFrame, rows: list[list[int]], name: str) -> None:
    """Narrow the rows of equal bytes to those of the image's class; an error where there is none."""
    labels = frame["label"].tolist()
    wrong = []
    for k, (id_, label) in enumerate(zip(manifest.ids, manifest.labels.tolist(), strict=True)):
        same = [row for row in rows[k] if labels[row] == manifest.classes[label]]
        if not same:
            wrong.append(f"{id_} is {manifest.classes[label]!r} here and {labels[rows[k][0]]!r} in the table")
        rows[k] = same
    if wrong:
        raise UserError(
            f"data.split_from {name}: the labels of {len(wrong):,} of {len(manifest):,} images are not their classes: "
            f"{'; '.join(wrong[:3])}. Expected the same class names; mend the labels, data.classes or the table, or "
            "remove its label column."
        )


def _left_over(frame: pd.DataFrame, found: _Found) -> tuple[Sequence[Skipped], Sequence[str]]:
    used = {row for rows in found.rows for row in rows}
    names = frame["id" if "id" in frame else "content"].tolist()
    reason = "a row of data.split_from without an image"
    skipped = [Skipped(names[row], reason, num_files=0) for row in range(len(frame)) if row not in used]
    notices = []
    if skipped:
        shown = some([item.path for item in skipped])
        notices.append(f"{len(skipped):,} of {len(frame):,} rows of data.split_from are of no image here: {shown}")
    if found.num_by_id and "content" in frame:
        notices.append(
            f"data.split_from: {found.num_by_id:,} images were found by id only; their bytes are not those of the table"
        )
    return skipped, notices
