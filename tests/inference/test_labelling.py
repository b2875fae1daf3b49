"""From a request's cells to rows, with models that answer by rote."""

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from imgcls.data.decode import DecodeError, Pixels
from imgcls.inference.labelling import image_of, label_images

PIXELS = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)


class Rote:
    """Gives the probabilities it was made with, row by row."""

    classes, top_k = ("a", "b", "c"), 2

    def __init__(self, *rows: list[float] | DecodeError) -> None:
        self.rows = rows
        self.seen: list[bytes | Pixels] = []
        self.batch_size = 0

    def try_probabilities(
        self, images: Sequence[bytes | Pixels], *, batch_size: int = 64
    ) -> tuple[npt.NDArray[np.float32], list[DecodeError | None]]:
        """As made."""
        self.seen, self.batch_size = list(images), batch_size
        probs = np.array([[np.nan] * 3 if isinstance(row, DecodeError) else row for row in self.rows], np.float32)
        return probs, [row if isinstance(row, DecodeError) else None for row in self.rows]


def test_the_top_classes_come_by_falling_probability_and_ties_in_the_order_of_the_classes() -> None:
    table = label_images(Rote([0.125, 0.25, 0.625], [0.25, 0.5, 0.25]), [b"x", b"y"])
    assert table.label == ["c", "b"]
    assert table.probability == [0.625, 0.5]
    assert table.top_labels == [["c", "b"], ["b", "a"]]
    assert table.top_probabilities == [[0.625, 0.25], [0.5, 0.25]]
    assert table.error == [None, None]


def test_errors_stay_in_their_rows_whether_found_before_or_by_the_model() -> None:
    model = Rote([1, 0, 0], DecodeError("it is torn"), [0, 0, 1])
    table = label_images(model, [b"x", "??", b"y", 3, b"z"], batch_size=7)
    assert (model.seen, model.batch_size) == ([b"x", b"y", b"z"], 7)
    assert table.label == ["a", None, None, None, "c"]
    assert table.error[0] is table.error[4] is None
    assert [str(table.error[row])[:12] for row in (1, 2, 3)] == ["an image giv", "it is torn", "an image mus"]
    assert table.top_labels[1:4] == [[], [], []]
    assert table.top_probabilities[1:4] == [[], [], []]


def test_rows_are_strict_json() -> None:
    rows = label_images(Rote(DecodeError("it is torn"), [0, 1, 0]), [b"x", b"y"]).rows()
    assert json.loads(json.dumps(rows, allow_nan=False)) == [
        {"label": None, "probability": None, "top_labels": [], "top_probabilities": [], "error": "it is torn"},
        {"label": "b", "probability": 1.0, "top_labels": ["b", "a"], "top_probabilities": [1.0, 0.0], "error": None},
    ]


def test_a_network_that_gives_no_number_is_an_error() -> None:
    table = label_images(Rote([np.nan] * 3, [0, 1, 0]), [b"x", b"y"])
    assert table.label == [None, "b"]
    assert "not a finite number" in str(table.error[0])


def test_where_nothing_is_an_image_the_model_is_not_asked() -> None:
    model = Rote()
    assert label_images(model, ["??", None]).label == [None, None]
    assert model.seen == []
    assert label_images(model, []).rows() == []


@pytest.mark.parametrize("wrapped", [False, True])
def test_base64_may_be_wrapped_into_lines(wrapped: bool) -> None:
    data = bytes(range(256))
    text = (base64.encodebytes if wrapped else base64.b64encode)(data).decode()
    assert ("\n" in text) == wrapped
    assert image_of(text) == data


@pytest.mark.parametrize(
    "cell", [PIXELS, PIXELS.tolist(), PIXELS.astype(np.int64), tuple(map(tuple, PIXELS.tolist()))], ids=repr
)
def test_pixels_may_be_an_array_or_nested_lists(cell: Any) -> None:
    found = image_of(cell)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.uint8
    assert np.array_equal(found, PIXELS)


@pytest.mark.parametrize("cell", [b"ab", bytearray(b"ab"), memoryview(b"ab")])
def test_bytes_are_taken_as_they_are(cell: Any) -> None:
    assert image_of(cell) == b"ab"


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("not base64!", "an image given as text must be base64"),
        ("é", "an image given as text must be base64"),
        (np.zeros((4, 4, 4), np.uint8), r"found the shape \(4, 4, 4\)"),
        (np.zeros(4, np.uint8), r"\(H, W\), \(H, W, 1\) or \(H, W, 3\), found the shape \(4,\)"),
        (np.zeros((0, 4), np.uint8), r"found the shape \(0, 4\)"),
        ([], r"found the shape \(0,\)"),
        ([[1, 2], [3]], "rows of pixels must be of one length"),
        (None, "found NoneType"),
        ({"b64": "x"}, "found dict"),
        (float("nan"), "found float"),
        (np.full((4, 4), 0.5), "pixels must be integers from 0 to 255, found float64"),
        (np.full((4, 4), 256), "pixels must be integers from 0 to 255, found int64"),
        (np.full((4, 4), -1), "pixels must be integers from 0 to 255, found int64"),
        ([[10**30, 1]], "pixels must be integers from 0 to 255, found object"),
        ([["a", "b"]], "pixels must be integers from 0 to 255, found <U1"),
        ([[True, False]], "pixels must be integers from 0 to 255, found bool"),
    ],
)
def test_what_is_no_image_is_an_error_that_says_so(cell: Any, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        image_of(cell)
