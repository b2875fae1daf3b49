"""A sweep in one process: opening, sharing, duplicates, failures, what the table says."""

import math
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from imgcls.errors import UserError
from imgcls.tuning import trials as ledger
from imgcls.tuning import worker as workers
from imgcls.tuning.space import SearchConfig, Space
from imgcls.tuning.sweep import Sweep, load_sweep, open_sweep
from imgcls.tuning.worker import Asked, Ended, Pruned, TrialFailed

pytestmark = pytest.mark.slow

LR: dict[str, Any] = {"type": "float", "low": 1e-4, "high": 1.0, "log": True}
DEPTH: dict[str, Any] = {"type": "int", "low": 0, "high": 2}
FIRST = {"lr": 0.01}


@contextmanager
def opened(
    families: str = "a",
    *,
    space: dict[str, Any] | None = None,
    first: dict[str, Any] | None = FIRST,
    name: str = "s",
    identity: dict[str, str] | None = None,
    **search: Any,
) -> Iterator[Sweep]:
    config = SearchConfig.model_validate({"sampler": "random", "pruner": "none", "trials": 6, **search})
    of = Space.from_json({"lr": LR} if space is None else space)
    spaces = dict.fromkeys(families.split(), of)
    firsts = {} if first is None else dict.fromkeys(spaces, first)
    with open_sweep("sweep.db", name, spaces, config, identity or {"data": "d"}, firsts) as sweep:
        yield sweep


def work(sweep: Sweep, objective: Callable[[Asked], list[float]], **options: Any) -> str:
    options = {"worker": "w0", "stop": lambda: False, "poll_s": 0.02, **options}
    return sweep.work(objective, **options)


def lr(asked: Asked) -> list[float]:
    return [asked.values["lr"]]


def test_the_recipes_own_values_come_first_and_the_budget_is_exact() -> None:
    with opened() as sweep:
        ended: list[Ended] = []
        assert work(sweep, lr, on_end=ended.append) == "done"
        assert sweep.is_done()
        assert sweep.counts() == {**dict.fromkeys(ledger.STATES, 0), "complete": 6}
        rows = sweep.table()
        assert rows["lr"][0] == 0.01
        assert [(item.family, item.number, item.state, item.values) for item in ended] == [
            ("a", k, "complete", [rows["lr"][k]]) for k in range(6)
        ]
        best = sweep.best()
        assert best is not None
        assert best["val/acc"] == rows["lr"].max()
        assert work(sweep, lr) == "done"
        assert len(sweep.table()) == 6


def test_the_table_has_a_column_for_everything() -> None:
    def objective(asked: Asked) -> list[float]:
        asked.set_attribute("run_id", f"run of {asked.name}")
        for epoch in (1, 2):
            asked.report(epoch / 10, epoch)
        if asked.number == 1:
            raise Pruned("below the median")
        return [0.5]

    kernel = {"type": "choice", "values": [[3, 3], None]}
    extra = {"type": "int", "low": 1, "high": 9, "when": {"kernel": None}}
    space = {"lr": LR, "kernel": kernel, "extra": extra}
    with opened("a b", space=space, first={"lr": 0.1, "kernel": [3, 3], "extra": 4}, trials=3) as sweep:
        work(sweep, objective)
        rows = sweep.table()
    assert list(rows.columns) == [
        *[
            "family",
            "number",
            "state",
            "val/acc",
            "started",
            "seconds",
            "worker",
            "run_id",
            "reason",
            "epochs",
            "curve",
        ],
        *["lr", "kernel", "extra"],
    ]
    assert list(rows["family"]) == ["a", "a", "b"]
    assert list(rows["state"]) == ["complete", "pruned", "complete"]
    assert list(rows["val/acc"]) == [0.5, 0.2, 0.5]
    assert list(rows["run_id"]) == ["run of a/000", "run of a/001", "run of b/000"]
    assert list(rows["reason"]) == [None, "below the median", None]
    assert list(rows["epochs"]) == [2, 2, 2]
    assert list(rows["curve"]) == [[0.1, 0.2]] * 3
    assert list(rows["kernel"])[::2] == [[3, 3], [3, 3]]
    assert list(rows["extra"])[::2] == [None, None]
    assert rows["started"][0] == 0
    assert (rows["seconds"] > 0).all()
    assert set(rows["worker"]) == {"w0"}


