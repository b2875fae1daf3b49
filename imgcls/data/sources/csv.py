"""A CSV or Parquet table with a row an image: its path, its label, and perhaps its split and group."""

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field, field_validator

from imgcls.data.source import SOURCES, DataConfig, ScanProgress, Source
from imgcls.data.sources.columns import choose_column, class_names
from imgcls.data.sources.files import EXTENSIONS, SPLIT_NAMES, absolute, check_names, contents, some
from imgcls.data.sources.table import Table, read_table
from imgcls.errors import UserError
from imgcls.tables import Manifest

AUTO_COLUMNS: dict[str, tuple[tuple[str, ...], ...]] = {
    "path": (
        ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_file", "img"),
        ("id", "image_id", "id_code"),
    ),
    "label": (("label", "labels", "class", "target", "category", "class_name", "label_name"),),
}
"""The names that `auto` knows, in any case; a later group counts where the table has none of an earlier one."""
SPLIT_COLUMNS = ("split", "subset", "partition")
"""Columns that probably hold a split, in any case; they are only read where data.split_column names them."""


class CsvConfig(DataConfig):
    """The fields of `source: csv`."""

    source: Literal["csv"] = "csv"
    """A CSV or Parquet file with a row an image."""
    table: str = Field(min_length=1)
    """The file. A relative path is taken from the current directory (under `mlflow run`: the project's)."""
    images: str | None = Field(None, min_length=1)
    """The folder that the table's paths start from; null: the folder the table lies in."""
    path_column: str = "auto"
    """The column with the images' paths. auto: path, file, filename, image, …, or id and image_id without these."""
    label_column: str = "auto"
    """The column with the labels. auto: label, class, target, category, …"""
    split_column: str | None = None
    """The column with train, val (valid, validation) or test, or nothing in it; null: no split is given."""
    group_column: str | None = None
    """The column with what images belong together by (patient, scene, drawer); null: no groups."""
    extension: str | None = None
    """Ending to put behind paths that have none, such as .jpg; null: found out where just one image file fits."""
    separator: Literal["auto", "comma", "semicolon", "tab"] = "auto"
    """What separates a CSV's columns. auto: that under which the columns are found. Parquet needs none."""
    label_kind: Literal["auto", "integers", "names"] = "auto"
    """How classes are sorted: integers by value, names as text. auto: integers where every label is one."""

    @field_validator("table", "images")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        return path if path is None else absolute(path)

    @field_validator("extension")
    @classmethod
    def _ending(cls, extension: str | None) -> str | None:
        if extension is not None and not re.fullmatch(r"\.?[A-Za-z0-9]+", extension):
            raise ValueError("expected an ending such as .jpg, or null")
        return extension if extension is None else "." + extension.removeprefix(".")

    @property
    def origin(self) -> str:
        """The table."""
        return self.table


def scan_csv(config: CsvConfig, progress: ScanProgress) -> Manifest:
    """Read the table and find its images. Every row is an image; nothing is passed over.

    Raises:
        UserError: the table cannot be read, is empty, lacks a column or has several that fit; paths that are empty,
            missing or given twice; labels that are empty or of mixed kinds; unknown splits; classes in val or test
            that train lacks.
    """
    header: list[str] = []

    def choose(names: Sequence[str]) -> dict[str, str]:
        chosen = _columns(names, config)
        header[:] = names
        return chosen

    table = read_table(Path(config.table), separator=config.separator, choose=choose)
    about = f"data.table {config.table}"
    labels = [label.strip() for label in table.columns["label"]]
    _refuse_empty(table.columns["path"], table, about, "path")
    _refuse_empty(labels, table, about, "label")
    names = class_names(labels, config.label_kind, about)
    splits = _splits(table, about)
    paths, ids = _find(table, config)
    train = {names[label] for label, split in zip(labels, splits, strict=True) if split in ("", "train")}
    strangers = [name for name in dict.fromkeys(names.values()) if name not in train]
    if strangers:
        raise UserError(
            f"{about}: the classes {some(strangers)} are in val or test but not in train; a class needs training "
            "images. Add some, or remove the rows of these classes."
        )
    classes = list(dict.fromkeys(names.values()))
    index = {name: k for k, name in enumerate(classes)}
    groups = [group.strip() for group in table.columns.get("group", [""] * len(ids))]
    rows = [
        {"id": id_, "path": str(path), "label": index[names[label]], "split": split, "group": group, "content": content}
        for id_, path, label, split, group, content in zip(
            ids, paths, labels, splits, groups, contents(paths, progress), strict=True
        )
    ]
    rows.sort(key=lambda row: str(row["id"]))
    return Manifest.build(rows, classes=classes, notices=_unread_split(header, config))


def _unread_split(header: Sequence[str], config: CsvConfig) -> list[str]:
    """A kind word about a column that looks like a split and is not read."""
    like = [name for name in header if name.casefold() in SPLIT_COLUMNS] if config.split_column is None else []
    return [
        f"data.table {config.table} has a column {name!r} that is not read; set data.split_column to {name} to take "
        "its split"
        for name in like
    ]


