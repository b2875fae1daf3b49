"""Parquet files of images: which there are, what their columns hold, and their images' bytes in one cached file."""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imgcls.data.source import ScanProgress
from imgcls.data.sources.cached import cached, key_of
from imgcls.data.sources.columns import choose_column
from imgcls.data.sources.files import SPLIT_NAMES, check_names, is_hidden, printable, some
from imgcls.errors import UserError
from imgcls.tables import Encoded, Skipped

AUTO_COLUMNS: dict[str, tuple[tuple[str, ...], ...]] = {
    "image": (("image", "img"), ("images", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")),
    "label": (("label", "labels"), ("fine_label",), ("class", "target", "category", "class_name", "label_name")),
}
"""The names that `auto` knows, in any case; a later group counts where the files have none of an earlier one."""
BATCH_ROWS = 64
"""Rows held in memory while images are copied: a few hundred MiB of the largest photos."""
_MAGIC = b"PAR1"


@dataclass(frozen=True)
class Shard:
    """One file, without its images.

    Attributes:
        path: the file.
        name: its path below what was asked for, without the ending; ids begin with it.
        split: train, val or test where its name or that of a folder around it says so, else "".
        num_rows: its rows, at least one.
        image: the column with the images.
        columns: label, and split and group where asked for -> one text a row, "" where there is no value.
        names: what its metadata calls the labels 0, 1, …; empty where they have no names.
        integers: whether the labels are integers.
    """

    path: Path
    name: str
    split: str
    num_rows: int
    image: str
    columns: dict[str, list[str]]
    names: tuple[str, ...]
    integers: bool


@dataclass(frozen=True)
class Images:
    """The images of all shards, in their order.

    Attributes:
        encoded: their bytes, mapped from the cache; none where a row has none.
        contents: (N, 16) uint8: a hash of each image's bytes.
    """

    encoded: Encoded
    contents: npt.NDArray[np.uint8]


def open_shards(given: str, asked: Mapping[str, str]) -> tuple[list[Shard], list[Skipped]]:
    """The files of a path or pattern, and what was passed over.

    Args:
        given: a file, a folder or a pattern.
        asked: role -> column, or auto.

    Raises:
        UserError: nothing is there, a file is no Parquet or damaged, or its columns do not fit.
    """
    files, base, skipped = _files(given)
    check_names(files)
    endings = [_relative(path, base).removesuffix(".parquet") for path in files]
    names = endings if len(set(endings)) == len(endings) else [_relative(path, base) for path in files]
    shards = [_shard(path, name, asked) for path, name in zip(files, names, strict=True)]
    skipped += [Skipped(str(shard.path), "no rows") for shard in shards if not shard.num_rows]
    return [shard for shard in shards if shard.num_rows], skipped


def _relative(path: Path, base: Path) -> str:
    return path.relative_to(base).as_posix()


def _files(given: str) -> tuple[list[Path], Path, list[Skipped]]:
    """(the files, the folder that their names are taken from, what was passed over)."""
    root, skipped = Path(given), list[Skipped]()
    expected = "expected a Parquet file, a folder with *.parquet files, or a pattern for such files"
    try:
        if root.is_file():
            return [root], root.parent, []
        if root.is_dir():
            files = list(_files_below(root, skipped))
            if not files:
                found = some([item.path for item in skipped])
                raise UserError(f"data.parquet {root} has no *.parquet files{found and ' but '}{found}; {expected}.")
            return files, root, skipped
    except (OSError, ValueError) as error:  # a name that is too long or holds a NUL, a folder that may not be entered
        if isinstance(error, UserError):
            raise
        raise UserError(f"data.parquet {given[:200]!r} cannot be read: {error}. Mend its name or rights.") from error
    if not glob.has_magic(given):
        raise UserError(
            f"data.parquet {given} does not exist; {expected}. Best is an absolute path: a relative one is taken from "
            "the current directory, which under `mlflow run` is the project's."
        )
    files = sorted(path for path in map(Path, glob.glob(given, recursive=True)) if path.is_file())  # noqa: PTH207 (it is absolute)
    if not files:
        raise UserError(f"data.parquet {given} fits no file; {expected}.")
    parts = Path(given).parts
    plain = next(k for k, part in enumerate(parts) if glob.has_magic(part))
    return files, Path(*parts[:plain]), []


def _files_below(root: Path, skipped: list[Skipped]) -> Iterator[Path]:
    def cannot_list(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}. Change its permissions or remove it.")

    def skip(path: Path, reason: str) -> None:
        skipped.append(Skipped(printable(_relative(path, root)), reason))

    # Links to folders are not followed, so a link to a parent cannot make the walk endless; links to files are how the
    # hub's own cache holds them.
    for here, folders, names in os.walk(root, onerror=cannot_list):
        for name in sorted(folders):
            if is_hidden(name):
                skip(Path(here, name), "hidden")
            elif Path(here, name).is_symlink():
                skip(Path(here, name), "a link to a folder")
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in sorted(names):
            if is_hidden(name):
                skip(Path(here, name), "hidden")
            elif not name.casefold().endswith(".parquet"):
                skip(Path(here, name), "not called *.parquet")
            else:
                yield Path(here, name)


def _split_of(name: str) -> str:
    """The split that a file's name begins with, or that a folder around it is called, the nearest first."""
    *folders, file = name.casefold().split("/")
    head = re.split(r"[-_.\[]", file)[0]
    return next((SPLIT_NAMES[part] for part in [head, *reversed(folders)] if part in SPLIT_NAMES), "")


def _shard(path: Path, name: str, asked: Mapping[str, str]) -> Shard:
    import pyarrow.parquet as pq

    about = f"data.parquet {path}"
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise UserError(f"{about} cannot be read: {error.strerror}. Change its permissions or remove it.") from error
    if head != _MAGIC:
        raise UserError(
            f"{about} is {'empty' if not head else 'no Parquet file (it does not begin with PAR1)'}; expected Parquet "
            "files. A pointer of Git LFS? Download the file itself, or remove it."
        )
    with _reading(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        chosen = {
            role: choose_column(schema.names, role, column, about=about, known=AUTO_COLUMNS.get(role, ()))
            for role, column in asked.items()
        }
        _check_roles(chosen, about)
        _check_image(schema.field(chosen["image"]).type, chosen["image"], about)
        texts = {role: column for role, column in chosen.items() if role != "image"}
        for role, column in texts.items():
            _check_text(schema.field(column).type, role, column, about)
        read = file.read(columns=list(texts.values()))
        columns = {role: [_text(value) for value in read[column].to_pylist()] for role, column in texts.items()}
        integers = _is_integer(schema.field(chosen["label"]).type)
        names = _label_names(schema.metadata, chosen["label"])
        return Shard(path, name, _split_of(name), read.num_rows, chosen["image"], columns, names, integers)


def _check_roles(chosen: Mapping[str, str], about: str) -> None:
    if chosen["image"] == chosen["label"]:
        raise UserError(
            f"{about}: data.image_column and data.label_column are the same column, {chosen['image']!r}; expected two."
        )


def _check_image(kind: Any, column: str, about: str) -> None:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        if "bytes" in fields:
            kind = fields["bytes"]
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(
            f"{about}: the column {column!r} holds {kind}; expected the images' bytes (binary, or a struct with a "
            "field `bytes`). Choose another with data.image_column; a table of paths is read with data.table."
        )


def _check_text(kind: Any, role: str, column: str, about: str) -> None:
    import pyarrow as pa

    types = pa.types
    value = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_null(value) or types.is_string(value) or types.is_large_string(value):
        return
    if types.is_integer(value) or types.is_floating(value) or types.is_boolean(value):
        return
    raise UserError(
        f"{about}: the column {column!r} holds {kind}; expected one text or number a row as the {role}. Choose another "
        f"with data.{role}_column."
    )


def _is_integer(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind))


def _text(value: Any) -> str:
    if value is None or value != value:  # NaN, pandas' missing number
        return ""
    # Integers with gaps are decimal numbers in pandas, and may be so in one file only.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _label_names(metadata: Mapping[bytes, bytes] | None, column: str) -> tuple[str, ...]:
    """The names of a label column in the metadata that the library `datasets` writes; none where there are none."""
    try:
        about = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        feature = about.get("info", {}).get("features", {}).get(column, {})
        names = feature.get("names") or []
    except (ValueError, AttributeError):  # somebody else's metadata under that key
        return ()
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what pyarrow raises for damaged files into an error that names the file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"data.parquet {path} begins like Parquet but cannot be read: {reason}. Write, copy or download it again."
        ) from error


# --- the images' bytes


def write_images(shards: Sequence[Shard], progress: ScanProgress) -> Images:
    """All images' bytes in one file of the cache, written once, in batches, and mapped into memory.

    Raises:
        UserError: a file is damaged, or the cache cannot be written or has too little room.
    """

    def build(folder: Path) -> None:
        _write(shards, folder, progress)

    paths = [shard.path for shard in shards]
    folder = cached(
        "parquet",
        key_of(paths, *(shard.image for shard in shards)),
        build,
        num_bytes=lambda: sum(_image_bytes(shard) for shard in shards),
        what=f"the images of {paths[0]}{f' and {len(paths) - 1} more files' * (len(paths) > 1)}",
        progress=progress,
    )
    ends = np.load(folder / "ends.npy")
    data = np.memmap(folder / "bytes.bin", np.uint8, "r") if ends[-1] else np.empty(0, np.uint8)
    return Images(Encoded(data, ends), np.load(folder / "contents.npy"))


def _image_bytes(shard: Shard) -> int:
    """What the images of a file take, as its metadata has it."""
    import pyarrow.parquet as pq

    with _reading(shard.path), pq.ParquetFile(shard.path) as file:
        groups = [file.metadata.row_group(k) for k in range(file.metadata.num_row_groups)]
        columns = [group.column(k) for group in groups for k in range(group.num_columns)]
        wanted = (shard.image, f"{shard.image}.bytes")
        return int(sum(column.total_uncompressed_size for column in columns if column.path_in_schema in wanted))


def _write(shards: Sequence[Shard], folder: Path, progress: ScanProgress) -> None:
    total = sum(shard.num_rows for shard in shards)
    ends, contents = np.zeros(total + 1, np.int64), np.zeros((total, 16), np.uint8)
    done = 0
    with (folder / "bytes.bin").open("wb") as file:
        for shard in shards:
            before = done
            for data in _images_of(shard):
                file.write(data)
                ends[done + 1] = ends[done] + len(data)
                contents[done] = np.frombuffer(hashlib.blake2b(data, digest_size=16).digest(), np.uint8)
                done += 1
                if done % BATCH_ROWS == 0 or done == total:
                    progress("unpacking Parquet files", done, total)
            if done - before != shard.num_rows:
                raise UserError(f"{shard.path} changed while it was read. Run again when it is whole.")
    np.save(folder / "ends.npy", ends)
    np.save(folder / "contents.npy", contents)


def _images_of(shard: Shard) -> Iterator[bytes]:
    """The images of a file, b"" where a row has none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _reading(shard.path), pq.ParquetFile(shard.path) as file:
        batches = iter(file.iter_batches(batch_size=BATCH_ROWS, columns=[shard.image], use_threads=False))
        while True:
            with _reading(shard.path):
                batch = next(batches, None)
            if batch is None:
                return
            column = batch.column(batch.schema.get_field_index(shard.image))
            if pa.types.is_struct(column.type):  # flattened, because a null struct has no bytes
                column = column.flatten()[column.type.get_field_index("bytes")]
            for row in range(len(column)):
                yield column[row].as_py() or b""
