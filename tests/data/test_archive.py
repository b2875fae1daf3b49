"""Archives of a folder: the manifest of the folder, nothing outside of the cache, every bound and damage named."""

import contextlib
import io
import os
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgcls.data import cache
from imgcls.data.source import scan
from imgcls.data.sources import archive, archive_members
from imgcls.data.sources.archive import unpacked
from imgcls.data.sources.folder import FolderConfig
from imgcls.data.split import split
from imgcls.errors import UserError
from imgcls.recipe import resolve
from imgcls.tables import Manifest
from tests.conftest import put, skipped

ENDINGS = ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"]
Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def scanned(root: Path, **fields: Any) -> Manifest:
    return scan(FolderConfig(root=str(root), **fields))


def error_of(root: Path, **fields: Any) -> str:
    """The message, after a look at that nothing is left in the cache."""
    with pytest.raises(UserError) as caught:
        scanned(root, **fields)
    assert cache.entries() == []
    assert not list(cache.cache_dir().glob("*/*.building"))
    assert str(root) in str(caught.value)
    return str(caught.value)


def pack(folder: Path, ending: str, *, top: bool) -> Path:
    """An archive with the folder in it, or with what is in the folder."""
    path = folder.with_name(f"{folder.name}.{ending}")
    names = sorted(folder.rglob("*"))
    base = folder.parent if top else folder
    if ending == "zip":
        with zipfile.ZipFile(path, "w") as file:
            for name in names:
                file.write(name, name.relative_to(base))
    else:
        mode = "w" + {"tar": ""}.get(ending, ":" + ending.split(".")[-1])
        with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
            for name in names:
                tar.add(name, "./" + str(name.relative_to(base)), recursive=False)
    return path


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for info, data in members:
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def zip_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(name), data)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    names = [
        "été/1.png",
        "été/deep/2.png",
        "dog/3.png",
        "dog/4.png",
        "dog/9.png",
        "dog/.x.png",
        ".git/x.png",
        "loose.png",
    ]
    root = put(tmp_path / "photos", *names, *(f"été/{k}.png" for k in range(5, 8)))
    (root / "readme.txt").write_text("x")
    (root / "dog/Thumbs.db").write_text("x")
    return root


# --- the same as the folder


@pytest.mark.parametrize("top", [True, False])
@pytest.mark.parametrize("ending", ENDINGS)
def test_an_archive_gives_the_manifest_of_the_folder_that_was_packed(photos: Path, ending: str, top: bool) -> None:
    folder, packed = scanned(photos), scanned(pack(photos, ending, top=top))
    assert (packed.digest, packed.ids, packed.classes) == (folder.digest, folder.ids, folder.classes)
    assert skipped(packed) == skipped(folder)
    config = FolderConfig(root=str(photos), test_fraction=0.3)
    assert list(split(packed, config).frame["split"]) == list(split(folder, config).frame["split"])
    assert all(Path(path).is_relative_to(cache.cache_dir()) for path in packed.frame["path"])


def test_the_splits_of_the_folders_in_an_archive_are_kept(tmp_path: Path) -> None:
    root = put(tmp_path / "r", *(f"{part}/{name}/1.png" for part in ("train", "val", "test") for name in "ab"))
    for top in (True, False):
        assert scanned(pack(root, "zip", top=top)).counts() == {"train": 2, "val": 2, "test": 2}
    shutil.rmtree(root / "val")
    shutil.rmtree(root / "test")
    manifest = scanned(pack(root, "tar", top=False))
    assert (manifest.ids[0], manifest.counts()["train"]) == ("train/a/1.png", 2)


def test_folders_around_the_classes_are_passed_through(tmp_path: Path) -> None:
    root = put(tmp_path / "r", "home/me/pics/a/1.png", "home/me/pics/b/x/2.png", "__MACOSX/home/1.png")
    assert scanned(pack(root, "zip", top=False)).ids == ["a/1.png", "b/x/2.png"]


