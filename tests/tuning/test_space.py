"""The search section and the space of a family."""

import json
import warnings
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.exceptions import ExperimentalWarning
from pydantic import ValidationError

from imgcls.errors import UserError
from imgcls.tuning.space import SearchConfig, Space, parse_duration

LR: dict[str, Any] = {"type": "float", "low": 1e-4, "high": 0.1, "log": True}
OPTIMIZER: dict[str, Any] = {"type": "choice", "values": ["sgd", "adam"]}


def space(**ranges: dict[str, Any]) -> Space:
    return Space.from_json({name.replace("__", "."): value for name, value in ranges.items()})


def ask(of: Space, fixed: dict[str, Any]) -> dict[str, Any]:
    return of.suggest(optuna.trial.FixedTrial(of.store(fixed)))


def test_every_kind_of_range_gives_values_of_its_kind() -> None:
    searched = space(
        lr=LR,
        momentum={"type": "float", "low": 0.5, "high": 0.98, "step": 0.2},
        depth={"type": "int", "low": 1, "high": 8, "step": 3},
        batch={"type": "int", "low": 8, "high": 512, "log": True},
        optimizer=OPTIMIZER,
        averaging={"type": "choice", "values": [None, True, 1, 1.5, "1", [1, "a"]]},
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = [searched.suggest(study.ask()) for _ in range(60)]
    assert all(searched.contains(values) for values in found)
    assert {values["momentum"] for values in found} == {0.5, 0.7, 0.9}
    assert {values["depth"] for values in found} == {1, 4, 7}
    assert {json.dumps(values["averaging"]) for values in found} == {"null", "true", "1", "1.5", '"1"', '[1, "a"]'}
    assert {type(values["batch"]) for values in found} == {int}
    assert [searched.load(searched.store(values)) for values in found] == found


@pytest.mark.parametrize(
    ("given_range", "message"),
    [
        ({"type": "float", "low": 1.0, "high": 0.1}, "low is 1 and high 0.1, which leaves nothing"),
        ({"type": "int", "low": 3, "high": 2}, "low is 3 and high 2"),
        ({"type": "float", "low": 0.0, "high": 0.1, "log": True}, "expected above 0"),
        ({"type": "int", "low": 0, "high": 5, "log": True}, "expected above 0"),
        ({"type": "float", "low": 0.1, "high": 0.2, "log": True, "step": 0.1}, "a log range has no steps"),
        ({"type": "int", "low": 1, "high": 5, "log": True, "step": 2}, "a log range has no steps"),
        ({"type": "float", "low": 0.1, "high": 0.2, "step": 0.0}, "greater than 0"),
        ({"type": "choice", "values": []}, "expected at least one"),
        ({"type": "choice", "values": ["a", "b", "a"]}, 'has "a" more than once'),
        ({"type": "list", "values": [1]}, "does not match any of the expected tags"),
        ({"type": "int", "low": 1.5, "high": 3}, "low"),
        ({"type": "float", "low": 1, "high": 3, "hihg": 4}, "hihg"),
        ({"type": "float", "low": 0.0, "high": float("inf")}, "finite"),
    ],
)
def test_a_range_that_is_none_is_an_error(given_range: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SearchConfig.model_validate({"space": {"x": given_range}})


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ({"optim.optimiser": "sgd"}, "Did you mean 'optim.optimizer'"),
        ({"optim.momentum": 0.9}, "names the field itself"),
        ({"optim.optimizer": "lamb"}, 'expected one of "sgd", "adam"'),
        ({"optim.optimizer": []}, "lists no value"),
        ({"optim.lr": 0.01}, "float range without steps"),
        ({"optim.power": 1}, "wait for each other"),
    ],
)
def test_a_condition_that_cannot_hold_is_an_error(when: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SearchConfig.model_validate(
            {
                "space": {
                    "optim.momentum": {"type": "float", "low": 0.5, "high": 1.0, "when": when},
                    "optim.optimizer": OPTIMIZER,
                    "optim.lr": LR,
                    "optim.power": {
                        "type": "int",
                        "low": 1,
                        "high": 2,
                        "when": {"optim.third": 0},
                    },
                    "optim.third": {"type": "int", "low": 0, "high": 1, "when": {"optim.power": 1}},
                }
                if "optim.power" in when
                else {
                    "optim.momentum": {"type": "float", "low": 0.5, "high": 1.0, "when": when},
                    "optim.optimizer": OPTIMIZER,
                    "optim.lr": LR,
                }
            }
        )


def test_a_field_is_searched_only_where_its_condition_holds() -> None:
    searched = space(
        nesterov={"type": "choice", "values": [True, False], "when": {"momentum": [0.5, 0.9]}},
        momentum={"type": "choice", "values": [0, 0.5, 0.9], "when": {"optimizer": "sgd"}},
        optimizer=OPTIMIZER,
    )
    assert list(searched.ranges) == ["optimizer", "momentum", "nesterov"]
    assert ask(searched, {"optimizer": "adam"}) == {"optimizer": "adam"}
    assert ask(searched, {"optimizer": "sgd", "momentum": 0}) == {"optimizer": "sgd", "momentum": 0}
    whole = {"optimizer": "sgd", "momentum": 0.9, "nesterov": True}
    assert ask(searched, whole) == whole
    assert searched.active({**whole, "optimizer": "adam"}) == {"optimizer": "adam"}
    assert searched.cardinality() == 1 + 1 + 2 * 2


def test_the_number_of_points_is_known_where_there_is_an_end_of_them() -> None:
    depth = {"type": "int", "low": 0, "high": 5}
    assert Space({}).cardinality() == 1
    assert space(depth=depth, optimizer=OPTIMIZER).cardinality() == 12
    assert space(x={"type": "float", "low": 0.0, "high": 1.0, "step": 0.3}, depth=depth).cardinality() == 24
    assert space(depth=depth, lr=LR).cardinality() is None
    fixed = {"type": "float", "low": 0.1, "high": 0.1}
    assert space(depth=depth, x=fixed).cardinality() == 6


def test_values_outside_the_space_are_told_with_what_would_let_them_in() -> None:
    searched = space(optim__lr=LR, depth={"type": "int", "low": 0, "high": 4, "step": 2}, optimizer=OPTIMIZER)
    assert searched.problems({"optim.lr": 0.5, "depth": 3, "optimizer": "lamb", "x": 1}) == [
        "x is not searched",
        "optim.lr is 0.5; expected 0.1 or less; raise high to 0.5",
        "depth is 3; expected 0 and multiples of 2 above it; leave step out",
        'optimizer is "lamb"; expected one of "sgd", "adam"; add it to values',
    ]
    assert searched.problems({"optim.lr": 0.01, "depth": True}) == [
        "depth is true; expected a whole number from 0 to 4",
        'optimizer has no value; expected choice of "sgd", "adam"',
    ]
    assert searched.contains({"optim.lr": 1e-4, "depth": 4, "optimizer": "sgd"})


def test_what_differs_from_another_space_is_told_in_words() -> None:
    one = space(lr=LR, depth={"type": "int", "low": 0, "high": 4}, old=OPTIMIZER)
    two = space(
        lr={**LR, "high": 1.0, "log": False},
        depth={"type": "int", "low": 0, "high": 4},
        optimizer=OPTIMIZER,
        momentum={"type": "float", "low": 0.0, "high": 1.0, "when": {"optimizer": "sgd"}},
    )
    assert two.differences(one.as_json()) == [
        "lr is float 0.0001 to 0.1 (log) there and float 0.0001 to 1.0 here",
        "optimizer is searched here and not there",
        "momentum is searched here and not there",
        "old is searched there and not here",
    ]
    assert two.differences(two.as_json()) == []


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    scalars = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3)
    found: dict[str, Any] = {}
    for number in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(["float", "int", "choice"]))
        low = draw(st.integers(1, 4))
        item: dict[str, Any] = {"type": kind}
        if kind == "choice":
            item["values"] = draw(st.lists(scalars, min_size=1, max_size=3, unique_by=json.dumps))
        elif kind == "int":
            item |= {"low": low, "high": low + draw(st.integers(0, 6)), "step": draw(st.integers(1, 3))}
        else:
            item |= {"low": float(low), "high": low + 3.5, "log": draw(st.booleans())}
        parents = [name for name in found if found[name]["type"] == "choice"]
        is_conditional: bool = draw(st.booleans())
        if parents and is_conditional:
            parent = draw(st.sampled_from(parents))
            item["when"] = {parent: draw(st.lists(st.sampled_from(found[parent]["values"]), min_size=1, max_size=2))}
        found[f"field{number}"] = item
    return Space.from_json(dict(reversed(found.items())))


