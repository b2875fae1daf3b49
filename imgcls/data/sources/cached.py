"""Entries of the cache for the sources: what a full disk or a folder that may not be written is called there."""

import errno
import hashlib
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from imgcls.data.source import ScanProgress
from imgcls.errors import UserError

_WAY_OUT = "Set the variable IMGCLS_CACHE to a folder that can be written and has room"


def key_of(paths: Sequence[Path], *more: str) -> str:
    """A name for what is made of these files: another where one of them is changed, moved or replaced.

    Raises:
        OSError: a file is not there.
    """
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    digest = hashlib.blake2b(repr((files, more)).encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
    # The name stands in the paths of unpacked images, and so in messages about them.
    return f"{re.sub(r'[^A-Za-z0-9._-]', '_', paths[0].name)[:60].lstrip('.')}-{digest}"


def cached(
    kind: str,
    key: str,
    build: Callable[[Path], None],
    *,
    num_bytes: Callable[[], int],
    what: str,
    progress: ScanProgress,
) -> Path:
    """The folder of a cache entry, built once.

    Args:
        kind: a kind of entry.
        key: the entry's name.
        build: fills the folder. Where it raises, nothing is left of the entry.
        num_bytes: what `build` is about to write; asked only where it is called.
        what: what is put there, for messages: "the images of photos.zip".
        progress: told of the wait for another process that builds the same entry.

    Raises:
        UserError: the cache cannot be written or has too little room. Whatever `build` raises.
    """
    from imgcls.data import cache  # it needs filelock, which a served model does without

    waited = False

    def on_wait() -> None:
        nonlocal waited
        waited = True
        progress(f"waiting for another process that unpacks {what}", 0, 1, unit="entry")

    def build_with_room(folder: Path) -> None:
        needed, free = num_bytes(), shutil.disk_usage(folder).free
        if needed > free:
            raise UserError(
                f"{what} need {needed / 2**30:,.2f} GiB in the cache folder {cache.cache_dir()}, where "
                f"{free / 2**30:,.2f} GiB are free. {_WAY_OUT}, or free space."
            )
        build(folder)

    try:
        folder = cache.entry(kind, key, build_with_room, on_wait=on_wait)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk of the cache folder {cache.cache_dir()} is full: {what} do not fit. {_WAY_OUT}, or free "
                "space."
            ) from error
        raise UserError(
            f"{what} cannot be put into the cache folder {cache.cache_dir()}: {error.strerror or error}. {_WAY_OUT}."
        ) from error
    if waited:
        progress(f"waiting for another process that unpacks {what}", 1, 1, unit="entry")
    return folder