def test_an_archive_is_known_by_its_content(photos: Path) -> None:
    for ending in ("zip", "tar.gz"):
        other = pack(photos, ending, top=True).rename(photos.with_name(f"{ending}.download"))
        assert len(scanned(other)) == 8


def test_an_archive_is_unpacked_once_and_again_when_it_is_another(photos: Path) -> None:
    path = pack(photos, "zip", top=True)
    first, told = scanned(path), list[str]()
    scan(FolderConfig(root=str(path)), progress=lambda what, *_, **__: told.append(what))
    assert set(told) == {"finding images"}
    (photos / "dog/10.png").write_bytes(b"other")
    second = scanned(pack(photos, "zip", top=True))
    assert (len(first), len(second), len(cache.entries())) == (8, 9, 2)


def test_progress_is_told_while_listing_and_unpacking(photos: Path) -> None:
    told: list[tuple[str, int, int, str]] = []

    def progress(what: str, done: int, total: int, *, unit: str = "images") -> None:
        told.append((what, done, total, unit))

    unpacked(pack(photos, "tar.gz", top=True), max_gb=1, progress=progress)
    assert told[0] == ("listing photos.tar.gz", 0, 1, "MiB")
    assert [item for item in told if item[3] == "images"] == [
        ("unpacking photos.tar.gz", done, 9, "images") for done in range(1, 10)
    ]


def test_modes_and_owners_are_not_taken_over(photos: Path) -> None:
    for path in photos.rglob("*.png"):
        path.chmod(0o4777)
    manifest = scanned(pack(photos, "tar", top=True))
    assert {stat.S_IMODE(Path(path).stat().st_mode) & 0o7111 for path in manifest.frame["path"]} == {0}


def test_data_root_chooses_the_folder_source_for_an_archive_too() -> None:
    recipe = resolve(overrides={"data.root": "photos.zip", "data.max_archive_gb": 2.5}).recipe
    assert isinstance(recipe.data, FolderConfig)
    assert recipe.data.origin == str(Path("photos.zip").absolute())


# --- what is passed over


def test_links_devices_and_pipes_are_passed_over_and_listed(photos: Path, tmp_path: Path) -> None:
    path = pack(photos, "tar", top=False)
    kinds = {"sym": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "pipe": tarfile.FIFOTYPE, "disk": tarfile.BLKTYPE}
    with tarfile.open(path, "a") as file:
        for name, kind in kinds.items():
            info = tarfile.TarInfo(f"dog/{name}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
    manifest = scanned(path)
    assert len(manifest) == 8
    found = {name: reason for name, reason in skipped(manifest).items() if Path(name).stem in kinds}
    assert found == {
        "dog/sym.png": "a link",
        "dog/hard.png": "a link",
        "dog/pipe.png": "no file",
        "dog/disk.png": "no file",
    }
    assert not [path for path in cache.cache_dir().rglob("*") if path.is_symlink()]

    link = zipfile.ZipInfo("a/link.png")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "l.zip", "w") as packed:
        packed.write(photos / "dog/3.png", "a/1.png")
        packed.writestr(link, "/etc/passwd")
    assert skipped(scanned(tmp_path / "l.zip")) == {"a/link.png": "a link"}


def test_of_members_with_one_name_the_last_is_taken_and_the_others_are_listed(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "t.tar", (tarfile.TarInfo("a/1.png"), b"old"), (tarfile.TarInfo("a/1.png"), b"new!"))
    manifest = scanned(path)
    assert Path(manifest.frame["path"][0]).read_bytes() == b"new!"
    assert skipped(manifest) == {"a/1.png": "stands in the archive again further back, and that one is taken"}


