"""From words to images: each kind of input, its ids, and an error for what is none."""

import io
import os
import shutil
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imgcls.errors import UserError
from imgcls.jobs.predict_inputs import Inputs, TableOptions, find_inputs
from tests.conftest import put


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = put(tmp_path / "photos", "b.png", "a/1.JPG", "a/deep/2.png", "a/ümlaut, with comma.png")
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_bytes(b"")
    return root


IDS = ["a/1.JPG", "a/deep/2.png", "a/ümlaut, with comma.png", "b.png"]


def contents(inputs: Inputs) -> dict[str, bytes]:
    return {item.name: bytes(item.read()) for item in inputs.items()}


def expected(photos: Path) -> dict[str, bytes]:
    return {name: (photos / name).read_bytes() for name in IDS}


def refusal(*words: str | Path, table: TableOptions | None = None) -> str:
    with pytest.raises(UserError) as error:
        find_inputs([str(word) for word in words], table=table)
    assert "data." not in str(error.value), "there is no recipe here"
    return str(error.value)


def test_a_folder_s_ids_are_paths_below_it_in_their_order(photos: Path) -> None:
    found = find_inputs([str(photos)])
    assert contents(found) == expected(photos)
    assert list(found.ids) == IDS
    assert {item.path: item.reason for item in found.skipped} == {".hidden.png": "hidden", "notes.txt": "not an image"}
    assert [item.name for item in found.items([3, 0])] == ["b.png", "a/1.JPG"]


@pytest.mark.parametrize("ending", ["zip", "gztar"])
def test_an_archive_s_ids_are_the_names_of_its_members(photos: Path, tmp_path: Path, ending: str) -> None:
    flat = shutil.make_archive(str(tmp_path / "flat"), ending, photos)
    assert contents(find_inputs([flat])) == expected(photos)
    deep = shutil.make_archive(str(tmp_path / "deep"), ending, tmp_path, "photos")
    assert list(find_inputs([deep]).ids) == [f"photos/{name}" for name in IDS]


@pytest.mark.parametrize(
    ("header", "labels"), [("path", False), ("id", False), ("image,label", True), ("Filename,class", True)]
)
def test_a_table_s_ids_are_its_paths_as_written_and_its_labels_do_not_matter(
    photos: Path, header: str, labels: bool
) -> None:
    lines = ["b.png", "./a/1.JPG", f"{photos}/a/deep/2.png"]
    (photos / "t.csv").write_text("\n".join([header, *(f"{line},nonsense" if labels else line for line in lines)]))
    found = find_inputs([str(photos / "t.csv")])
    assert list(found.ids) == lines
    assert list(contents(found).values()) == [expected(photos)[name] for name in ("b.png", "a/1.JPG", "a/deep/2.png")]


