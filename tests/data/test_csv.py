"""The csv source: which columns, which files, which labels, and what it refuses with which words."""

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from imgcls.data.source import scan
from imgcls.data.sources.csv import CsvConfig
from imgcls.data.sources.folder import FolderConfig
from imgcls.data.split import split
from imgcls.errors import UserError
from imgcls.tables import Manifest
from tests.conftest import put


def table(text: str | bytes, name: str = "labels.csv") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def scanned(path: Path | str, **fields: Any) -> Manifest:
    return scan(CsvConfig(table=str(path), **fields))


def error_of(path: Path | str, **fields: Any) -> str:
    with pytest.raises(UserError) as caught:
        scanned(path, **fields)
    message = str(caught.value)
    assert message.endswith((".", "?", ")"))
    return message


def labelled(labels: Sequence[str], **fields: Any) -> Manifest:
    """Scans a table with these labels, one image each."""
    names = [f"{number}.png" for number in range(len(labels))]
    put(Path(), *names)
    return scanned(table("path,label\n" + "\n".join(map(",".join, zip(names, labels, strict=True)))), **fields)


def label_error(labels: Sequence[str], **fields: Any) -> str:
    with pytest.raises(UserError) as caught:
        labelled(labels, **fields)
    return str(caught.value)


@pytest.fixture(autouse=True)
def images(tmp_path: Path) -> Path:
    return put(tmp_path, "a.png", "b.png", "c.png")


# --- what is found


def test_rows_are_images_sorted_by_their_path_as_given(tmp_path: Path) -> None:
    put(tmp_path / "d", "x/1.png", "2.png", "x/3.png")
    manifest = scanned(table("path,label\nx/3.png,dog\n2.png,cat\n./x//1.png,dog\n", "d/t.csv"))
    assert manifest.ids == ["2.png", "x/1.png", "x/3.png"]
    assert manifest.classes == ("cat", "dog")
    assert manifest.labels.tolist() == [0, 1, 1]
    assert list(manifest.frame["path"]) == [str(tmp_path / "d" / name) for name in manifest.ids]
    content = hashlib.blake2b((tmp_path / "d/2.png").read_bytes(), digest_size=16).hexdigest()
    assert manifest.frame["content"][0] == content
    assert (set(manifest.frame["split"]), set(manifest.frame["group"]), manifest.skipped) == ({""}, {""}, ())


def test_the_digest_is_that_of_a_folder_with_the_same_images_and_classes(tmp_path: Path) -> None:
    root = put(tmp_path / "r", "cat/1.png", "dog/2.png")
    path = table("path,label\ndog/2.png,dog\ncat/1.png,cat\n")
    assert scanned(path, images=str(root)).digest == scan(FolderConfig(root=str(root))).digest


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_the_separator_and_the_line_ends_are_found(separator: str, newline: str) -> None:
    rows = [("path", "label", ";,"), ("a.png", "x", "1"), ("b.png", "y", "2")]
    text = newline.join(separator.join(f'"{value}"' for value in row) for row in rows)
    assert scanned(table(text)).ids == ["a.png", "b.png"]


def test_the_separator_is_that_under_which_the_columns_are_found() -> None:
    assert scanned(table("file;label;tags, free, text\na.png;x;1, 2, 3\nb.png;y;\n")).ids == ["a.png", "b.png"]


def test_bom_blank_lines_and_spaces_around_values_do_no_harm() -> None:
    manifest = scanned(table("\ufeff\n path , label\n\na.png, x \n\n b.png,y\n\n"))
    assert (manifest.ids, manifest.classes) == (["a.png", "b.png"], ("x", "y"))


@pytest.mark.parametrize(
    ("path_name", "label_name"),
    [("path", "label"), ("File", "CLASS"), ("filename", "target"), ("image", "category"), ("image_path", "label"),
     ("id", "label")],
)  # fmt: skip
def test_auto_knows_the_usual_columns(path_name: str, label_name: str) -> None:
    path = table(f"n,{label_name},{path_name}\n1,x,a.png\n2,y,b.png\n")
    assert scanned(path).ids == ["a.png", "b.png"]


def test_an_id_beside_a_path_is_no_path() -> None:
    assert scanned(table("id,path,label\n1,a.png,x\n2,b.png,y\n")).ids == ["a.png", "b.png"]


