"""An archive of a folder of images: unpacked once into the cache, nothing outside of it, its sizes bounded."""

import errno
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from imgcls.data.source import ScanProgress
from imgcls.data.sources.archive_members import Member, damaged, members, reading
from imgcls.data.sources.cached import cached, key_of
from imgcls.data.sources.files import EXTENSIONS, SPLIT_NAMES, check_names, is_hidden, printable, some
from imgcls.errors import UserError
from imgcls.tables import Skipped

ENDINGS = (".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz")
"""What messages name; an archive is known by its content."""
MOST_MEMBERS = 5_000_000
"""Over three times ImageNet-1k; the names alone take about a GiB of memory."""
MOST_FILE_BYTES = 2**30
"""Of one image: 178 million pixels, where Pillow refuses to decode, take less than 2**30 bytes without compression."""
MOST_RATIO, RATIO_FROM_BYTES = 200, 2**30
"""Unpacked over packed size. Photos hardly shrink (below 2), plain drawings as BMP by about 100. Below the second
figure it does not matter."""
_CHUNK = 2**20


@dataclass(frozen=True)
class Unpacked:
    """An archive in the cache.

    Attributes:
        base: the folder that stands for the archive.
        folder: where its classes are: `base`, or the one folder below it that holds everything.
        skipped: the members that were not unpacked, by their names below `folder`.
    """

    base: Path
    folder: Path
    skipped: tuple[Skipped, ...]


@dataclass
class _Plan:
    """What is to be unpacked."""

    files: dict[str, int] = field(default_factory=dict)
    """Path -> number of the member."""
    sizes: dict[str, int] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    skipped: dict[str, str] = field(default_factory=dict)
    encrypted: list[str] = field(default_factory=list)


def unpacked(path: Path, *, max_gb: float, progress: ScanProgress) -> Unpacked:
    """Unpack the images and folders of an archive into the cache, or find them there.

    A member that would land outside is an error; hidden ones, links, devices and files that are no images are passed
    over and listed. Modes and owners are not taken over. Nothing is left of an archive that could not be unpacked.

    Args:
        path: a zip, or a tar that is plain or compressed with gzip, bzip2 or xz.
        max_gb: GiB that all members may take unpacked.
        progress: told how far it is.

    Raises:
        UserError: damaged, encrypted or hostile archives, those over a bound, names that are no UTF-8, and a cache
            that cannot be written or has too little room.
    """
    plan: _Plan | None = None

    def planned() -> int:
        nonlocal plan
        plan = _planned(path, max_gb, progress)
        return sum(plan.sizes.values())

    def build(folder: Path) -> None:
        assert plan is not None
        top = _top(plan)
        _unpack(path, plan, folder / "files", progress)
        skipped = [(name.removeprefix(f"{top}/") if top else name, reason) for name, reason in plan.skipped.items()]
        (folder / "about.json").write_text(json.dumps({"top": top, "skipped": skipped}), encoding="utf-8")

    found = cached(
        "archives", key_of([path]), build, num_bytes=planned, what=f"the images of {path}", progress=progress
    )
    about = json.loads((found / "about.json").read_text(encoding="utf-8"))
    skipped = tuple(Skipped(name, reason) for name, reason in about["skipped"])
    return Unpacked(found / "files", found / "files" / about["top"], skipped)


# --- what is in it


def _planned(path: Path, max_gb: float, progress: ScanProgress) -> _Plan:
    plan, total, packed = _Plan(), 0, path.stat().st_size
    for number, member in enumerate(members(path)):
        total += member.size
        _check_bounds(path, member, count=number + 1, total=total, packed=packed, max_gb=max_gb)
        _place(plan, number, member, path)
        if number % 1000 == 0:
            progress(f"listing {path.name}", member.position >> 20, max(1, packed >> 20), unit="MiB")
    progress(f"listing {path.name}", max(1, packed >> 20), max(1, packed >> 20), unit="MiB")
    if plan.encrypted:
        raise UserError(
            f"the archive {path}: {len(plan.encrypted)} images are encrypted ({some(plan.encrypted)}). Unpack it with "
            "its password and give the folder as data.root."
        )
    try:
        check_names(list(plan.files))
    except UserError as error:
        raise UserError(f"the archive {path}: {error}") from error
    both = sorted(plan.files.keys() & {*plan.folders, *_parents([*plan.files, *plan.folders])})
    if both:
        raise UserError(
            f"the archive {path}: {some(both)} stand as a file and as a folder. Pack it again, or unpack it by hand "
            "and give the folder as data.root."
        )
    return plan


