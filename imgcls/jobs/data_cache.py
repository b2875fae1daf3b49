"""The verb `data cache`: what the cache folder holds, and removing what is not needed."""

import contextlib
import shutil
import time
from pathlib import Path
from typing import NamedTuple

from imgcls.data import cache
from imgcls.errors import UserError
from imgcls.plugins import unknown_name

ALL, FACTS, DOWNLOADS = "all", "facts", "torchvision"


class _Line(NamedTuple):
    kind: str
    about: str
    num_bytes: int
    used: float


def run(*, clear: str | None = None, keep_gib: float | None = None) -> str:
    """Remove what is asked for; what was removed, and a table of what is kept.

    Args:
        clear: a kind of entry, `facts`, `torchvision`, or `all` for what can be made again: all but downloads.
        keep_gib: GiB that all entries together may take; those used least recently go.

    Raises:
        UserError: there is no such kind, or the folder may not be written.
    """
    if clear is not None and clear not in (*cache.KINDS, FACTS, DOWNLOADS, ALL):
        raise unknown_name("kind", clear, (*cache.KINDS, FACTS, DOWNLOADS, ALL))
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
    if clear == DOWNLOADS:
        for path in _downloads():
            freed += cache.size_of(path)
            shutil.rmtree(path)
    return freed


def _fact_files() -> list[Path]:
    return sorted(cache.cache_dir().glob("facts.db*"))


def _downloads() -> list[Path]:
    return sorted(path for path in (cache.cache_dir() / DOWNLOADS).glob("*") if path.is_dir())


def _lines() -> list[_Line]:
    lines = [_Line(item.kind, item.about or item.key, item.num_bytes, item.used) for item in cache.entries()]
    facts, downloads = _fact_files(), _downloads()
    with contextlib.suppress(FileNotFoundError):  # another process removes it
        if facts:
            used = max(path.stat().st_mtime for path in facts)
            size = sum(cache.size_of(path) for path in facts)
            lines.append(_Line(FACTS, "what is known of image files by their headers", size, used))
        for path in downloads:
            lines.append(
                _Line(DOWNLOADS, f"{path.name}: files as downloaded", cache.size_of(path), path.stat().st_mtime)
            )
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
