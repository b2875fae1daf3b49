"""A sweep: one Optuna study a family in one storage, which any number of processes open, work at, and read."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import optuna
import pandas as pd
from optuna.exceptions import DuplicatedStudyError
from pydantic import ValidationError

from imgcls.errors import UserError
from imgcls.plugins import nearest
from imgcls.tuning import trials as ledger
from imgcls.tuning.importance import importance
from imgcls.tuning.samplers import check_sampler
from imgcls.tuning.space import SearchConfig, Space
from imgcls.tuning.storage import GRACE_S, HEARTBEAT_S, Storage
from imgcls.tuning.studies import ATTRIBUTE, BUDGET, FIRST, SWEEP, Abandoned, Studies, requeue, study_name
from imgcls.tuning.worker import Ended, Objective, Outcome, Worker


class Attributes:
    """Small texts that all processes of a sweep share."""

    def __init__(self, studies: Studies) -> None:
        self._studies = studies

    def get(self, name: str) -> str | None:
        """The text, or None where it was never set."""
        found: str | None = self._studies.read(ATTRIBUTE + name)
        return found

    def set(self, name: str, text: str) -> None:
        """Set the text, whatever stands there."""
        self._studies.write(ATTRIBUTE + name, text)

    def first(self, name: str, text: str) -> str:
        """Set the text where none stands yet; what stands there then. Of several at the same moment one is first."""
        with self._studies.storage.lock(self._studies.name):
            found = self.get(name)
            if found is None:
                self.set(name, text)
            return text if found is None else found


class Sweep:
    """An open sweep; from `open_sweep` or `load_sweep`. Close it, or use it as a context.

    Attributes:
        attributes: small texts that all its processes share.
        identity: what the sweep was opened for: name -> text.
        notices: what the user should know of how it was opened.
    """

    def __init__(self, studies: Studies, identity: Mapping[str, str], notices: Sequence[str] = ()) -> None:
        self._studies = studies
        self.attributes = Attributes(studies)
        self.identity = dict(identity)
        self.notices = list(notices)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the storage."""
        self._studies.storage.close()

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self._studies.name

    @property
    def storage(self) -> str:
        """The storage as another process opens it, from any folder; with the password."""
        return self._studies.storage.url

    @property
    def families(self) -> list[str]:
        """The families, in the order in which they were given."""
        return list(self._studies.spaces)

    @property
    def spaces(self) -> dict[str, Space]:
        """family -> what is searched."""
        return dict(self._studies.spaces)

    @property
    def search(self) -> SearchConfig:
        """How it is searched."""
        return self._studies.search

    @property
    def budget(self) -> int | None:
        """Trials of all families together, with those that `more` has added; None where only the time is limited."""
        return self._studies.budget

    def work(
        self,
        objective: Objective,
        *,
        worker: str,
        stop: Callable[[], bool],
        lock: Path | None = None,
        on_end: Callable[[Ended], None] | None = None,
        until: float | None = None,
        poll_s: float = 1.0,
    ) -> Outcome:
        """Run trials, one after another, until the sweep is done.

        When the budget is used but others' trials still run, it waits for them: should one lose its process, its
        parameters are run here.

        Args:
            objective: runs one trial and gives a value for each objective. It raises `Pruned` to end it early and
                `TrialFailed` to fail it; any other Exception fails it as well, and the sweep goes on. What is no
                Exception (KeyboardInterrupt) closes the trial, lets its parameters wait again, and is raised.
            worker: this worker's name, which no other that lives has; `requeue_of` knows it by that.
            stop: asked between trials whether to return.
            lock: a file to lock during a turn, beside the storage's own lock: the turns of this host's workers then
                take part in nothing else that locks it.
            on_end: called after every trial, the duplicates and surplus ones too.
            until: `time.time()` after which no trial is begun. None: the recipe's time limit, from now. Workers of one
                command get the same, so that one that is started again gets no more time than the others.
            poll_s: seconds between looks while it waits for others' trials.

        Returns:
            done, stopped, or time where the time was up.

        Raises:
            UserError: the storage stopped answering, or a package that the sampler needs is missing.
        """
        limit = self.search.seconds
        if until is None and limit is not None:
            until = time.time() + limit
        with self._studies.storage.answers():
            return Worker(self._studies, objective, name=worker, lock=lock, until=until, on_end=on_end).loop(
                stop, poll_s
            )

    def requeue_of(self, worker: str) -> list[Abandoned]:
        """Let the trial of a worker that is known to be dead wait for another, before one of that name is started.

        Returns:
            its trials that no earlier call, here or on another machine, has given: each is given once.
        """
        with self._studies.storage.answers(), self._studies.storage.lock(self.name):
            self._studies.drop_unbegun()
            self._studies.fail_those_of(worker)
            return self._studies.collect(worker)

    def requeue_stale(self) -> list[Abandoned]:
        """The same for all trials, on any machine, that gave no sign of life for too long.

        Workers do it too, at their turns; the trials are given here, once, whoever found them.
        """
        with self._studies.storage.answers(), self._studies.storage.lock(self.name):
            self._studies.drop_unbegun()
            self._studies.fail_stale()
            return self._studies.collect()

    def is_done(self) -> bool:
        """Whether no trial runs and none is to come."""
        trials = self._studies.all_trials()
        return ledger.is_done(trials, self._studies.exhausted(trials), self.budget)

    def exhausted(self) -> dict[str, str]:
        """The families that have nothing left to try, and why, in words."""
        return self._studies.exhausted(self._studies.all_trials())

    def counts(self, family: str | None = None) -> dict[str, int]:
        """How many trials there are in every state, of one family or of all."""
        found = Counter(
            state
            for name, trials in self._studies.all_trials().items()
            if family in (None, name)
            for state in ledger.states(trials)
        )
        return {state: found[state] for state in ledger.STATES}

    def more(self, trials: int) -> int:
        """Add so many trials to the budget; the new budget.

        Raises:
            UserError: the sweep has no number of trials.
        """
        with self._studies.storage.lock(self.name):
            budget = self.budget
            if budget is None:
                raise UserError(
                    f"the sweep {self.name!r} has no number of trials, only a time limit; run the same command again, "
                    "which gets its time anew"
                )
            self._studies.write(BUDGET, budget + trials)
            return budget + trials

    def best(self, family: str | None = None) -> dict[str, Any] | None:
        """The row of `table` with the best first objective, of one family or of all; None where none is complete."""
        rows = self.table()
        rows = rows[
            (rows["state"] == "complete") & (rows["family"].isin(self.families if family is None else [family]))
        ]
        if rows.empty:
            return None
        values = rows[self.search.objectives[0]]
        row = rows.iloc[int(values.argmax() if self.search.directions[0] == "maximize" else values.argmin())]
        return {str(name): value.item() if isinstance(value, np.generic) else value for name, value in row.items()}

    def pareto(self) -> pd.DataFrame:
        """The rows of `table` that are complete and that no other surpasses in one objective without being worse in
        another."""
        rows = self.table()
        rows = rows[rows["state"] == "complete"]
        signs = [1.0 if direction == "maximize" else -1.0 for direction in self.search.directions]
        points = rows[self.search.objectives].to_numpy(dtype=float) * signs
        kept = [not any((other >= mine).all() and (other > mine).any() for other in points) for mine in points]
        return rows[pd.Series(kept, index=rows.index, dtype=bool)]

    def importance(self, family: str) -> tuple[dict[str, float], str] | None:
        """How much each field mattered for the first objective.

        Returns:
            (field -> share, in falling order and adding up to 1; the evaluator's name), or None where there are too
            few different complete trials to tell.
        """
        return importance(self._studies.trials(family), self.search.directions[0])

    def table(self) -> pd.DataFrame:
        """One row a trial, by family and number.

        Columns: `family`, `number`, `state` (complete, pruned, failed, running, waiting, duplicate, surplus,
        requeued), one for each objective (float; of a pruned trial the last value it reported), `started` (seconds
        since the sweep's first trial), `seconds`, `worker`, `run_id`, `reason`, `epochs` (the last step reported),
        `curve` (list of the values reported), and one for each searched field (None where its condition does not
        hold).
        """
        return ledger.table(self._studies.all_trials(), self._studies.spaces, self.search.objectives)


