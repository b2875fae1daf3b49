"""The ends of a sweep's runs where it is broken off, with doubles for its store; tests/e2e/ has whole sweeps."""

import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imgcls.errors import UserError
from imgcls.jobs import tune as job
from imgcls.jobs.console import Console
from imgcls.jobs.signals import Signals, Stopped

QUIET = Console(quiet=True)


class Run:
    """A run that remembers how it was ended."""

    unsent = None
    store = None

    def __init__(self, run_id: str) -> None:
        self.run_id = self.where = run_id
        self.ends: list[str] = []

    def finish(self, status: str, _reason: str | None = None) -> None:
        self.ends.append(status)

    def leave(self) -> None:
        self.ends.append("left")

    def log_params(self, params: Any) -> None:
        """Not looked at."""


class Attributes(dict[str, str]):
    """Those of a sweep."""

    def set(self, name: str, text: str) -> None:
        self[name] = text


@pytest.fixture
def signals() -> Iterator[Signals]:
    with Signals() as found:
        yield found


def sweep() -> Any:
    return SimpleNamespace(name="sweep", attributes=Attributes(), table=list)


def subjects(*families: str) -> Any:
    recipe = SimpleNamespace(train=SimpleNamespace(output_dir="outputs"), flat=dict)
    return {name: SimpleNamespace(prepared=SimpleNamespace(recipe=recipe, plan="a plan")) for name in families}


def lead(monkeypatch: pytest.MonkeyPatch, signals: Signals, start: Any, *, found: Any = None) -> Run:
    """Lead a sweep of three families, whose runs `start` makes; it must not come to its work."""
    leading: Any = Run("leading")
    monkeypatch.setattr("imgcls.jobs.tune.tracking.start", start)
    monkeypatch.setattr(job, "Report", lambda *_words: SimpleNamespace(write=lambda *_words, **_options: None))
    monkeypatch.setattr(job, "_work", lambda *_words: pytest.fail("it works"))
    job._lead(leading, found or sweep(), subjects("a", "b", "c"), QUIET, signals)
    return leading  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("error", "status"), [(Stopped(signal.SIGINT), "KILLED"), (UserError("the store takes no new run"), "FAILED")]
)
def test_what_breaks_into_the_making_of_the_families_runs_ends_those_that_there_are(
    error: BaseException, status: str, monkeypatch: pytest.MonkeyPatch, signals: Signals
) -> None:
    made: list[Run] = []

    def start(_folder: Path, *, name: str, **_options: Any) -> Run:
        if name == "b":
            raise error
        made.append(Run(name))
        return made[-1]

    with pytest.raises(type(error)):
        lead(monkeypatch, signals, start)
    assert [(run.run_id, run.ends) for run in made] == [("a", [status])]


def test_a_signal_while_a_run_is_made_ends_that_one_too(monkeypatch: pytest.MonkeyPatch, signals: Signals) -> None:
    made: list[Run] = []

    def start(_folder: Path, *, name: str, **_options: Any) -> Run:
        made.append(Run(name))
        if name == "b":
            signal.raise_signal(signal.SIGINT)
        return made[-1]

    with pytest.raises(Stopped):
        lead(monkeypatch, signals, start)
    assert [(run.run_id, run.ends) for run in made] == [("a", ["KILLED"]), ("b", ["KILLED"])]


def test_a_storage_that_does_not_take_the_id_of_a_familys_run_ends_it(
    monkeypatch: pytest.MonkeyPatch, signals: Signals
) -> None:
    made: list[Run] = []
    found = sweep()

    def refuse(name: str, _text: str) -> None:
        raise UserError(f"{name} is not taken")

    found.attributes.set = refuse

    def start(_folder: Path, *, name: str, **_options: Any) -> Run:
        made.append(Run(name))
        return made[-1]

    with pytest.raises(UserError, match="run/a is not taken"):
        lead(monkeypatch, signals, start, found=found)
    assert [run.ends for run in made] == [["FAILED"]]


def test_one_that_joins_and_waits_in_vain_leaves_no_folder(monkeypatch: pytest.MonkeyPatch, signals: Signals) -> None:
    monkeypatch.setattr(job, "PARENT_WAIT_S", -1.0)
    run: Any = Run("leading")
    with pytest.raises(UserError, match="has made no runs for its families; it may be gone"):
        job._join(run, sweep(), subjects("a"), QUIET, signals)
    assert run.ends == ["left"]
