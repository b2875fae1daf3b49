"""The members of zip and tar archives, one by one, with every way in which an archive can be damaged as one error."""

import gzip
import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from imgcls.data.sources.files import printable
from imgcls.errors import UserError

MOST_HEADER_BYTES = 2**20
"""Of one extended tar header, which `tarfile` reads into memory whole; names take at most a few thousand."""
_DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, struct.error,
    ValueError, OverflowError,
)  # fmt: skip
_MAGIC = {b"PK\x03\x04": "zip", b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
_HEADER_TYPES = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """One entry of an archive.

    Attributes:
        name: as it stands there.
        kind: file, folder, or the reason why it is neither.
        size: bytes, as its header has it.
        position: bytes of the archive before it.
        open: its content; only until the next member.
        encrypted: a password is needed.
    """

    name: str
    kind: str
    size: int
    position: int
    open: Callable[[], IO[bytes]]
    encrypted: bool = False


def is_archive(path: Path) -> bool:
    """Whether the file is one that `unpacked` takes, judged by its content.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb"):
        pass
    try:
        return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)
    except _DAMAGED:  # compressed, and cut off in its first block
        return False


def looks_like(path: Path) -> str:
    """What a file begins like where that is a compressed archive ("zip", "gzip", …), else ""."""
    with path.open("rb") as file:
        head = file.read(8)
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")


def members(path: Path) -> Iterator[Member]:
    """The members in their order; the same order every time.

    Raises:
        UserError: the archive is damaged, cut off, or cannot be read.
    """
    return _zip_members(path) if zipfile.is_zipfile(path) else _tar_members(path)


def _zip_members(path: Path) -> Iterator[Member]:
    with reading(path, ""):
        archive = zipfile.ZipFile(path)
    with archive:
        for info in archive.infolist():
            mode = info.external_attr >> 16 if info.create_system == 3 else 0
            kind = "folder" if info.is_dir() else "file"
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                kind = "a link" if stat.S_ISLNK(mode) else "no file"

            def content(info: zipfile.ZipInfo = info) -> IO[bytes]:
                return archive.open(info)

            name = _zip_name(info)
            if name.endswith("/"):
                kind = "folder"
            yield Member(name, kind, info.file_size, info.header_offset, content, encrypted=bool(info.flag_bits & 1))


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The member's name, with surrogates where it is no UTF-8.

    Without the flag for UTF-8 the specification has code page 437 and `zipfile` decodes so, but macOS writes UTF-8
    there, and Windows the code page of its country.
    """
    name = info.filename
    if not info.flag_bits & 0x800:
        try:
            name = name.encode("cp437").decode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # from the extra field for Unicode names
            name = info.filename
    if info.create_system == 0 and "\\" in name:  # old .NET writes the separators of Windows
        name = re.sub("^[A-Za-z]:", "/", name).replace("\\", "/")
    return name


class _BoundedInfo(tarfile.TarInfo):
    """Refuses an extended header that would fill the memory."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: Any, errors: Any) -> Any:
        """A member's header; as in the base class."""
        info = super().frombuf(buf, encoding, errors)
        if info.type in _HEADER_TYPES and info.size > MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"found an extended header of {info.size:,} bytes")  # not taken for the end
        return info


def _tar_members(path: Path) -> Iterator[Member]:
    name = ""
    with path.open("rb") as raw:
        with reading(path, ""):
            archive = tarfile.TarFile.open(fileobj=raw, mode="r:*", encoding="utf-8", tarinfo=_BoundedInfo)
        with archive:
            while True:
                with reading(path, name):
                    info = archive.next()
                if info is None:
                    break
                vars(archive)["members"].clear()  # or they would pile up; we do not come back to them
                name = info.name
                if info.size < 0:  # the next member would be this one again, for ever
                    raise damaged(path, name, f"its size is {info.size:,} bytes")
                kind = "folder" if info.isdir() else "file" if info.isreg() else "no file"
                if info.issym() or info.islnk():
                    kind = "a link"

                def content(info: tarfile.TarInfo = info) -> IO[bytes]:
                    file = archive.extractfile(info)
                    assert file is not None
                    return file

                yield Member(name, kind, info.size if kind == "file" else 0, raw.tell(), content)
            _check_end(path, archive, name)


def _check_end(path: Path, archive: tarfile.TarFile, last: str) -> None:
    """`tarfile` takes any header it cannot read for the end, and would drop what is behind it."""
    assert archive.fileobj is not None
    with reading(path, last):
        archive.fileobj.seek(archive.offset)
        block = archive.fileobj.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise damaged(path, last, "behind this member stands neither another nor the mark of the end")


@contextmanager
def reading(path: Path, name: str) -> Iterator[None]:
    """Turns what the libraries raise for damaged archives into an error that names archive and member."""
    try:
        yield
    except _DAMAGED as error:
        raise damaged(path, name, f"{error}" or type(error).__name__) from error
    except (NotImplementedError, RuntimeError) as error:  # a method that zipfile lacks, such as Deflate64
        raise UserError(
            f"the archive {path} cannot be unpacked here ({printable(name)}: {error}). Unpack it by hand and give the "
            "folder as data.root."
        ) from error
    except OSError as error:
        if error.errno is None:  # bz2's only way to say it
            raise damaged(path, name, str(error)) from error
        raise UserError(f"the archive {path} cannot be read: {error.strerror}. Mend its rights or its disk.") from error


def damaged(path: Path, name: str, reason: str) -> UserError:
    """The error for an archive that is not as it was packed; `name` is the member."""
    where = f" at {printable(name)!r}" if name else ""
    return UserError(
        f"the archive {path} is damaged{where}: {reason}. Copy or download it again; nothing of it is kept."
    )
