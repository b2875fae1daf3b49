"""Hostile input, as one table: each case gives the right pixels or an error that names the file and what to do."""

import io
import os
import shutil
import socket
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imgcls.data.check import check
from imgcls.data.images import Images, open_images
from imgcls.data.source import DataConfig, scan
from imgcls.data.sources.csv import CsvConfig
from imgcls.data.sources.folder import FolderConfig
from imgcls.data.sources.parquet import ParquetConfig
from imgcls.errors import UserError
from imgcls.tables import Manifest

Pixels = npt.NDArray[np.uint8]
Make = Callable[[Path], DataConfig]
RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


@dataclass(frozen=True)
class Case:
    """A hostile input.

    Attributes:
        name: what is hostile about it.
        make: makes it below a folder `photos` that has two good classes, and gives the configuration that reads it.
        corners: the colours of the hostile image's top left and bottom right pixel, where it can be read.
        file: the name of the hostile image, as its id ends.
        says: what an error says, in this order; empty where there is none.
        skips: what the manifest lists as passed over, with its reason.
    """

    name: str
    make: Make
    corners: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    file: str = ""
    says: tuple[str, ...] = ()
    skips: tuple[tuple[str, str], ...] = ()


# --- images


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def two_halves(mode: str = "RGB", left: Any = RED, right: Any = BLUE) -> Image.Image:
    """32 x 16 pixels, one colour on the left and one on the right."""
    image = Image.new(mode, (32, 16), left)
    image.paste(right, (16, 0, 32, 16))
    return image


def good(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), "PNG")


def put(name: str, data: bytes | Callable[[], bytes]) -> Make:
    """A folder of photos in which one more file lies."""

    def make(photos: Path) -> DataConfig:
        path = photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data())
        return FolderConfig(root=str(photos))

    return make


def readable(name: str, file: str, data: bytes, corners: tuple[tuple[int, ...], tuple[int, ...]]) -> Case:
    return Case(name, put(file, data), corners=corners, file=file)


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(two_halves(), "JPEG", quality=100, subsampling=0, exif=exif)


def grey_16_bit(kind: str) -> bytes:
    values = np.full((16, 32), 65535, np.uint16)
    values[:, :16] = 256 * 100
    return encoded(Image.fromarray(values), kind)


def palette(**options: Any) -> bytes:
    image = Image.new("P", (32, 16), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (16, 0, 32, 16))
    return encoded(image, "PNG", **options)


def bomb() -> bytes:
    """A PNG whose header claims 60,000 x 60,000 pixels."""
    data = bytearray(good(0))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