def test_columns_of_any_name_can_be_chosen() -> None:
    path = table("path,Bild,label,Tier,Satz,Ort\n-,a.png,-,x,Training,1\n-,b.png,-,y,,2\n-,c.png,-,x,VALID,1\n")
    manifest = scanned(path, path_column="Bild", label_column="Tier", split_column="Satz", group_column="Ort")
    assert manifest.classes == ("x", "y")
    assert list(manifest.frame["split"]) == ["train", "", "val"]
    assert list(manifest.frame["group"]) == ["1", "2", "1"]


@pytest.mark.parametrize("fields", [{}, {"extension": ".png"}, {"extension": "png"}])
def test_ids_without_endings_find_their_images(tmp_path: Path, fields: dict[str, str]) -> None:
    put(tmp_path / "train", "0a1.png", "v1.2.png", "3.png")
    manifest = scanned(table("id,label\n0a1,x\nv1.2,y\n3.png,x\n"), images="train", **fields)
    assert manifest.ids == ["0a1", "3.png", "v1.2"]
    assert [Path(path).name for path in manifest.frame["path"]] == ["0a1.png", "3.png", "v1.2.png"]


@pytest.mark.parametrize("extension", ["", ".", "a/b", "*.jpg", ".tar.gz"])
def test_an_extension_that_is_none_is_an_error(extension: str) -> None:
    with pytest.raises(ValueError, match=r"expected an ending such as \.jpg, or null"):
        CsvConfig(table="t.csv", extension=extension)


def test_names_with_any_letters_are_kept(tmp_path: Path) -> None:
    names = [
        "-rf/--help.png",
        "été à la mer/a b.png",
        "日本/犬.png",
        'it\'s "quoted"/$HOME;#%.png',
        "x\ny/1.png",
        "a,b.png",
    ]
    put(tmp_path, *names)
    with Path("t.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label"), *((name, f"ü{k % 2}") for k, name in enumerate(names))])
    assert scanned("t.csv").ids == sorted(names)


def test_paths_may_be_absolute_or_lead_out_of_the_folder(tmp_path: Path) -> None:
    put(tmp_path, "out/a.png", "out/b.png")
    manifest = scanned(table(f"path,label\n../out/a.png,x\n{tmp_path}/out/b.png,y\n", "in/t.csv"))
    assert manifest.ids == ["../out/a.png", f"{tmp_path}/out/b.png"]


def test_a_parquet_table_has_the_same_fields() -> None:
    frame = pd.DataFrame({"file": ["b.png", "a.png", "c.png"], "target": [10, 2, 2], "fold": [None, "test", "train"]})
    frame.to_parquet("t.bin")
    manifest = scanned("t.bin", split_column="fold")
    assert (manifest.ids, manifest.classes) == (["a.png", "b.png", "c.png"], ("2", "10"))
    assert (manifest.labels.tolist(), list(manifest.frame["split"])) == ([0, 1, 0], ["test", "", "train"])


# --- labels


def test_integers_are_sorted_by_value_and_names_as_text() -> None:
    assert labelled([str(k) for k in range(11)]).classes == tuple(str(k) for k in range(11))
    assert labelled(["10", "-1", "2.0"]).classes == ("-1", "2", "10")
    assert labelled(["10", "9"], label_kind="names").classes == ("10", "9")
    assert labelled(["NA", "nan", "null"]).classes == ("NA", "nan", "null")


@pytest.mark.parametrize(
    ("labels", "fields", "expected"),
    [
        (["1", "2", "cat"], {}, "2 different labels are integers (1, 2), but 1 are not (cat)"),
        (
            ["cat", "dog"],
            {"label_kind": "integers"},
            "labels are integers (none), but 2 are not (cat, dog)",
        ),
        (["0.5", "1e-3"], {}, "the labels are decimal numbers (0.5, 1e-3); expected names"),
        (["1", "01", "2"], {}, "are the same number"),
        (["x", "", " "], {}, "2 of 3 rows have no label (line 3, line 4)"),
    ],
)
def test_labels_that_cannot_be_classes_are_an_error(labels: list[str], fields: dict[str, str], expected: str) -> None:
    assert expected in label_error(labels, **fields)