def test_a_table_may_be_parquet_with_ids_without_endings_in_another_folder(photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "elsewhere.table"
    pq.write_table(pa.table({"name": ["b", "a/1"]}), table)
    options = TableOptions(images=photos, path_column="name")
    assert list(contents(find_inputs([str(table)], table=options))) == ["b", "a/1"]
    options = TableOptions(images=photos, path_column="name", extension="png")
    found = find_inputs([str(table)], table=options)
    assert list(found.files) == [f"{photos}/b.png", None]
    with pytest.raises(UserError, match="no such file"):
        list(found.items())[1].read()


def test_single_files_are_known_by_their_names_and_not_judged_by_their_endings(photos: Path) -> None:
    shutil.copy(photos / "b.png", photos / "upload")
    found = find_inputs([str(photos / "upload"), str(photos / "a/1.JPG")])
    assert list(found.ids) == ["upload", "1.JPG"]
    assert list(contents(find_inputs([str(photos / "b.png")]))) == ["b.png"]


def test_nothing_is_read_before_its_turn(photos: Path) -> None:
    items = list(find_inputs([str(photos)]).items())
    (photos / "b.png").unlink()
    with pytest.raises(FileNotFoundError):
        items[3].read()


def test_a_pipe_and_a_file_that_is_too_large_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(2**30 + 1)
    large, pipe = find_inputs([str(tmp_path)]).items()
    with pytest.raises(UserError, match="it is no plain file"):
        pipe.read()
    with pytest.raises(UserError, match=r"it has 1\.0 GiB; at most 1"):
        large.read()


def test_what_is_not_there_is_an_error_that_says_what_is_expected(tmp_path: Path) -> None:
    assert "found no images to predict; expected a folder of images" in refusal()
    assert "nowhere does not exist; expected a folder of images" in refusal("nowhere")
    assert "cannot be read: File name too long" in refusal("x" * 5000)
    assert "cannot be read" in refusal("a\0b")
    (tmp_path / "empty").mkdir()
    assert "empty holds no images; expected files ending in .bmp" in refusal("empty")
    (tmp_path / "empty/notes.txt").write_text("")
    assert "Found instead: notes.txt (not an image)." in refusal("empty")


def test_a_folder_beside_others_is_an_error(photos: Path) -> None:
    assert f"found {photos} beside 1 more; expected one folder" in refusal(photos / "b.png", photos)


def test_names_that_stand_twice_are_an_error(photos: Path) -> None:
    text = refusal(photos / "b.png", photos / "b.png")
    assert "the image files: 1 name stands more than once (b.png)" in text
    (photos / "t.csv").write_text("path\nb.png\na/1.JPG\nb.png\n")
    assert "t.csv: 1 name stands more than once (b.png)" in refusal(photos / "t.csv")


def test_a_name_that_is_no_utf_8_is_an_error_that_shows_it(photos: Path) -> None:
    (photos / "a" / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    assert r"a/\xff.png" in refusal(photos)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", TableOptions(), "t.csv is empty"),
        ("path\n", TableOptions(), "has a header but no rows"),
        ('path\nb.png\n"  "\n', TableOptions(), "1 of 2 rows have no path (line 3)"),
        (
            "name\nb.png\n",
            TableOptions(),
            "has the columns name; expected a header line with a path column called",
        ),
        ("name,x\nb.png,1\n", TableOptions(), "Say which it is with --path-column"),
        ("path\nb.png\n", TableOptions(path_column="pth"), "Did you mean 'path'?"),
        ("path\nnot\nthere\n", TableOptions(), "none of its 2 images is there (not, there)"),
        ("path\nb.png\n", TableOptions(images=Path("nowhere")), "nowhere is no folder"),
        ("path\nb.png\n", TableOptions(separator="space"), "found --separator 'space'; expected one of comma"),
    ],
)
def test_a_table_that_is_none_is_an_error(photos: Path, text: str, options: TableOptions, message: str) -> None:
    (photos / "t.csv").write_text(text)
    assert message in refusal(photos / "t.csv", table=options)


def test_a_path_that_fits_several_files_is_an_error(photos: Path) -> None:
    shutil.copy(photos / "b.png", photos / "b.jpg")
    (photos / "t.csv").write_text("path\nb\n")
    assert "several files fit b (b.jpg, b.png). Write the endings, or give --extension." in refusal(photos / "t.csv")


def test_how_a_table_is_read_says_nothing_of_a_folder(photos: Path) -> None:
    text = refusal(photos, table=TableOptions(path_column="x"))
    assert text.startswith("--path-column says how a table is read")


def test_a_hostile_or_damaged_archive_is_refused(photos: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../outside.png", (photos / "b.png").read_bytes())
    assert "would land outside of its folder, ../outside.png" in refusal(tmp_path / "evil.zip")
    assert not (tmp_path / "outside.png").exists()
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("a.png", (photos / "b.png").read_bytes())
    (tmp_path / "cut.zip").write_bytes(whole.getvalue()[:-30])
    assert "cut.zip begins like zip, but is no whole archive" in refusal(tmp_path / "cut.zip")
    (tmp_path / "empty.zip").write_bytes(b"PK\5\6" + bytes(18))
    assert "empty.zip holds no images" in refusal(tmp_path / "empty.zip")