def test_an_empty_sweep_has_a_table_and_no_best() -> None:
    with opened(first=None) as sweep:
        assert len(sweep.table()) == 0
        assert sweep.best() is None
        assert sweep.importance("a") is None
        assert len(sweep.pareto()) == 0
        assert not sweep.is_done()


def test_families_share_the_trials_evenly() -> None:
    with opened("a b c", trials=8) as sweep:
        work(sweep, lr)
        assert [sweep.counts(family)["complete"] for family in "abc"] == [3, 3, 2]
        assert (sweep.table().query("number == 0")["lr"] == 0.01).all()


def test_the_leader_gets_what_the_equal_half_leaves() -> None:
    with opened("a b c", trials=12, allocation="leader") as sweep:
        work(sweep, lambda asked: [{"a": 0.1, "b": 0.9, "c": 0.5}[asked.family]])
        assert [sweep.counts(family)["complete"] for family in "abc"] == [2, 8, 2]


def test_the_leader_of_a_loss_is_the_lowest() -> None:
    with opened("a b", trials=8, allocation="leader", objectives=["val/loss"]) as sweep:
        work(sweep, lambda asked: [{"a": 0.1, "b": 0.9}[asked.family]])
        assert [sweep.counts(family)["complete"] for family in "ab"] == [6, 2]
        best = sweep.best()
        assert best is not None
        assert best["family"] == "a"


def frozen(state: TrialState = TrialState.COMPLETE, *, took: float = 1.0, value: float = 0.5, **about: Any) -> Any:
    end = datetime.now()
    trial = create_trial(state=state, user_attrs=about, value=value if state == TrialState.COMPLETE else None)
    trial.datetime_start, trial.datetime_complete = end - timedelta(seconds=took), end
    return trial


def test_without_a_number_of_trials_families_share_the_time() -> None:
    share: dict[str, Any] = {"budget": None, "direction": "maximize", "finished": []}
    slow, quick = [frozen(took=9, value=0.1)], [frozen(took=2), frozen(took=3)]
    assert ledger.next_family({"a": slow, "b": quick}, leader=False, time_share=0.9, **share) == "b"
    assert ledger.next_family({"a": slow, "b": quick, "c": []}, leader=False, time_share=0.9, **share) == "c"
    assert ledger.next_family({"a": [frozen(took=1)], "b": quick}, leader=True, time_share=0.4, **share) == "a"
    assert ledger.next_family({"a": [frozen(value=0.1)], "b": quick}, leader=True, time_share=0.6, **share) == "b"
    share["finished"] = ["b"]
    assert ledger.next_family({"a": slow, "b": quick}, leader=False, time_share=0.9, **share) == "a"


def test_a_sweep_ends_when_its_time_is_up_and_when_it_is_told_to_stop() -> None:
    with opened(trials=None, time_limit="0.4s") as sweep:
        begun = time.monotonic()
        assert work(sweep, lr) == "time"
        assert 0.3 < time.monotonic() - begun < 5
        found = len(sweep.table())
        assert found >= 1
        assert work(sweep, lr, until=time.time() - 1) == "time"
        assert work(sweep, lr, stop=lambda: True) == "stopped"
        assert len(sweep.table()) == found
        with pytest.raises(UserError, match="only a time limit"):
            sweep.more(3)


def test_the_budget_can_be_raised_and_every_worker_sees_it() -> None:
    with opened(trials=2) as sweep:
        work(sweep, lr)
        assert sweep.more(3) == 5
        with load_sweep("sweep.db", "s") as other:
            assert other.budget == 5
            assert not other.is_done()
            assert work(other, lr, worker="w1") == "done"
        assert sweep.counts()["complete"] == 5


def test_parameters_already_tried_are_not_run_again_and_a_space_that_is_used_up_ends() -> None:
    calls: list[int] = []

    def objective(asked: Asked) -> list[float]:
        calls.append(asked.values["depth"])
        return [asked.values["depth"] / 10]

    with opened(space={"depth": DEPTH}, first={"depth": 1}, trials=50) as sweep:
        assert work(sweep, objective) == "done"
        assert sorted(calls) == [0, 1, 2]
        assert sweep.exhausted() == {"a": "all 3 points of its space have been tried"}
        rows = sweep.table()
        again = rows[rows["state"] == "duplicate"]
        assert len(again) > 0
        assert (again["val/acc"] == again["depth"].astype(float) / 10).all()
        assert again["reason"].str.startswith("the parameters of trial ").all()
        assert sweep.counts()["complete"] == 3