def test_mixed_labels_can_be_taken_as_names() -> None:
    assert labelled(["1", "2", "cat"], label_kind="names").classes == ("1", "2", "cat")


# --- splits


def test_splits_in_any_case_and_a_missing_validation_split_are_used(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(8)]
    put(tmp_path, *names)
    splits = ["train", "TRAIN", "Training", "", "val", "Validation", "test", "TESTING"]
    rows = "".join(f"{name},{'xy'[k % 2]},{value}\n" for k, (name, value) in enumerate(zip(names, splits, strict=True)))
    path = table("path,label,split\n" + rows)
    assert scanned(path, split_column="split").counts() == {"train": 3, "val": 2, "test": 2}
    config = CsvConfig(table=str(path), split_column="split")
    assert split(scan(config), config).counts() == {"train": 4, "val": 2, "test": 2}


def test_an_unknown_split_is_an_error_that_lists_the_known() -> None:
    message = error_of(table("path,label,split\na.png,x,train\nb.png,y,fold 1\n"), split_column="split")
    assert "1 of 2 rows have an unknown split ('fold 1' in line 3); expected train, training, val" in message


def test_a_class_that_train_lacks_is_an_error() -> None:
    message = error_of(table("path,label,split\na.png,x,train\nb.png,y,test\n"), split_column="split")
    assert "the classes y are in val or test but not in train" in message


# --- tables that cannot be used


