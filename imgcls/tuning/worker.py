"""A worker's loop: whose turn it is, which parameters, one trial around the objective, and how it ended."""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from filelock import FileLock
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from imgcls.tuning import trials as ledger
from imgcls.tuning.samplers import make_pruner, make_sampler
from imgcls.tuning.space import parse_duration
from imgcls.tuning.studies import UNBEGUN, Studies, given_attributes, requeue

Outcome = Literal["done", "stopped", "time"]
FEW_DUPLICATES = 3
"""Duplicates in a row after which the next proposals are random: a sampler that is sure of itself repeats itself."""


class Pruned(Exception):
    """Raised by an objective to end its trial early, as one that is not worth going on with."""


class TrialFailed(Exception):
    """Raised by an objective to end its trial as failed; its text is the reason."""


class _Closed(Exception):
    """Ends a trial as failed, after its reason has been written down."""


@dataclass(frozen=True)
class Ended:
    """How a trial ended.

    Attributes:
        family: the model family.
        number: the trial's number in its family.
        state: complete, pruned, failed, duplicate, surplus or requeued.
        values: one for each objective where it is complete, else empty.
        reason: why it ended so, in words; None where it needs none.
        attributes: what the objective has set.
        error: what the objective raised.
    """

    family: str
    number: int
    state: str
    values: list[float]
    reason: str | None
    attributes: dict[str, str]
    error: BaseException | None


class Asked:
    """One trial, as an objective sees it.

    Attributes:
        family: the model family.
        number: the trial's number in its family.
        values: field -> value; fields whose condition does not hold are not there.
    """

    def __init__(self, family: str, values: Mapping[str, Any], trial: optuna.Trial) -> None:
        self.family = family
        self.number = trial.number
        self.values = dict(values)
        self._trial = trial
        self._curve: dict[int, float] = {}

    @property
    def name(self) -> str:
        """Such as mobilenet_v2/017."""
        return trial_name(self.family, self.number)

    def report(self, value: float, step: int) -> bool:
        """Tell the value after `step` (an epoch; 0 or above); True where the trial should stop and raise `Pruned`.

        Raises:
            TrialFailed: the trial was taken for dead meanwhile and has been given to another worker.
        """
        if step in self._curve:
            return False
        self._curve[step] = value
        try:
            if len(self._trial.study.directions) > 1:  # Optuna holds no curve there, and prunes nothing
                self._trial.set_user_attr(ledger.CURVE, self._curve)
                return False
            self._trial.report(value, step)
            return self._trial.should_prune()
        except UpdateFinishedTrialError:
            raise TrialFailed("it gave no sign of life for too long, and another worker has it now") from None

    def set_attribute(self, name: str, text: str) -> None:
        """Write a small text down with the trial; `run_id` has a column in the sweep's table.

        Raises:
            ValueError: the name is one of the sweep's own.
            TrialFailed: as of `report`.
        """
        if name in ledger.OWN:
            raise ValueError(f"{name} is an attribute of the sweep's own")
        try:
            self._trial.set_user_attr(name, text)
        except UpdateFinishedTrialError:
            raise TrialFailed("it gave no sign of life for too long, and another worker has it now") from None


Objective = Callable[[Asked], Sequence[float]]


def trial_name(family: str, number: int) -> str:
    """The name of a trial: mobilenet_v2/017."""
    return f"{family}/{number:03d}"


