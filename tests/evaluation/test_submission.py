"""A submission has the sample's columns, order and ids, or there is none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from imgcls.errors import UserError
from imgcls.evaluation.submission import read_sample, write_submission
from imgcls.tables import Predictions

PROBS = np.array([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25], [0.125, 0.375, 0.5]], np.float32)
GIVEN = Predictions(["a", "b", "c"], PROBS, np.full(3, -1), ("cat", "dog", "fox, red"))


def sample(folder: Path, text: str) -> Path:
    path = folder / "sample_submission.csv"
    path.write_bytes(text.encode())
    return path


def test_a_single_column_gets_the_label_in_the_samples_order(tmp_path: Path) -> None:
    path = sample(tmp_path, "image_id,breed\nc,x\na,x\nb,x\n")
    write_submission(GIVEN, path, tmp_path / "new/out.csv")
    assert (tmp_path / "new/out.csv").read_text() == 'image_id,breed\nc,"fox, red"\na,cat\nb,dog\n'
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["out.csv"]


def test_a_column_a_class_gets_the_probabilities_in_the_samples_order(tmp_path: Path) -> None:
    path = sample(tmp_path, '\ufeffid,"fox, red",cat,dog\r\nb,0,0,0\r\na,0,0,0\r\nc,0,0,0\r\n')
    write_submission(GIVEN, path, tmp_path / "out.csv")
    first, *rows = (tmp_path / "out.csv").read_text().splitlines()
    assert first == 'id,"fox, red",cat,dog'
    assert rows == ["b,0.25,0.25,0.5", "a,0.1,0.7,0.2", "c,0.5,0.125,0.375"]
    table = pd.read_csv(tmp_path / "out.csv", index_col="id").astype(np.float32)
    assert np.array_equal(table.loc[["a", "b", "c"], list(GIVEN.classes)].to_numpy(), PROBS)


def test_a_single_column_called_like_a_class_gets_its_probability(tmp_path: Path) -> None:
    write_submission(GIVEN, sample(tmp_path, "id,dog\na,0\nb,0\nc,0\n"), tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "id,dog\na,0.2\nb,0.5\nc,0.375\n"


@pytest.mark.parametrize("ids", ["a.jpg b.jpg c.jpg", "a b c", "test/a.jpg test/b.jpg test/c.jpg"])
def test_an_id_may_be_a_file_name_with_or_without_its_ending(tmp_path: Path, ids: str) -> None:
    given = replace(GIVEN, ids=["test/a.jpg", "test/b.jpg", "test/c.jpg"])
    lines = "".join(f"{name},x\n" for name in ids.split())
    write_submission(given, sample(tmp_path, "id,label\n" + lines), tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv")
    assert table["id"].tolist() == ids.split()
    assert table["label"].tolist() == ["cat", "dog", "fox, red"]


def test_ids_that_look_like_numbers_stay_as_they_are(tmp_path: Path) -> None:
    given = replace(GIVEN, ids=["001", "1", "NA"])
    write_submission(given, sample(tmp_path, "id,label\n1,\nNA,\n001,\n"), tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().split("\n")[:3] == ["id,label", "1,dog", 'NA,"fox, red"']


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,label\na,x\nb,x\n", "1 of 3 predicted images are not in it: 'c'"),
        ("id,label\na,x\nb,x\nc,x\nd,x\ne,x\n", "2 of its 5 ids are not predicted: 'd', 'e'"),
        ("id,label\np,x\nq,x\nr,x\ns,x\n", "4 of its 4 ids are not predicted: 'p', 'q', 'r', …; 3 of 3 predicted"),
        ("id,cat,dog\na,0,0\nb,0,0\nc,0,0\n", "no column for 1 of the model's 3 classes: 'fox, red'"),
        ("id,cat,dog,cow,emu\na,0,0,0,0\n", "2 of the sample submission's 4 columns .* no class of the model: 'cow'"),
        ("id,label\na,x\na,x\n", "has the id 'a' more than once"),
        ("id,cat,cat\na,0,0\n", "has the column 'cat' more than once"),
        ("id\na\n", "1 rows and 1 columns"),
        ("id,label\n", "0 rows and 2 columns"),
        ("", "0 rows and 0 columns"),
        ("id,label\na,x\nb\n", "line 3 .* has 1 cells; expected 2"),
    ],
)
def test_a_sample_that_does_not_fit_is_an_error_and_leaves_no_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        write_submission(GIVEN, sample(tmp_path, text), tmp_path / "out.csv")
    assert [file.name for file in tmp_path.iterdir()] == ["sample_submission.csv"]


def test_two_images_of_one_file_name_are_an_error(tmp_path: Path) -> None:
    given = replace(GIVEN, ids=["x/a.jpg", "y/a.jpg", "b.jpg"])
    with pytest.raises(UserError, match=r"two predicted images go by the file name 'a\.jpg'"):
        write_submission(given, sample(tmp_path, "id,label\na.jpg,x\nb.jpg,x\n"), tmp_path / "out.csv")


def test_a_sample_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no sample submission"):
        read_sample(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes(b"id,label\n\xff,x\n")
    with pytest.raises(UserError, match=r"cannot be read: .*utf-8"):
        read_sample(tmp_path / "latin.csv")
    with pytest.raises(UserError, match="cannot be read"):
        read_sample(tmp_path)