@pytest.mark.parametrize(
    ("text", "fields", "expected"),
    [
        ("", {}, "is empty; expected a header line"),
        ("\n \n", {}, "is empty"),
        ("path,label\n", {}, "has a header but no rows"),
        (b"PAR1" + b"\x00\xff" * 50, {}, "begins like Parquet but cannot be read"),
        (b"\x89PNG\r\n\x1a\n\x00\x01", {}, "is no text (found NUL bytes), nor Parquet; expected a CSV file in UTF-8"),
        ("path,label\na.png,x\n".encode("utf-16"), {}, "is no text"),
        ("path,label\na.png,é\n".encode("latin-1"), {}, "is no UTF-8 text (found the byte 0xe9 in line 2)"),
        ("path|label\na.png|x\n", {}, "its first line 'path|label' has one column only"),
        ("path;label\na.png;x\n", {"separator": "comma"}, "split at comma, its first line 'path;label' has one column"),
        ("path,label\na.png,x,1\n", {}, "line 2 has 3 values, but the header has 2 columns (path, label)"),
        ("path,label\na.png\n", {}, "line 2 has 1 value, but"),
        ('path,label\n"a.png,x\nb.png,y\n', {}, "is no CSV: line 3, unexpected end of data"),
        ('path,label\n"a"b.png,x\n', {}, "is no CSV: line 2"),
        ('"path,label\na.png,x\n', {}, "is no CSV: its first line"),
        ("a.png,x\nb.png,y\n", {}, "has the columns a.png, x; expected a header line with a path column called one of"),
        ("path,n\na.png,x\n", {}, "has the columns path, n; expected a header line with a label column"),
        ("path,image,label\na,b,x\n", {}, "path, image may hold the path; set data.path_column"),
        ("path,label,class\na,b,x\n", {}, "label, class may hold the label; set data.label_column"),
        ("path,label,label\na,b,x\n", {"label_column": "label"}, "'label' stands 2 times"),
        ("path,label\na,b\n", {"path_column": "paht"}, "'paht' is not among them. Did you mean 'path'?"),
        ("path,label\na,b\n", {"group_column": "zzz"}, "has the columns path, label; data.group_column 'zzz' is not"),
        ("path,label\na,b\n", {"split_column": "auto"}, "data.split_column 'auto' is not among them"),
        ("path,label\na,b\n", {"label_column": "path"}, "are the same column, 'path'"),
        ("path,label\n,x\n ,y\na.png,y\n", {}, "2 of 3 rows have no path (line 2, line 3)"),
        ("path,label\na.png,x\n", {"images": "nowhere"}, "nowhere is no folder"),
        ("path,label\na.png,x\na.png,y\n", {}, "1 image stands more than once: a.png (line 2 as x and line 3 as y)"),
        ("path,label\na.png,x\n./a,x\n", {}, "1 image stands more than once"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_used_is_an_error(text: str | bytes, fields: dict[str, str], expected: str) -> None:
    message = error_of(table(text), **fields)
    assert expected in message
    assert "labels.csv" in message or "nowhere" in message


def test_missing_images_are_counted_and_the_first_five_named(images: Path) -> None:
    rows = "".join(f"gone/{number}.png,x\n" for number in range(7))
    message = error_of(table(f"path,label\na.png,x\n{rows}"))
    assert "7 of 8 images are missing: gone/0.png, gone/1.png, gone/2.png, gone/3.png, gone/4.png and 2 more" in message
    assert f"taken from {images}; set data.images" in message


@pytest.mark.parametrize("name", ["x" * 300, "sub", "a.png/b"])
def test_a_name_that_cannot_be_a_file_is_a_missing_image(images: Path, name: str) -> None:
    (images / "sub").mkdir()
    assert "1 of 1 images are missing" in error_of(table(f"path,label\n{name},x\n"))


def test_an_id_that_several_files_fit_is_an_error(images: Path) -> None:
    put(images, "a.jpg")
    assert "several files fit a (a.jpg, a.png). Write the endings" in error_of(table("id,label\na,x\nb,y\n"))
    assert scanned("labels.csv", extension=".jpg", images=str(put(images, "b.jpg"))).ids == ["a", "b"]


def test_a_path_with_a_nul_is_an_error() -> None:
    pd.DataFrame({"path": ["a.png", "b\0.png"], "label": ["x", "y"]}).to_parquet("t.parquet")
    assert "the paths in row 2 hold a NUL" in error_of("t.parquet")


def test_a_parquet_without_the_columns_or_with_image_bytes_is_an_error() -> None:
    pd.DataFrame({"image": [{"bytes": b"x", "path": "a"}], "label": [0], "n": [1]}).to_parquet("t.parquet")
    assert "the column 'image' holds values of the kind dict; expected text or numbers" in error_of("t.parquet")
    assert "columns image, label, n; data.path_column 'imag' is not" in error_of("t.parquet", path_column="imag")
    pd.DataFrame({"path": ["a", None], "label": [0, 1]}).to_parquet("t.parquet")
    assert "1 of 2 rows have no path (row 2)" in error_of("t.parquet")
    pd.DataFrame({"path": ["a", "b"], "label": [0, None]}).to_parquet("t.parquet")
    assert "1 of 2 rows have no label (row 2)" in error_of("t.parquet")
    pd.DataFrame({"path": [], "label": []}).to_parquet("t.parquet")
    assert "has a header but no rows" in error_of("t.parquet")


def test_a_table_that_is_missing_or_a_folder_is_an_error(tmp_path: Path) -> None:
    assert f"data.table {tmp_path}/no.csv does not exist; expected a CSV or Parquet file" in error_of("no.csv")
    assert "is a folder; expected a CSV or Parquet file. For a folder of images give data.root" in error_of(tmp_path)
    assert "cannot be read" in error_of("x" * 300)


def test_a_link_to_nowhere_and_a_link_loop_are_missing_images(images: Path) -> None:
    (images / "gone.png").symlink_to(images / "nowhere.png")
    (images / "loop.png").symlink_to(images / "loop.png")
    assert "2 of 3 images are missing: gone.png, loop.png" in error_of(
        table("path,label\na.png,x\ngone.png,y\nloop.png,y\n")
    )


# --- a split that is not read


@pytest.mark.parametrize("name", ["split", "Subset"])
def test_a_column_that_looks_like_a_split_is_told_of_where_it_is_not_read(name: str) -> None:
    path = table(f"path,label,{name}\na.png,x,train\nb.png,y,train\n")
    assert scanned(path).notices == (
        f"data.table {path.absolute()} has a column {name!r} that is not read; set data.split_column to {name} to take "
        "its split",
    )
    assert scanned(path, split_column=name).notices == ()
    assert scanned(path).counts() == {"train": 0, "val": 0, "test": 0}


def test_other_columns_are_not_told_of() -> None:
    assert scanned(table("path,label,fold\na.png,x,1\nb.png,y,2\n")).notices == ()