def test_twenty_duplicates_in_a_row_end_a_family() -> None:
    done, again = frozen(), frozen(duplicate_of=0)
    space = Space.from_json({"lr": LR})
    assert ledger.exhausted([done, *[again] * 19], space) is None
    assert ledger.exhausted([done, *[again] * 20], space) == "the last 20 proposals had been tried before"
    assert ledger.exhausted([*[again] * 20, done], space) is None
    assert ledger.is_done({"a": [done]}, ["a"], 100)
    assert not ledger.is_done({"a": [done], "b": []}, ["a"], 100)


def test_a_duplicate_ends_as_the_earlier_trial_did() -> None:
    def objective(asked: Asked) -> list[float]:
        asked.report(asked.values["lr"], 3)
        if asked.values["lr"] > 0.5:
            raise Pruned
        return lr(asked)

    with opened(first=None, trials=3) as sweep:
        for value in (0.9, 0.9, 0.1, 0.1, 0.2):
            sweep._studies.of("a").enqueue_trial({"lr": value})
        work(sweep, objective)
        rows = sweep.table()
        assert list(rows["state"]) == ["pruned", "duplicate", "complete", "duplicate", "complete"]
        assert list(rows["val/acc"]) == [0.9, 0.9, 0.1, 0.1, 0.2]
        assert [trial.state.name for trial in sweep._studies.trials("a")][:2] == ["PRUNED", "PRUNED"]


def test_parameters_that_are_being_tried_are_not_begun_beside_it() -> None:
    with opened(first={"lr": 0.01}, trials=2) as sweep:
        sweep._studies.of("a").enqueue_trial({"lr": 0.01})
        inner: list[Ended] = []

        def objective(asked: Asked) -> list[float]:
            if asked.number == 0:
                with load_sweep("sweep.db", "s") as other:
                    work(other, lr, worker="w1", on_end=inner.append, stop=lambda: len(inner) == 2)
            return lr(asked)

        assert work(sweep, objective) == "done"
        assert [item.state for item in inner] == ["duplicate", "complete"]
        assert list(sweep.table()["state"]) == ["complete", "duplicate", "complete"]
        assert math.isnan(sweep.table()["val/acc"][1])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TrialFailed("out of memory"), "out of memory"),
        (RuntimeError("shapes differ"), "RuntimeError: shapes differ"),
        ([math.nan], "val/acc is not a number"),
        ([0.1, 0.2], "2 values for the objectives val/acc"),
    ],
)
def test_a_trial_that_fails_says_why_and_the_sweep_goes_on(error: Exception | list[float], reason: str) -> None:
    def objective(asked: Asked) -> list[float]:
        if asked.number == 1:
            if isinstance(error, Exception):
                raise error
            return error
        return [0.5]

    ended: list[Ended] = []
    with opened(trials=3) as sweep:
        assert work(sweep, objective, on_end=ended.append) == "done"
        assert list(sweep.table()["state"]) == ["complete", "failed", "complete"]
        assert list(sweep.table()["reason"]) == [None, reason, None]
        assert sweep.requeue_stale() == []
    assert (ended[1].state, ended[1].reason) == ("failed", reason)
    assert isinstance(ended[1].error, Exception)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_an_interrupted_trial_is_closed_and_waits_again(error: BaseException) -> None:
    def interrupted(asked: Asked) -> list[float]:
        asked.set_attribute("run_id", "r1")
        raise error

    ended: list[Ended] = []
    with opened(trials=2) as sweep:
        with pytest.raises(type(error)):
            work(sweep, interrupted, on_end=ended.append)
        assert [(item.state, item.attributes) for item in ended] == [("requeued", {"run_id": "r1"})]
        assert list(sweep.table()["state"]) == ["requeued", "waiting"]
        assert list(sweep.table()["lr"]) == [0.01, 0.01]
        assert sweep.requeue_stale() == []
    with opened(trials=2) as sweep:
        assert work(sweep, lr) == "done"
        assert list(sweep.table()["state"]) == ["requeued", "complete", "complete"]
        assert list(sweep.table()["lr"])[:2] == [0.01, 0.01]


