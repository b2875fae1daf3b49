"""Parquet files with the images' bytes in them, as the Hugging Face hub lays data sets out."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from imgcls.data.source import SOURCES, DataConfig, ScanProgress, Source
from imgcls.data.sources.columns import class_names
from imgcls.data.sources.files import SPLIT_NAMES, absolute, some
from imgcls.data.sources.parquet_files import Shard, open_shards, write_images
from imgcls.errors import UserError
from imgcls.tables import Manifest, Skipped


class ParquetConfig(DataConfig):
    """The fields of `source: parquet`."""

    source: Literal["parquet"] = "parquet"
    """Parquet files that hold the images' bytes, as the Hugging Face hub lays data sets out."""
    parquet: str = Field(min_length=1)
    """A Parquet file, a folder with such files in any depth, or a pattern such as data/train-*.parquet. A relative path
    is taken from the current directory (under `mlflow run`: the project's). Files or folders called train-…,
    validation-… and test-… give the splits."""
    image_column: str = "auto"
    """The column with the images: bytes, or a struct with a field `bytes`. auto: image or img, or jpg, png, …"""
    label_column: str = "auto"
    """The column with the labels: text, or integers, whose names the file's metadata may have. auto: label, labels,
    fine_label, class, …"""
    split_column: str | None = None
    """The column with train, val (valid, validation) or test, or nothing in it; null: the files' names say it."""
    group_column: str | None = None
    """The column with what images belong together by (patient, scene, drawer); null: no groups."""
    label_kind: Literal["auto", "integers", "names"] = "auto"
    """How classes are sorted: integers by value, names as text. auto: integers where every label is one."""

    @field_validator("parquet")
    @classmethod
    def _absolute(cls, path: str) -> str:
        return absolute(path)

    @property
    def origin(self) -> str:
        """The file, folder or pattern."""
        return self.parquet


def scan_parquet(config: ParquetConfig, progress: ScanProgress) -> Manifest:
    """Read the labels, and write the images' bytes once into the cache, from where they are mapped into memory.

    Integer labels are named by each file's own metadata, so files that number the classes differently agree. The files
    of a test split whose labels are hidden (all -1 or missing), and files without rows, are left out and listed.

    Raises:
        UserError: no such file, none that is Parquet, missing columns or columns of a kind that is none of images or
            labels, labels that are missing, out of range or mixed, unknown splits, classes in val or test that train
            lacks, images without bytes, or a cache that cannot be written.
    """
    about = f"data.parquet {config.parquet}"
    shards, skipped = open_shards(config.parquet, _columns_asked(config))
    if config.split_column is None:
        _check_splits(shards, about)
    shards, hidden = _without_hidden(shards)
    skipped += hidden
    if not shards:
        raise UserError(f"{about} has no rows with a label ({_what(skipped)}); expected a labelled image a row.")
    named, classes = _classes(shards, config, about)
    splits = [_splits(shard, config) for shard in shards]
    _refuse_strangers(named, splits, about)
    images = write_images(shards, progress)
    empty = np.flatnonzero(np.diff(images.encoded.ends) == 0)
    if len(empty) and config.on_bad_image == "error":
        raise UserError(
            f"{about}: {len(empty)} of {len(images.encoded)} rows hold no image bytes (null, empty, or only a path to "
            f"a file elsewhere): {some([_row_name(shards, int(row)) for row in empty])}. Expected the bytes; "
            "write the files again with them, or leave the rows out with data.on_bad_image skip."
        )
    index = {name: k for k, name in enumerate(classes)}
    rows: list[dict[str, Any]] = []
    for shard, names, given in zip(shards, named, splits, strict=True):
        groups = shard.columns.get("group", [""] * shard.num_rows)
        width = len(str(shard.num_rows - 1))
        for number in range(shard.num_rows):
            about_row = {"label": index[names[number]], "split": given[number], "group": groups[number]}
            content = images.contents[len(rows)].tobytes().hex()
            rows.append({"id": f"{shard.name}/{number:0{width}d}", "row": len(rows), "content": content, **about_row})
    rows.sort(key=lambda row: str(row["id"]))
    return Manifest.build(rows, classes=classes, encoded=images.encoded, skipped=skipped)


def _columns_asked(config: ParquetConfig) -> dict[str, str]:
    """{role: the column asked for, or auto}."""
    asked = {
        "image": config.image_column,
        "label": config.label_column,
        "split": config.split_column,
        "group": config.group_column,
    }
    return {role: name for role, name in asked.items() if name is not None}


def _what(skipped: Sequence[Skipped]) -> str:
    return some([f"{item.path}: {item.reason}" for item in skipped]) or "no files"


