"""Files of predictions: their columns, that they hold the float32s, and that they appear when they are complete."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from imgcls.errors import UserError
from imgcls.evaluation.submission import Sample
from imgcls.jobs import predict_output
from imgcls.jobs.predict_output import Output

CLASSES = ("cat", "dog", "fox, red")
PROBS = np.array([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25], [1e-30, 1 / 3, 2 / 3]], np.float32)
IDS = ["a.png", 'b "quoted", and\nbroken.png', "日本.png"]


def written(path: Path, ids: Sequence[str] = IDS, **options: Any) -> Path:
    before = path.read_bytes() if path.exists() else b""
    with Output(path, CLASSES, **{"top_k": 2, **options}) as output:
        for name, row in zip(ids, PROBS, strict=True):
            output.write(name, row)
        assert path.read_bytes() == before if path.exists() else not before, "it is not there before it is complete"
        output.commit()
    return path


def test_a_csv_has_label_and_probability_and_then_the_others(tmp_path: Path) -> None:
    lines = written(tmp_path / "p.csv", ["a", "b", "c"]).read_text().splitlines()
    assert lines == [
        "id,label,probability,label_2,probability_2",
        "a,cat,0.7,dog,0.2",
        "b,dog,0.5,cat,0.25",
        'c,"fox, red",0.6666667,dog,0.33333334',
    ]


def test_a_csv_holds_every_probability_bit_by_bit(tmp_path: Path) -> None:
    table = pd.read_csv(written(tmp_path / "p.csv", top_k=1, probabilities=True), keep_default_na=False)
    assert list(table.columns) == ["id", "label", "probability", "prob_cat", "prob_dog", "prob_fox, red"]
    assert table["id"].tolist() == IDS
    assert np.array_equal(table.iloc[:, 3:].to_numpy().astype(np.float32), PROBS)


@pytest.mark.parametrize("group", [1, 2, 4096])
@pytest.mark.parametrize("probabilities", [False, True])
def test_a_parquet_file_has_lists_of_the_top_k(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int, probabilities: bool
) -> None:
    monkeypatch.setattr(predict_output, "ROW_GROUP", group)
    path = written(tmp_path / "p.parquet", probabilities=probabilities)
    table = pq.read_table(path).to_pydict()
    assert table["id"] == IDS
    assert table["label"] == ["cat", "dog", "fox, red"]
    assert table["top_labels"] == [["cat", "dog"], ["dog", "cat"], ["fox, red", "dog"]]
    tops = np.sort(PROBS, axis=1)[:, ::-1][:, :2]
    assert np.array_equal(np.array(table["top_probabilities"], np.float32), tops)
    assert np.array_equal(np.array(table["probability"], np.float32), tops[:, 0])
    each = [table[f"prob_{name}"] for name in CLASSES] if probabilities else []
    assert np.array_equal(np.array(each, np.float32), PROBS.T if probabilities else np.zeros(0))
    assert len(table) == 5 + len(each)
    assert pq.ParquetFile(path).num_row_groups == -(-3 // group)


def test_rows_of_many_columns_are_written_sooner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_output, "MOST_VALUES", 6)
    assert pq.ParquetFile(written(tmp_path / "p.pq", probabilities=True)).num_row_groups == 2


def test_a_submission_has_the_sample_s_header_and_ids(tmp_path: Path) -> None:
    sample = Sample(("Id", "fox, red", "cat", "dog"), ("a", "b", "c"))
    lines = written(tmp_path / "s.csv", sample=sample, columns=[2, 0, 1]).read_text().splitlines()
    assert lines == ['Id,"fox, red",cat,dog', "a,0.1,0.7,0.2", "b,0.25,0.25,0.5", "c,0.6666667,1e-30,0.33333334"]
    lines = written(tmp_path / "s.csv", sample=Sample(("Id", "breed"), ("a", "b", "c"))).read_text().splitlines()
    assert lines == ["Id,breed", "a,cat", "b,dog", 'c,"fox, red"']
    lines = written(tmp_path / "s.csv", sample=Sample(("Id", "dog"), ("a", "b", "c")), columns=[1]).read_text().split()
    assert lines == ["Id,dog", "a,0.2", "b,0.5", "c,0.33333334"]


def test_a_submission_holds_every_probability_bit_by_bit(tmp_path: Path) -> None:
    sample = Sample(("Id", *CLASSES), ("a", "b", "c"))
    table = pd.read_csv(written(tmp_path / "s.csv", sample=sample, columns=[0, 1, 2]), index_col="Id")
    assert np.array_equal(table.to_numpy().astype(np.float32), PROBS)


def test_what_cannot_be_read_is_listed_beside_it_and_an_older_list_goes(tmp_path: Path) -> None:
    listed = tmp_path / "p.csv.unreadable.csv"
    with Output(tmp_path / "p.csv", CLASSES, top_k=1) as output:
        output.refuse("x, y.png", "it is empty")
        assert (output.num_unreadable, output.unreadable) == (1, listed)
        assert not listed.exists()
        output.commit()
    assert listed.read_text() == 'id,reason\n"x, y.png",it is empty\n'
    written(tmp_path / "p.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]


@pytest.mark.parametrize("name", ["p.csv", "p.parquet"])
def test_an_error_leaves_what_was_there_before(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("before")
    output = Output(tmp_path / name, CLASSES, top_k=1)

    def fail() -> None:
        with output:
            output.write("a", PROBS[0])
            output.refuse("b", "it is empty")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "before")]


def test_only_the_list_can_be_committed(tmp_path: Path) -> None:
    with Output(tmp_path / "s.csv", CLASSES, top_k=1) as output:
        output.refuse("b", "it is empty")
        output.commit(only_unreadable=True)
    assert [path.name for path in tmp_path.iterdir()] == ["s.csv.unreadable.csv"]


def test_a_folder_that_is_missing_is_made(tmp_path: Path) -> None:
    assert written(tmp_path / "new/folder/p.csv").exists()


def test_what_cannot_be_written_is_an_error_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").write_text("")
    for path, message in (
        (tmp_path / "folder.csv", "is there and is no file"),
        (tmp_path / "file/p.csv", "cannot be written: (File exists|Not a directory)"),
        (tmp_path / ("x" * 300 + ".csv"), "cannot be written: File name too long"),
        (tmp_path / "a\0b.csv", "cannot be written: embedded null"),
    ):
        with pytest.raises(UserError, match=message), Output(path, CLASSES, top_k=1):
            pass
