"""The cache folder: what can be made again and is kept between runs; safe for several processes and for a kill."""

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

KINDS = ("store", "archives", "parquet", "statistics")
"""The folders of entries; a name of an entry is unique in its kind."""


@dataclass(frozen=True)
class Entry:
    """One thing in the cache.

    Attributes:
        kind: one of KINDS.
        key: its name.
        path: its folder.
        num_bytes: what its files take.
        used: when it was last used, seconds since 1970.
    """

    kind: str
    key: str
    path: Path
    num_bytes: int
    used: float


def cache_dir() -> Path:
    """`$IMGCLS_CACHE`, or `~/.cache/imgcls` where that is not set."""
    return Path(os.environ.get("IMGCLS_CACHE") or "~/.cache/imgcls").expanduser().absolute()


def entry(kind: str, key: str, build: Callable[[Path], None], *, on_wait: Callable[[], None] = lambda: None) -> Path:
    """The folder of an entry, built once.

    `build` fills an empty folder, which takes its place under its name only when it is whole. Another process that
    wants the same entry meanwhile waits (`on_wait` is called once then) and takes it; where the builder is killed, the
    next one begins anew.

    Raises:
        OSError: the cache folder cannot be written. Whatever `build` raises; nothing is left of the entry then.
    """
    assert kind in KINDS
    folder = cache_dir() / kind / key
    if folder.is_dir():
        return _used(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{key}.lock"))
    try:
        lock.acquire(timeout=0.2)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        if folder.is_dir():
            return _used(folder)
        building = folder.with_name(f"{key}.building")
        shutil.rmtree(building, ignore_errors=True)  # left by a process that was killed
        building.mkdir()
        try:
            build(building)
            building.rename(folder)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        return folder
    finally:
        lock.release()


def _used(folder: Path) -> Path:
    with contextlib.suppress(OSError):  # a cache that others filled and we may only read
        os.utime(folder)
    return folder


def entries() -> list[Entry]:
    """All whole entries, the least recently used first."""
    found = []
    for kind in KINDS:
        for path in sorted((cache_dir() / kind).glob("*")):
            if path.is_dir() and path.suffix != ".building":
                with contextlib.suppress(FileNotFoundError):  # another process evicts it
                    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                    found.append(Entry(kind, path.name, path, size, path.stat().st_mtime))
    return sorted(found, key=lambda item: item.used)


def remove(item: Entry) -> None:
    """Delete an entry. A process that has it open keeps what it has mapped."""
    doomed = item.path.with_name(f"{item.key}.{time.time_ns()}.building")
    with contextlib.suppress(FileNotFoundError):
        item.path.rename(doomed)  # so that nobody finds half of it
    shutil.rmtree(doomed, ignore_errors=True)


def evict(kind: str, *, keep_bytes: int) -> list[Entry]:
    """Remove the least recently used entries of a kind until the rest take at most `keep_bytes`; those removed."""
    of_kind = [item for item in entries() if item.kind == kind]
    total, gone = sum(item.num_bytes for item in of_kind), []
    for item in of_kind:
        if total <= keep_bytes:
            break
        remove(item)
        gone.append(item)
        total -= item.num_bytes
    return gone
