"""Promotion on a real SQLite store: versions, verdicts, moves, rollback; cut off at every step; two at once."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from imgcls.errors import UserError
from imgcls.evaluation.gates import Gate, Verdict
from imgcls.tracking import registry_claim
from imgcls.tracking.promotion import history, move_alias, rollback
from imgcls.tracking.registry import Version, find_alias, read_alias, record_verdict, register, versions
from imgcls.tracking.registry_claim import CLAIM_TAG, LASTS, claimed
from imgcls.tracking.registry_log import Move, history_table, previous, read_moves
from imgcls.tracking.store import Store

# MLflow's own models of its tables, read when its SQL store is first opened.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")]

PASSED = Verdict((Gate("acc", 0.93, ">= 0.9", True, "acc is 0.93"),))
REFUSED = Verdict((Gate("acc", 0.5, ">= 0.9", False, "acc is 0.5, too little"),))


def new_run(store: Store, *, model: bool = True) -> str:
    """A run, with a LoggedModel `model` that is complete but for its files."""
    from mlflow.entities import LoggedModelStatus

    run_id: str = store.client.create_run(store.experiment_id).info.run_id
    if model:
        logged = store.client.create_logged_model(store.experiment_id, name="model", source_run_id=run_id)
        store.client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    store.client.set_terminated(run_id)
    return run_id


def promoted(store: Store, name: str, number: int) -> list[Version]:
    """So many versions, each of which was the champion, one after the other."""
    made: list[Version] = []
    for _ in range(number):
        made.append(register(store, new_run(store), name))
        before = made[-2].version if len(made) > 1 else None
        move_alias(store, name, "champion", made[-1].version, expected=before, reason="better")
    return made


def tags(store: Store, version: Version) -> dict[str, str]:
    return dict(store.client.get_model_version(version.name, version.version).tags)


# --- versions


def test_a_run_registered_twice_is_one_version(store: Store) -> None:
    first, second = new_run(store), new_run(store)
    one = register(store, first, "twice")
    assert register(store, first, "twice") == one
    two = register(store, second, "twice")
    assert [(version.version, version.run_id) for version in versions(store, "twice")] == [("1", first), ("2", second)]
    assert two.uri == "models:/twice/2"
    assert one.model_id.startswith("m-")
    assert register(store, first, "elsewhere").version == "1"


def test_a_real_model_is_loaded_by_its_alias_and_its_files_are_not_copied(store: Store) -> None:
    import mlflow
    from mlflow.pyfunc.model import PythonModel

    class Tiny(PythonModel):
        def predict(self, context: Any, model_input: list[str], params: dict[str, Any] | None = None) -> list[str]:  # noqa: ARG002
            return [text.upper() for text in model_input]

    with mlflow.start_run() as run:
        mlflow.pyfunc.log_model(name="model", python_model=Tiny(), pip_requirements=[])
    version = register(store, run.info.run_id, "real")
    move_alias(store, "real", "champion", version.version, expected=None)
    assert mlflow.pyfunc.load_model("models:/real@champion").predict(["a"]) == ["A"]
    assert read_alias(store, "real") == replace(version, aliases=("champion",), tags=read_alias(store, "real").tags)


def test_a_verdict_stands_on_the_version_with_each_figure_and_both_runs(store: Store) -> None:
    champion, challenger = (register(store, new_run(store), "verdict") for _ in range(2))
    record_verdict(store, challenger, REFUSED, against=champion)
    found = tags(store, challenger)
    assert found.pop("promotion.time").endswith("+00:00")
    assert found == {
        "promotion": "rejected",
        "promotion.gate.acc": "0.5 (wanted >= 0.9): refused",
        "promotion.verdict": "refused",
        "promotion.reason": "acc is 0.5, too little",
        "promotion.run": challenger.run_id,
        "promotion.against_run": champion.run_id,
        "promotion.against_version": "1",
    }
    other = Verdict((Gate("f1", 0.95, ">= 0.9", True, "f1 is 0.95"),))
    record_verdict(store, challenger, other, against=champion)
    found = tags(store, challenger)
    assert "promotion" not in found
    assert [name for name in found if "gate" in name] == ["promotion.gate.f1"]


def test_the_version_that_serves_is_not_called_rejected_and_one_that_is_forced_is_not_either(store: Store) -> None:
    [champion] = promoted(store, "serving", 1)
    record_verdict(store, champion, REFUSED, against=None)
    assert tags(store, champion)["promotion"] == "champion"
    forced = register(store, new_run(store), "serving")
    record_verdict(store, forced, REFUSED, against=champion, forced=True)
    assert "promotion" not in tags(store, forced)
    assert tags(store, forced)["promotion.verdict"] == "refused"


# --- moves


def test_each_champion_replaces_the_one_before_and_the_history_says_so(store: Store) -> None:
    made = promoted(store, "story", 3)
    assert [tags(store, version)["promotion"] for version in made] == ["replaced", "replaced", "champion"]
    assert tags(store, made[1])["promotion.reason"] == "replaced by version 3 (promotion): better"
    table = history(store, "story")
    assert table["number"].tolist() == [1, 2, 3]
    assert table["version"].tolist() == ["1", "2", "3"]
    assert table["replaced"].tolist() == [None, "1", "2"]
    assert table["replaced_run_id"].tolist() == ["", made[0].run_id, made[1].run_id]
    assert set(table["state"]) == {"done"}
    assert set(table["alias"]) == {"champion"}


def test_the_same_move_again_changes_nothing(store: Store) -> None:
    promoted(store, "again", 2)
    before = history(store, "again")
    assert move_alias(store, "again", "champion", "2", expected="1").number == 2
    assert move_alias(store, "again", "champion", "2", expected="2").number == 2
    assert history(store, "again").equals(before)


def test_a_move_decided_against_another_champion_is_refused_and_names_who_moved_it(store: Store) -> None:
    promoted(store, "late", 2)
    register(store, new_run(store), "late")
    with pytest.raises(UserError, match=r"names version 2 now \(promotion by .* better\); .* made against version 1"):
        move_alias(store, "late", "champion", "3", expected="1")
    with pytest.raises(UserError, match=r"names version 2 now .* made against none, when there was no such alias"):
        move_alias(store, "late", "champion", "3", expected=None)
    assert read_alias(store, "late").version == "2"
    assert len(history(store, "late")) == 2


def test_another_alias_has_a_history_of_its_own(store: Store) -> None:
    promoted(store, "two", 2)
    move_alias(store, "two", "shadow", "1", expected=None, reason="to compare")
    assert read_alias(store, "two", "shadow").aliases == ("shadow",)
    assert tags(store, versions(store, "two")[0])["promotion"] == "shadow"
    assert rollback(store, "two", expected="2", reason="bad").version == "1"
    assert read_alias(store, "two").aliases == ("champion", "shadow")


def test_rolling_back_twice_goes_two_back_and_a_new_promotion_lies_on_top(store: Store) -> None:
    promoted(store, "back", 3)
    move = rollback(store, "back", expected="3", reason="cats are dogs")
    assert (move.version, move.kind, move.done) == ("2", "rollback", True)
    assert tags(store, versions(store, "back")[2])["promotion.reason"] == (
        "replaced by version 2 (rollback): cats are dogs"
    )
    assert rollback(store, "back", expected="2", reason="worse still").version == "1"
    with pytest.raises(UserError, match=r"champion of 'back' \(version 1\) has no earlier version to return to"):
        rollback(store, "back", expected="1", reason="x")
    move_alias(store, "back", "champion", "3", expected="1", kind="forced", reason="it was the data")
    assert rollback(store, "back", expected="3", reason="no").version == "1"
    assert history(store, "back")["kind"].tolist() == [*["promotion"] * 3, "rollback", "rollback", "forced", "rollback"]


def test_two_who_roll_back_the_same_champion_go_one_back(store: Store) -> None:
    promoted(store, "both", 3)
    for _ in range(2):
        assert rollback(store, "both", expected="3", reason="bad").version == "2"
    with pytest.raises(UserError, match="names version 2 now"):
        rollback(store, "both", expected="1", reason="bad")
    assert len(history(store, "both")) == 4


def test_a_deleted_version_is_passed_over(store: Store) -> None:
    promoted(store, "gone", 3)
    store.client.delete_model_version("gone", "2")
    assert rollback(store, "gone", expected="3", reason="bad").version == "1"


def test_what_was_moved_by_hand_is_in_the_history_and_rolled_back_to(store: Store) -> None:
    promoted(store, "hand", 1)
    register(store, new_run(store), "hand")
    register(store, new_run(store), "hand")
    store.client.set_registered_model_alias("hand", "champion", "2")
    assert history(store, "hand")["kind"].tolist() == ["promotion", "unrecorded"]
    move_alias(store, "hand", "champion", "3", expected="2", reason="better")
    table = history(store, "hand")
    assert table["kind"].tolist() == ["promotion", "unrecorded", "promotion"]
    assert table["version"].tolist() == ["1", "2", "3"]
    assert rollback(store, "hand", expected="3", reason="bad").version == "2"


# --- what a user may get wrong


def test_a_run_without_a_model_an_unknown_run_and_a_refused_name_are_errors(store: Store) -> None:
    with pytest.raises(UserError, match="has no model 'model': it has none"):
        register(store, new_run(store, model=False), "x")
    with pytest.raises(UserError, match=r"there is no run 0{32}"):
        register(store, "0" * 32, "x")
    for name in ("a/b", "a:b", "", " "):
        with pytest.raises(UserError, match="MLflow refuses the model name"):
            register(store, new_run(store), name)
    with pytest.raises(UserError, match="both kinds of quotes"):
        register(store, new_run(store), "\"'")
    assert register(store, new_run(store), "it's").version == "1"
    assert [version.version for version in versions(store, "it's")] == ["1"]


def test_an_unknown_name_tells_the_nearest_and_an_unknown_alias_those_there_are(store: Store) -> None:
    promoted(store, "animals", 1)
    for call in (versions, history, read_alias):
        with pytest.raises(UserError, match=r"unknown registered model 'animls'; known: .* Did you mean 'animals'\?"):
            call(store, "animls")
    with pytest.raises(
        UserError, match=r"has no alias 'champ'; it has champion \(version 1\)\. Did you mean 'champion'\?"
    ):
        read_alias(store, "animals", "champ")
    with pytest.raises(UserError, match=r"has no version 9; it has 1\.$"):
        move_alias(store, "animals", "champion", "9", expected="1")
    register(store, new_run(store), "fresh")
    with pytest.raises(UserError, match=r"no alias 'champion'; it has none\. Promote a run"):
        rollback(store, "fresh", expected="1", reason="x")
    assert find_alias(store, "fresh") is None
    assert find_alias(store, "nothing of the kind") is None
    assert history(store, "fresh").empty


@pytest.mark.parametrize("alias", ["latest", "Latest", "v1", "V12", "", "a b", "a" * 256])
def test_an_alias_that_mlflow_reserves_or_refuses_is_refused_before_anything_is_written(
    store: Store, alias: str
) -> None:
    with pytest.raises(UserError, match=r"is reserved by MLflow|expected 1 to 255 letters"):
        move_alias(store, "whatever", alias, "1", expected=None)


def test_a_store_without_any_model_says_so() -> None:
    client = SimpleNamespace(get_registered_model=missing, search_registered_models=lambda **_: [])
    with pytest.raises(UserError, match="no registered model 'x', nor any other"):
        versions(Store("http://nowhere", client, "0"), "x")


def missing(_: str) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

    raise MlflowException("not found", RESOURCE_DOES_NOT_EXIST)


# --- a server that stops in the middle


class Stopping:
    """A client whose server stops at the n-th call, before it is done or after, and stays so."""

    def __init__(self, client: Any, calls: int, *, done: bool) -> None:
        self._client, self._left, self._done = client, calls, done
        self.stopped = False

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left > 0:
                return real(*args, **kwargs)
            if self._left == 0 and self._done:
                real(*args, **kwargs)
            self.stopped = True
            raise ConnectionError("the server is gone")

        return call


Step = Callable[[Store], Any]


def at_every_step(
    store: Store,
    step: Step,
    check: Callable[[], None],
    *,
    done: bool,
    reset: Callable[[], None],
    only: slice = slice(None),
) -> int:
    """Stop the server at each call of `step` in turn, check, run it again with a server, and reset."""
    for calls in range(1, 60)[only]:
        broken = Stopping(store.client, calls, done=done)
        try:
            step(replace(store, client=broken))
        except UserError as error:
            assert "the server is gone" in str(error)  # noqa: PT017
        if not broken.stopped:
            return calls - 1
        check()
        step(store)
        reset()
    raise AssertionError("it never comes to an end")


@pytest.mark.slow
@pytest.mark.parametrize("done", [False, True], ids=["before it was done", "after it was done"])
def test_a_promotion_cut_off_at_any_step_moves_all_or_nothing_and_is_finished_by_the_same_again(
    store: Store, done: bool
) -> None:
    name = f"cut off {done}"
    made = promoted(store, name, 2)
    state: dict[str, Any] = {"run": new_run(store), "before": "2"}

    def promote(store: Store) -> None:
        version = register(store, state["run"], name)
        record_verdict(store, version, PASSED, against=made[0])
        move_alias(store, name, "champion", version.version, expected=state["before"], reason="better")

    def promote_again(store: Store) -> None:
        now = find_alias(store, name)
        assert now is not None
        state["before"] = now.version  # as the command does: it compares with what is there now
        promote(store)

    def whole() -> None:
        table, all_versions = history(store, name), versions(store, name)
        now = read_alias(store, name)
        assert now.version == "2" or now.run_id == state["run"]
        assert len([v for v in all_versions if v.run_id == state["run"]]) <= 1
        moved = table[table["state"] == "done"]
        assert moved["version"].iloc[-1] == now.version
        assert "unrecorded" not in set(table["kind"])

    def back() -> None:
        now = read_alias(store, name)
        assert now.run_id == state["run"]
        called = {version.version: version.tags.get("promotion") for version in versions(store, name)}
        assert called.pop(now.version) == "champion"
        assert "champion" not in called.values()
        assert called["2"] == "replaced"
        assert history(store, name)["state"].tolist()[-1] == "done"
        claims = [tag for tag in store.client.get_registered_model(name).tags if tag.startswith(CLAIM_TAG)]
        assert claims == []
        assert rollback(store, name, expected=now.version, reason="for the next step").version == "2"
        state["run"], state["before"] = new_run(store), "2"

    # Every single step of the move is tried in memory, and every one of the registration, in tests of their own.
    some = slice(1 if done else 3, None, 5)
    assert at_every_step(store, promote_again, whole, done=done, reset=back, only=some) > 25


@pytest.mark.parametrize("done", [False, True], ids=["before it was done", "after it was done"])
def test_a_registration_cut_off_at_any_step_makes_one_version(store: Store, done: bool) -> None:
    name = f"registered {done}"
    state = {"run": new_run(store), "number": "1"}

    def some() -> None:
        with suppress(UserError):  # the name is not there yet
            assert len([v for v in versions(store, name) if v.run_id == state["run"]]) <= 1

    def reset() -> None:
        assert versions(store, name)[-1].run_id == state["run"]
        assert versions(store, name)[-1].version == state["number"]
        state.update(run=new_run(store), number=str(int(state["number"]) + 1))

    step: Step = lambda store: register(store, state["run"], name)  # noqa: E731
    assert at_every_step(store, step, some, done=done, reset=reset) > 8


@pytest.mark.parametrize("done", [False, True], ids=["before it was done", "after it was done"])
@pytest.mark.parametrize("verb", ["promotion", "rollback"])
def test_a_move_cut_off_at_any_step_is_there_or_not_and_the_same_again_ends_it_once(verb: str, done: bool) -> None:
    client = Memory()
    client.delay = 0.0
    store = Store("http://server", client, "0")

    def reset() -> None:
        if client.tags:  # a step has just been finished
            assert client.aliases == {"champion": "4" if verb == "promotion" else "2"}
            assert [entry.done for entry in read_moves(client.tags)] == [True] * 3
            called = {version: tags["promotion"] for version, tags in client.version_tags.items()}
            assert called.pop(client.aliases["champion"]) == "champion"
            assert set(called.values()) == {"replaced"}
            assert not any(tag.startswith(CLAIM_TAG) for tag in client.tags)
        client.tags, client.version_tags, client.aliases = {}, {}, {"champion": "1"}
        move_alias(store, "m", "champion", "2", expected="1")
        move_alias(store, "m", "champion", "3", expected="2")

    def step(store: Store) -> None:
        if verb == "promotion":
            move_alias(store, "m", "champion", "4", expected="3", reason="better")
        else:
            rollback(store, "m", expected="3", reason="bad")

    def whole() -> None:
        assert client.aliases["champion"] in ("3", "4" if verb == "promotion" else "2")
        table = history(store, "m")
        assert table[table["state"] == "done"]["version"].iloc[-1] == client.aliases["champion"]
        assert table["kind"].tolist()[0] == "unrecorded"
        assert "unrecorded" not in table["kind"].tolist()[1:]

    reset()
    assert at_every_step(store, step, whole, done=done, reset=reset) > 12


def test_a_step_that_was_cut_off_before_the_alias_moved_is_shown_and_forgotten_by_another(store: Store) -> None:
    promoted(store, "forgotten", 1)
    for _ in range(2):
        register(store, new_run(store), "forgotten")

    class Failing(Stopping):
        def __getattr__(self, name: str) -> Any:
            if name == "set_registered_model_alias":
                raise ConnectionError("the server is gone")
            return getattr(self._client, name)

    with pytest.raises(UserError, match=r"the server is gone\. Nothing is half done"):
        move_alias(
            replace(store, client=Failing(store.client, 0, done=False)), "forgotten", "champion", "2", expected="1"
        )
    assert history(store, "forgotten")["state"].tolist() == ["done", "cut off"]
    move_alias(store, "forgotten", "champion", "3", expected="1")
    assert history(store, "forgotten")["version"].tolist() == ["1", "3"]


# --- two at once


def together(calls: list[Callable[[], Any]]) -> list[Any]:
    """Results, or UserErrors, of calls at once in threads."""
    barrier, results = threading.Barrier(len(calls)), list[Any]([None] * len(calls))

    def one(place: int) -> None:
        barrier.wait()
        try:
            results[place] = calls[place]()
        except UserError as error:
            results[place] = error

    threads = [threading.Thread(target=one, args=(k,)) for k in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_of_promotions_at_once_one_wins_and_the_others_are_told(store: Store) -> None:
    promoted(store, "race", 1)
    for _ in range(3):
        register(store, new_run(store), "race")
    found = together([partial(move_alias, store, "race", "champion", v, expected="1", reason="better") for v in "234"])
    [won] = [result for result in found if isinstance(result, Move)]
    assert read_alias(store, "race").version == won.version
    assert all("made against version 1" in str(result) for result in found if result is not won)
    assert len(history(store, "race")) == 2


def test_of_registrations_of_one_run_at_once_all_get_the_same_version(store: Store) -> None:
    run_id = new_run(store)
    found = together([lambda: register(store, run_id, "one run")] * 3)
    assert {version.version for version in found} == {"1"}


class Memory:
    """A registered model in memory that any number of threads may use, each request taking a moment."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self.aliases = {"champion": "1"}
        self.version_tags: dict[str, dict[str, str]] = {}
        self.moves = 0
        self.delay = 0.001
        self._lock = threading.Lock()

    def get_registered_model(self, name: str) -> Any:
        time.sleep(self.delay)
        with self._lock:
            return SimpleNamespace(name=name, tags=dict(self.tags), aliases=dict(self.aliases))

    def set_registered_model_tag(self, _: str, key: str, value: str) -> None:
        time.sleep(self.delay)
        with self._lock:
            self.tags[key] = value

    def delete_registered_model_tag(self, _: str, key: str) -> None:
        time.sleep(self.delay)
        with self._lock:
            self.tags.pop(key, None)

    def set_registered_model_alias(self, _: str, alias: str, version: str) -> None:
        time.sleep(self.delay)
        with self._lock:
            self.aliases[alias] = version
            self.moves += 1

    def get_model_version(self, _: str, version: str) -> Any:
        return SimpleNamespace(run_id=f"run {version}", tags=dict(self.version_tags.get(version, {})))

    def set_model_version_tag(self, _: str, version: str, key: str, value: str) -> None:
        time.sleep(self.delay)
        with self._lock:
            self.version_tags.setdefault(version, {})[key] = value

    def search_model_versions(self, *_: Any, **__: Any) -> Any:
        class Page(list[Any]):
            token = None

        return Page(
            SimpleNamespace(name="m", version=v, run_id="", source="", tags={}, creation_timestamp=0) for v in "1234"
        )


