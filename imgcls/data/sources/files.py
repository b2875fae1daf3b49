"""What the sources of image files share: known endings and split names, content hashes, checks of paths and names."""

import os
from collections.abc import Sequence
from pathlib import Path

from imgcls.data.facts import facts_of
from imgcls.errors import UserError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def absolute(path: str) -> str:
    """The path from the root, with `~` replaced.

    Raises:
        ValueError: `~name` of nobody; for a field's validator.
    """
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError as error:
        raise ValueError(f"{error} Expected a path; write it out") from error


def contents(paths: Sequence[Path]) -> list[str]:
    """A hash of each file's bytes.

    Raises:
        UserError: a file cannot be read.
    """
    facts = facts_of(paths)
    for path, fact in zip(paths, facts, strict=True):
        if not fact.content:
            raise UserError(f"cannot read the image {path}: {fact.problem}. Mend or remove the file.")
    return [fact.content for fact in facts]


def check_names(paths: Sequence[Path]) -> None:
    """Tables, logs and models hold the names as UTF-8 text.

    Raises:
        UserError: names that are not UTF-8.
    """
    bad = [os.fsencode(path).decode("utf-8", "backslashreplace") for path in paths if not _is_utf8(str(path))]
    if bad:
        raise UserError(
            f"the names {some(bad)} are not UTF-8 (often those of an archive unpacked with another encoding). "
            "Rename them, or unpack the archive again with its encoding given (unzip -O …)."
        )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def some(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