FRAMES = {"save_all": True, "append_images": [two_halves("RGB", GREEN, GREEN)]}
IMAGES = [
    *[
        readable(f"EXIF orientation {orientation}", f"cat/turned{orientation}.jpg", turned(orientation), corners)
        for orientation, corners in {
            1: (RED, BLUE), 2: (BLUE, RED), 3: (BLUE, RED), 4: (RED, BLUE),
            5: (RED, BLUE), 6: (RED, BLUE), 7: (BLUE, RED), 8: (BLUE, RED),
        }.items()
    ],
    readable("RGBA", "cat/a.png", encoded(two_halves("RGBA", (*RED, 255), (*BLUE, 0)), "PNG"), (RED, WHITE)),
    readable("grey with alpha", "cat/a.png", encoded(two_halves("LA", (0, 255), (0, 0)), "PNG"), (BLACK, WHITE)),
    readable("palette", "cat/a.png", palette(), (RED, BLUE)),
    readable("palette with a transparent colour", "cat/a.png", palette(transparency=1), (RED, WHITE)),
    readable("16-bit PNG", "cat/a.png", grey_16_bit("PNG"), ((100, 100, 100), WHITE)),
    readable("16-bit TIFF", "cat/a.tiff", grey_16_bit("TIFF"), ((100, 100, 100), WHITE)),
    readable("1 bit", "cat/a.png", encoded(two_halves("1", 0, 255), "PNG"), (BLACK, WHITE)),
    readable("grey", "cat/a.jpg", encoded(two_halves("L", 0, 255), "JPEG"), (BLACK, WHITE)),
    readable(
        "CMYK",
        "cat/a.jpg",
        encoded(two_halves("CMYK", (0, 255, 255, 0), (255, 255, 0, 0)), "JPEG", quality=100),
        (RED, BLUE),
    ),
    readable("animated WebP", "cat/a.webp", encoded(two_halves(), "WEBP", lossless=True, **FRAMES), (RED, BLUE)),
    readable("animated PNG", "cat/a.png", encoded(two_halves(), "PNG", **FRAMES), (RED, BLUE)),
    readable("PNG called JPEG", "cat/a.jpg", encoded(two_halves(), "PNG"), (RED, BLUE)),
    readable("ending in capitals", "cat/a.PNG", encoded(two_halves(), "PNG"), (RED, BLUE)),
    readable("deep below its class", "cat/x/y/z/a.png", encoded(two_halves(), "PNG"), (RED, BLUE)),
    *[
        readable(f"name {name!r}", name, encoded(two_halves(), "PNG"), (RED, BLUE))
        for name in (
            "cat/a name with spaces .png", "cat/a 'quoted' \"name\".png", "cat/-rf.png", "cat/--data.root.png",
            "cat/猫 žluťoučký 🐈.png", "cat/a\nb.png", "cat/$HOME;`id`.png", "cat/100%.png", "cat/a,b.png",
            "-x/a.png", "class with spaces/a.png", "Ελλάδα/a.png",
        )
    ],
]  # fmt: skip
BROKEN = {
    "zero bytes": ("cat/a.jpg", b"", "the file is empty"),
    "truncated JPEG": ("cat/a.jpg", encoded(two_halves(), "JPEG")[:-200], "cannot be decoded"),
    "truncated PNG": ("cat/a.png", good(1)[:300], "cannot be decoded"),
    "truncated WebP": ("cat/a.webp", encoded(two_halves(), "WEBP")[:40], "cannot be decoded"),
    "PNG with a flipped byte": ("cat/a.png", good(1)[:200] + b"\0" + good(1)[201:], "cannot be decoded"),
    "text": ("cat/a.jpg", b"hello", "cannot be decoded"),
    "an error page": ("cat/a.png", b"<!DOCTYPE html><title>404</title>", "cannot be decoded"),
    "only zeros": ("cat/a.png", bytes(4096), "cannot be decoded"),
    "decompression bomb": ("cat/a.png", bomb(), "too large to decode safely"),
    "a thread of pixels": ("cat/a.png", encoded(Image.new("L", (3000, 1)), "PNG"), "no side over 100 times the other"),
    "floating point": (
        "cat/a.tiff",
        encoded(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"),
        "expected at most 16 bits",
    ),
}


# --- folders


def link(name: str, target: str, *, is_folder: bool = False) -> Make:
    def make(photos: Path) -> DataConfig:
        (photos / name).symlink_to(target, target_is_directory=is_folder)
        return FolderConfig(root=str(photos))

    return make


def special(name: str, kind: str) -> Make:
    def make(photos: Path) -> DataConfig:
        if kind == "fifo":
            os.mkfifo(photos / name)
        else:
            with socket.socket(socket.AF_UNIX) as listener:
                here = Path.cwd()
                os.chdir(photos / Path(name).parent)  # a socket's name may have 107 bytes only
                listener.bind(Path(name).name)
                os.chdir(here)
        return FolderConfig(root=str(photos))

    return make


def root(name: str) -> Make:
    return lambda photos: FolderConfig(root=str(photos / name))


def empty_class(photos: Path) -> DataConfig:
    (photos / "bird").mkdir()
    return FolderConfig(root=str(photos))


def loop(photos: Path) -> DataConfig:
    (photos / "loop").symlink_to("loop")
    return FolderConfig(root=str(photos / "loop"))


def bad_bytes(photos: Path) -> DataConfig:
    Path(os.fsdecode(os.fsencode(photos) + b"/cat/caf\xe9.png")).write_bytes(good(9))
    return FolderConfig(root=str(photos))


def stranger(photos: Path) -> DataConfig:
    for part, name in (("train", "cat"), ("train", "dog"), ("val", "bird")):
        put(f"parts/{part}/{name}/a.png", good(9))(photos)
    return FolderConfig(root=str(photos / "parts"))


FOLDERS = [
    Case("a class folder that is empty", empty_class, says=("class folder", "bird", "holds no images", "Add images")),
    Case(
        "a class folder with other files only",
        put("bird/notes.txt", b"x"),
        says=("class folder", "bird", "holds no images", "Add images"),
    ),
    Case("no such root", root("nowhere"), says=("nowhere does not exist", "expected a folder", "Give an existing")),
    Case("a root that links to itself", loop, says=("loop", "expected a folder")),
    Case("an image as root", root("cat/0.png"), says=("0.png", "expected a folder")),
    Case("a root that is a class", root("cat"), says=("cat holds no images", "image outside a class folder")),
    Case("a name that is too long", root("x" * 300), says=("data.root cannot be read: File name too long", "x" * 20)),
    Case("a NUL in the root", root("a\0b"), says=("does not exist", "Give an existing")),
    Case("a name that is not UTF-8", bad_bytes, says=("caf\\xe9.png", "not UTF-8", "Rename them")),
    Case("a link to the folder above", link("cat/up", "..", is_folder=True), skips=(("cat/up", "link to a folder"),)),
    Case(
        "a class that links to the root",
        link("up", ".", is_folder=True),
        skips=(("up", "a link to a folder above"),),
    ),
    Case("a link to an image", link("cat/a.png", "0.png"), file="cat/a.png"),
    Case("a link to nothing", link("cat/a.png", "nowhere.png"), says=("cat/a.png", "Mend or remove the file")),
    Case("a link to itself", link("cat/a.png", "a.png"), says=("cat/a.png", "Mend or remove the file")),
    Case("a pipe", special("cat/a.png", "fifo"), says=("cat/a.png", "it is no regular file", "Mend")),
    Case(
        "a socket",
        special("cat/a.png", "socket"),
        says=("cat/a.png", "it is no regular file", "Mend"),
    ),
    Case("a folder called like an image", put("cat/a.png/b.png", good(9)), file="cat/a.png/b.png"),
    Case("a hidden file", put("cat/.a.png", good(9)), skips=(("cat/.a.png", "hidden"),)),
    Case("what a Mac leaves", put("__MACOSX/cat/._0.png", b"x"), skips=(("__MACOSX", "hidden"),)),
    Case("what Windows leaves", put("cat/Thumbs.db", b"x"), skips=(("cat/Thumbs.db", "not an image"),)),
    Case("an image beside the classes", put("a.png", good(9)), skips=(("a.png", "image outside a class folder"),)),
    Case("a class in val only", stranger, says=("the classes bird are in val or test but not in train", "Add some")),
]


# --- tables


def table(text: str | bytes, **fields: Any) -> Make:
    def make(photos: Path) -> DataConfig:
        path = photos / "labels.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return CsvConfig(table=str(path), **fields)

    return make


def parquet_table(photos: Path) -> DataConfig:
    pq.write_table(pa.table({"url": ["a"], "caption": ["b"]}), photos / "labels.parquet")
    return CsvConfig(table=str(photos / "labels.parquet"))


ROWS = "cat/0.png,cat\ncat/1.png,cat\ndog/0.png,dog\ndog/1.png,dog\n"
TABLES = [
    Case("a table that is fine", table("path,label\n" + ROWS), file="cat/0.png"),
    Case("a table with a byte order mark", table("\ufeffpath,label\n" + ROWS), file="cat/0.png"),
    Case("a table in UTF-16", table(("path,label\n" + ROWS).encode("utf-16")), says=("labels.csv", "UTF-8")),
    Case("missing files", table("path,label\n" + ROWS + "x.png,cat\n"), says=("1 of 5 images are missing: x.png",)),
    Case(
        "an image twice",
        table("path,label\n" + ROWS + "cat/0.png,dog\n"),
        says=("more than once: cat/0.png (line 2 as cat and line 6 as dog)",),
    ),
    Case("an image twice, written otherwise", table("path,label\n" + ROWS + "./cat/0.png,cat\n"), says=("than once",)),
    Case("empty labels", table("path,label\n" + ROWS + "dog/2.png,\n"), says=("1 of 5 rows have no label", "line 6")),
    Case("empty paths", table("path,label\n" + ROWS + ",dog\n"), says=("1 of 5 rows have no path", "line 6")),
    Case("labels of mixed kinds", table("path,label\n" + ROWS + "dog/2.png,7\n"), says=("integers (7)", "label_kind")),
    Case("decimal labels", table("path,label\ncat/0.png,0.5\ndog/0.png,1.5\n"), says=("decimal numbers", "label_kind")),
    Case("another separator", table(("path|label\n" + ROWS).replace(",", "|")), says=("path|label", "data.separator")),
    Case("the wrong separator asked for", table("path;label\n", separator="comma"), says=("path;label", "separator")),
    Case("rows of unequal length", table("path,label\n" + ROWS + "a,b,c\n"), says=("labels.csv", "line 6")),
    Case("a quote that never ends", table('path,label\n"cat/0.png,cat\n'), says=("labels.csv",)),
    Case("a header only", table("path,label\n"), says=("has a header but no rows",)),
    Case("an empty table", table(""), says=("labels.csv", "empty")),
    Case("no header", table(ROWS), says=("cat/0.png", "expected a header line")),
    Case("a NUL in a path", table("path,label\n" + ROWS + "a\0b.png,cat\n"), says=("labels.csv", "NUL")),
    Case("two label columns", table("path,label,class\n"), says=("label, class", "data.label_column")),
    Case("a column twice", table("path,label,label\n"), says=("label", "stands 2 times")),
    Case(
        "an unknown column",
        table("path,label\n" + ROWS, label_column="lable"),
        says=(
            "'lable'",
            "Did you mean",
        ),
    ),
    Case("an unknown split", table("path,label,part\ncat/0.png,cat,x\n", split_column="part"), says=("'x' in line 2",)),
    Case("a Parquet table without the columns", parquet_table, says=("labels.parquet", "url, caption", "data.path_")),
    Case("half a Parquet table", table(b"PAR1\0\0\0"), says=("labels.csv", "begins like Parquet but")),
    Case("a folder as the table", lambda p: CsvConfig(table=str(p)), says=("is a folder", "data.root")),
    Case(
        "a path that leaves the folder", table("path,label\n../photos/cat/0.png,cat\ndog/0.png,dog\n"), file="cat/0.png"
    ),
]


# --- archives and Parquet files with images inside


def zipped(*members: tuple[str, bytes], damage: Callable[[bytes], bytes] = lambda data: data, **fields: Any) -> Make:
    """An archive of two good classes and these members."""

    def make(photos: Path) -> DataConfig:
        path = photos.parent / "photos.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(photos.rglob("*.png")):
                archive.write(file, file.relative_to(photos))
            for name, data in members:
                archive.writestr(name, data)
        path.write_bytes(damage(path.read_bytes()))
        return FolderConfig(root=str(path), **fields)

    return make


def tarred(**about: Any) -> Make:
    """A tar of two good classes and a member that is no file."""

    def make(photos: Path) -> DataConfig:
        path = photos.parent / "photos.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.add(photos, "photos")
            member = tarfile.TarInfo("photos/cat/odd.png")
            for name, value in about.items():
                setattr(member, name, value)
            archive.addfile(member)
        return FolderConfig(root=str(path))

    return make


def hub(*files: tuple[str, dict[str, Any]], raw: bytes | None = None) -> Make:
    """Parquet files with images inside, as the Hugging Face hub lays them out."""

    def make(photos: Path) -> DataConfig:
        folder = photos.parent / "hub"
        folder.mkdir()
        for name, columns in files:
            pq.write_table(pa.table(columns), folder / name)
        if raw is not None:
            (folder / "train.parquet").write_bytes(raw)
        return ParquetConfig(parquet=str(folder))

    return make


def pictures(*labels: Any, hole: int | None = None) -> dict[str, Any]:
    images = [{"bytes": None if row == hole else good(row), "path": None} for row in range(len(labels))]
    return {"image": images, "label": list(labels)}


INSIDE = [
    Case("a zip that is fine", zipped(), file="cat/0.png"),
    Case(
        "a zip that writes above itself",
        zipped(("../../evil.png", good(9))),
        says=("photos.zip", "../../evil.png", "Nothing of it is unpacked"),
    ),
    Case("a zip with an absolute path", zipped(("/etc/evil.png", good(9))), says=("photos.zip", "/etc/evil.png")),
    Case("a zip that was cut off", zipped(damage=lambda data: data[: len(data) // 2]), says=("photos.zip",)),
    Case("a zip that is larger than allowed", zipped(max_archive_gb=1e-6), says=("photos.zip", "data.max_archive_gb")),
    Case("a zip with other files", zipped(("cat/x.txt", b"x")), skips=(("cat/x.txt", "not an image"),)),
    Case("a zip with what a Mac leaves", zipped(("__MACOSX/._0.png", b"x")), skips=(("__MACOSX", "hidden"),)),
    Case("a tar with a link", tarred(type=tarfile.SYMTYPE, linkname="/etc/passwd"), skips=(("cat/odd.png", "link"),)),
    Case("a tar with a device", tarred(type=tarfile.CHRTYPE), skips=(("cat/odd.png", "no file"),)),
    Case("a tar with a pipe", tarred(type=tarfile.FIFOTYPE), skips=(("cat/odd.png", "no file"),)),
    Case("Parquet that is fine", hub(("train.parquet", pictures("a", "b"))), file="train/0"),
    Case(
        "Parquet without the columns",
        hub(("train.parquet", {"text": ["a"], "score": [1]})),
        says=("train.parquet", "text, score", "data.image_column"),
    ),
    Case("Parquet without bytes", hub(("train.parquet", pictures("a", "b", hole=1))), says=("train.parquet row 1",)),
    Case("Parquet with a missing label", hub(("train.parquet", pictures("a", None))), says=("train.parquet", "label")),
    Case("Parquet that is text", hub(raw=b"hello"), says=("train.parquet", "Parquet")),
    Case("Parquet that was cut off", hub(raw=b"PAR1" + bytes(99)), says=("train.parquet",)),
    Case("no Parquet at all", hub(), says=("hub has no *.parquet files",)),
]
CASES = [*IMAGES, *FOLDERS, *TABLES, *INSIDE]


# --- what a check says of images that can be read


def copied(to: str, splits: bool = False) -> Make:
    def make(photos: Path) -> DataConfig:
        base = photos
        if splits:
            base = photos.parent / "parts"
            for part in ("train", "val"):
                shutil.copytree(photos, base / part)
        (base / to).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / "cat/0.png", base / to)
        return FolderConfig(root=str(base))

    return make


FOUND = {
    "wrong_ending": put("cat/a.jpg", encoded(two_halves(), "PNG")),
    "animated": put("cat/a.webp", encoded(two_halves(), "WEBP", **FRAMES)),
    "cmyk": put("cat/a.jpg", encoded(two_halves("CMYK", 0, 0), "JPEG")),
    "palette": put("cat/a.png", palette()),
    "wide": put("cat/a.png", grey_16_bit("PNG")),
    "alpha": put("cat/a.png", encoded(two_halves("RGBA", (*RED, 255), (*BLUE, 0)), "PNG")),
    "rotated": put("cat/a.jpg", turned(6)),
    "unreadable": put("cat/a.jpg", b""),
    "cut_off": put("cat/a.png", good(9)[:-20]),
    "duplicates": copied("cat/a.png"),
    "contradictory": copied("dog/a.png"),
    "leakage": copied("val/dog/a.png", splits=True),
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path)


def make_photos(folder: Path) -> Path:
    photos = folder / "photos"
    for label, name in enumerate(("cat", "dog")):
        (photos / name).mkdir(parents=True)
        for number in range(4):
            (photos / name / f"{number}.png").write_bytes(good(10 * label + number))
    return photos


def test_there_are_forty_cases_and_no_two_are_called_alike() -> None:
    names = [case.name for case in CASES] + list(BROKEN)
    assert len(names) == len(set(names)) >= 40


@pytest.mark.timeout(30)
@pytest.mark.parametrize("case", CASES, ids=lambda case: ascii(case.name))
def test_hostile_input_gives_the_right_pixels_or_an_error_that_says_what_to_do(case: Case, photos: Path) -> None:
    if case.says:
        with pytest.raises(ValueError) as caught:
            open_all(scan(case.make(photos)))
        check_message(str(caught.value), case.says)
        return
    manifest = scan(case.make(photos))
    skipped = {item.path: item.reason for item in manifest.skipped}
    for path, reason in case.skips:
        assert reason in skipped[path]
    assert len(skipped) == len(case.skips), "nothing else is passed over"
    rows = [row for row, id_ in enumerate(manifest.ids) if id_.endswith(case.file)]
    assert len(rows) == 1 or not case.file
    if case.corners is not None:
        colours = np.array(case.corners)
        assert np.abs(corners(manifest, rows[0], channels=3) - colours).max() <= 4
        luma = colours @ [[0.299], [0.587], [0.114]]
        assert np.abs(corners(manifest, rows[0], channels=1) - luma).max() <= 4


@pytest.mark.parametrize("kind", FOUND)
def test_a_quick_check_tells_what_is_odd(kind: str, photos: Path) -> None:
    assert kind not in {finding.kind for finding in check(scan(FolderConfig(root=str(photos)))).findings}
    [finding] = [finding for finding in check(scan(FOUND[kind](photos))).findings if finding.kind == kind]
    assert finding.count >= 1
    assert "a." in " ".join(finding.items) or kind == "leakage"


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_named_with_its_reason(name: str, photos: Path) -> None:
    file, data, reason = BROKEN[name]
    with pytest.raises(UserError) as caught:
        open_all(scan(put(file, data)(photos)))
    check_message(str(caught.value), (file, reason, "Mend or remove the file"))


@pytest.fixture
def without_rights() -> Iterator[Path]:
    """A folder of photos, and this process without root's power to read everything."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own is closed to other users
        folder = Path(name)
        folder.chmod(0o755)
        photos = make_photos(folder)
        (photos / "labels.csv").write_text("path,label\n" + ROWS)
        before = os.geteuid()
        if before == 0:
            os.seteuid(65534)
        try:
            yield photos
        finally:
            os.seteuid(before)


@pytest.mark.parametrize("name", ["cat/1.png", "cat", "labels.csv", "."])
def test_what_may_not_be_read_is_named(name: str, without_rights: Path) -> None:
    denied, me = without_rights / name, os.geteuid()
    mode = denied.stat().st_mode
    os.seteuid(os.getuid())
    denied.chmod(0)
    os.seteuid(me)
    config: DataConfig = FolderConfig(root=str(without_rights))
    if name == "labels.csv":
        config = CsvConfig(table=str(denied))
    try:
        with pytest.raises(UserError) as caught:
            open_all(scan(config))
    finally:
        os.seteuid(os.getuid())
        denied.chmod(mode)
        os.seteuid(me)
    check_message(str(caught.value), (str(denied) if name != "." else str(without_rights), "ermission"))


def corners(manifest: Manifest, row: int, *, channels: int) -> npt.NDArray[np.int64]:
    """(2, channels): the top left and the bottom right pixel of an image."""
    image = open_all(manifest, channels=channels)[row].astype(np.int64)
    return np.stack([image[0, 0], image[-1, -1]])


def open_all(manifest: Manifest, *, channels: int = 3) -> Images:
    return open_images(manifest, channels=channels, short_side=64, budget=10**8)


def check_message(message: str, says: tuple[str, ...]) -> None:
    assert "Traceback" not in message
    at = 0
    for part in says:
        found = message.find(part, at)
        assert found >= 0, f"{part!r} is not in what is left of {message!r} after {at}"
        at = found
