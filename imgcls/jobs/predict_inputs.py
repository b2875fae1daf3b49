"""From the words of a command line to unlabelled images: a folder, an archive, a table of paths, or single files."""

import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from imgcls.data.names import absolute, some
from imgcls.data.source import ScanProgress, silent
from imgcls.data.sources.archive import MOST_FILE_BYTES, unpacked
from imgcls.data.sources.archive_members import is_archive, looks_like
from imgcls.data.sources.columns import choose_column
from imgcls.data.sources.csv import AUTO_COLUMNS, FileFinder
from imgcls.data.sources.files import EXTENSIONS, check_names, printable
from imgcls.data.sources.folder import images_below
from imgcls.data.sources.table import SEPARATORS, read_table
from imgcls.errors import UserError
from imgcls.inference.stream import Item
from imgcls.tables import Skipped

EXPECTED = "a folder of images, an archive of one (zip or tar), a CSV or Parquet table of paths, or image files"
TABLES = frozenset({".csv", ".tsv", ".parquet", ".pq"})
MOST_ARCHIVE_GB = 50
_SAID = (
    ("data.table ", "the table "),
    ("data.images", "--images"),
    ("data.path_column", "--path-column"),
    ("data.extension", "--extension"),
    ("data.separator", "--separator"),
    ("a path and a label column", "a column of paths"),
    ("(paths and labels, not", "(paths, not"),
    ("set data.max_archive_gb to more; or unpack", "unpack"),
    ("give the folder as data.root", "give the folder"),
)
"""What the sources say to who writes a recipe, and what is said here."""


@dataclass(frozen=True)
class TableOptions:
    """How a table of paths is read.

    Attributes:
        images: the folder that its paths start from; None: the one it lies in.
        path_column: its column; None: path, file, filename, image, …, or id and image_id without these.
        extension: the ending of paths that have none, such as .jpg; None: found out where one image file fits.
        separator: comma, semicolon or tab; None: found out.
    """

    images: Path | None = None
    path_column: str | None = None
    extension: str | None = None
    separator: str | None = None


@dataclass(frozen=True)
class Inputs:
    """Images to be predicted; only their names are in memory.

    Attributes:
        origin: what they were found in, for a person.
        ids: N unique names.
        files: where each is; None where there is no such file.
        skipped: what was passed over on the way.
    """

    origin: str
    ids: Sequence[str]
    files: Sequence[str | None]
    skipped: Sequence[Skipped] = ()

    def items(self, order: Iterable[int] | None = None) -> Iterator[Item]:
        """The images, read when their turn comes; in their own order, or in that of these rows."""
        for row in range(len(self.ids)) if order is None else order:
            yield Item(self.ids[row], partial(_read, self.files[row]))


def _read(file: str | None) -> bytes:
    """The bytes of an image file.

    Raises:
        UserError: there is none, or it is no plain file or too large.
        OSError: it cannot be read.
    """
    if file is None:
        raise UserError("no such file")
    path = Path(file)
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # reading a pipe would never end
        raise UserError("it is no plain file")
    if found.st_size > MOST_FILE_BYTES:
        raise UserError(f"it has {found.st_size / 2**30:.1f} GiB; at most 1 is expected of an image")
    return path.read_bytes()


def find_inputs(words: Sequence[str], *, table: TableOptions | None = None, progress: ScanProgress = silent) -> Inputs:
    """The images that the words name, in the order of their ids; those of a table and of single files in their own.

    The id of an image is its POSIX path below the folder, its name in the archive, the text of the table's path column
    as it stands there, or the name of its file. Below a folder and in an archive, hidden files and those without an
    image's ending are passed over.

    Args:
        words: a folder, an archive or a table; or one or more image files.
        table: how a table is read.
        progress: told how far an archive is unpacked.

    Raises:
        UserError: something is not there or cannot be read as a whole, there is no image, an id stands twice, names are
            not UTF-8, or an archive is damaged or hostile.
    """
    if not words:
        raise UserError(f"found no images to predict; expected {EXPECTED}.")
    options = table or TableOptions()
    paths = [_there(word) for word in words]
    kinds = [_kind(path) for path in paths]
    wholes = [word for word, kind in zip(words, kinds, strict=True) if kind != "file"]
    if wholes and len(words) > 1:
        raise UserError(
            f"found {printable(wholes[0])} beside {len(words) - 1} more; expected one folder, archive or table alone, "
            "or image files only. Predict it by itself."
        )
    if kinds[0] != "table":
        given = [field.name.replace("_", "-") for field in fields(options) if getattr(options, field.name) is not None]
        if given:
            raise UserError(f"--{given[0]} says how a table is read, but {printable(words[0])} is none. Leave it out.")
    if kinds[0] == "folder":
        return _below(paths[0], printable(words[0]))
    if kinds[0] == "archive":
        with _said(str(paths[0])):
            found = unpacked(paths[0], max_gb=MOST_ARCHIVE_GB, progress=progress)
        return _below(found.base, printable(words[0]), found.skipped)
    if kinds[0] == "table":
        with _said(str(paths[0])):
            return _listed(paths[0], printable(words[0]), options)
    return _single(paths, words)


