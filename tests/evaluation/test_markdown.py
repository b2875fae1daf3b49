"""Tables as text."""

import numpy as np
import pandas as pd
import pytest

from imgcls.evaluation.markdown import aligned, markdown, value_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (float("nan"), "–"), (pd.NA, "–"), (np.float64("nan"), "–"), (3, "3"),
        (3.0, "3"), (np.int64(7), "7"),
        (0.123456, "0.1235"), (1e-5, "1e-05"), (123456.7, "123457"), (True, "True"), ("adamw", "adamw"),
        (float("inf"), "inf"),
    ],
)  # fmt: skip
def test_a_value_is_written_for_a_person(value: object, text: str) -> None:
    assert value_text(value) == text


def test_numbers_stand_on_the_right_and_no_value_breaks_the_table() -> None:
    table = pd.DataFrame({"name": ["a|b", "two\nlines"], "val/acc": [0.5, None], "x": ["1", 2]}, dtype=object)
    assert markdown(table, formats={"val/acc": ".4f"}) == (
        "| name | val/acc | x |\n| --- | ---: | --- |\n| a\\|b | 0.5000 | 1 |\n| two lines | – | 2 |\n"
    )


def test_a_table_without_rows_is_its_head() -> None:
    assert markdown(pd.DataFrame({"a": []})) == "| a |\n| --- |\n"


def test_columns_are_aligned() -> None:
    assert aligned([("run", "acc"), ("a", "0.91"), ("bcde", "–")]) == "run    acc\na     0.91\nbcde     –\n"
    assert aligned([]) == ""
