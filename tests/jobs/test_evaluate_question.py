"""What `evaluate` refuses before there is a run, and where it computes and writes; doubles stand for a store."""

from pathlib import Path
from typing import Any

import pytest

import imgcls
from imgcls.errors import UserError
from imgcls.inference.ensemble import Ensemble, Model
from imgcls.inference.views import Combine
from imgcls.jobs import evaluate as job
from imgcls.jobs.evaluate_question import Question, check_question
from imgcls.jobs.open_model import Opened
from tests.inference.test_classifier import classifier
from tests.jobs.test_evaluation_data import QUIET, Made
from tests.jobs.test_evaluation_data import made as made  # a fixture


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "Test"}, "found 'Test' for split; expected one of train, val, test, all."),
        ({"tta_views": "corners"}, "found 'corners' for tta_views; expected one of crops, flips, train."),
        ({"combine": "max"}, "found 'max' for combine; expected one of mean, vote."),
        ({"weights": "best"}, "found 'best' for weights; expected one of equal, fit, greedy."),
        ({"tta_views": "flips"}, "--tta-views flips says which views"),
        ({"models": ("a", "b"), "tta_views": "train"}, "--tta-views train says which views"),
        ({"combine": "vote"}, "--combine vote says how views and models are put together, but there is one view and"),
        ({"models": ("a", "b"), "weights": "fit", "split": "val"}, "--weights fit fits them on the validation images"),
        ({"models": ("a", "b"), "weights": "greedy", "split": "all"}, "--weights greedy fits them on the validation"),
    ],
)
def test_what_would_say_nothing_or_too_much_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_question(Question(**{"models": ("a",), **options}))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"tta": 2, "tta_views": "flips", "combine": "vote"}, {"models": ("a", "b"), "combine": "vote"},
        {"models": ("a", "b"), "weights": "fit", "split": "test"}, {"models": ("a", "b"), "weights": "greedy"},
        {"split": "all"},
    ],
)  # fmt: skip
def test_what_goes_together_is_not(options: dict[str, Any]) -> None:
    check_question(Question(**{"models": ("a",), **options}))


@pytest.mark.parametrize(("inner", "outer"), [("vote", "mean"), ("mean", "vote"), ("vote", "vote")])
def test_a_vote_among_ensembles_is_refused_for_its_members_would_vote_otherwise(
    inner: Combine, outer: Combine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(source: str, *_rest: object) -> Opened:
        model: Model = classifier()
        return Opened(Ensemble((classifier(),) * 2, (1.0, 1.0), inner) if source == "both" else model, source)

    monkeypatch.setattr(job, "open_model", opened)
    with pytest.raises(UserError, match=r"^the model both is an ensemble itself, .* Give its members one by one"):
        imgcls.evaluate(["one", "both"], combine=outer, quiet=True)


def prepare(
    made: Made, monkeypatch: pytest.MonkeyPatch, output: Path | None = None, output_dir: str | None = None
) -> Any:
    monkeypatch.setattr(job, "open_model", lambda *_words: made)
    overrides = {} if output_dir is None else {"train.output_dir": output_dir}
    return job._prepare(Question(("it",), output=output), QUIET, None, overrides)


def test_a_model_that_was_trained_with_a_gpus_numbers_is_evaluated_without_one(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.recipe = made.recipe.replace({"train.plan": {"precision": "fp16"}})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert prepare(made, monkeypatch).device == "cpu"


def test_it_writes_where_it_is_told_and_not_only_where_the_training_did(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.recipe = made.recipe.replace({"train.output_dir": "/home/of/another/machine"})
    task = prepare(made, monkeypatch, output_dir="here")
    assert task.subject.recipe.train.output_dir == "here"


def test_a_folder_for_copies_that_cannot_be_made_is_told_before_there_is_a_run(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^--output '.*file/out' cannot be written: Not a directory\. Give another"):
        prepare(made, monkeypatch, tmp_path / "file/out")
    prepare(made, monkeypatch, tmp_path / "new/out")
    assert list((tmp_path / "new/out").iterdir()) == []