def _check_splits(shards: Sequence[Shard], about: str) -> None:
    """Either every file says its split by its name, or none does."""
    without = [shard.name for shard in shards if not shard.split]
    given = sorted({shard.split for shard in shards if shard.split})
    if without and given:
        raise UserError(
            f"{about} has files that are named like splits ({some(given)}) beside others ({some(without)}); expected "
            f"names that begin with {', '.join(SPLIT_NAMES)}, or none that does. Give a pattern that leaves the others "
            "out (data/t*.parquet), rename them, or set data.split_column."
        )


def _without_hidden(shards: Sequence[Shard]) -> tuple[list[Shard], list[Skipped]]:
    """The shards without those of the test split whose labels are all hidden."""
    kept, skipped = [], []
    for shard in shards:
        unlabelled = sum(label in ("", "-1") for label in shard.columns["label"])
        if shard.split == "test" and unlabelled == shard.num_rows:
            reason = f"its {shard.num_rows:,} rows have no labels (-1 or missing), as those of a hidden test set"
            skipped.append(Skipped(str(shard.path), reason))
        else:
            kept.append(shard)
    return kept, skipped


def _classes(shards: Sequence[Shard], config: ParquetConfig, about: str) -> tuple[list[list[str]], list[str]]:
    """(the class name of every row of every shard, the classes in their order)."""
    with_names = [shard for shard in shards if shard.names]
    without = [shard for shard in shards if not shard.names]
    if with_names and without and all(shard.integers for shard in without):
        raise UserError(
            f"{about}: the metadata of {with_names[0].path} names the classes, that of {without[0].path} does not, and "
            "its labels are integers; expected names in all files or in none. Write the files again in one way."
        )
    labels = [_named_labels(shard) for shard in shards]
    names = class_names((label for part in labels for label in part), config.label_kind, about)
    return [[names[label] for label in part] for part in labels], list(dict.fromkeys(names.values()))


def _named_labels(shard: Shard) -> list[str]:
    """The labels of a file's rows, integers replaced by the names that its metadata has for them."""
    labels = shard.columns["label"]
    missing = [f"row {row}" for row, label in enumerate(labels) if not label or (shard.names and label == "-1")]
    if missing:
        raise UserError(
            f"{shard.path}: {len(missing)} of {len(labels)} rows have no label, or -1 ({some(missing)}, counted from "
            "0); expected one in every row, for only a test file without any is left out. Fill them in, remove the "
            "rows, or give a pattern that leaves the file out."
        )
    if not shard.names or not shard.integers:
        return labels
    outside = [f"{label} in row {row}" for row, label in enumerate(labels) if not 0 <= int(label) < len(shard.names)]
    if outside:
        raise UserError(
            f"{shard.path}: {len(outside)} of {len(labels)} labels are none of the {len(shard.names)} that the file's "
            f"metadata names ({some(outside)}); expected 0 to {len(shard.names) - 1}. Write the file again."
        )
    return [shard.names[int(label)] for label in labels]


def _splits(shard: Shard, config: ParquetConfig) -> list[str]:
    """The split of every row."""
    if config.split_column is None:
        return [shard.split] * shard.num_rows
    given = [value.casefold() for value in shard.columns["split"]]
    unknown = [f"{value!r} in row {row}" for row, value in enumerate(given) if value and value not in SPLIT_NAMES]
    if unknown:
        raise UserError(
            f"{shard.path}: {len(unknown)} of {len(given)} rows have an unknown split ({some(unknown)}, counted from "
            f"0); expected {', '.join(SPLIT_NAMES)} or nothing. Mend them, or choose another data.split_column."
        )
    return [SPLIT_NAMES.get(value, "") for value in given]


def _refuse_strangers(named: Sequence[Sequence[str]], splits: Sequence[Sequence[str]], about: str) -> None:
    pairs = {pair for names, given in zip(named, splits, strict=True) for pair in zip(names, given, strict=True)}
    train = {name for name, split in pairs if split in ("", "train")}
    strangers = sorted({name for name, _ in pairs} - train)
    if strangers:
        raise UserError(
            f"{about}: the classes {some(strangers)} are in val or test but not in train; a class needs training "
            "images. Add some, or give a pattern that leaves files out."
        )


def _row_name(shards: Sequence[Shard], row: int) -> str:
    for shard in shards:
        if row < shard.num_rows:
            return f"{shard.path} row {row}"
        row -= shard.num_rows
    raise AssertionError("a row behind the last file")


SOURCES.register("parquet")(Source(ParquetConfig, scan_parquet))
