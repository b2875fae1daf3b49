"""The verb `data cache`: what the cache folder holds, and removing what is not needed."""

import contextlib
import shutil
import time
from pathlib import Path
from typing import NamedTuple

from imgcls.data import cache
from imgcls.errors import UserError
from imgcls.plugins import unknown_name

ALL, FACTS = "all", "facts"
DOWNLOADS = ("torchvision", "weights")
"""What came from the network: never removed but by its own name."""


class _Line(NamedTuple):
    kind: str
    about: str
    num_bytes: int
    used: float


def run(*, clear: str | None = None, keep_gib: float | None = None) -> str:
    """Remove what is asked for; what was removed, and a table of what is kept.

    Args:
        clear: a kind of entry, `facts`, `torchvision`, `weights`, or `all` for what can be made again: all but the
            last two, which are downloads.
        keep_gib: GiB that all entries together may take; those used least recently go.

    Raises:
        UserError: there is no such kind, or the folder may not be written.
    """
    if clear is not None and clear not in (*cache.KINDS, FACTS, *DOWNLOADS, ALL):
        raise unknown_name("kind", clear, (*cache.KINDS, FACTS, *DOWNLOADS, ALL))
    try:
        told = _removed("left by killed processes", cache.sweep())
        if clear is not None:
            told += _removed(f"of {clear}" if clear != ALL else "that can be made again", _clear(clear))
        if keep_gib is not None:
            gone = cache.evict(None, keep_bytes=int(keep_gib * 2**30))
            told += _removed("used least recently", sum(item.num_bytes for item in gone))
    except OSError as error:
        raise UserError(
            f"{error.filename or cache.cache_dir()} cannot be removed: {error.strerror}. Change its permissions."
        ) from error
    return told + _table()


def _removed(what: str, num_bytes: int) -> str:
    return f"removed {cache.size_text(num_bytes)} {what}\n" if num_bytes else ""


def _clear(clear: str) -> int:
    freed = 0
    for kind in cache.KINDS if clear == ALL else (clear,):
        for item in cache.entries(kind) if kind in cache.KINDS else []:
            cache.remove(item)
            freed += item.num_bytes
    if clear in (ALL, FACTS):
        for path in _fact_files():
            freed += cache.size_of(path)
            path.unlink(missing_ok=True)
    if clear in DOWNLOADS:
        for path in _downloads(clear):
            freed += cache.size_of(path)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    return freed


def _fact_files() -> list[Path]:
    return sorted(cache.cache_dir().glob("facts.db*"))


def _downloads(kind: str) -> list[Path]:
    """Data sets are folders, weights are files; a file beside data sets is a mark of ours."""
    found = (cache.cache_dir() / kind).glob("*")
    return sorted(path for path in found if path.is_dir() or kind != "torchvision")


def _lines() -> list[_Line]:
    lines = [_Line(item.kind, item.about or item.key, item.num_bytes, item.used) for item in cache.entries()]
    facts = _fact_files()
    with contextlib.suppress(FileNotFoundError):  # another process removes it
        if facts:
            used = max(path.stat().st_mtime for path in facts)
            size = sum(cache.size_of(path) for path in facts)
            lines.append(_Line(FACTS, "what is known of image files by their headers", size, used))
        for kind in DOWNLOADS:
            for path in _downloads(kind):
                about = f"{path.name}: {'as' if path.is_file() else 'files as'} downloaded"
                lines.append(_Line(kind, about, cache.size_of(path), path.stat().st_mtime))
    return sorted(lines, key=lambda line: -line.used)


def _table() -> str:
    lines = _lines()
    if not lines:
        return f"{cache.cache_dir()} holds nothing\n"
    rows = [("kind", "what", "size", "last used")]
    for line in lines:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(line.used))
        rows.append((line.kind, line.about, cache.size_text(line.num_bytes), when))
    rows.append(("total", str(cache.cache_dir()), cache.size_text(sum(line.num_bytes for line in lines)), ""))
    kinds, whats, sizes, _ = (max(len(row[column]) for row in rows) for column in range(4))
    return "".join(
        f"{kind:<{kinds}}  {what:<{whats}}  {size:>{sizes}}  {used}".rstrip() + "\n" for kind, what, size, used in rows
    )
