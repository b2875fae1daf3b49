"""Optuna's samplers and pruners by the names that a recipe has for them."""

import warnings
from importlib.util import find_spec

import numpy as np
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from imgcls.errors import UserError
from imgcls.tuning.space import SearchConfig

STARTUP_TRIALS = 5
"""Trials of a family before the median pruner ends one."""


def check_sampler(search: SearchConfig) -> None:
    """See that what the sampler needs is there.

    Raises:
        UserError: a package is missing.
    """
    if search.sampler == "cmaes" and find_spec("cmaes") is None:
        raise UserError(
            "sampler is cmaes, for which the package cmaes is missing. Run: pip install 'imgcls[cmaes]', or "
            "set search.sampler to tpe"
        )


def make_sampler(search: SearchConfig, *, worker: int, family: int) -> BaseSampler:
    """The sampler of one worker for one family.

    Args:
        search: says which one, and its seed.
        worker: the worker's number in the sweep; each draws other numbers.
        family: the family's place among the sweep's; so does each of these.

    Raises:
        UserError: a package is missing.
    """
    check_sampler(search)
    seed = int(np.random.SeedSequence([search.seed, worker, family]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        match search.sampler:
            case "tpe":
                return TPESampler(seed=seed)
            case "random":
                return RandomSampler(seed=seed)
            case "gp":
                return GPSampler(seed=seed, warn_independent_sampling=False)
            case "cmaes":
                return CmaEsSampler(seed=seed, warn_independent_sampling=False)
            case "nsga2":
                return NSGAIISampler(seed=seed)


def make_pruner(search: SearchConfig) -> BasePruner:
    """The pruner by its name; with several objectives one that ends no trial."""
    if len(search.objectives) > 1:
        return NopPruner()
    match search.pruner:
        case "median":
            return MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=1)
        case "hyperband":
            return HyperbandPruner(min_resource=1, max_resource="auto", reduction_factor=3)
        case "halving":
            return SuccessiveHalvingPruner()
        case "none":
            return NopPruner()