def open_sweep(
    storage: str,
    name: str,
    spaces: Mapping[str, Space],
    search: SearchConfig,
    identity: Mapping[str, str],
    first: Mapping[str, Mapping[str, Any]],
    *,
    heartbeat_s: int = HEARTBEAT_S,
    grace_s: int = GRACE_S,
) -> Sweep:
    """Create a sweep, or join the one of that name.

    Args:
        storage: `sqlite:///file`, `postgresql://user:password@host/database`, or a file, which is SQLite.
        name: the sweep's; its studies are called `<name>/<family>`.
        spaces: family -> what is searched.
        search: how, and for how long.
        identity: what else must be the same for trials to be compared: name -> text.
        first: family -> the recipe's own values of the searched fields, which are the family's first trial.
        heartbeat_s: seconds between signs of life of a running trial.
        grace_s: seconds without one until it is taken for dead.

    Raises:
        UserError: the storage does not answer; a sweep of that name has other families, another space, identity or
            objectives; a first value lies outside the space; the sampler's package is missing.
    """
    if not name or "/" in name:
        raise UserError(f"{name!r} is no name of a sweep; expected a text without slashes")
    if not spaces:
        raise UserError("a sweep needs at least one model family")
    check_sampler(search)
    for family, values in first.items():
        if problems := spaces[family].problems(values):
            raise UserError(
                f"the recipe's own values are the first trial of {family}, but lie outside search.space: "
                f"{'; '.join(problems)}. Widen the space, or change the recipe's values"
            )
    opened = Storage(storage, on_stale=_requeue_stale, heartbeat_s=heartbeat_s, grace_s=grace_s)
    try:
        with opened.answers(), opened.lock(name):
            _check_families(opened, name, spaces)
            about = {
                "families": list(spaces),
                "identity": dict(identity),
                "search": search.model_dump(mode="json"),
            }
            for family, space in spaces.items():
                _create(opened, name, family, {**about, "space": space.as_json()}, search)
            studies = Studies(opened, name, spaces, search)
            if (found := studies.read(BUDGET, "")) == "":
                found = search.num_trials
                studies.write(BUDGET, found)
            for family, values in first.items():
                if FIRST not in studies.of(family).user_attrs:
                    studies.of(family).enqueue_trial(spaces[family].store(values))
                    studies.of(family).set_user_attr(FIRST, True)
            notices = []
            if search.trials is not None and search.trials != found:
                has = "no number of trials, only a time limit" if found is None else f"a budget of {found} trials"
                notices.append(
                    f"the sweep {name!r} has {has}; trials: {search.trials} changes nothing. Ask for more trials"
                )
            return Sweep(studies, identity, notices)
    except BaseException:
        opened.close()
        raise


