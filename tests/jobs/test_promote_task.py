"""What `promote` says without a store: the command that does it again, and figures that there are not."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from imgcls.cli.words import parse_words
from imgcls.evaluation.markdown import markdown
from imgcls.jobs import promote as job
from imgcls.jobs import promote_evidence as evidence
from imgcls.jobs.evaluation_data import NO_USE
from imgcls.recipe import resolve
from imgcls.tables import Predictions
from tests.jobs.test_evaluation_data import QUIET, RUN
from tests.jobs.test_evaluation_data import made as made  # a fixture


def task(made: Any, monkeypatch: pytest.MonkeyPatch, **texts: str) -> Any:
    monkeypatch.setattr(job, "_recipe_name", lambda _candidate: "folder")
    return job._task(made, None, "animals", "champion", None, QUIET, texts, {}, "cpu")


def test_the_command_that_does_it_again_has_the_gates_and_where_the_images_lie(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert task(made, monkeypatch).repeat == f"imgcls promote --run {RUN} --name animals"
    root = (tmp_path / "photos").rename(tmp_path / "other place")
    first = task(
        made, monkeypatch,
        **{"data.root": str(root), "promote.min_metrics.acc": "0.2", "promote.max_ece": "0.1"},
    )  # fmt: skip
    program, verb, *words = shlex.split(first.repeat)
    assert (program, verb, words[:4]) == ("imgcls", "promote", ["--run", RUN, "--name", "animals"])
    _, texts = parse_words(tuple(words[4:]))
    assert set(texts) == {"data.root", "promote.min_metrics", "promote.max_ece"}
    again = task(made, monkeypatch, **texts)
    assert again.resolved == first.resolved
    assert again.repeat == first.repeat


def test_the_command_leaves_out_what_the_other_source_of_the_same_images_does_not_have(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = task(made, monkeypatch)
    object.__setattr__(found.resolved, "recipe", resolve("digits").recipe)
    assert "data.root" not in found.repeat
    assert "--data.source '\"digits\"'" in found.repeat
    assert not [name for name in NO_USE if name in found.repeat]


def test_images_of_one_class_alone_have_a_row_without_the_figures_that_need_two() -> None:
    probs = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    row = evidence._row("candidate", RUN, "", Predictions(["1", "2"], probs, np.zeros(2, np.int64), ("a", "b"), "test"))
    assert row["acc"] == 0.5
    assert str(row["auc"]) == "nan"
    table = markdown(pd.DataFrame([row]), formats=dict.fromkeys(evidence.FIGURES, ".4f"))
    assert table.splitlines()[-1].split("|")[4].strip() == "0.5000"