def test_names_of_macos_and_of_windows_are_read(tmp_path: Path) -> None:
    unflagged = "été/1.png".encode().decode("cp437")  # UTF-8 without the flag that says so

    class MacInfo(zipfile.ZipInfo):
        def _encodeFilenameFlags(self) -> tuple[bytes, int]:
            return self.filename.encode("cp437"), self.flag_bits

    with zipfile.ZipFile(tmp_path / "t.zip", "w") as file:
        file.writestr(MacInfo(unflagged), b"1")
        backslashes = zipfile.ZipInfo("x")
        backslashes.filename, backslashes.create_system = "pics\\dog\\2.png", 0
        file.writestr(backslashes, b"2")
        file.writestr("pics/cat/2.png", b"2")
    assert scanned(tmp_path / "t.zip").ids == ["pics/cat/2.png", "pics/dog/2.png", "été/1.png"]


def test_a_name_that_is_no_utf_8_is_an_error_or_listed(photos: Path, tmp_path: Path) -> None:
    data = (photos / "dog/3.png").read_bytes()
    image = tarfile.TarInfo(os.fsdecode(b"a/\xfc.png"))
    text = tarfile.TarInfo(os.fsdecode(b"a/\xfc.txt"))
    with tarfile.open(tmp_path / "t.tar", "w", format=tarfile.GNU_FORMAT) as file:
        for info in (tarfile.TarInfo("a/1.png"), text):
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    assert skipped(scanned(tmp_path / "t.tar")) == {"a/\\xfc.txt": "not an image"}
    with tarfile.open(tmp_path / "u.tar", "w", format=tarfile.GNU_FORMAT) as file:
        file.addfile(image)
    shutil.rmtree(cache.cache_dir())
    assert "a/\\xfc.png are not UTF-8" in error_of(tmp_path / "u.tar")


# --- hostile archives


@pytest.mark.parametrize(
    ("ending", "name"),
    [
        *((ending, name) for ending in ("zip", "tar") for name in ("../x.png", "a/../../x.png", "/etc/x.png", "a/..")),
        *(("zip", name) for name in ("..\\x.png", "C:\\x.png")),  # a letter like others in a tar
    ],
)
def test_a_member_that_would_land_outside_is_an_error_that_names_it(tmp_path: Path, name: str, ending: str) -> None:
    path = tmp_path / "in" / f"t.{ending}"
    path.parent.mkdir()
    if ending == "zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a/1.png", b"x")
            info = zipfile.ZipInfo(name)
            info.filename, info.create_system = name, 0
            file.writestr(info, b"x")
    else:
        tar_of(path, (tarfile.TarInfo("a/1.png"), b"x"), (tarfile.TarInfo(name), b"x"))
    before = set(tmp_path.rglob("*"))
    assert "a member that would land outside of its folder" in (message := error_of(path))
    assert name.replace("\\", "/").removeprefix("C:") in message
    assert {item for item in tmp_path.rglob("*") if "cache" not in item.parts} == before


def test_a_link_to_a_folder_outside_leads_nothing_there(tmp_path: Path) -> None:
    link = tarfile.TarInfo("a/out")
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
    path = tar_of(tmp_path / "t.tar", (link, b""), *((tarfile.TarInfo(n), b"x") for n in ("a/out/x.png", "b/1.png")))
    manifest = scanned(path)
    assert manifest.ids == ["a/out/x.png", "b/1.png"]
    assert not (tmp_path / "x.png").exists()


