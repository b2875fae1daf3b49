"""A split given back: found by content or id, checked against the labels, and never applied in part."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError

from imgcls.data.source import DataConfig
from imgcls.data.split import split
from imgcls.errors import UserError
from imgcls.tables import Manifest

RUN = "0123456789abcdef" * 2


def manifest(**columns: list[str]) -> Manifest:
    """Six images of the classes cat and dog; columns replace those of the rows."""
    rows = [{"id": f"{k}.png", "label": k % 2, "content": f"hash{k}"} for k in range(6)]
    for name, values in columns.items():
        rows = [{**row, name: value} for row, value in zip(rows, values, strict=True)]
    return Manifest.build(rows, classes=["cat", "dog"])


SPLITS = ["train", "train", "val", "val", "test", "test"]


def table(frame: pd.DataFrame | None = None, **columns: Any) -> Path:
    """A table of the six images; columns replace its own, None removes one."""
    if frame is None:
        base = manifest().frame
        frame = base[["id", "content"]].assign(label=["cat", "dog"] * 3, split=SPLITS)
    for name, value in columns.items():
        frame = frame.drop(columns=name) if value is None else frame.assign(**{name: value})
    frame.to_csv("split.csv", index=False)
    return Path("split.csv")


def given(before: Manifest, path: Path, **fields: Any) -> Manifest:
    return split(before, DataConfig(split_from=str(path), **fields), table=path)


def error_of(before: Manifest, path: Path) -> str:
    with pytest.raises(UserError) as caught:
        given(before, path)
    message = str(caught.value)
    assert message.startswith("data.split_from ")
    assert message.endswith(".")
    return message


def test_the_split_of_a_table_is_given_to_the_images() -> None:
    result = given(manifest(), table())
    assert list(result.frame["split"]) == SPLITS
    assert (result.skipped, result.notices) == ((), ())
    assert result.digest == manifest().digest


def test_a_split_comes_back_from_the_columns_a_run_writes() -> None:
    rows = [{"id": f"{k}", "label": k % 3, "content": f"{k % 50}"} for k in range(60)]
    first = split(Manifest.build(rows, classes=["a", "b", "c"]), DataConfig(split_seed=3))
    path = table(
        first.frame[["id", "split", "group", "content"]].assign(label=[first.classes[k] for k in first.labels])
    )
    second = given(Manifest.build(rows, classes=["a", "b", "c"]), path, split_seed=4)
    assert list(second.frame["split"]) == list(first.frame["split"])


def test_renamed_and_moved_images_are_found_by_their_content() -> None:
    renamed = manifest(id=["z", "y", "x", "w", "v", "u"])
    assert list(given(renamed, table()).frame["split"]) == SPLITS


def test_swapped_names_do_not_count_where_the_content_is_known() -> None:
    swapped = manifest(id=["5.png", "4.png", "3.png", "2.png", "1.png", "0.png"])
    assert list(given(swapped, table()).frame["split"]) == SPLITS


def test_images_of_other_bytes_are_found_by_id_which_is_told() -> None:
    result = given(manifest(content=["new0", "new1", *[f"hash{k}" for k in range(2, 6)]]), table())
    assert list(result.frame["split"]) == SPLITS
    assert result.notices == (
        "data.split_from: 2 images were found by id only; their bytes are not those of the table",
    )


def test_a_table_may_have_ids_only_or_contents_only() -> None:
    assert list(given(manifest(), table(content=None, label=None)).frame["split"]) == SPLITS
    assert list(given(manifest(), table(id=None, label=None)).frame["split"]) == SPLITS


def test_a_new_file_with_the_name_of_a_moved_one_does_not_take_its_split() -> None:
    before = manifest(id=["moved.png", "1.png", "2.png", "3.png", "4.png", "0.png"], content=[
        "hash0", "hash1", "hash2", "hash3", "hash4", "new"])  # fmt: skip
    assert "no split for 1 of 6 images (0.png)" in error_of(before, table())


def test_splits_have_other_names_too_and_parquet_is_read() -> None:
    frame = manifest().frame[["content"]].assign(split=["Training", "train ", "valid", "validation", "test", "TESTING"])
    frame.to_parquet("split.parquet")
    assert list(given(manifest(), Path("split.parquet")).frame["split"]) == SPLITS


def test_the_table_goes_before_the_splits_of_the_source() -> None:
    assert list(given(manifest(split=["test", "val", "train"] * 2), table()).frame["split"]) == SPLITS


def test_where_the_table_has_no_val_it_is_taken_from_its_train() -> None:
    rows = [{"id": f"{k}", "label": k % 2, "content": f"hash{k}"} for k in range(40)]
    path = table(pd.DataFrame(rows)[["id"]].assign(split=["train"] * 30 + ["test"] * 10))
    result = given(Manifest.build(rows, classes=["cat", "dog"]), path, val_fraction=0.2)
    assert result.counts() == {"train": 24, "val": 6, "test": 10}
    assert set(result.frame["split"][30:]) == {"test"}


def test_an_image_without_a_split_is_an_error_that_counts_and_names() -> None:
    path = table(manifest().frame[["id", "content"]].assign(split=SPLITS)[:4])
    message = error_of(manifest(), path)
    assert "has no split for 2 of 6 images (4.png, 5.png), looked up by content, then by id" in message


def test_rows_without_an_image_are_counted_and_listed() -> None:
    before = manifest()
    rest = before.without([4], skipped=[])
    result = given(rest, table())
    assert [(item.path, item.reason, item.num_files) for item in result.skipped] == [
        ("4.png", "a row of data.split_from without an image", 0)
    ]
    assert result.notices == ("1 of 6 rows of data.split_from are of no image here: 4.png",)
    assert result.digest == rest.digest


def test_labels_of_another_order_are_an_error_that_names_the_image_and_both() -> None:
    message = error_of(manifest(), table(label=["dog", "cat"] * 3))
    assert "the labels of 6 of 6 images are not their classes: 0.png is 'cat' here and 'dog' in the table" in message


def test_equal_bytes_keep_the_sides_that_the_table_gives_by_id() -> None:
    leaky = manifest(content=["hash0", "hash1", "hash2", "hash3", "hash0", "hash1"])
    path = table(content=["hash0", "hash1", "hash2", "hash3", "hash0", "hash1"])
    assert list(given(leaky, path).frame["split"]) == SPLITS


def test_equal_bytes_in_several_splits_under_other_names_are_an_error() -> None:
    contents = ["hash0", "hash1", "hash2", "hash3", "hash0", "hash1"]
    message = error_of(manifest(id=list("uvwxyz"), content=contents), table(content=contents))
    assert "equal bytes in several splits, and no row with the id of u (test, train), v (test, train), y" in message


def test_equal_bytes_in_two_classes_are_told_apart_by_their_labels() -> None:
    contents = ["same", "same", "hash2", "hash3", "hash4", "hash5"]
    path = table(content=contents, split=["train", "val", "val", "train", "test", "test"])
    result = given(manifest(id=list("uvwxyz"), content=contents), path)
    assert list(result.frame["split"]) == ["train", "val", "val", "train", "test", "test"]


def test_a_table_that_leaves_a_class_without_training_images_is_an_error() -> None:
    path = table(split=["train", "val", "train", "val", "test", "test"])
    with pytest.raises(UserError, match=r"the given split leaves the class 'dog' \(1 in all\) without training images"):
        given(manifest(), path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read: Empty CSV file"),
        ("path,split\na,train\n", "has the columns path, split; expected split, content or id or both"),
        ("id,content\na,b\n", "has the columns id, content; expected split"),
        ("id,split,split\na,train,val\n", "has the columns id, split, split; expected"),
        ("id,split\n0.png,train\n0.png,val\n", "1 id stands more than once (0.png)"),
        ("id,split\n0.png,train\n1.png,dev\n2.png,\n", "2 of 3 rows have an unknown split ('dev' in row 2, '' in row"),
        ("id,split\n0.png,train,x\n", "cannot be read: CSV parse error: Expected 2 columns, got 3"),
        ("id,split\n0.png\n", "cannot be read: CSV parse error: Expected 2 columns, got 1"),
        (b"id,split\n\xff.png,train\n", "cannot be read: "),
        (b"PAR1 and no more", "cannot be read: "),
        ("id,split\n", "has no split for 6 of 6 images"),
    ],
)
def test_a_table_that_is_none_is_an_error_that_says_what_was_found(text: str | bytes, message: str) -> None:
    Path("split.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    assert message in error_of(manifest(), Path("split.csv"))


@pytest.mark.parametrize("name", ["none.csv", ".", "a" * 300, "a\0b"])
def test_what_is_no_file_is_an_error(name: str) -> None:
    assert "cannot be read" in error_of(manifest(), Path(name))


def test_a_file_is_kept_as_an_absolute_path_and_a_run_as_its_id(tmp_path: Path) -> None:
    config = DataConfig(split_from="split.csv")
    assert (config.split_from, config.split_run) == (str(tmp_path / "split.csv"), None)
    for text in (RUN, f"runs:/{RUN}"):
        assert (DataConfig(split_from=text).split_from, DataConfig(split_from=text).split_run) == (RUN, RUN)
    assert DataConfig().split_run is None


@pytest.mark.parametrize("text", ["runs:/", "runs:/abc", f"runs:/{RUN}/tables/split.csv", ""])
def test_what_is_no_run_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        DataConfig(split_from=text)