def _there(word: str) -> Path:
    """The file or folder of this name."""
    try:
        path = Path(absolute(word))
        path.stat()
    except FileNotFoundError as error:
        raise UserError(
            f"{printable(word)} does not exist; expected {EXPECTED}. A relative path is taken from the current "
            "directory."
        ) from error
    except (OSError, ValueError) as error:  # no right to look there, a name that is too long or holds a NUL
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{printable(word)[:200]!r} cannot be read: {reason}. Expected {EXPECTED}.") from error
    return path


def _kind(path: Path) -> str:
    """folder, archive, table or file."""
    if path.is_dir():
        return "folder"
    if path.suffix.casefold() in EXTENSIONS or not path.is_file():
        return "file"
    try:
        with path.open("rb") as file:
            parquet = file.read(4) == b"PAR1"
        if parquet or path.suffix.casefold() in TABLES:
            return "table"
        if is_archive(path):
            return "archive"
        begins = looks_like(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Change its permissions.") from error
    if begins:
        raise UserError(f"{path} begins like {begins}, but is no whole archive. Copy or download it again.")
    return "file"


@contextmanager
def _said(name: str) -> Iterator[None]:
    """Errors of the sources in the words of a command line that has no recipe."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for there, here in _SAID:
            text = text.replace(there, here)
        raise UserError(text if name in text else f"{name}: {text}") from error


def _below(root: Path, origin: str, skipped: Sequence[Skipped] = ()) -> Inputs:
    """The images below a folder."""
    passed = list(skipped)
    ids = sorted(path.relative_to(root).as_posix() for path in images_below(root, root, passed))
    if not ids:
        seen = some([f"{item.path} ({item.reason})" for item in passed])
        raise UserError(
            f"{origin} holds no images; expected files ending in {', '.join(sorted(EXTENSIONS))}, in any depth."
            + (f" Found instead: {seen}." if passed else "")
        )
    check_names(ids)
    base = str(root)
    return Inputs(origin, ids, [f"{base}/{name}" for name in ids], passed)


def _listed(path: Path, origin: str, options: TableOptions) -> Inputs:
    """The images that a table names; whatever else is in it, labels too, does not matter."""

    def choose(names: Sequence[str]) -> dict[str, str]:
        column = options.path_column or "auto"
        known, about = AUTO_COLUMNS["path"], f"the table {path}"
        return {"path": choose_column(names, "path", column, about=about, known=known, header="a header line with ")}

    if options.separator not in (None, *SEPARATORS):
        raise UserError(f"found --separator {options.separator!r}; expected one of {', '.join(SEPARATORS)}.")
    try:
        table = read_table(path, separator=options.separator or "auto", choose=choose)
    except UserError as error:
        # Of a single column it doubts the separator; here one is enough, and why it is none of paths says more.
        raise error.__cause__ if isinstance(error.__cause__, UserError) else error from None
    ids = table.columns["path"]
    for what, bad in (
        ("no path", [where for text, where in zip(ids, table.where, strict=True) if not text.strip()]),
        ("a NUL in the path", [where for text, where in zip(ids, table.where, strict=True) if "\0" in text]),
    ):
        if bad:
            raise UserError(
                f"the table {path}: {len(bad):,} of {len(ids):,} rows have {what} ({some(bad)}). Mend them."
            )
    _refuse_twice(ids, f"the table {path}", "Keep one row for each")
    base = path.parent if options.images is None else Path(absolute(str(options.images)))
    if not base.is_dir():
        raise UserError(f"--images {base} is no folder; expected the one that the table's paths start from.")
    ending = None if options.extension is None else "." + options.extension.removeprefix(".")
    finder = FileFinder(base, ending)
    found = [finder.find(text) for text in ids]
    several = [
        f"{name} ({', '.join(f.name for f in files)})" for name, files in zip(ids, found, strict=True) if files[1:]
    ]
    if several:
        raise UserError(f"the table {path}: several files fit {some(several)}. Write the endings, or give --extension.")
    if not any(found):
        raise UserError(
            f"the table {path}: none of its {len(ids):,} images is there ({some(ids)}). Relative paths are taken from "
            f"{base}; give the folder they start from as --images."
        )
    return Inputs(origin, ids, [str(files[0]) if files else None for files in found])


def _single(paths: Sequence[Path], words: Sequence[str]) -> Inputs:
    """Image files that are named one by one."""
    ids = [path.name for path in paths]
    check_names(ids)
    _refuse_twice(ids, "the image files", "Give files of different names, or a table of their paths")
    origin = printable(words[0]) if len(words) == 1 else f"{len(words):,} image files"
    return Inputs(origin, ids, [str(path) for path in paths])


def _refuse_twice(ids: Sequence[str], where: str, way_out: str) -> None:
    twice = [name for name, count in Counter(ids).items() if count > 1] if len(set(ids)) < len(ids) else []
    if twice:
        raise UserError(
            f"{where}: {len(twice):,} name{'s stand' if len(twice) > 1 else ' stands'} more than once ({some(twice)}), "
            f"and a prediction is known by its name. {way_out}."
        )
