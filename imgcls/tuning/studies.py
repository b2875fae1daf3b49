"""The studies of one sweep, one a family, and the bookkeeping that all its processes share in the storage."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from imgcls.tuning import trials as ledger
from imgcls.tuning.space import SearchConfig, Space
from imgcls.tuning.storage import Storage

SWEEP, FIRST, BUDGET, WORKERS, COLLECTED, ATTRIBUTE = "sweep", "first", "budget", "workers", "collected", "attribute/"
"""The user attributes of a study: what it is and whether the recipe's values wait in it; and, of the first family's
study only, the budget, the workers so far, the dead trials that somebody knows of, and what others put there."""

UNBEGUN = "it ended before it had parameters"


@dataclass(frozen=True)
class Abandoned:
    """A trial whose process died.

    Attributes:
        family: the model family.
        number: the trial's number in its family.
        worker: whose it was; "" where it died before it said so.
        attributes: what the objective had set.
        again: whether its parameters wait for another worker; else it counts as failed.
    """

    family: str
    number: int
    worker: str
    attributes: dict[str, str]
    again: bool


def study_name(sweep: str, family: str) -> str:
    """The name of a family's study."""
    return f"{sweep}/{family}"


def requeue(study: optuna.Study, trial: FrozenTrial, *, another_try: bool = True) -> bool:
    """Let the parameters of a trial that just failed wait for a worker again.

    Args:
        study: the trial's.
        trial: as the storage has it.
        another_try: count it towards the tries that a trial has.

    Returns:
        False where it was a duplicate, over the budget, or has had its tries.
    """
    tries = trial.user_attrs.get(ledger.TRIES, 1) + another_try
    if tries > ledger.MOST_TRIES or {ledger.DUPLICATE_OF, ledger.SURPLUS} & set(trial.user_attrs):
        return False
    study.enqueue_trial(trial.params, user_attrs={ledger.RETRY_OF: trial.number, ledger.TRIES: tries})
    return True


class Studies:
    """The studies of one sweep.

    Args:
        storage: the open database.
        name: the sweep's name.
        spaces: family -> what is searched; each has its study in the storage.
        search: how.
    """

    def __init__(self, storage: Storage, name: str, spaces: Mapping[str, Space], search: SearchConfig) -> None:
        self.storage = storage
        self.name = name
        self.spaces = dict(spaces)
        self.search = search
        self._studies = {
            family: optuna.load_study(study_name=study_name(name, family), storage=storage.rdb) for family in spaces
        }

    def of(self, family: str) -> optuna.Study:
        """A family's study."""
        return self._studies[family]

    def trials(self, family: str) -> list[FrozenTrial]:
        """A family's trials by number, as the storage has them now; not to be changed."""
        with self.storage.answers():
            return self._studies[family].get_trials(deepcopy=False)

    def all_trials(self) -> dict[str, list[FrozenTrial]]:
        """Every family's trials."""
        return {family: self.trials(family) for family in self.spaces}

    def exhausted(self, trials: Mapping[str, list[FrozenTrial]]) -> dict[str, str]:
        """The families that have nothing left to try, and why."""
        found = {family: ledger.exhausted(trials[family], space) for family, space in self.spaces.items()}
        return {family: why for family, why in found.items() if why is not None}

    def read(self, key: str, default: Any = None) -> Any:
        """A value that the sweep's processes share."""
        with self.storage.answers():
            return self._home.user_attrs.get(key, default)

    def write(self, key: str, value: Any) -> None:
        """Set such a value."""
        with self.storage.answers():
            self._home.set_user_attr(key, value)

    @property
    def budget(self) -> int | None:
        """Trials of all families together; None where only the time is limited."""
        found: int | None = self.read(BUDGET)
        return found

    def new_worker(self) -> int:
        """The number of one more worker: 0 for a sweep's first. The caller holds the lock."""
        number = int(self.read(WORKERS, 0))
        self.write(WORKERS, number + 1)
        return number

    def drop_unbegun(self) -> None:
        """Close the trials whose process ended between being made and having parameters. The caller holds the lock.

        Without it such a trial would run for ever: it has no sign of life to miss. Parameters that it was to have wait
        again.
        """
        for family, trials in self.all_trials().items():
            for trial in trials:
                if trial.state != TrialState.RUNNING or ledger.WORKER in trial.user_attrs:
                    continue
                self.storage.rdb.set_trial_user_attr(trial._trial_id, ledger.SURPLUS, UNBEGUN)
                if self.fail(trial):
                    self.enqueue_fixed(family, trial)

    def enqueue_fixed(self, family: str, trial: FrozenTrial) -> None:
        """Let the parameters that a trial was to have, but never had, wait again; nothing where it was to have none."""
        fixed = trial.system_attrs.get("fixed_params")
        if fixed is not None:
            kept = {key: value for key, value in trial.user_attrs.items() if key in (ledger.RETRY_OF, ledger.TRIES)}
            self.of(family).enqueue_trial(fixed, user_attrs=kept)

    def fail(self, trial: FrozenTrial) -> bool:
        """End a running trial as failed; False where another process ended it first."""
        try:
            return self.storage.rdb.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:
            return False

    def fail_stale(self) -> None:
        """End the trials that gave no sign of life for too long, and let their parameters wait again."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            for family in self.spaces:
                optuna.storages.fail_stale_trials(self.of(family))

    def fail_those_of(self, worker: str) -> None:
        """The same for the running trials of a worker that is known to be dead."""
        for family, trials in self.all_trials().items():
            for trial in trials:
                is_its = trial.state == TrialState.RUNNING and trial.user_attrs.get(ledger.WORKER) == worker
                if is_its and self.fail(trial):
                    requeue(self.of(family), trial)

    def collect(self, worker: str | None = None) -> list[Abandoned]:
        """The dead trials that nobody has been told of, each once. The caller holds the lock.

        Args:
            worker: only this one's.
        """
        told = [tuple(item) for item in self.read(COLLECTED, [])]
        found = []
        for family, trials in self.all_trials().items():
            for trial, state in zip(trials, ledger.states(trials), strict=True):
                its = trial.user_attrs.get(ledger.WORKER, "")
                died = trial.state == TrialState.FAIL and state in ("failed", "requeued")
                if not died or ledger.REASON in trial.user_attrs or (family, trial.number) in told:
                    continue
                if worker is None or its == worker:
                    found.append(
                        Abandoned(family, trial.number, its, given_attributes(trial), again=state == "requeued")
                    )
        if found:
            self.write(COLLECTED, [*told, *((item.family, item.number) for item in found)])
        return found

    @property
    def _home(self) -> optuna.Study:
        return self._studies[min(self._studies)]


def given_attributes(trial: FrozenTrial) -> dict[str, str]:
    """What the objective has set of a trial."""
    return {key: str(value) for key, value in trial.user_attrs.items() if key not in ledger.OWN}
