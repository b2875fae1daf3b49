"""What the sources of image files share: known endings and split names, content hashes, checks of paths and names."""

import os
from collections.abc import Sequence
from pathlib import Path

from imgcls.data.facts import facts_of

# `as`: the sources find them here, beside the rest of what they share.
from imgcls.data.names import SPLIT_NAMES as SPLIT_NAMES
from imgcls.data.names import absolute as absolute
from imgcls.data.names import some as some
from imgcls.data.source import ScanProgress, silent
from imgcls.errors import UserError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed over: a dot before it, or what macOS puts into archives."""
    return name.startswith(".") or name == "__MACOSX"


def printable(path: Path | str) -> str:
    """The name as text that can be printed and stored, whatever its bytes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def contents(paths: Sequence[Path], progress: ScanProgress = silent) -> list[str]:
    """A hash of each file's bytes.

    Raises:
        UserError: a file cannot be read.
    """
    facts = facts_of(paths, progress=lambda done, total: progress("finding images", done, total))
    for path, fact in zip(paths, facts, strict=True):
        if not fact.content:
            raise UserError(f"cannot read the image {path}: {fact.problem}. Mend or remove the file.")
    return [fact.content for fact in facts]


def check_names(paths: Sequence[Path | str]) -> None:
    """Tables, logs and models hold the names as UTF-8 text.

    Raises:
        UserError: names that are not UTF-8.
    """
    bad = [printable(path) for path in paths if not _is_utf8(str(path))]
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
