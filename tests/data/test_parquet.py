"""The parquet source: which files and columns, which names for labels, and what it refuses with which words."""

import hashlib
import io
import json
import shutil
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imgcls.data import cache
from imgcls.data.augment import evaluation_pipeline
from imgcls.data.check import drop_unreadable
from imgcls.data.images import open_images, read_encoded
from imgcls.data.loading import Loader
from imgcls.data.source import scan
from imgcls.data.sources import parquet_files
from imgcls.data.sources.parquet import ParquetConfig
from imgcls.data.split import split
from imgcls.errors import UserError
from imgcls.recipe import resolve
from imgcls.tables import Manifest

Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write(
    name: str,
    labels: Sequence[Any],
    *,
    names: Sequence[str] = (),
    first: int = 0,
    images: Sequence[bytes | None] | None = None,
    image: str = "image",
    label: str = "label",
    row_group_size: int | None = None,
    **more: Sequence[Any],
) -> Path:
    """A file as the hub lays it out; image k is png(first + k)."""
    path = Path("d", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = [png(first + k) for k in range(len(labels))] if images is None else images
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    structs = [None if item is None else {"bytes": item or None, "path": f"{k}.png"} for k, item in enumerate(data)]
    table = pa.table({image: pa.array(structs, kind), label: labels, **more})
    if names:
        about = {"info": {"features": {label: {"names": list(names), "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({b"huggingface": json.dumps(about).encode()})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def scanned(path: Path | str = "d", **fields: Any) -> Manifest:
    return scan(ParquetConfig(parquet=str(path), **fields))


def error_of(path: Path | str = "d", **fields: Any) -> str:
    with pytest.raises(UserError) as caught:
        scanned(path, **fields)
    message = str(caught.value)
    assert message.endswith((".", "?"))
    assert not list(cache.cache_dir().glob("*/*.building"))
    return message


def names_of(manifest: Manifest) -> list[str]:
    return [manifest.classes[label] for label in manifest.labels]


# --- what is found


def test_files_of_a_folder_give_splits_names_and_the_bytes_of_each_row() -> None:
    write("data/train-00000-of-00002.parquet", [1, 0, 1], names=["dog", "cat"])
    write("data/train-00001-of-00002.parquet", [0, 1], names=["dog", "cat"], first=10)
    write("data/test-00000-of-00001.parquet", [0], names=["dog", "cat"], first=20)
    Path("d/README.md").write_text("x")
    manifest = scanned()
    assert manifest.ids == [
        "data/test-00000-of-00001/0",
        *(f"data/train-00000-of-00002/{k}" for k in range(3)),
        *(f"data/train-00001-of-00002/{k}" for k in range(2)),
    ]
    assert manifest.classes == ("cat", "dog")
    assert names_of(manifest) == ["dog", "cat", "dog", "cat", "dog", "cat"]
    assert list(manifest.frame["split"]) == ["test", *["train"] * 5]
    seeds = [20, 0, 1, 2, 10, 11]
    assert [read_encoded(manifest, k) for k in range(6)] == [png(seed) for seed in seeds]
    assert list(manifest.frame["content"]) == [hashlib.blake2b(png(s), digest_size=16).hexdigest() for s in seeds]
    assert [(item.path, item.reason) for item in manifest.skipped] == [("README.md", "not called *.parquet")]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("Validation-0.parquet", "val"),
        ("valid.parquet", "val"),
        ("test[0-100].parquet", "test"),
        ("default/train/0000.parquet", "train"),
        ("train/val-0.parquet", "val"),
        ("trainer.parquet", ""),
        ("retrain-0.parquet", ""),
        ("0000.parquet", ""),
    ],
)
def test_names_that_begin_like_splits_and_folders_called_so_give_the_split(name: str, expected: str) -> None:
    assert parquet_files._split_of(name.removesuffix(".parquet")) == expected


def test_a_file_alone_and_a_pattern_are_taken_too() -> None:
    path = write("train-0.parquet", ["a", "b"] * 6)
    write("other.parquet", ["c"])
    assert scanned(path).ids[:2] == ["train-0/00", "train-0/01"]
    assert scanned("d/t*.parquet").ids == scanned(path).ids
    assert scanned("**/train-?.parquet").ids[0] == "d/train-0/00"


def test_class_numbers_that_differ_between_files_are_mapped_by_name() -> None:
    write("a.parquet", [0, 1, 2], names=["x", "y", "z"])
    write("b.parquet", [0, 1, 2], names=["z", "x", "y"], first=5)
    assert names_of(scanned()) == ["x", "y", "z", "z", "x", "y"]


def test_names_without_images_are_no_classes() -> None:
    write("a.parquet", [2, 0], names=["x", "y", "z"])
    assert scanned().classes == ("x", "z")


@pytest.mark.parametrize(
    ("labels", "fields", "classes"),
    [
        ([10, 9, 2], {}, ("2", "9", "10")),
        ([10, 9, 2], {"label_kind": "names"}, ("10", "2", "9")),
        (["b", "a ", "c"], {}, ("a", "b", "c")),
        ([2.0, 10.0, 1.0], {}, ("1", "2", "10")),
        ([True, False, True], {}, ("False", "True")),
        (pa.array(["b", "a", "b"]).dictionary_encode(), {}, ("a", "b")),
        (pa.array([3, 1, 2], pa.uint8()), {}, ("1", "2", "3")),
    ],
)
def test_labels_without_names_are_sorted_as_everywhere(
    labels: Sequence[Any], fields: dict[str, str], classes: tuple[str, ...]
) -> None:
    write("a.parquet", labels)
    assert scanned(**fields).classes == classes


def test_names_that_are_digits_are_sorted_by_value() -> None:
    write("a.parquet", list(range(11)), names=[str(k) for k in range(11)])
    assert scanned().classes == tuple(str(k) for k in range(11))


@pytest.mark.parametrize(
    ("image", "label"), [("img", "fine_label"), ("Image", "Labels"), ("jpg", "class"), ("my.image", "my.label")]
)
def test_the_columns_are_found_by_name_or_given(image: str, label: str) -> None:
    write("a.parquet", [0, 1], image=image, label=label, coarse_label=[5, 5])
    given = {"image_column": image, "label_column": label} if "." in image else {}
    manifest = scanned(**given)
    assert (manifest.classes, read_encoded(manifest, 1)) == (("0", "1"), png(1))


def test_images_may_be_plain_binary() -> None:
    Path("d").mkdir()
    pq.write_table(pa.table({"image": pa.array([png(0), png(1)], pa.large_binary()), "label": [0, 1]}), "d/a.parquet")
    assert [read_encoded(scanned(), k) for k in range(2)] == [png(0), png(1)]


def test_groups_and_splits_come_from_columns() -> None:
    write("a.parquet", list("abab"), part=["train", "Test", None, "VAL"], who=[1, 2, None, 3])
    write("train-b.parquet", list("ab"), first=9, part=["test", ""], who=[1, 2])
    manifest = scanned(split_column="part", group_column="who")
    assert list(manifest.frame["split"]) == ["train", "test", "", "val", "test", ""]
    assert list(manifest.frame["group"]) == ["1", "2", "", "3", "1", "2"]


def test_batches_over_row_groups_keep_rows_and_bytes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_files, "BATCH_ROWS", 4)
    write("a.parquet", [k % 3 for k in range(50)], row_group_size=7)
    manifest = scanned()
    assert [read_encoded(manifest, k) for k in range(50)] == [png(k) for k in range(50)]
    assert manifest.labels.tolist() == [k % 3 for k in range(50)]


def test_the_bytes_are_written_once_and_anew_for_other_files() -> None:
    path = write("a.parquet", [0, 1])
    told: list[tuple[str, int, int]] = []

    def progress(what: str, done: int, total: int, *, unit: str = "images") -> None:
        told.append((what, done, total))
        assert unit == "images"

    config = ParquetConfig(parquet="d")
    first = scan(config, progress=progress)
    assert told == [("unpacking Parquet files", 2, 2)]
    assert scan(config, progress=progress).digest == first.digest
    assert len(told) == 1
    write("a.parquet", [0, 1, 1], first=7)
    assert read_encoded(scanned(path), 0) == png(7)
    assert len(cache.entries()) == 2


def test_the_digest_is_that_of_the_same_images_in_other_files() -> None:
    write("one/a.parquet", [0, 1, 1, 0], names=["x", "y"])
    write("two/a.parquet", [0, 1], names=["x", "y"])
    write("two/b.parquet", [0, 1], names=["y", "x"], first=2)
    assert scanned("d/one").digest == scanned("d/two").digest


def test_worker_processes_read_the_mapped_file() -> None:
    write("a.parquet", [k % 2 for k in range(12)])
    manifest = scanned()
    images = open_images(manifest, channels=3, short_side=4, budget=10**8)
    batches = [
        [batch.images.numpy() for batch in Loader(images, manifest.labels, evaluation_pipeline(4), batch_size=5,
                                                  num_workers=workers).epoch(0)]
        for workers in (0, 2)
    ]  # fmt: skip
    assert all(np.array_equal(a, b) for a, b in zip(*batches, strict=True))


def test_data_parquet_alone_chooses_the_source() -> None:
    for recipe in (None, "digits"):
        resolved = resolve(recipe, texts={"data.parquet": "d"})
        assert resolved.notices == ("data.parquet is given, so data.source is parquet",)
        assert isinstance(resolved.recipe.data, ParquetConfig)
        assert resolved.recipe.data.origin == str(Path("d").absolute())


# --- what is left out


def test_a_test_file_with_hidden_labels_is_left_out_and_listed() -> None:
    write("train-0.parquet", [0, 1] * 4, names=["x", "y"])
    hidden = [write("test-0.parquet", [-1, -1], names=["x", "y"], first=50)]
    hidden.append(write("test-1.parquet", pa.array([None], pa.int64()), first=60))
    manifest = scanned()
    assert manifest.counts() == {"train": 8, "val": 0, "test": 0}
    assert [(item.path, item.reason) for item in manifest.skipped] == [
        (str(hidden[0].absolute()), "its 2 rows have no labels (-1 or missing), as those of a hidden test set"),
        (str(hidden[1].absolute()), "its 1 rows have no labels (-1 or missing), as those of a hidden test set"),
    ]
    assert split(manifest, ParquetConfig(parquet="d")).counts() == {"train": 6, "val": 2, "test": 0}


def test_files_without_rows_and_hidden_folders_are_left_out_and_listed() -> None:
    write("a.parquet", [0, 1])
    empty = write("b.parquet", pa.array([], pa.int64()))
    write(".cache/c.parquet", [5])
    Path("d/up").symlink_to(Path("d").absolute(), target_is_directory=True)
    manifest = scanned()
    assert manifest.classes == ("0", "1")
    assert {item.path: item.reason for item in manifest.skipped} == {
        ".cache": "hidden",
        "up": "a link to a folder",
        str(empty.absolute()): "no rows",
    }


def test_rows_without_bytes_are_an_error_or_left_out_like_other_unreadable_images() -> None:
    path = write("a.parquet", [0, 1, 0, 1, 0], images=[png(0), png(1), None, b"", b"no image"])
    message = error_of()
    assert "2 of 5 rows hold no image bytes (null, empty, or only a path to a file elsewhere)" in message
    assert f"{path.absolute()} row 2, {path.absolute()} row 3" in message
    manifest = drop_unreadable(scanned(on_bad_image="skip"))
    assert manifest.ids == ["a/0", "a/1"]
    assert {item.path: item.reason.split(": ")[1] for item in manifest.skipped}.keys() == {"a/2", "a/3", "a/4"}
    assert manifest.skipped[0].reason == "cannot read the image a/2: the file is empty. Mend or remove the file."


def test_rows_of_which_none_has_bytes_are_an_error() -> None:
    write("a.parquet", [0, 1], images=[None, b""])
    assert "2 of 2 rows hold no image bytes" in error_of()
    with pytest.raises(UserError, match="every image of the class '0' is unreadable"):
        drop_unreadable(scanned(on_bad_image="skip"))


# --- what cannot be used


@pytest.mark.parametrize(
    ("labels", "fields", "expected"),
    [
        ([0, 3], {"names": ["x", "y"]}, "1 of 2 labels are none of the 2 that the file's metadata names (3 in row 1)"),
        ([0, -1], {"names": ["x", "y"]}, "1 of 2 rows have no label, or -1 (row 1, counted from 0)"),
        ([-1, -1], {"names": ["x", "y"]}, "2 of 2 rows have no label, or -1"),
        (["a", ""], {}, "1 of 2 rows have no label"),
        ([None, 1], {}, "1 of 2 rows have no label"),
        ([0.5, 1.5], {}, "the labels are decimal numbers"),
        (
            [[0], [1]],
            {},
            "the column 'label' holds list<element: int64>; expected one text or number a row as the label",
        ),
    ],
)
def test_labels_that_cannot_be_classes_are_an_error(labels: list[Any], fields: dict[str, Any], expected: str) -> None:
    write("a.parquet", labels, **fields)
    assert expected in error_of()


def test_columns_that_do_not_fit_are_an_error_that_lists_those_there_are() -> None:
    write("a.parquet", [0, 1], n=["x", "y"])
    path = Path("d/a.parquet").absolute()
    found = f"data.parquet {path} has the columns image, label, n"
    message = error_of(image_column="imag")
    assert message == f"{found}; data.image_column 'imag' is not among them. Did you mean 'image'?"
    assert f"{found}; data.label_column 'x' is not among them" in error_of(label_column="x")
    assert f"{found}; data.group_column 'x' is not among them" in error_of(group_column="x")
    assert "the column 'n' holds string; expected the images' bytes" in error_of(image_column="n")
    assert "are the same column, 'image'" in error_of(label_column="image")
    write("a.parquet", [0, 1], image="photo", label="y")
    message = error_of()
    assert "has the columns photo, y; expected an image column called one of image, img, images" in message
    assert error_of(image_column="photo").endswith("Say which it is with data.label_column.")
    write("a.parquet", [0, 1], img=[b"x", b"y"])
    assert "image, img may hold the image; set data.image_column" in error_of()
    Path("d/a.parquet").unlink()
    pq.write_table(pa.table({"image": [[{"bytes": b"x"}]], "label": [0]}), "d/a.parquet")
    assert "the column 'image' holds list<" in error_of()


def test_files_that_do_not_fit_together_are_an_error_that_names_them() -> None:
    write("a.parquet", [0, 1], names=["x", "y"])
    second = write("b.parquet", [0, 1]).absolute()
    assert "b.parquet does not, and its labels are integers" in (message := error_of())
    assert str(second) in message
    write("b.parquet", [0, 1], image="img", label="name")
    assert f"{second} has the columns img, name; expected a label column" in error_of()
    write("b.parquet", ["z", "x"])
    assert scanned().classes == ("x", "y", "z")
    write("train-c.parquet", ["x"])
    assert "named like splits (train) beside others (a, b)" in error_of()


def test_a_class_that_train_lacks_and_an_unknown_split_are_errors() -> None:
    write("train-a.parquet", ["x", "y"], fold=["train", "1"])
    write("test-a.parquet", ["x", "z"], fold=["", ""])
    assert "the classes z are in val or test but not in train" in error_of()
    assert "1 of 2 rows have an unknown split ('1' in row 1, counted from 0)" in error_of(split_column="fold")


def test_only_hidden_labels_or_no_rows_are_an_error() -> None:
    write("test-a.parquet", [-1, -1], names=["x"])
    write("test-b.parquet", pa.array([], pa.int64()))
    message = error_of()
    assert "has no rows with a label" in message
    assert "test-b.parquet: no rows" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "a.parquet is empty; expected Parquet files"),
        (b"version https://git-lfs.github.com/spec/v1", "is no Parquet file (it does not begin with PAR1)"),
        (b"PAR1" + b"\x00\xff" * 50, "begins like Parquet but cannot be read"),
    ],
)
def test_a_file_that_is_no_parquet_is_an_error(content: bytes, expected: str) -> None:
    Path("d").mkdir()
    Path("d/a.parquet").write_bytes(content)
    assert expected in error_of()


def test_a_truncated_or_damaged_file_is_an_error_that_leaves_nothing() -> None:
    path = write("a.parquet", [0, 1] * 30)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "a.parquet begins like Parquet but cannot be read" in error_of()
    path.write_bytes(whole[:10] + b"\xff" * 60 + whole[70:])  # in the pages of the images
    assert "a.parquet begins like Parquet but cannot be read" in error_of()
    assert cache.entries() == []


def test_what_is_not_there_is_an_error_that_says_where_it_was_sought(tmp_path: Path) -> None:
    assert f"data.parquet {tmp_path}/no does not exist; expected a Parquet file, a folder" in error_of("no")
    assert f"data.parquet {tmp_path}/no*.parquet fits no file" in error_of("no*.parquet")
    assert "cannot be read" in error_of("x" * 300)
    Path("d").mkdir()
    assert "has no *.parquet files; expected" in error_of()
    Path("d/x.csv").write_text("x")
    assert "has no *.parquet files but x.csv; expected" in error_of()


def test_a_cache_without_room_or_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a.parquet", [0, 1])
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: Usage(10, 0, 10))
        assert "GiB are free. Set the variable IMGCLS_CACHE" in error_of()
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path / "file/x"))
    assert "cannot be put into the cache folder" in error_of()