def test_without_a_file_lock_the_claims_alone_let_one_win() -> None:
    for _ in range(5):
        client = Memory()
        store = Store("http://server", client, "0")
        found = together([partial(move_alias, store, "m", "champion", v, expected="1") for v in "2345"])
        assert client.moves == 1
        assert len([result for result in found if isinstance(result, Move)]) == 1
        assert len(read_moves(client.tags)) == 1


def claim_of(**about: Any) -> str:
    from imgcls.tracking.owner import this_process

    space = registry_claim._process_space()
    return json.dumps({**this_process(), "space": space, "time": time.time(), **about})


@pytest.mark.parametrize(
    ("about", "counts"),
    [
        ({"host": "elsewhere"}, True),
        ({"space": "another container"}, True),
        ({"pid": 1, "started": 0.0}, False),
        ({}, False),
        ({"host": "elsewhere", "time": time.time() - LASTS - 60}, False),
        ({"host": "elsewhere", "time": time.time() + 10 * LASTS}, False),
        ({"host": "elsewhere", "time": "yesterday"}, False),
    ],
    ids=["another machine", "another container", "dead", "left over by this one", "old", "a wrong clock", "no time"],
)
def test_the_claim_of_one_that_may_live_is_respected_and_another_is_tidied_away(
    about: dict[str, Any], counts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_claim, "WAITS", 0.0)
    client = Memory()
    client.tags = {CLAIM_TAG + "x": claim_of(**about), CLAIM_TAG + "y": "no JSON"}
    store = Store("http://server", client, "0")
    if counts:
        with pytest.raises(UserError, match=r"another process writes to the registered model 'm' \(process \d+ on"):
            move_alias(store, "m", "champion", "2", expected="1")
        assert client.aliases == {"champion": "1"}
        assert set(client.tags) == {CLAIM_TAG + "x"}
    else:
        move_alias(store, "m", "champion", "2", expected="1")
        assert client.aliases == {"champion": "2"}
        assert not any(tag.startswith(CLAIM_TAG) for tag in client.tags)


