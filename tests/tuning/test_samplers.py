"""Names to Optuna's samplers and pruners."""

import importlib.util

import optuna
import pytest

from imgcls.errors import UserError
from imgcls.tuning import samplers
from imgcls.tuning.samplers import make_pruner, make_sampler
from imgcls.tuning.space import SearchConfig


def proposals(name: str, *, worker: int = 0, seed: int = 0, trials: int = 13) -> list[float]:
    search = SearchConfig.model_validate({"sampler": name, "seed": seed})
    study = optuna.create_study(sampler=make_sampler(search, worker=worker, family=0))
    found = []
    for _ in range(trials):
        trial = study.ask()
        x = trial.suggest_float("x", 0, 1)
        y = trial.suggest_categorical("y", ["a", "b"])
        if y == "a":
            trial.suggest_int("z", 1, 4)
        study.tell(trial, x + (y == "a"))
        found.append(x)
    return found


@pytest.mark.parametrize("name", ["tpe", "random", "gp", "nsga2"])
def test_a_sampler_repeats_with_its_seed_and_differs_from_another_workers(name: str) -> None:
    first = proposals(name)
    assert proposals(name) == first
    assert proposals(name, worker=1)[0] != first[0]
    assert proposals(name, seed=1)[0] != first[0]


def test_a_sampler_whose_package_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"pip install 'imgcls\[cmaes\]'"):
        make_sampler(SearchConfig(sampler="cmaes"), worker=0, family=0)


@pytest.mark.skipif(importlib.util.find_spec("cmaes") is None, reason="the package cmaes is not installed")
def test_cmaes_proposes() -> None:
    assert proposals("cmaes") == proposals("cmaes")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("median", optuna.pruners.MedianPruner),
        ("hyperband", optuna.pruners.HyperbandPruner),
        ("halving", optuna.pruners.SuccessiveHalvingPruner),
        ("none", optuna.pruners.NopPruner),
    ],
)
def test_a_pruner_has_its_name(name: str, kind: type[optuna.pruners.BasePruner]) -> None:
    assert type(make_pruner(SearchConfig.model_validate({"pruner": name}))) is kind


def test_several_objectives_prune_nothing() -> None:
    search = SearchConfig(objectives=["val/acc", "speed/images_per_s"])
    assert type(make_pruner(search)) is optuna.pruners.NopPruner