class Worker:
    """One worker of a sweep; see `Sweep.work`."""

    def __init__(
        self,
        studies: Studies,
        objective: Objective,
        *,
        name: str,
        lock: Path | None,
        until: float | None,
        on_end: Callable[[Ended], None] | None,
    ) -> None:
        self._studies = studies
        self._objective = objective
        self._name = name
        self._lock = lock
        self._until = until
        self._on_end = on_end
        with studies.storage.lock(studies.name):
            number = studies.new_worker()
        search = studies.search
        self._samplers: dict[str, BaseSampler] = {}
        self._random: dict[str, BaseSampler] = {}
        for place, family in enumerate(studies.spaces):
            self._samplers[family] = make_sampler(search, worker=number, family=place)
            other = search.model_copy(update={"sampler": "random"})
            self._random[family] = make_sampler(other, worker=number, family=place + len(studies.spaces))
            studies.of(family).pruner = make_pruner(search)
        self._looked_for_stale = -math.inf
        self._unsure: set[str] = set()
        self._asked_id: int | None = None
        self._trial_id: int | None = None
        self._error: BaseException | None = None

    def loop(self, stop: Callable[[], bool], poll_s: float) -> Outcome:
        """Turns until the sweep is done, or it is told to stop, or the time is up."""
        while True:
            if stop():
                return "stopped"
            if self._until is not None and time.time() >= self._until:
                return "time"
            found = self._turn()
            if found == "done":
                return "done"
            if found == "wait":
                time.sleep(poll_s)

    def _turn(self) -> Literal["done", "wait", "ran"]:
        with ExitStack() as held:
            if self._lock is not None:
                held.enter_context(FileLock(self._lock, poll_interval=0.05))
            held.enter_context(self._studies.storage.lock(self._studies.name))
            self._studies.drop_unbegun()
            if time.monotonic() - self._looked_for_stale > self._studies.storage.heartbeat_s:
                self._studies.fail_stale()
                self._looked_for_stale = time.monotonic()
            trials, budget = self._studies.all_trials(), self._studies.budget
            finished = self._studies.exhausted(trials)
            if ledger.is_done(trials, finished, budget):
                return "done"
            search = self._studies.search
            family = ledger.next_family(
                trials,
                finished,
                budget=budget,
                leader=search.allocation == "leader",
                time_share=self._time_share(),
                direction=search.directions[0],
            )
            if family is None:
                return "wait"  # others' trials are the last, and may yet lose their process
            at_random = family in self._unsure or ledger.duplicates_in_a_row(trials[family]) >= FEW_DUPLICATES
            self._studies.of(family).sampler = (self._random if at_random else self._samplers)[family]
            self._unsure.discard(family)
            self._run(family, held)
        return "ran"

    def _time_share(self) -> float:
        """The share of the time limit that is used."""
        limit = self._studies.search.time_limit
        if self._until is None or limit is None:
            return 0.0
        return 1 - (self._until - time.time()) / parse_duration(limit)

    def _run(self, family: str, held: ExitStack) -> None:
        """One trial: asked for under the lock, which the objective lets go of."""
        self._asked_id = self._trial_id = self._error = None
        study = self._studies.of(family)
        try:
            study.optimize(lambda trial: self._begin(family, trial, held), n_trials=1, catch=(_Closed,))
        except BaseException as error:
            if self._begun is None:
                self._studies.drop_unbegun()  # we still hold the lock: the trial is ours
                self._without_parameters(family, error)
                return
            trial = self._studies.storage.rdb.get_trial(self._begun)
            if not trial.state.is_finished():
                self._close(family, trial, error)
                raise
            if not isinstance(error, Exception) or ledger.REASON in trial.user_attrs:
                raise
            # Taken for dead while it ran, and ended by another: Optuna cannot end it again, and says so by an error.
        if self._begun is None:
            assert self._asked_id is not None
            self._studies.enqueue_fixed(family, self._studies.storage.rdb.get_trial(self._asked_id))
            assert self._error is not None
            self._without_parameters(family, self._error)
            return
        trial = self._studies.storage.rdb.get_trial(self._begun)
        interrupted = self._error if not isinstance(self._error, Exception) else None
        if interrupted is not None and trial.user_attrs.get(ledger.REASON) == _interrupted(interrupted):
            requeue(study, trial, another_try=False)
        self._tell_end(family, self._begun)
        if interrupted is not None:
            raise interrupted

    def _without_parameters(self, family: str, error: BaseException) -> None:
        """Go on where a sampler failed: the family's next proposal is random. Anything else is raised."""
        sampler = self._samplers[family]
        database = isinstance(error, StorageInternalError | SQLAlchemyError)
        if not isinstance(error, Exception) or database or self._studies.of(family).sampler is not sampler:
            raise error
        self._unsure.add(family)
        text = f"{family}: the sampler {self._studies.search.sampler} failed, the next proposal is random: {error}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)

    @property
    def _begun(self) -> int | None:
        """The trial that has parameters; a property, for it is set in between."""
        return self._trial_id

    def _close(self, family: str, trial: FrozenTrial, error: BaseException) -> None:
        """End a trial that Optuna left running."""
        self._studies.storage.rdb.set_trial_user_attr(trial._trial_id, ledger.REASON, _interrupted(error))
        if self._studies.fail(trial):
            requeue(self._studies.of(family), trial, another_try=False)
        self._tell_end(family, trial._trial_id)

    def _tell_end(self, family: str, trial_id: int) -> None:
        if self._on_end is None:
            return
        trials = self._studies.trials(family)
        place = next(k for k, trial in enumerate(trials) if trial._trial_id == trial_id)
        trial, state = trials[place], ledger.states(trials)[place]
        values = list(trial.values or []) if state == "complete" else []
        why = ledger.reason(trial, state)
        self._on_end(Ended(family, trial.number, state, values, why, given_attributes(trial), self._error))

    def _begin(self, family: str, trial: optuna.Trial, held: ExitStack) -> Sequence[float]:
        storage, space = self._studies.storage, self._studies.spaces[family]
        # Optuna's thread gives signs of life; it may not have begun. One is there before the worker's name is.
        self._asked_id = trial._trial_id
        storage.rdb.record_heartbeat(trial._trial_id)
        try:
            values = space.suggest(trial)
            trial.set_user_attr(ledger.WORKER, self._name)
        except BaseException as error:
            self._error = error
            trial.set_user_attr(ledger.SURPLUS, UNBEGUN)
            raise _Closed from error
        self._trial_id = trial._trial_id
        trials, budget = self._studies.all_trials(), self._studies.budget
        mine = trials[family][trial.number]
        if ledger.is_surplus(mine, family, trials, budget):
            trial.set_user_attr(ledger.SURPLUS, f"the budget of {budget} trials was used by others at the same moment")
            raise _Closed
        before = ledger.earlier(trials[family], values, space, trial.number)
        if before is not None:
            return _as_before(trial, before)
        held.close()
        return self._call(Asked(family, values, trial), trial)

    def _call(self, asked: Asked, trial: optuna.Trial) -> Sequence[float]:
        """The objective, its errors as Optuna understands them."""
        try:
            values = [float(value) for value in self._objective(asked)]
            _check_values(values, self._studies.search.objectives)
        except BaseException as error:
            self._error = error
            try:
                if isinstance(error, Pruned):
                    if str(error):
                        trial.set_user_attr(ledger.REASON, str(error))
                    raise optuna.TrialPruned from error
                trial.set_user_attr(ledger.REASON, _why(error))
            except UpdateFinishedTrialError:
                pass  # taken for dead meanwhile; what it is now is no longer ours to say
            raise _Closed from error
        return values


def _as_before(trial: optuna.Trial, before: FrozenTrial) -> Sequence[float]:
    """End a trial as the one that had its parameters ended."""
    trial.set_user_attr(ledger.DUPLICATE_OF, before.number)
    if before.state == TrialState.COMPLETE:
        return list(before.values)
    if before.state == TrialState.PRUNED:
        if before.last_step is not None:
            trial.report(before.intermediate_values[before.last_step], before.last_step)
        raise optuna.TrialPruned
    raise _Closed


def _check_values(values: Sequence[float], objectives: Sequence[str]) -> None:
    if len(values) != len(objectives):
        raise TrialFailed(f"{len(values)} values for the objectives {', '.join(objectives)}")
    for name, value in zip(objectives, values, strict=True):
        if math.isnan(value):
            raise TrialFailed(f"{name} is not a number")


def _why(error: BaseException) -> str:
    if isinstance(error, TrialFailed):
        return str(error) or "no reason given"
    return f"{type(error).__name__}: {error}" if isinstance(error, Exception) else _interrupted(error)


def _interrupted(error: BaseException) -> str:
    return f"interrupted by {type(error).__name__}" + (f": {error}" if str(error) else "")
