"""The cache folder: what can be made again and is kept between runs; safe for several processes and for a kill."""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KINDS = ("store", "archives", "parquet", "statistics", "plans", "features")
"""The folders of entries; a name of an entry is unique in its kind."""
TAG = "CACHEDIR.TAG"
"""Marks a folder as ours, so that nothing else below $IMGCLS_CACHE is taken for an entry; and backups leave it out."""
_TAG_TEXT = "Signature: 8a477f597d28d172789f06886806bc55\n# Made by imgcls; see https://bford.info/cachedir/\n"
_ABOUT = "about.txt"
_HALF, _DOOMED = ".building", ".doomed"


@dataclass(frozen=True)
class Entry:
    """One thing in the cache.

    Attributes:
        kind: one of KINDS.
        key: its name.
        path: its folder.
        num_bytes: what its files take.
        used: when it was last used, seconds since 1970.
        about: what it is, in words; "" where its builder did not say.
    """

    kind: str
    key: str
    path: Path
    num_bytes: int
    used: float
    about: str = ""


def cache_dir() -> Path:
    """`$IMGCLS_CACHE`, or `~/.cache/imgcls` where that is not set."""
    return Path(os.environ.get("IMGCLS_CACHE") or "~/.cache/imgcls").expanduser().absolute()


def entry(
    kind: str,
    key: str,
    build: Callable[[Path], None],
    *,
    whole: Callable[[Path], bool] = lambda _folder: True,
    about: str = "",
    on_wait: Callable[[], None] = lambda: None,
) -> Path:
    """The folder of an entry, built once.

    `build` fills an empty folder, which takes its place under its name only when it is whole and on the disk. Another
    process that wants the same entry meanwhile waits (`on_wait` is called once then) and takes it; where the builder is
    killed, the next one begins anew. An entry that is there but not `whole` is built anew too.

    Args:
        kind: one of KINDS.
        key: its name.
        build: fills the folder.
        whole: whether what is there can be used; it must be quick, and may be asked twice.
        about: what it is, in words, for `entries`.
        on_wait: called when another process is building it.

    Raises:
        OSError: the cache folder cannot be written. Whatever `build` raises; nothing is left of the entry then.
    """
    assert kind in KINDS
    assert not key.endswith((_HALF, _DOOMED))
    folder = cache_dir() / kind / key
    if folder.is_dir() and whole(folder):
        return _used(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not (folder.parent / TAG).exists():
        (folder.parent / TAG).write_text(_TAG_TEXT)
    with _locked(folder, on_wait):
        if folder.is_dir():
            if whole(folder):
                return _used(folder)
            _discard(folder)
        building = folder.with_name(key + _HALF)
        shutil.rmtree(building, ignore_errors=True)  # left by a process that was killed
        building.mkdir()
        try:
            build(building)
            if about:
                (building / _ABOUT).write_text(about, encoding="utf-8")
            _to_disk(building)
            building.rename(folder)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        return folder


@contextmanager
def _locked(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    from filelock import FileLock, Timeout  # here, since a served model, which has no cache, imports this module too

    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=0.2)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _to_disk(folder: Path) -> None:
    """A name that outlives a power cut must not stand over files that do not."""
    for path in [*(file for file in folder.rglob("*") if file.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _used(folder: Path) -> Path:
    with contextlib.suppress(OSError):  # a cache that others filled and we may only read
        os.utime(folder)
    return folder


def entries(kind: str | None = None) -> list[Entry]:
    """All whole entries, or those of one kind; the least recently used first."""
    found = []
    for name in KINDS if kind is None else (kind,):
        for path in _ours(name):
            if path.is_dir() and path.suffix not in (_HALF, _DOOMED):
                with contextlib.suppress(FileNotFoundError):  # another process evicts it
                    text = path / _ABOUT
                    about = text.read_text(encoding="utf-8", errors="replace") if text.is_file() else ""
                    found.append(Entry(name, path.name, path, size_of(path), path.stat().st_mtime, about))
    return sorted(found, key=lambda item: item.used)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())


def size_text(num_bytes: float) -> str:
    """Bytes as a person reads them: 3.2 GiB, 41.0 MiB, 0.3 KiB."""
    for power, unit in ((3, "GiB"), (2, "MiB")):
        if num_bytes >= 1024**power:
            return f"{num_bytes / 1024**power:,.1f} {unit}"
    return f"{num_bytes / 1024:.1f} KiB"


def _ours(kind: str) -> list[Path]:
    folder = cache_dir() / kind
    return sorted(folder.iterdir()) if (folder / TAG).is_file() else []


def remove(item: Entry) -> None:
    """Delete an entry. A process that has it open keeps what it has mapped.

    Raises:
        OSError: it may not be removed.
    """
    _discard(item.path)


def _discard(folder: Path) -> None:
    doomed = folder.with_name(f"{folder.name}.{time.time_ns()}{_DOOMED}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(doomed)  # so that nobody finds half of it
    shutil.rmtree(doomed, ignore_errors=True)


def evict(kind: str | None, *, keep_bytes: int, spare: str = "") -> list[Entry]:
    """Remove the least recently used entries until the rest take at most `keep_bytes`; those removed.

    Args:
        kind: only entries of this kind count and are removed; None all.
        keep_bytes: what may stay.
        spare: the key of an entry that stays whatever its size.

    Raises:
        OSError: an entry may not be removed.
    """
    of_kind = entries(kind)
    total, gone = sum(item.num_bytes for item in of_kind), []
    for item in of_kind:
        if total <= keep_bytes:
            break
        if item.key != spare:
            remove(item)
            gone.append(item)
            total -= item.num_bytes
    return gone


def sweep() -> int:
    """Remove what killed processes left half-made or half-removed; its bytes. What is in work stays."""
    from filelock import FileLock, Timeout

    freed = 0
    for path in [path for kind in KINDS for path in _ours(kind)]:
        if path.suffix == _DOOMED:
            freed += _delete(path)
        elif path.suffix == _HALF:
            with contextlib.suppress(Timeout), FileLock(path.with_suffix(".lock")).acquire(timeout=0):
                freed += _delete(path)
    return freed


def _delete(folder: Path) -> int:
    size = 0
    with contextlib.suppress(FileNotFoundError):  # its own process is at it
        size = size_of(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return size