def test_a_claim_that_was_taken_away_or_took_too_long_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Memory()
    with claimed(Store("http://server", client, "0"), "m") as claim:
        claim.check(client.tags)
        with pytest.raises(UserError, match="the store was so slow"):
            claim.check({})
        monkeypatch.setattr(registry_claim, "HOLDS", -1.0)
        with pytest.raises(UserError, match="Nothing was moved"):
            claim.check(client.tags)
    assert client.tags == {}


def test_what_another_program_moves_at_the_last_moment_is_seen() -> None:
    class Meddled(Memory):
        def __init__(self, when: str) -> None:
            super().__init__()
            self.when = when

        def set_registered_model_tag(self, _: str, key: str, value: str) -> None:
            super().set_registered_model_tag(_, key, value)
            if self.when == "before" and key.startswith("imgcls.move."):
                self.aliases["champion"] = "7"

        def set_registered_model_alias(self, _: str, alias: str, version: str) -> None:
            super().set_registered_model_alias(_, alias, version)
            self.aliases["champion"] = "7"

    for when, message in (("before", "names version 7 now"), ("after", "by something else to version 7")):
        client = Meddled(when)
        with pytest.raises(UserError, match=message):
            move_alias(Store("http://server", client, "0"), "m", "champion", "2", expected="1")
        assert client.moves == (when == "after")


