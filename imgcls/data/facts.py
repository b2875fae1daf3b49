"""What the header of every image file says, read in one pass with its content hash and remembered between runs."""

import contextlib
import hashlib
import io
import os
import re
import sqlite3
import stat
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ExifTags, Image, UnidentifiedImageError
from PIL import __version__ as pillow_version

from imgcls.data.decode import MOST_ELONGATED, quiet_pillow
from imgcls.data.images import Progress, map_bounded

CHUNK = 64
"""Files a thread reads between two reports; one at a time, handing them over would cost more than reading them."""
MOST_REMEMBERED = 200_000
"""Facts kept in this process, some 100 MB; beyond, only the file remembers."""
MOST_BYTES = 2**30
"""Size at which the file of facts is begun anew."""
SETTLED_NS = 2 * 10**9
"""A file that was written this shortly before it was read may change again without its time of change showing it."""
_FORM = f"1/{pillow_version}"
"""Facts of another form of this module, or of another Pillow, are read anew."""
_MARKS = {"PNG": b"IEND", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9"}
"""What stands at the end of a file of the format. (A WebP that was cut off is refused by its header.)"""


class Fact(NamedTuple):
    """What is known of an encoded image without decoding its pixels.

    Attributes:
        content: blake2b of its bytes, 32 hex digits; "" where it cannot be read.
        num_bytes: its length.
        format: by its first bytes, as Pillow calls it (JPEG, PNG, WEBP, …); "" unknown.
        width: pixels as stored, before any EXIF rotation; 0 unknown.
        height: the same.
        mode: Pillow's (L, RGB, P, CMYK, …); "" unknown.
        transparent: it has an alpha channel or a transparent colour.
        bits: a channel's: 8, 16 or 32; 1 for black and white.
        orientation: EXIF's, 1 to 8; 1 is upright.
        frames: pictures in the file; above 1 an animation or several pages.
        ends: the mark at its format's end is there; False of a PNG or JPEG that was cut off.
        problem: why it cannot be decoded, "" where nothing in its header says so.
    """

    content: str = ""
    num_bytes: int = 0
    format: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    transparent: bool = False
    bits: int = 8
    orientation: int = 1
    frames: int = 1
    ends: bool = True
    problem: str = ""


_memory: dict[bytes, tuple[str, Fact]] = {}


def fact_of(data: bytes) -> Fact:
    """What the encoded image's header says. Never raises: what is wrong is its `problem`."""
    fact = Fact(hashlib.blake2b(data, digest_size=16).hexdigest(), len(data))
    if not data:
        return fact._replace(problem="the file is empty")
    try:
        with quiet_pillow, Image.open(io.BytesIO(data)) as image:
            return _described(fact, image, data)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return fact._replace(problem=f"it is too large to decode safely: {error}")
    except UnidentifiedImageError:
        return fact._replace(problem=f"it is no image of a known format (it begins with {data[:8]!r})")
    except Exception as error:  # Pillow's plug-ins raise whatever their parser happens to
        return fact._replace(problem=f"its header cannot be read ({type(error).__name__}: {error})")


def _described(fact: Fact, image: Image.Image, data: bytes) -> Fact:
    width, height = image.size
    problem = ""
    if max(width, height) > MOST_ELONGATED * min(width, height):
        problem = f"it is {width} x {height} pixels; expected no side over {MOST_ELONGATED} times the other"
    elif image.mode == "F":
        problem = "its pixels are of the kind 'F', expected at most 16 bits a channel"
    format_ = sys.intern(str(image.format))
    return fact._replace(
        format=format_,
        width=width,
        height=height,
        mode=image.mode,
        transparent=image.has_transparency_data,
        bits=_bits(image),
        orientation=_orientation(image),
        frames=_frames(image),
        ends=_MARKS.get(format_, b"") in data,
        problem=problem,
    )


def _bits(image: Image.Image) -> int:
    if image.mode in ("1", "I", "F"):
        return 1 if image.mode == "1" else 32
    tiles = getattr(image, "tile", None)
    raw = str(tiles[0].args) if tiles else ""
    # RGB;16B is 16 bits a channel; BMP's BGR;16 is 16 bits a pixel.
    return 16 if image.mode.startswith("I;16") or re.search(r";16[BLN]", raw) else 8


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info and "Raw profile type exif" not in image.info:
        return 1  # asking would make Pillow read on to the end of the file, for a chunk behind the pixels
    with contextlib.suppress(Exception):  # damaged EXIF; Pillow's own rotation passes over it too
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return value if value in range(1, 9) else 1
    return 1


def _frames(image: Image.Image) -> int:
    if image.format == "MPO":  # a phone's JPEG with a preview or a second view behind the picture
        return 1
    with contextlib.suppress(Exception):  # cut off behind the first frame, which is the one that is used
        return int(getattr(image, "n_frames", 1))
    return 1


def facts_of(paths: Sequence[Path | str], progress: Progress | None = None) -> list[Fact]:
    """The facts of image files, each read once: by this process, or by an earlier one while the file did not change.

    They are remembered in `facts.db` in the cache folder, by path, length, times of change and inode. A file that
    cannot be read has the reason as its `problem` and no content.
    """
    begin = time.time_ns()
    keys = [os.fsencode(path) for path in paths]
    stamps = [_stamp(key) for key in keys]
    known = _remembered(keys, stamps)
    unread = [row for row, fact in enumerate(known) if fact is None]
    done, total = len(keys) - len(unread), len(keys)
    fresh: dict[bytes, tuple[str, Fact]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        chunks = [unread[k : k + CHUNK] for k in range(0, len(unread), CHUNK)]
        read = map_bounded(pool, lambda chunk: _read([keys[row] for row in chunks[chunk]]), len(chunks))
        for rows, facts in zip(chunks, read, strict=True):
            for row, fact in zip(rows, facts, strict=True):
                known[row] = fact
                if fact.content and stamps[row] and _changed(stamps[row]) < begin - SETTLED_NS:
                    fresh[keys[row]] = (stamps[row], fact)
            done += len(rows)
            if progress is not None:
                progress(done, total)
    _remember(fresh)
    return [fact for fact in known if fact is not None]


def _read(keys: Iterable[bytes]) -> list[Fact]:
    facts = []
    for key in keys:
        try:
            if not stat.S_ISREG(os.stat(key).st_mode):  # noqa: PTH116  (a pipe would be waited for without end)
                facts.append(Fact(problem="it is no regular file"))
                continue
            with open(key, "rb", buffering=0) as file:  # noqa: PTH123  (bytes, which Path does not take)
                facts.append(fact_of(file.read()))
        except OSError as error:
            facts.append(Fact(problem=str(error.strerror)))
    return facts


def _stamp(key: bytes) -> str:
    """Changes whenever the file does; "" where it cannot be looked at."""
    try:
        about = os.stat(key)  # noqa: PTH116
    except OSError:
        return ""
    return f"{max(about.st_mtime_ns, about.st_ctime_ns)}/{about.st_mtime_ns}/{about.st_size}/{about.st_ino}/{_FORM}"


def _changed(stamp: str) -> int:
    return int(stamp.split("/", 1)[0])


def _remembered(keys: Sequence[bytes], stamps: Sequence[str]) -> list[Fact | None]:
    held = [_memory.get(key, ("", Fact())) for key in keys]
    known = [fact if stamp and was == stamp else None for (was, fact), stamp in zip(held, stamps, strict=True)]
    rows = {keys[row]: row for row, fact in enumerate(known) if fact is None and stamps[row]}
    found = _from_file(list(rows))
    for key, (stamp, fact) in found.items():
        if stamps[rows[key]] == stamp:
            known[rows[key]] = fact
    _hold({key: value for key, value in found.items() if stamps[rows[key]] == value[0]})
    return known


def _remember(fresh: dict[bytes, tuple[str, Fact]]) -> None:
    if not fresh:
        return
    _hold(fresh)
    rows = [(key, stamp, *fact) for key, (stamp, fact) in fresh.items()]
    marks = ", ".join("?" * (2 + len(Fact._fields)))

    def write(database: sqlite3.Connection) -> None:
        with database:
            database.execute(
                f"create table if not exists facts (path blob primary key, stamp, {', '.join(Fact._fields)})"
            )
            database.executemany(f"insert or replace into facts values ({marks})", rows)

    _with_file(write, create=True)


def _from_file(keys: list[bytes]) -> dict[bytes, tuple[str, Fact]]:
    found: dict[bytes, tuple[str, Fact]] = {}

    def read(database: sqlite3.Connection) -> None:
        if not database.execute("select 1 from sqlite_master where name = 'facts'").fetchone():
            return
        columns = ", ".join(("path", "stamp", *Fact._fields))
        for begin in range(0, len(keys), 500):
            batch = keys[begin : begin + 500]
            marks = ", ".join("?" * len(batch))
            for key, stamp, *values in database.execute(f"select {columns} from facts where path in ({marks})", batch):
                fact = Fact(*values)
                found[key] = stamp, fact._replace(transparent=bool(fact.transparent), ends=bool(fact.ends))

    if keys:
        _with_file(read, create=False)
    return found


def _with_file(work: Callable[[sqlite3.Connection], Any], *, create: bool) -> None:
    """Do this on the file of facts, if it can be had: it only saves time."""
    from imgcls.data.cache import cache_dir  # here, for its library is none of those that a served model needs

    path = cache_dir() / "facts.db"
    try:
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.stat().st_size > MOST_BYTES:
                path.unlink()
        elif not path.exists():
            return
        with contextlib.closing(sqlite3.connect(path, timeout=5)) as database:
            work(database)
    except sqlite3.OperationalError:  # locked for long, read-only, a full disk
        pass
    except sqlite3.DatabaseError:  # not a database, or one of another form
        with contextlib.suppress(OSError):
            path.unlink()
    except OSError:
        pass


def _hold(facts: dict[bytes, tuple[str, Fact]]) -> None:
    if len(_memory) + len(facts) <= MOST_REMEMBERED:
        _memory.update(facts)