def load_sweep(storage: str, name: str, *, heartbeat_s: int = HEARTBEAT_S, grace_s: int = GRACE_S) -> Sweep:
    """Join a sweep as it was created.

    Args:
        storage: as of `open_sweep`.
        name: the sweep's.
        heartbeat_s: as of `open_sweep`.
        grace_s: as of `open_sweep`.

    Raises:
        UserError: the storage does not answer, or has no sweep of that name.
    """
    opened = Storage(storage, on_stale=_requeue_stale, heartbeat_s=heartbeat_s, grace_s=grace_s)
    try:
        with opened.answers(), opened.lock(name):
            families = _families(opened, name)
            stored: dict[str, dict[str, Any]] = {}
            for family in families:
                study = optuna.load_study(study_name=study_name(name, family), storage=opened.rdb)
                stored[family] = study.user_attrs.get(SWEEP, {})
            about = next((value for value in stored.values() if value), None)
            if about is None or not all(stored.get(family) for family in about["families"]):
                known = sorted({found.rsplit("/", 1)[0] for found in _names(opened) if "/" in found})
                guess = nearest(name, known)
                raise UserError(
                    f"the storage {opened} has no sweep {name!r}; it has {', '.join(known) or 'none'}."
                    + (f" Did you mean {guess!r}?" if guess else "")
                )
            spaces = {family: Space.from_json(stored[family]["space"]) for family in about["families"]}
            try:
                search = SearchConfig.model_validate(about["search"])
            except ValidationError as error:
                raise UserError(f"the sweep {name!r} was made by another version of imgcls: {error}") from None
            return Sweep(Studies(opened, name, spaces, search), about["identity"])
    except BaseException:
        opened.close()
        raise


def _requeue_stale(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    requeue(study, trial)


def _names(storage: Storage) -> list[str]:
    return optuna.get_all_study_names(storage=storage.rdb)


def _families(storage: Storage, name: str) -> list[str]:
    return [found.removeprefix(f"{name}/") for found in _names(storage) if found.startswith(f"{name}/")]


def _check_families(storage: Storage, name: str, spaces: Mapping[str, Space]) -> None:
    """See that the sweep, where there is one, has these families."""
    for family in _families(storage, name):
        study = optuna.load_study(study_name=study_name(name, family), storage=storage.rdb)
        there = study.user_attrs.get(SWEEP, {}).get("families", list(spaces))
        if set(there) != set(spaces):
            what = f"the families are {', '.join(there)} there and {', '.join(spaces)} here"
            raise _another(storage, name, [what])


def _create(storage: Storage, name: str, family: str, about: Mapping[str, Any], search: SearchConfig) -> None:
    """Make a family's study, or see that the one that stands is the same."""
    try:
        study = optuna.create_study(
            storage=storage.rdb, study_name=study_name(name, family), directions=search.directions
        )
    except DuplicatedStudyError:
        study = optuna.load_study(study_name=study_name(name, family), storage=storage.rdb)
    there = study.user_attrs.get(SWEEP)
    if there is None:  # new, or its maker died before it wrote this
        study.set_user_attr(SWEEP, about)
        return
    space = Space.from_json(about["space"])
    found = [f"{family}: {text}" for text in space.differences(there["space"])]
    for key in sorted({*there["identity"], *about["identity"]}):
        then, now = there["identity"].get(key), about["identity"].get(key)
        if then != now:
            found.append(f"{key} is {then or 'not given'} there and {now or 'not given'} here")
    if there["search"]["objectives"] != search.objectives:
        then, now = ", ".join(there["search"]["objectives"]), ", ".join(search.objectives)
        found.append(f"the objectives are {then} there and {now} here")
    if found:
        raise _another(storage, name, found)


def _another(storage: Storage, name: str, differences: Sequence[str]) -> UserError:
    taken = {found.split("/", 1)[0] for found in _names(storage)}
    free = next(f"{name}-{k}" for k in range(2, len(taken) + 3) if f"{name}-{k}" not in taken)
    return UserError(
        f"the storage {storage} has a sweep {name!r} that differs: {'; '.join(differences)}. Take another name, "
        f"such as {free!r}, or what that sweep was made with"
    )
