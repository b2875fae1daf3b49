"""What a sweep searches, and what it refuses before the first trial."""

from typing import Any

import pytest
import torch

from imgcls.errors import UserError
from imgcls.jobs import tune_space
from imgcls.jobs.console import Console
from imgcls.jobs.tune_space import Subject, family_recipe, open_subjects
from imgcls.recipe import resolve
from imgcls.tuning.ranges import ChoiceRange, FloatRange, IntRange

SMALL: dict[str, Any] = {"model.num_blocks": 2, "model.channels": 4, "augment.image_size": 8}


def subjects(*families: str, **given: Any) -> dict[str, Subject]:
    resolved = resolve("digits", {**SMALL, **given})
    return open_subjects(resolved, families or ("plaincnn",), Console(quiet=True))


def space(**ranges: Any) -> dict[str, Any]:
    return {"search.space": {name.replace("__", "."): value for name, value in ranges.items()}}


def test_by_default_rate_batch_size_and_freeze_depth_are_searched_around_the_recipe() -> None:
    found = subjects("plaincnn", "quizdnn", **{"optim.lr": 0.002, "train.batch_size": 48})
    ranges = found["plaincnn"].space.ranges
    assert list(ranges) == ["optim.lr", "train.batch_size", "model.freeze_depth"]
    rate, sizes, depth = ranges.values()
    assert isinstance(rate, FloatRange)
    assert (rate.low, rate.high, rate.log) == (0.0002, 0.02, True)
    assert isinstance(sizes, ChoiceRange)
    assert sizes.values == [16, 32, 48, 64, 128, 256]
    assert isinstance(depth, IntRange)
    assert (depth.low, depth.high) == (0, 2)
    assert found["plaincnn"].first == {"optim.lr": 0.002, "train.batch_size": 48, "model.freeze_depth": 0}
    other = found["quizdnn"].space.ranges["model.freeze_depth"]
    assert isinstance(other, IntRange)
    assert other.high == len(found["quizdnn"].prepared.model.stage_names) - 1


def test_the_first_trial_has_the_number_of_frozen_stages() -> None:
    assert subjects(**{"model.freeze_depth": "all"})["plaincnn"].first["model.freeze_depth"] == 2


def test_a_family_keeps_what_it_shares_with_the_recipes_own() -> None:
    resolved = resolve("digits", {**SMALL, "model.channels": 8, "model.dropout": 0.25})
    model = family_recipe(resolved, "quizdnn").recipe.model
    assert (model.family, model.model_dump()["channels"], model.model_dump()["dropout"]) == ("quizdnn", 8, 0.25)


def test_each_family_may_have_weights_of_its_own() -> None:
    resolved = resolve("digits", {**SMALL, "model.weights": "/weights/{family}.pth"})
    found = [family_recipe(resolved, family).recipe.model.weights for family in ("plaincnn", "quizdnn")]
    assert found == ["/weights/plaincnn.pth", "/weights/quizdnn.pth"]


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"optim__rate": {"type": "float", "low": 1, "high": 2}}, "unknown field 'optim.rate'"),
        ({"train__epochs": {"type": "int", "low": 0, "high": 3}}, "search.space of train.epochs has 0: train.epochs"),
        ({"optim__optimizer": {"type": "choice", "values": ["sgd", "adom"]}}, "has 'adom'.*known: adam, adamw"),
        (
            {"train__batch_size": {"type": "int", "low": 8, "high": 5000}},
            "has 5000, but there are 1079 training",
        ),
        (
            {"model__freeze_depth": {"type": "int", "low": 0, "high": 9}},
            "search.space of model.freeze_depth, family",
        ),
        (
            {"data__val_fraction": {"type": "float", "low": 0.1, "high": 0.2}},
            "data.val_fraction, which cannot be",
        ),
        ({"model__family": {"type": "choice", "values": ["quizdnn"]}}, "families are compared with --families"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_first_trial(ranges: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        subjects(**space(**ranges))


def test_a_conditional_field_is_tried_under_its_condition() -> None:
    ranges = {
        "optim__optimizer": {"type": "choice", "values": ["adamw", "sgd"]},
        "optim__nesterov": {"type": "choice", "values": [True, False], "when": {"optim.optimizer": "sgd"}},
    }
    found = subjects(**space(**ranges))["plaincnn"]
    assert found.first == {"optim.optimizer": "adamw"}


def test_a_family_twice_and_an_unknown_one_are_refused() -> None:
    with pytest.raises(UserError, match="expected each once"):
        subjects("plaincnn", "plaincnn")
    with pytest.raises(UserError, match="Did you mean 'resnet18'"):
        subjects("resnet19")


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(tune_space, "num_cores", lambda: 4)
    torch.set_num_threads(4)
    try:
        threads = [subjects(**{"search.workers": n})["plaincnn"].prepared.plan.threads for n in (1, 2, 3)]
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
    assert threads == [4, 2, 1]


def test_a_trial_is_trained_by_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    resolved = resolve("digits", {**SMALL, "train.processes": 2})
    found = open_subjects(resolved, ("plaincnn",), Console())["plaincnn"]
    assert found.resolved.recipe.train.processes == 1
    assert "note: train.processes is 2, but a trial is trained by one" in capsys.readouterr().out
