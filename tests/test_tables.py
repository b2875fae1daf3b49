"""Manifest, History and Predictions: what they promise to whoever reads them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imgcls.tables import History, Manifest, Predictions, Skipped, split_digest

ROWS = [
    {"id": "a/1", "path": "/x/a/1.png", "label": 0, "split": "train", "content": "c1"},
    {"id": "a/2", "path": "/x/a/2.png", "label": 0, "split": "val", "content": "c2"},
    {"id": "b/1", "path": "/x/b/1.png", "label": 1, "split": "train", "content": "c3"},
]


def predictions(*, count: int = 5) -> Predictions:
    probs = np.random.default_rng(0).dirichlet(np.ones(3), count).astype(np.float32)
    labels = np.arange(count, dtype=np.int64) % 3
    labels[:1] = -1
    return Predictions([f"id/ü {k}" for k in range(count)], probs, labels, ("a", "b c", "日本"), "val", "d" * 32)


def test_the_digest_does_not_depend_on_paths_ids_splits_groups_or_order() -> None:
    moved = [{**row, "id": f"other/{k}", "path": f"/y/{k}", "split": "", "group": "g"} for k, row in enumerate(ROWS)]
    first = Manifest.build(ROWS, classes=["a", "b"])
    second = Manifest.build(reversed(moved), classes=["a", "b"], skipped=[Skipped("note.txt", "not an image")])
    assert first.digest == second.digest
    assert len(first.digest) == 32


def test_the_digest_changes_with_bytes_labels_classes_and_number_of_images() -> None:
    changed = [
        (ROWS, ["a", "b"]),
        ([{**ROWS[0], "content": "other"}, *ROWS[1:]], ["a", "b"]),
        ([{**ROWS[0], "label": 1}, *ROWS[1:]], ["a", "b"]),
        ([{**ROWS[0], "label": -1}, *ROWS[1:]], ["a", "b"]),
        (ROWS, ["a", "c"]),
        (ROWS, ["a", "b", "c"]),
        ([*ROWS, {**ROWS[0], "id": "a/1 again"}], ["a", "b"]),
        (ROWS[:2], ["a", "b"]),
    ]
    digests = [Manifest.build(rows, classes=classes).digest for rows, classes in changed]
    assert len(set(digests)) == len(digests)


def test_the_digest_of_a_split_is_of_its_images_and_labels_alone() -> None:
    def digest(rows: list[dict[str, object]], classes: tuple[str, ...] = ("a", "b")) -> str:
        return split_digest(Manifest.build(rows, classes=classes), "train")

    expected = digest(ROWS)
    assert len(expected) == 32
    assert (
        digest([{**row, "id": f"other/{k}", "path": f"/y/{k}"} for k, row in reversed(list(enumerate(ROWS)))])
        == expected
    )
    assert digest([ROWS[0], {**ROWS[1], "content": "other"}, ROWS[2]]) == expected
    assert digest(ROWS, ("a", "b", "c")) == expected
    assert digest([ROWS[0], ROWS[2]]) == expected
    others = [
        digest([{**ROWS[0], "content": "other"}, *ROWS[1:]]),
        digest([{**ROWS[0], "label": 1}, *ROWS[1:]]),
        digest([{**ROWS[0], "split": "test"}, *ROWS[1:]]),
        digest(ROWS, ("a", "other")),
    ]
    assert len({expected, *others}) == 5


def test_equal_ids_are_a_bug_of_the_source() -> None:
    with pytest.raises(AssertionError, match="same id twice"):
        Manifest.build([ROWS[0], ROWS[0]], classes=["a", "b"])


def test_a_part_keeps_the_order_and_the_digest_of_the_whole() -> None:
    manifest = Manifest.build(ROWS, classes=["a", "b"])
    part = manifest.part("train")
    assert part.ids == ["a/1", "b/1"]
    assert part.labels.tolist() == [0, 1]
    assert part.labels.dtype == np.int64
    assert list(part.frame.index) == [0, 1]
    assert part.digest == manifest.digest
    assert len(manifest.part("test")) == 0
    assert manifest.counts() == {"train": 2, "val": 1, "test": 0}


def test_new_splits_leave_the_first_manifest_as_it_was() -> None:
    manifest = Manifest.build(ROWS, classes=["a", "b"])
    other = manifest.with_splits(["test", "test", "train"])
    assert other.counts() == {"train": 1, "val": 0, "test": 2}
    assert manifest.counts() == {"train": 2, "val": 1, "test": 0}
    assert other.digest == manifest.digest


def test_notices_are_added_and_other_classes_change_the_digest() -> None:
    manifest = Manifest.build(ROWS, classes=["a", "b"], notices=["one"]).with_notices(["two"])
    assert manifest.notices == ("one", "two")
    swapped = manifest.with_classes([1, 1, 0], ["b", "a"])
    assert swapped.labels.tolist() == [1, 1, 0]
    rows = [{**row, "label": 1 - int(str(row["label"]))} for row in ROWS]
    assert swapped.digest == Manifest.build(rows, classes=["b", "a"]).digest != manifest.digest
    assert manifest.labels.tolist() == [0, 0, 1]


def test_columns_that_a_row_leaves_out_get_their_empty_value() -> None:
    row = Manifest.build([{"id": "x"}], classes=["a"]).frame.iloc[0].to_dict()
    assert row == {"id": "x", "path": "", "row": -1, "label": -1, "split": "", "group": "", "content": ""}


def test_a_history_survives_json_bit_by_bit() -> None:
    history = History([{"epoch": 1, "train/loss": 0.1 + 0.2, "lr": 1e-17}, {"epoch": 2, "train/loss": 2.0, "lr": 0.0}])
    again = History.from_json(history.to_json())
    assert again == history
    assert len(again) == 2
    assert again.frame["epoch"].tolist() == [1, 2]
    assert len(history.to_json().splitlines()) == 4


def test_an_empty_history_survives_json() -> None:
    assert History.from_json(History().to_json()) == History()


@pytest.mark.parametrize("count", [0, 1, 5])
def test_predictions_survive_parquet(tmp_path: Path, count: int) -> None:
    before = predictions(count=count)
    before.to_parquet(tmp_path / "p.parquet")
    after = Predictions.from_parquet(tmp_path / "p.parquet")
    assert after.ids == before.ids
    assert after.probs.dtype == np.float32
    assert np.array_equal(after.probs, before.probs)
    assert after.labels.dtype == np.int64
    assert np.array_equal(after.labels, before.labels)
    assert (after.classes, after.split, after.manifest_digest) == (before.classes, "val", "d" * 32)


def test_the_parquet_table_can_be_read_without_this_package(tmp_path: Path) -> None:
    before = predictions()
    before.to_parquet(tmp_path / "p.parquet")
    table = pq.read_table(tmp_path / "p.parquet").to_pylist()
    best = int(before.predicted[2])
    assert table[2]["predicted_name"] == before.classes[best]
    assert table[2]["confidence"] == pytest.approx(float(before.probs[2].max()))
    assert table[2]["probs"] == pytest.approx(before.probs[2].tolist())
    assert table[0]["label_name"] is None
    assert table[1]["label_name"] == "b c"


@pytest.mark.parametrize(
    ("ids", "probs", "labels"),
    [
        (["a"], np.zeros((2, 2)), np.zeros(2)),
        (["a", "b"], np.zeros((2, 3)), np.zeros(2)),
        (["a", "b"], np.zeros((2, 2)), np.zeros(3)),
        (["a", "b"], np.zeros(2), np.zeros(2)),
        (["a", "b"], np.zeros((2, 2)), np.zeros((2, 1))),
    ],
)
def test_predictions_that_do_not_fit_together_are_an_error(
    ids: list[str],
    probs: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    labels: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> None:
    with pytest.raises(ValueError, match="predictions do not fit together"):
        Predictions(ids, probs.astype(np.float32), labels.astype(np.int64), ("x", "y"))


def test_another_parquet_file_is_an_error_that_says_why(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "p.parquet")
    with pytest.raises(ValueError, match="holds no imgcls predictions"):
        Predictions.from_parquet(tmp_path / "p.parquet")