def _check_bounds(path: Path, member: Member, *, count: int, total: int, packed: int, max_gb: float) -> None:
    found = ""
    if count > MOST_MEMBERS:
        found = f"has more than {MOST_MEMBERS:,} members"
    elif member.kind == "file" and member.size > MOST_FILE_BYTES and _is_image(member.name):
        found = f"has an image of {member.size / 2**30:.1f} GiB, {printable(member.name)}; at most 1 is expected"
    elif total > RATIO_FROM_BYTES and total > MOST_RATIO * packed:
        found = f"unpacks to more than {MOST_RATIO} times its size, as only archives made to fill disks do"
    if found:
        raise UserError(f"the archive {path} {found}. Unpack it by hand and give the folder as data.root.")
    if total > max_gb * 2**30:
        raise UserError(
            f"the archive {path} takes more than {max_gb:g} GiB unpacked. If that is right, set data.max_archive_gb to "
            "more; or unpack it by hand and give the folder as data.root."
        )


def _place(plan: _Plan, number: int, member: Member, path: Path) -> None:
    """Put one member among the files, the folders or the skipped."""
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if member.name.startswith("/") or ".." in parts:
        raise UserError(
            f"the archive {path} has a member that would land outside of its folder, {printable(member.name)}; "
            "expected relative names without `..`. Nothing of it is unpacked. Get it from a source that you trust, or "
            "unpack it by hand and give the folder as data.root."
        )
    hidden = next((k for k, part in enumerate(parts) if is_hidden(part)), None)
    name = "/".join(parts)
    if not parts:
        return
    if hidden is not None:
        plan.skipped[printable("/".join(parts[: hidden + 1]))] = "hidden"
    elif member.kind == "folder":
        plan.folders.add(name)
    elif member.kind != "file":
        plan.skipped[printable(name)] = member.kind
    elif not _is_image(name):
        plan.skipped[printable(name)] = "not an image"
    elif member.encrypted:
        plan.encrypted.append(printable(name))
    else:
        if name in plan.files:
            plan.skipped[printable(name)] = "stands in the archive again further back, and that one is taken"
        plan.files[name], plan.sizes[name] = number, member.size


def _top(plan: _Plan) -> str:
    """The folder with the classes: that which everything is in, so long as it has folders, and no split's name."""
    folders = {*plan.folders, *_parents([*plan.files, *plan.folders])}
    below: dict[str, list[str]] = {}
    for name in folders:
        below.setdefault(name.rpartition("/")[0], []).append(name)
    with_images = {name.rpartition("/")[0] for name in plan.files}
    top = ""
    while top not in with_images and len(below.get(top, ())) == 1:
        (only,) = below[top]
        if only not in below or PurePosixPath(only).name.casefold() in SPLIT_NAMES:
            break
        top = only
    return top


def _parents(names: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for name in names:
        while (name := name.rpartition("/")[0]) and name not in found:
            found.add(name)
    return found


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.casefold() in EXTENSIONS


# --- unpacking


def _unpack(path: Path, plan: _Plan, target: Path, progress: ScanProgress) -> None:
    names = {number: name for name, number in plan.files.items()}
    for folder in ["", *sorted({*plan.folders, *_parents(plan.files)})]:
        with _nameable(path, folder):
            (target / folder).mkdir(parents=True, exist_ok=True)
    done = 0
    for number, member in enumerate(members(path)):
        if number in names:
            name = names[number]
            _copy(path, member, target / name, size=plan.sizes[name])
            done += 1
            progress(f"unpacking {path.name}", done, len(names))
            if done == len(names):
                return
    if done < len(names):
        raise UserError(f"the archive {path} changed while it was unpacked. Run again when it is whole.")


def _copy(path: Path, member: Member, target: Path, *, size: int) -> None:
    """Write a member's content, which must be as long as its header said when room was made for it."""
    written = 0
    with _nameable(path, member.name), target.open("xb") as file:
        with reading(path, member.name):
            source = member.open()
        with source:
            while True:
                with reading(path, member.name):
                    chunk = source.read(_CHUNK)
                written += len(chunk)
                if not chunk or written > size:
                    break
                file.write(chunk)
    if written != size:
        raise damaged(path, member.name, f"found {'more' if written > size else 'less'} than its {size:,} bytes")


@contextmanager
def _nameable(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise UserError(
            f"the archive {path} has a member whose name is too long for this disk: {printable(name)[:300]!r}. Shorten "
            "it and pack again."
        ) from error