def test_archives_over_a_bound_are_refused_before_anything_is_written(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(photos, "tar.gz", top=True)
    assert "takes more than 1e-06 GiB unpacked" in error_of(path, max_archive_gb=1e-6)
    monkeypatch.setattr(archive, "MOST_MEMBERS", 3)
    assert "has more than 3 members" in error_of(path)
    monkeypatch.undo()
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(archive, "MOST_FILE_BYTES", 10)
    assert "has an image of 0.0 GiB, photos/" in error_of(path).replace("./", "")
    monkeypatch.setattr(archive, "RATIO_FROM_BYTES", 2**20)
    bomb = tar_of(tmp_path / "bomb.tgz", (tarfile.TarInfo("x.bin"), bytes(2**22)), mode="w:gz")
    assert bomb.stat().st_size < 2**15
    assert "unpacks to more than 200 times its size" in error_of(bomb)


def test_a_zip_whose_header_lies_about_a_size_is_damaged(tmp_path: Path) -> None:
    for lie in (10, 10**6):
        path = tmp_path / f"{lie}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("a/1.png", bytes(100_000))
            file.infolist()[0].file_size = lie
        assert "is damaged at 'a/1.png'" in error_of(path)


def test_an_extended_header_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**30
    (tmp_path / "t.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(UserError, match=r"is a file; expected|an extended header of 1,073,741,824 bytes"):
        scanned(tmp_path / "t.tar")
    first = tar_of(tmp_path / "u.tar", (tarfile.TarInfo("a/1.png"), b"x"))
    first.write_bytes(first.read_bytes()[:1024] + info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    assert "is damaged at 'a/1.png': found an extended header of 1,073,741,824 bytes" in error_of(first)


def test_an_encrypted_archive_is_an_error_that_says_so(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "t.zip", {"a/1.png": b"x" * 50, "b/2.png": b"y"})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    path.write_bytes(bytes(data))
    assert "1 images are encrypted (a/1.png). Unpack it with its password" in error_of(path)


def test_a_method_that_zipfile_lacks_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "t.zip", {"a/1.png": b"x" * 50})
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x01\x02", 10), (b"PK\x03\x04", 8)):
        at = data.index(mark)
        data[at + offset : at + offset + 2] = struct.pack("<H", 9)  # Deflate64
    path.write_bytes(bytes(data))
    assert "cannot be unpacked here (a/1.png: That compression method is not supported)" in error_of(path)


def test_a_name_that_is_a_file_and_a_folder_is_an_error(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "t.zip", {"a/x.png": b"1", "a/x.png/2.png": b"2"})
    assert "a/x.png stand as a file and as a folder" in error_of(path)


def test_a_name_that_is_too_long_for_the_disk_is_an_error_that_names_it(tmp_path: Path) -> None:
    assert "a member whose name is too long" in error_of(zip_of(tmp_path / "t.zip", {f"a/{'x' * 300}.png": b"1"}))
    assert "a member whose name is too long" in error_of(zip_of(tmp_path / "u.zip", {f"{'x' * 300}/1.png": b"1"}))


# --- damaged archives


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_truncated_archive_is_an_error_and_leaves_nothing(photos: Path, ending: str) -> None:
    path = pack(photos, ending, top=True)
    whole = path.read_bytes()
    for share in (0.3, 0.5, 0.7):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert "damaged" in (message := error_of(path)) or "no whole archive" in message


def test_a_tar_cut_off_between_two_members_is_damaged(tmp_path: Path) -> None:
    members = [(tarfile.TarInfo(f"a/{k}.png"), b"x" * 100) for k in range(3)]
    path = tar_of(tmp_path / "t.tar", *members)
    whole = path.read_bytes()
    path.write_bytes(whole[: 2 * 1024])
    assert "is damaged at 'a/1.png': behind this member stands neither another nor the mark" in error_of(path)
    path.write_bytes(whole[:1024] + b"?" * 512 + whole[1536:])  # tarfile alone would end here in silence
    assert "is damaged at 'a/0.png'" in error_of(path)


def test_a_damaged_member_is_named(photos: Path) -> None:
    path = pack(photos, "zip", top=True)
    data = bytearray(path.read_bytes())
    data[data.index(b"dog/4.png") + 60] ^= 255
    path.write_bytes(bytes(data))
    assert "is damaged at 'photos/dog/4.png': Bad CRC-32" in error_of(path)


@pytest.mark.parametrize("content", [b"", b"words", b"PK\x03\x04 and more", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\x00"])
def test_a_file_that_is_no_archive_is_told_what_was_expected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.zip").write_bytes(content)
    assert "is a file" in (message := error_of(tmp_path / "t.zip"))
    assert "or an archive of it (.zip, .tar, .tar.gz, .tar.bz2, .tar.xz)" in message
    assert ("no whole archive" in message) == content.startswith(tuple(archive_members._MAGIC))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = put(tmp_path_factory.mktemp("whole") / "photos", "a/1.png", "b/2.png")
    return {ending: pack(root, ending, top=True).read_bytes() for ending in ENDINGS}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ending=st.sampled_from(ENDINGS),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_an_archive_with_any_bytes_changed_is_read_or_refused(
    whole: dict[str, bytes], tmp_path: Path, ending: str, changes: list[tuple[float, int]]
) -> None:
    data = bytearray(whole[ending])
    for place, byte in changes:
        data[int(place * len(data))] = byte
    path = tmp_path / "t"
    path.write_bytes(bytes(data))
    shutil.rmtree(cache.cache_dir(), ignore_errors=True)
    with contextlib.suppress(UserError):
        manifest = scanned(path)
        assert all(Path(name).is_relative_to(cache.cache_dir()) for name in manifest.frame["path"])


def test_errors_of_the_folder_inside_name_the_archive(tmp_path: Path) -> None:
    root = put(tmp_path / "r", "a/1.png")
    (root / "empty").mkdir()
    assert_message = "the class folder {}/r/empty holds no images"
    path = pack(root, "zip", top=True)
    with pytest.raises(UserError, match="holds no images") as caught:
        scanned(path)
    assert assert_message.format(path) in str(caught.value)
    (tmp_path / "none").mkdir()
    (tmp_path / "none/readme.txt").write_text("x")
    with pytest.raises(UserError, match=r"none.tar holds no images.*Found instead: readme.txt \(not an image\)"):
        scanned(pack(tmp_path / "none", "tar", top=False))


# --- the cache


def test_a_cache_with_too_little_room_is_an_error_that_says_how_much(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(photos, "zip", top=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100, 0, 100))
    assert "in the cache folder" in (message := error_of(path))
    assert "0.00 GiB are free. Set the variable IMGCLS_CACHE" in message


def test_a_cache_that_cannot_be_written_is_an_error_that_names_the_variable(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(
        UserError, match=r"cannot be put into the cache folder .*Not a directory. Set the variable IMGC"
    ):
        scanned(pack(photos, "zip", top=True))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_fills_up_while_unpacking_is_an_error(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(photos, "zip", top=True)

    def full(*_: Any, **__: Any) -> None:
        with Path("/dev/full").open("wb") as file:
            file.write(b"x")

    monkeypatch.setattr(archive, "_copy", full)
    assert "the disk of the cache folder" in (message := error_of(path))
    assert "Set the variable IMGCLS_CACHE" in message


@pytest.mark.slow
def test_two_processes_unpack_one_archive_once(photos: Path, tmp_path: Path) -> None:
    path = pack(photos, "tar.xz", top=True)
    program = (
        "import sys, time, pathlib\n"
        "from imgcls.data.sources import archive\n"
        "inner = archive._unpack\n"
        "def slow(*a):\n"
        "    with open('count', 'a') as f: f.write('x')\n"
        "    time.sleep(1); inner(*a)\n"
        "archive._unpack = slow\n"
        "said = []\n"
        "found = archive.unpacked(pathlib.Path(sys.argv[1]), max_gb=1, progress=lambda w, *a, **k: said.append(w))\n"
        "print(len(list(found.folder.rglob('*.png'))), any('waiting' in w for w in said))\n"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
        for _ in range(2)
    ]
    answers = sorted(process.communicate(timeout=60)[0].strip() for process in both)
    assert answers == ["9 False", "9 True"]
    assert (tmp_path / "count").read_text() == "x"


@pytest.fixture(autouse=True)
def _no_files_outside(tmp_path: Path) -> Iterator[None]:
    """Whatever a test unpacks, nothing appears beside the folder of the test."""
    before = set(tmp_path.parent.iterdir())
    yield
    assert set(tmp_path.parent.iterdir()) == before
