"""A sample submission says which classes its columns are and which images its ids, or it is an error."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from imgcls.errors import UserError
from imgcls.evaluation.submission import Sample, columns_of, read_sample, rows_of

CLASSES = ("cat", "dog", "fox, red")
IDS = ["a", "b", "c"]


def sample(folder: Path, text: str) -> Path:
    path = folder / "sample_submission.csv"
    path.write_bytes(text.encode())
    return path


def fitted(path: Path, ids: Sequence[str] = IDS) -> tuple[Sample, list[int] | None, list[int]]:
    """The sample, the class of each column and the image of each row."""
    read = read_sample(path)
    return read, columns_of(read, CLASSES), rows_of(read, ids).tolist()


def test_a_single_column_is_for_the_label_and_rows_are_in_the_samples_order(tmp_path: Path) -> None:
    path = sample(tmp_path, "image_id,breed\nc,x\na,x\nb,x\n")
    assert fitted(path) == (Sample(("image_id", "breed"), ("c", "a", "b")), None, [2, 0, 1])


def test_a_column_a_class_is_for_its_probability_in_the_samples_order(tmp_path: Path) -> None:
    path = sample(tmp_path, '\ufeffid,"fox, red",cat,dog\r\nb,0,0,0\r\na,0,0,0\r\nc,0,0,0\r\n')
    assert fitted(path) == (Sample(("id", "fox, red", "cat", "dog"), ("b", "a", "c")), [2, 0, 1], [1, 0, 2])


def test_a_single_column_called_like_a_class_is_for_its_probability(tmp_path: Path) -> None:
    assert fitted(sample(tmp_path, "id,dog\na,0\nb,0\nc,0\n"))[1] == [1]


@pytest.mark.parametrize("ids", ["b.jpg a.jpg c.jpg", "b a c", "test/b.jpg test/a.jpg test/c.jpg"])
def test_an_id_may_be_a_file_name_with_or_without_its_ending(tmp_path: Path, ids: str) -> None:
    lines = "".join(f"{name},x\n" for name in ids.split())
    read, _, rows = fitted(sample(tmp_path, "id,label\n" + lines), ["test/a.jpg", "test/b.jpg", "test/c.jpg"])
    assert read.ids == tuple(ids.split())
    assert rows == [1, 0, 2]


def test_ids_that_look_like_numbers_stay_as_they_are(tmp_path: Path) -> None:
    read, _, rows = fitted(sample(tmp_path, "id,label\n1,\nNA,\n001,\n"), ["001", "1", "NA"])
    assert (read.ids, rows) == (("1", "NA", "001"), [1, 2, 0])


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
def test_a_sample_that_does_not_fit_is_an_error(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        fitted(sample(tmp_path, text))


def test_two_images_of_one_file_name_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"two predicted images go by the file name 'a\.jpg'"):
        fitted(sample(tmp_path, "id,label\na.jpg,x\nb.jpg,x\n"), ["x/a.jpg", "y/a.jpg", "b.jpg"])


def test_a_sample_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no sample submission"):
        read_sample(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes(b"id,label\n\xff,x\n")
    with pytest.raises(UserError, match=r"cannot be read: .*utf-8"):
        read_sample(tmp_path / "latin.csv")
    with pytest.raises(UserError, match="cannot be read"):
        read_sample(tmp_path)