@pytest.mark.slow
def test_of_two_processes_at_once_one_wins(store: Store) -> None:
    promoted(store, "processes", 1)
    for _ in range(2):
        register(store, new_run(store), "processes")
    code = (
        "import sys, time\n"
        "from imgcls.tracking.promotion import move_alias\n"
        "from imgcls.tracking.store import connect\n"
        "store = connect(); print('ready', flush=True); sys.stdin.readline()\n"
        "try: move_alias(store, 'processes', 'champion', sys.argv[1], expected='1'); print('won')\n"
        "except ValueError as error: print(error)\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, version], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for version in "23"
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0].strip() for process in started]
    [winner] = [place for place, text in enumerate(said) if text == "won"]
    assert "made against version 1" in said[1 - winner]
    assert read_alias(store, "processes").version == "23"[winner]


# --- the history alone


def move(number: int, version: str, replaced: str | None, *, kind: Any = "promotion", done: bool = True) -> Move:
    return Move(number, "champion", kind, version, "", replaced, "", "", "", "", done)


def test_a_move_that_never_happened_is_no_champion_to_return_to() -> None:
    moves = [move(1, "1", None), move(2, "2", "1", done=False), move(3, "3", "1")]
    assert previous(moves, "champion", {"champion": "3"}, {"1", "2", "3"}) == "1"
    assert history_table(moves, {"champion": "3"})["state"].tolist() == ["done", "cut off", "done"]


def test_one_whose_last_words_are_missing_is_told_by_what_came_after() -> None:
    moves = [move(1, "1", None), move(2, "2", "1", done=False), move(3, "3", "2")]
    assert previous(moves, "champion", {"champion": "3"}, {"1", "2", "3"}) == "2"
    assert set(history_table(moves, {"champion": "3"})["state"]) == {"done"}


def test_an_alias_that_was_removed_by_hand_is_in_the_history() -> None:
    table = history_table([move(1, "1", None)], {})
    assert table["reason"].tolist()[-1] == "removed by something other than imgcls"


def test_tags_that_cannot_be_read_are_left_out_and_their_number_is_not_given_again() -> None:
    from imgcls.tracking.registry_log import next_number

    found = {"imgcls.move.000004": "no JSON", "imgcls.move.x": "{}", "imgcls.move.000001": move(1, "1", None).to_json()}
    assert read_moves(found) == [move(1, "1", None)]
    assert next_number(found) == 5