def test_an_interruption_while_parameters_are_chosen_leaves_nothing_running(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(trials=2) as sweep:
        with monkeypatch.context() as patch:

            def interrupt(_self: Any, _trial: Any) -> None:
                raise KeyboardInterrupt

            patch.setattr(Space, "suggest", interrupt)
            with pytest.raises(KeyboardInterrupt):
                work(sweep, lr)
        assert list(sweep.table()["state"]) == ["surplus", "waiting"]
        assert work(sweep, lr) == "done"
        assert list(sweep.table()["state"]) == ["surplus", "complete", "complete"]
        assert sweep.table()["lr"][1] == 0.01


def test_a_sampler_that_fails_is_replaced_by_a_random_proposal(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_anything: Any) -> None:
        raise FloatingPointError("singular")

    with opened(trials=3, sampler="tpe") as sweep:
        monkeypatch.setattr(optuna.samplers.TPESampler, "sample_relative", fail)
        with pytest.warns(RuntimeWarning, match="a: the sampler tpe failed, the next proposal is random: singular"):
            assert work(sweep, lr) == "done"
        counts = sweep.counts()
        assert (counts["complete"], counts["running"], counts["waiting"]) == (3, 0, 0)


def test_a_trial_that_was_taken_for_dead_ends_without_harm() -> None:
    def objective(asked: Asked) -> list[float]:
        if asked.number == 0:
            with load_sweep("sweep.db", "s") as other:
                gone = other.requeue_of("w0")
                assert [(item.number, item.again) for item in gone] == [(0, True)]
            with pytest.raises(TrialFailed, match="no sign of life"):
                asked.report(0.5, 1)
            with pytest.raises(TrialFailed, match="no sign of life"):
                asked.set_attribute("run_id", "x")
        return [0.5]

    ended: list[Ended] = []
    with opened(trials=2) as sweep:
        assert work(sweep, objective, on_end=ended.append) == "done"
        assert [item.state for item in ended] == ["requeued", "complete", "complete"]
        assert sweep.counts()["complete"] == 2


def test_a_trial_over_the_budget_ends_without_being_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Ended] = []
    with opened("a b", trials=1) as sweep:
        monkeypatch.setattr(ledger, "next_family", lambda *_a, **_k: "b")
        real, asked_for = ledger.is_done, iter([False, False])
        monkeypatch.setattr(ledger, "is_done", lambda *a: next(asked_for, None) is None and real(*a))
        assert work(sweep, lr, on_end=ended.append) == "done"
        assert [item.state for item in ended] == ["complete", "surplus"]
        assert sweep.counts("b") == {**dict.fromkeys(ledger.STATES, 0), "complete": 1, "surplus": 1}


def test_a_seed_repeats_with_one_worker() -> None:
    def parameters(name: str, seed: int, trials: int = 13) -> list[tuple[float, int]]:
        space = {"lr": LR, "depth": DEPTH}
        with opened(name=name, space=space, first=None, seed=seed, sampler="tpe", trials=trials) as sweep:
            work(sweep, lambda asked: [asked.values["lr"] - asked.values["depth"]])
            return list(zip(sweep.table()["lr"], sweep.table()["depth"], strict=True))

    first = parameters("one", 0)
    assert parameters("two", 0) == first
    assert parameters("three", 1, 2) != first[:2]


def test_a_command_that_resumes_does_not_propose_the_same_again() -> None:
    with opened(first=None, trials=3) as sweep:
        work(sweep, lr)
        sweep.more(3)
        work(sweep, lr)
        assert sweep.counts()["duplicate"] == 0
        assert sweep.table()["lr"].nunique() == 6


def test_pruning_ends_what_is_worse_than_the_others() -> None:
    def objective(asked: Asked) -> list[float]:
        value = 1.0 if asked.number < 6 else 0.1
        for epoch in range(5):
            if asked.report(value, epoch):
                raise Pruned(f"at epoch {epoch}")
        return [value]

    with opened(trials=8, pruner="median") as sweep:
        work(sweep, objective)
        assert list(sweep.table()["reason"])[6:] == ["at epoch 1"] * 2
        assert list(sweep.table()["epochs"])[6:] == [1, 1]


def test_two_objectives_give_the_trials_that_none_surpasses() -> None:
    points = [(0.5, 10.0), (0.9, 1.0), (0.4, 9.0), (0.7, 5.0), (0.7, 4.0)]

    def objective(asked: Asked) -> list[float]:
        assert not asked.report(0.3, 1)
        return list(points[asked.number])

    with opened(trials=5, objectives=["val/acc", "speed/images_per_s"], sampler="nsga2", pruner="median") as sweep:
        work(sweep, objective)
        rows = sweep.table()
        assert list(zip(rows["val/acc"], rows["speed/images_per_s"], strict=True)) == points
        assert list(rows["curve"]) == [[0.3]] * 5
        assert list(sweep.pareto()["number"]) == [0, 1, 3]
        best = sweep.best()
        assert best is not None
        assert best["number"] == 1


