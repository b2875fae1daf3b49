"""How much each searched field mattered: by fANOVA, or by PED-ANOVA where some fields are conditional."""

import warnings
from collections.abc import Sequence
from typing import Literal

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial

from imgcls.tuning.trials import states

FEWEST_TRIALS = 4
"""Different complete trials below which nothing is said."""


def importance(
    trials: Sequence[FrozenTrial], direction: Literal["maximize", "minimize"]
) -> tuple[dict[str, float], str] | None:
    """Shares of the fields in what the first objective varies by, over the complete trials of a family.

    fANOVA (Hutter, Hoos and Leyton-Brown 2014) needs fields that every trial has; with conditional ones it is PED-ANOVA
    (Watanabe, Bansal and Hutter 2023, arXiv:2304.10255), which asks what sets the better trials apart: the two can rank
    fields differently, so the name goes with the numbers.

    Args:
        trials: a family's.
        direction: of the first objective.

    Returns:
        (field -> share, falling and adding up to 1; the evaluator's name), or None with fewer than 4 complete trials,
        or where neither value nor fields vary.
    """
    done = [
        trial
        for trial, state in zip(trials, states(trials), strict=True)
        if state == "complete" and trial.values is not None
    ]
    varied = {name for trial in done for name in trial.params if not trial.distributions[name].single()}
    if len(done) < FEWEST_TRIALS or len({trial.values[0] for trial in done}) < 2 or not varied:
        return None
    study = optuna.create_study(direction=direction)
    for trial in done:
        study.add_trial(
            optuna.trial.create_trial(value=trial.values[0], params=trial.params, distributions=trial.distributions)
        )
    everywhere = all(varied <= set(trial.params) for trial in done)
    evaluator = FanovaImportanceEvaluator(seed=0) if everywhere else PedAnovaImportanceEvaluator()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Some regimes")  # few trials: the reader sees how many
        shares = get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in shares.items()}, "fANOVA" if everywhere else "PED-ANOVA"
