"""Several processes at one sweep: an exact budget, kills, on SQLite and on a PostgreSQL server of the test's own."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imgcls.tuning.space import SearchConfig, Space
from imgcls.tuning.studies import Abandoned
from imgcls.tuning.sweep import Sweep, load_sweep, open_sweep
from imgcls.tuning.worker import Asked
from tests.postgres import postgres_server

SPACE = Space.from_json({"lr": {"type": "float", "low": 1e-4, "high": 1.0, "log": True}})
SPAWN = multiprocessing.get_context("spawn")


def run_worker(storage: str, name: str, seconds: float, lock: str | None, wait: bool) -> None:
    """What a worker's process does."""

    def objective(asked: Asked) -> list[float]:
        asked.set_attribute("run_id", f"{name}:{asked.name}")
        time.sleep(seconds)
        return [asked.values["lr"]]

    with load_sweep(storage, "s", heartbeat_s=1, grace_s=3) as sweep:
        path = None if lock is None else Path(lock)
        sweep.attributes.set(f"ready {name}", "yes")
        while wait and sweep.attributes.get("go") is None:
            time.sleep(0.05)
        sweep.work(objective, worker=name, stop=lambda: False, poll_s=0.1, lock=path)


def run_opener(storage: str, gate: Any, found: Any) -> None:
    """Opens the sweep at the moment at which the others do."""
    gate.wait()
    with opened(storage, 6) as sweep:
        found.put(sweep.attributes.first("run", str(os.getpid())))


def opened(storage: str, trials: int) -> Sweep:
    search = SearchConfig.model_validate({"sampler": "random", "pruner": "none", "trials": trials})
    first = {"lr": 0.01}
    spaces, firsts = {"a": SPACE, "b": SPACE}, {"a": first, "b": first}
    return open_sweep(storage, "s", spaces, search, {}, firsts, heartbeat_s=1, grace_s=3)


def start(storage: str, name: str, seconds: float, *, lock: str | None = None, wait: bool = False) -> Any:
    process = SPAWN.Process(target=run_worker, args=(storage, name, seconds, lock, wait))
    process.start()
    return process


def join_all(processes: list[Any], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    try:
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        assert [process.exitcode for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()


def check_finished(sweep: Sweep, trials: int, kills: int) -> None:
    rows = sweep.table()
    assert sweep.is_done()
    counts = sweep.counts()
    assert (counts["complete"], counts["running"], counts["waiting"], counts["failed"]) == (trials, 0, 0, 0)
    assert counts["requeued"] == kills
    complete = rows[rows["state"] == "complete"]
    assert not complete.duplicated(["family", "lr"]).any()
    assert not rows.duplicated(["family", "number"]).any()
    assert set(complete["family"]) == {"a", "b"}
    again = rows[rows["state"] == "requeued"]
    assert {(row.family, row.lr) for row in again.itertuples()} <= {(r.family, r.lr) for r in complete.itertuples()}


def kill(process: Any) -> None:
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def kill_in_a_trial(sweep: Sweep, process: Any, name: str) -> str:
    """Kill the worker while a trial of its runs, which has to last; that trial's run id."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        rows = sweep.table()
        mine = rows[(rows["state"] == "running") & (rows["worker"] == name) & rows["run_id"].notna()]
        if len(mine):
            kill(process)
            return str(mine["run_id"].iloc[0])
        time.sleep(0.02)
    raise AssertionError("the worker began no trial")


def kills(storage: str, *, trials: int) -> None:
    """One worker that lives, two that die in a trial, and one at any moment."""
    with opened(storage, trials) as sweep:
        names = {"steady": 0.1, "doomed-0": 60.0, "doomed-1": 60.0, "hasty": 0.0}
        processes = {name: start(storage, name, seconds, wait=True) for name, seconds in names.items()}
        gone: list[Abandoned] = []
        try:
            while sum(sweep.attributes.get(f"ready {name}") is not None for name in names) < len(names):
                time.sleep(0.1)
            sweep.attributes.set("go", "yes")
            time.sleep(random.SystemRandom().uniform(0, 1))
            kill(processes.pop("hasty"))
            gone += sweep.requeue_of("hasty")
            for name in ("doomed-0", "doomed-1"):
                run_id = kill_in_a_trial(sweep, processes.pop(name), name)
                found = sweep.requeue_of(name)
                assert [(item.worker, item.attributes) for item in found] == [(name, {"run_id": run_id})]
                assert sweep.requeue_of(name) == []
                gone += found
        finally:
            join_all(list(processes.values()), 120)
        assert sweep.requeue_stale() == []
        assert all(item.again for item in gone)
        check_finished(sweep, trials, len(gone))


@pytest.mark.slow
def test_four_processes_run_exactly_the_budget(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/s.db"
    with opened(storage, 15) as sweep:
        lock = str(tmp_path / "host.lock")
        join_all([start(storage, f"w{k}", 0.05, lock=lock) for k in range(4)], 120)
        check_finished(sweep, 15, 0)
        assert sweep.counts()["surplus"] == 0
        assert sorted(sweep.counts(family)["complete"] for family in "ab") == [7, 8]


@pytest.mark.slow
def test_a_killed_workers_trials_are_run_by_others(tmp_path: Path) -> None:
    kills(f"sqlite:///{tmp_path}/s.db", trials=24)


@pytest.mark.slow
def test_a_worker_that_died_unseen_is_found_by_its_silence(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/s.db"
    with opened(storage, 4) as sweep:
        doomed = start(storage, "doomed", 60)
        run_id = kill_in_a_trial(sweep, doomed, "doomed")
        assert sweep.requeue_stale() == []
        other = start(storage, "other", 0.05)
        join_all([other], 60)
        assert [(item.worker, item.attributes, item.again) for item in sweep.requeue_stale()] == [
            ("doomed", {"run_id": run_id}, True)
        ]
        assert sweep.requeue_stale() == []
        assert sweep.requeue_of("doomed") == []
        check_finished(sweep, 4, 1)


@pytest.mark.slow
def test_a_trial_that_kills_its_worker_three_times_counts_as_failed(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/s.db"
    with opened(storage, 1) as sweep:
        for number in range(3):
            assert not sweep.is_done()
            kill_in_a_trial(sweep, start(storage, f"w{number}", 60), f"w{number}")
            assert [item.again for item in sweep.requeue_of(f"w{number}")] == [number < 2]
        assert sweep.is_done()
        assert list(sweep.table().query("family == 'a'")["state"]) == ["requeued", "requeued", "failed"]
        assert sweep.table()["reason"][2] == "its process ended without a word"


@pytest.mark.slow
def test_processes_that_open_at_once_make_one_sweep(tmp_path: Path) -> None:
    openers(f"sqlite:///{tmp_path}/s.db")


def openers(storage: str) -> None:
    gate, found = SPAWN.Barrier(3), SPAWN.Queue()
    processes = [SPAWN.Process(target=run_opener, args=(storage, gate, found)) for _ in range(3)]
    for process in processes:
        process.start()
    join_all(processes, 60)
    assert len({found.get(timeout=5) for _ in processes}) == 1
    with load_sweep(storage, "s") as sweep:
        assert list(sweep.table()["family"]) == ["a", "b"]


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A database on a server of our own."""
    with postgres_server("sweeps") as address:
        yield address


@pytest.mark.slow
def test_postgres_is_opened_at_once_by_many_and_survives_kills(postgres: str) -> None:
    openers(postgres)
    with load_sweep(postgres, "s") as sweep:
        assert sweep.more(18) == 24
        assert len(sweep.table()) == 2
    kills(postgres, trials=24)