def _columns(names: Sequence[str], config: CsvConfig) -> dict[str, str]:
    """{role: column} of the configured columns."""
    asked = {
        "path": config.path_column,
        "label": config.label_column,
        "split": config.split_column,
        "group": config.group_column,
    }
    about = f"data.table {config.table}"
    chosen = {
        role: choose_column(
            names, role, name, about=about, known=AUTO_COLUMNS.get(role, ()), header="a header line with "
        )
        for role, name in asked.items()
        if name is not None
    }
    if chosen["path"] == chosen["label"]:
        raise UserError(
            f"data.path_column and data.label_column are the same column, {chosen['path']!r}; expected two. "
            f"data.table {config.table} has the columns {', '.join(names)}."
        )
    return chosen


def _refuse_empty(values: Sequence[str], table: Table, about: str, role: str) -> None:
    empty = [where for value, where in zip(values, table.where, strict=True) if not value.strip()]
    if empty:
        raise UserError(
            f"{about}: {len(empty)} of {len(values)} rows have no {role} ({some(empty)}); expected one in every row. "
            "Fill them in or remove the rows."
        )


def _splits(table: Table, about: str) -> list[str]:
    given = [value.strip().casefold() for value in table.columns.get("split", [""] * len(table.where))]
    unknown = [
        f"{value!r} in {where}"
        for value, where in zip(given, table.where, strict=True)
        if value and value not in SPLIT_NAMES
    ]
    if unknown:
        raise UserError(
            f"{about}: {len(unknown)} of {len(given)} rows have an unknown split ({some(unknown)}); expected "
            f"{', '.join(SPLIT_NAMES)} or nothing. Mend them, or choose another data.split_column."
        )
    return [SPLIT_NAMES.get(value, "") for value in given]


def _find(table: Table, config: CsvConfig) -> tuple[list[Path], list[str]]:
    """(the file, the id) of every row."""
    base = Path(config.images or Path(config.table).parent)
    if not base.is_dir():
        raise UserError(f"data.images {base} is no folder; expected the folder that the table's paths start from.")
    about, given = f"data.table {config.table}", table.columns["path"]
    nul = [where for text, where in zip(given, table.where, strict=True) if "\0" in text]
    if nul:
        raise UserError(f"{about}: the paths in {some(nul)} hold a NUL character; expected paths. Mend them.")
    finder = FileFinder(base, config.extension)
    found = [finder.find(text) for text in given]
    several = [
        f"{text} ({', '.join(file.name for file in files)})"
        for text, files in zip(given, found, strict=True)
        if len(files) > 1
    ]
    if several:
        raise UserError(f"{about}: several files fit {some(several)}. Write the endings, or set data.extension.")
    missing = [text for text, files in zip(given, found, strict=True) if not files]
    if missing:
        raise UserError(
            f"{about}: {len(missing)} of {len(given)} images are missing: {some(missing)}. Relative paths are taken "
            f"from {base}; set data.images to the folder they start from, or remove the rows."
        )
    paths = [files[0] for files in found]
    _refuse_twice(paths, given, table, about)
    check_names(paths)
    return paths, [PurePosixPath(text).as_posix() for text in given]


class FileFinder:
    """Finds the files of paths that may lack their ending; every folder is listed once.

    Args:
        base: the folder that relative paths start from.
        extension: the ending, with its dot, of paths that have none; None: any known one.
    """

    def __init__(self, base: Path, extension: str | None) -> None:
        self._base, self._extension = base, extension
        self._listed: dict[Path, dict[str, list[Path]]] = {}

    def find(self, text: str) -> list[Path]:
        """The files that fit: none, one, or several that differ in their endings."""
        path = self._base / text  # links are not resolved, and `..` stays: a table may point beside its folder
        if _is_file(path):
            return [path]
        if self._extension is not None:
            path = Path(f"{path}{self._extension}")
            return [path] if _is_file(path) else []
        return self._images(path.parent).get(path.name, [])

    def _images(self, folder: Path) -> dict[str, list[Path]]:
        if folder not in self._listed:
            by_stem: dict[str, list[Path]] = {}
            try:
                files = sorted(folder.iterdir())
            except OSError:  # no such folder: its images are missing
                files = []
            for file in files:
                if file.suffix.casefold() in EXTENSIONS and _is_file(file):
                    by_stem.setdefault(file.stem, []).append(file)
            self._listed[folder] = by_stem
        return self._listed[folder]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, a folder that may not be entered
        return False


def _refuse_twice(paths: Sequence[Path], given: Sequence[str], table: Table, about: str) -> None:
    rows: dict[str, list[int]] = {}
    for row, path in enumerate(paths):
        rows.setdefault(os.path.normpath(path), []).append(row)
    twice = [same for same in rows.values() if len(same) > 1]
    if twice:
        labels = table.columns["label"]
        shown = [
            f"{given[same[0]]} ({' and '.join(f'{table.where[row]} as {labels[row].strip()}' for row in same[:3])})"
            for same in twice
        ]
        raise UserError(
            f"{about}: {len(twice)} image{'s stand' if len(twice) > 1 else ' stands'} more than once: {some(shown)}. "
            "Expected one row an image; remove the others."
        )


SOURCES.register("csv")(Source(CsvConfig, scan_csv))