def test_the_field_that_decides_is_the_important_one() -> None:
    space = {"lr": LR, "depth": DEPTH}
    with opened(space=space, first=None, trials=12) as sweep:
        work(sweep, lambda asked: [asked.values["depth"] / 2], stop=lambda: len(sweep.table()) == 3)
        assert sweep.importance("a") is None
        work(sweep, lambda asked: [asked.values["depth"] / 2])
        found = sweep.importance("a")
    assert found is not None
    shares, evaluator = found
    assert evaluator == "fANOVA"
    assert next(iter(shares)) == "depth"
    assert sum(shares.values()) == pytest.approx(1)


def test_conditional_fields_are_weighed_by_another_evaluator() -> None:
    space = {"o": {"type": "choice", "values": ["x", "y"]}, "lr": {**LR, "when": {"o": "x"}}}
    with opened(space=space, first=None, trials=12) as sweep:
        work(sweep, lambda asked: [asked.values.get("lr", 0.0)])
        found = sweep.importance("a")
    assert found is not None
    assert found[1] == "PED-ANOVA"
    assert set(found[0]) == {"o", "lr"}


def test_opening_again_joins_and_enqueues_nothing_more() -> None:
    with opened("a b") as sweep:
        assert sweep.attributes.get("run") is None
        assert sweep.attributes.first("run", "r1") == "r1"
    with opened("b a", trials=9) as sweep:
        assert len(sweep.table()) == 2
        assert sweep.budget == 6
        assert sweep.notices == [
            "the sweep 's' has a budget of 6 trials; trials: 9 changes nothing. Ask for more trials"
        ]
        assert sweep.attributes.first("run", "r2") == "r1"
        sweep.attributes.set("run", "r3")
    with load_sweep("sweep.db", "s") as sweep:
        assert sweep.attributes.get("run") == "r3"
        assert (sweep.families, sweep.identity, sweep.notices) == (["a", "b"], {"data": "d"}, [])
        assert sweep.search.sampler == "random"
        assert sweep.spaces["a"].as_json() == Space.from_json({"lr": LR}).as_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"space": {"lr": {**LR, "high": 0.5}}},
            r"a: lr is float 0\.0001 to 1\.0 \(log\) there and float 0\.0001 to 0",
        ),
        ({"identity": {"data": "e"}}, "data is d there and e here"),
        ({"objectives": ["val/f1"]}, "the objectives are val/acc there and val/f1 here"),
        ({"families": "a c"}, "the families are a, b there and a, c here"),
        ({"families": "a"}, "the families are a, b there and a here"),
    ],
)
def test_another_sweep_of_the_same_name_is_an_error_that_offers_a_name(changes: dict[str, Any], message: str) -> None:
    with opened("a b"), opened("a b", name="s-2"):
        pass
    with pytest.raises(UserError, match=message) as caught, opened(**{"families": "a b", **changes}):
        pass
    assert "such as 's-3'" in str(caught.value)


def test_the_recipes_own_values_outside_the_space_are_an_error() -> None:
    with pytest.raises(UserError, match=r"lr is 2\.0; expected 1 or less; raise high to 2"), opened(first={"lr": 2.0}):
        pass
    assert not Path("sweep.db").exists()


def test_a_sweep_that_is_not_there_is_an_error_that_lists_those_that_are() -> None:
    with opened(name="animals"):
        pass
    with pytest.raises(UserError, match=r"no sweep 'animal'; it has animals\. Did you mean 'animals'"):
        load_sweep("sweep.db", "animal")


def test_a_name_with_a_slash_and_a_sweep_of_nothing_are_errors() -> None:
    with pytest.raises(UserError, match="without slashes"), opened(name="a/b"):
        pass
    with pytest.raises(UserError, match="at least one model family"), opened(families=""):
        pass


def refusing_port() -> int:
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def test_a_server_that_does_not_answer_is_an_error_without_its_password() -> None:
    pytest.importorskip("psycopg2")
    place = f"postgresql://me:secret@127.0.0.1:{refusing_port()}/sweeps"
    with pytest.raises(UserError, match="does not answer: connection to server") as caught:
        load_sweep(place, "s")
    assert "secret" not in str(caught.value)
    assert "Check that the server runs" in str(caught.value)