@given(of=spaces(), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_any_space_survives_json_and_holds_what_it_suggests(of: Space, seed: int) -> None:
    again = Space.from_json(json.loads(json.dumps(of.as_json())))
    assert again.ranges == of.ranges
    assert of.differences(again.as_json()) == []
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    values = again.suggest(study.ask())
    assert of.problems(values) == []
    assert again.load(json.loads(json.dumps(again.store(values)))) == values
    for name, item in of.ranges.items():
        holds = all(other in values and values[other] in wanted for other, wanted in item.when.items())  # type: ignore[operator]
        assert (name in values) == holds


@given(of=spaces())
@settings(max_examples=40, deadline=None)
def test_the_points_counted_are_the_points_there_are(of: Space) -> None:
    count = of.cardinality()
    if count is None or count > 40:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study = optuna.create_study(sampler=optuna.samplers.BruteForceSampler())
    found = set()

    def objective(trial: optuna.Trial) -> float:
        found.add(json.dumps(of.suggest(trial)))
        return 0.0

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study.optimize(objective, n_trials=60)
    assert len(found) == count


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1.5h", 5400), ("1m1s", 61)]
)
def test_a_time_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "0s", "-5m", "2 days", "30m1h", "h"])
def test_what_is_no_time_is_an_error(text: str) -> None:
    with pytest.raises(UserError, match="such as 90s, 30m, 2h or 1h30m"):
        parse_duration(text)


def test_the_budget_is_twenty_trials_where_neither_trials_nor_a_time_is_given() -> None:
    assert SearchConfig().num_trials == 20
    assert SearchConfig(time_limit="2h").num_trials is None
    assert SearchConfig(time_limit="2h", trials=5).num_trials == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objectives": ["val/acc", "speed/images_per_s"], "sampler": "cmaes"}, "it searches for one"),
        ({"objectives": ["val/acc", "val/loss"], "pruner": "halving"}, "no trial ends early"),
        ({"objectives": []}, "at least one"),
        ({"objectives": ["val/acc", "val/acc"]}, "each once"),
        ({"objectives": ["val/accuracy"]}, "Did you mean 'val/acc'"),
        ({"trials": 0}, "greater than or equal to 1"),
        ({"time_limit": "soon"}, "is no time"),
        ({"sampler": "grid"}, "sampler"),
    ],
)
def test_a_search_that_cannot_be_is_an_error(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SearchConfig.model_validate(fields)