@pytest.mark.slow
def test_a_server_that_accepts_and_says_nothing_is_given_up() -> None:
    pytest.importorskip("psycopg2")
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        begun = time.monotonic()
        with pytest.raises(UserError, match="does not answer"):
            load_sweep(f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/sweeps", "s")
        assert time.monotonic() - begun < 10


def test_a_file_that_is_no_database_and_one_that_another_holds_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("notes.txt").write_text("not a database at all, but long enough to be looked at " * 20, encoding="utf-8")
    with pytest.raises(UserError, match="file is not a database"):
        load_sweep("notes.txt", "s")
    Path("folder").mkdir()
    with pytest.raises(UserError, match="unable to open"):
        load_sweep("sqlite:///folder", "s")
    monkeypatch.setattr("imgcls.tuning.storage.ANSWER_S", 0.1)
    with closing(sqlite3.connect("held.db", isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match="locked"):
            load_sweep("held.db", "s")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("mysql://me@host/db", "is a mysql database; expected sqlite"),
        ("sqlite://", "in memory"),
        ("://", "is no address"),
    ],
)
def test_a_storage_of_another_kind_is_an_error(place: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_sweep(place, "s")


def test_a_storage_that_stops_answering_is_an_error_that_says_so() -> None:
    with opened() as sweep:

        def objective(asked: Asked) -> list[float]:
            sweep._studies.storage.close()
            Path("sweep.db").write_text("gone" * 500, encoding="utf-8")
            return lr(asked)

        with pytest.raises(UserError, match="stopped answering: file is not a database"):
            work(sweep, objective)


def test_optuna_writes_nothing_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    with opened(trials=2) as sweep:
        work(sweep, lambda _asked: [math.nan])
    assert capfd.readouterr() == ("", "")


def test_two_that_open_at_once_make_one_sweep() -> None:
    gate = threading.Barrier(2)
    errors: list[BaseException] = []

    def open_it() -> None:
        try:
            gate.wait()
            with opened("a b c"):
                pass
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with load_sweep("sweep.db", "s") as sweep:
        assert list(sweep.table()["family"]) == ["a", "b", "c"]
        assert list(sweep.table()["state"]) == ["waiting"] * 3


def test_a_sign_of_life_that_cannot_be_given_does_no_harm() -> None:
    with opened() as sweep:
        sweep._studies.storage.close()
        Path("sweep.db").write_text("gone" * 500, encoding="utf-8")
        sweep._studies.storage.rdb.record_heartbeat(1)


def test_of_many_that_fail_a_trial_at_once_one_does() -> None:
    """Optuna reads the state and then writes it; without transactions that lock first, two would do it."""
    with opened(first=None) as sweep:
        study = sweep._studies.of("a")
        others = [load_sweep("sweep.db", "s") for _ in range(4)]
        try:
            for _ in range(10):
                study.add_trial(create_trial(state=TrialState.RUNNING))
                trial = sweep._studies.trials("a")[-1]
                gate, did = threading.Barrier(len(others)), list[bool]()

                def fail(other: Sweep, gate: Any = gate, trial: Any = trial, did: list[bool] = did) -> None:
                    gate.wait()
                    did.append(other._studies.fail(trial))

                threads = [threading.Thread(target=fail, args=(other,)) for other in others]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                assert sorted(did) == [False, False, False, True]
        finally:
            for other in others:
                other.close()


def test_a_storage_that_is_gone_is_an_error_wherever_the_sweep_is_read() -> None:
    with opened() as sweep:
        sweep._studies.storage.close()
        Path("sweep.db").write_text("gone" * 500, encoding="utf-8")
        for read in (sweep.table, sweep.counts, sweep.is_done, lambda: sweep.attributes.get("run")):
            with pytest.raises(UserError, match="stopped answering"):
                read()


def test_an_objective_cannot_write_over_the_sweeps_own_attributes() -> None:
    def objective(asked: Asked) -> list[float]:
        asked.set_attribute("worker", "me")
        return [0.0]

    with opened(trials=1) as sweep:
        work(sweep, objective)
        assert list(sweep.table()["reason"]) == ["ValueError: worker is an attribute of the sweep's own"]
        assert workers.trial_name("mobilenet_v2", 17) == "mobilenet_v2/017"
