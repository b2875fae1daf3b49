"""Sweeps as a user starts them: real workers, kills, a stop, a join; conftest checks that no run is left RUNNING."""

import os
import random
import signal
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from imgcls.tuning.sweep import load_sweep
from tests.e2e.conftest import CHECKOUT, Child, Runs, Spawn, imgcls
from tests.postgres import postgres_server

pytestmark = pytest.mark.slow

TINY = (
    "digits", "--model.num_blocks", "1", "--model.channels", "4", "--augment.image_size", "8",
    "--augment.preset", "none",
    "--search.space", "{optim.lr: {type: float, low: 1e-4, high: 0.03, log: true}}",
)  # fmt: skip


def sweeping(
    spawn: Spawn, store: Runs, experiment: str, *words: str, epochs: int = 2, folder: Path | None = None
) -> Child:
    return spawn(
        *imgcls("tune", *TINY, "--train.epochs", str(epochs), *words),
        folder=folder,
        MLFLOW_TRACKING_URI=store.uri,
        MLFLOW_EXPERIMENT_NAME=experiment,
    )


def trials(folder: Path, name: str = "digits") -> pd.DataFrame:
    with load_sweep(f"sqlite:///{folder}/optuna.db", name) as sweep:
        return sweep.table()


def workers_of(child: Child) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(child.process.pid).children():
        with suppress(psutil.Error):  # it has just ended
            if "imgcls.jobs.tune_worker" in process.cmdline():
                found.append(process)
    return found


def by_verb(runs: list[Any], verb: str) -> list[Any]:
    return [run for run in runs if run.data.tags.get("imgcls.verb") == verb]


def test_a_sweep_is_a_tree_of_runs_with_a_leaderboard_and_figures(store: Runs, spawn: Spawn) -> None:
    child = sweeping(spawn, store, "tree", "--families", "plaincnn,quizdnn", "--trials", "5")
    assert child.wait() == 0, child.err
    runs = store.of("tree")
    [sweep] = by_verb(runs, "tune")
    studies = {run.info.run_id: run.info.run_name for run in by_verb(runs, "study")}
    assert sorted(studies.values()) == ["plaincnn", "quizdnn"]
    assert {run.data.tags["mlflow.parentRunId"] for run in by_verb(runs, "study")} == {sweep.info.run_id}
    done = by_verb(runs, "trial")
    assert sorted(run.info.run_name for run in done) == [
        "plaincnn/000", "plaincnn/001", "plaincnn/002", "quizdnn/000", "quizdnn/001"
    ]  # fmt: skip
    for run in done:
        assert studies[run.data.tags["mlflow.parentRunId"]] == run.data.tags["imgcls.family"]
        assert run.data.params["train.epochs"] == "2"
        assert {"recipe.yaml", "history.json"} <= store.artifacts(run)
        assert (run.info.status == "FINISHED") == (run.data.tags["imgcls.trial_state"] == "complete")
    best = max((run for run in done if run.info.status == "FINISHED"), key=lambda run: run.data.metrics["best/val_acc"])
    assert sweep.data.metrics["best/val_acc"] == best.data.metrics["best/val_acc"]
    assert sweep.data.tags["imgcls.best.optim.lr"] != ""
    names = {"leaderboard.csv", "leaderboard.md", "best_params.yaml", "tables/trials.csv", "tables/spaces.json"}
    figures = {f"plots/{name}.png" for name in ("history", "parallel", "slices", "families")}
    assert names | figures <= store.artifacts(sweep)
    first = {run.info.run_name: run.data.params["optim.lr"] for run in done}
    assert first["plaincnn/000"] == "0.003", "the recipe's own values come first"
    assert f"next: imgcls refit {sweep.info.run_id}" in child.out
    assert not (child.folder / "outputs").exists()


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_killed_workers_lose_no_trial(store: Runs, spawn: Spawn, database: str) -> None:
    with ExitStack() as stack:
        storage = "sqlite:///optuna.db"
        if database == "postgres":
            storage = stack.enter_context(postgres_server("sweeps"))
        _kill_three_times(store, spawn, storage, f"killed-{database}")


def _kill_three_times(store: Runs, spawn: Spawn, storage: str, experiment: str) -> None:
    words = ("--trials", "40", "--workers", "2", "--storage", storage)
    child = sweeping(spawn, store, experiment, *words)
    child.wait_for(r"1/40 ")
    choice, killed = random.Random(5), 0
    while killed < 3 and child.process.poll() is None:
        workers = workers_of(child)
        time.sleep(choice.uniform(0.5, 3))
        for worker in choice.sample(workers, min(1, len(workers))):
            with suppress(psutil.NoSuchProcess):
                worker.send_signal(signal.SIGKILL)
                killed += 1
    assert child.wait() == 0, child.err
    assert killed == 3
    with load_sweep(storage.replace("sqlite:///", f"sqlite:///{child.folder}/"), "digits") as sweep:
        table = sweep.table()
    states = Counter(table["state"])
    assert states["complete"] + states["pruned"] + states["failed"] == 40
    assert states["failed"] == states["running"] == states["waiting"] == 0, table[["state", "reason"]].to_string()
    kept = table[table["state"].isin(["complete", "pruned"])]
    assert not kept["optim.lr"].duplicated().any()
    runs = {run.info.run_id: run for run in store.of(experiment)}
    for row in table.to_dict("records"):
        expected = {"complete": "FINISHED", "pruned": "KILLED", "requeued": "KILLED"}.get(row["state"])
        if row["run_id"]:
            assert runs[row["run_id"]].info.status == expected


def test_a_stopped_sweep_goes_on_by_the_same_command(store: Runs, spawn: Spawn) -> None:
    child = sweeping(spawn, store, "stopped", "--trials", "4", epochs=4)
    child.wait_for(r"1/4 ")
    os.kill(child.process.pid, signal.SIGINT)
    assert child.wait() == 130
    [sweep] = by_verb(store.of("stopped"), "tune")
    assert sweep.info.status == "KILLED"
    assert all(run.info.status != "RUNNING" for run in store.of("stopped"))
    again = sweeping(spawn, store, "stopped", "--trials", "4", epochs=4, folder=child.folder)
    assert again.wait() == 0, again.err
    assert store.client.get_run(sweep.info.run_id).info.status == "FINISHED"
    assert len(by_verb(store.of("stopped"), "tune")) == 1
    states = Counter(trials(child.folder)["state"])
    assert states["complete"] + states["pruned"] == 4
    more = sweeping(spawn, store, "stopped", "--more-trials", "2", epochs=4, folder=child.folder)
    assert more.wait() == 0, more.err
    states = Counter(trials(child.folder)["state"])
    assert states["complete"] + states["pruned"] == 6


def test_another_space_under_the_same_name_is_refused_with_what_differs(store: Runs, spawn: Spawn) -> None:
    child = sweeping(spawn, store, "space", "--trials", "1")
    assert child.wait() == 0, child.err
    space = "{optim.lr: {type: float, low: 1e-3, high: 0.1, log: true}}"
    other = spawn(
        *imgcls("tune", *TINY[:-1], space, "--train.epochs", "2"), folder=child.folder,
        MLFLOW_TRACKING_URI=store.uri, MLFLOW_EXPERIMENT_NAME="space",
    )  # fmt: skip
    assert other.wait() == 2
    assert "has a sweep 'digits' that differs" in other.err
    assert "'digits-2'" in other.err
    assert len(by_verb(store.of("space"), "tune")) == 1


def test_two_commands_share_one_sweep(store: Runs, spawn: Spawn) -> None:
    words = ("--trials", "12", "--search.pruner", "none")  # long enough for the second to come in time
    first = sweeping(spawn, store, "shared", *words, epochs=10)
    first.wait_for("sweep 'digits' in ")
    second = sweeping(spawn, store, "shared", *words, "--storage", f"{first.folder}/optuna.db", epochs=10)
    assert (first.wait(), second.wait()) == (0, 0), first.err + second.err
    assert "another process leads the sweep; this one joins it" in second.out
    assert not (second.folder / "outputs").exists()
    assert {run.info.status for run in store.of("shared")} == {"FINISHED"}
    states = Counter(trials(first.folder)["state"])
    assert states["complete"] + states["pruned"] == 12
    assert len(by_verb(store.of("shared"), "tune")) == 1
    workers = {run.data.tags["imgcls.worker"] for run in by_verb(store.of("shared"), "trial")}
    assert len(workers) == 2


def test_a_trial_that_fails_does_not_end_the_sweep(store: Runs, spawn: Spawn) -> None:
    space = "{optim.lr: {type: choice, values: [0.003, 100.0]}, optim.optimizer: {type: choice, values: [adamw, sgd]}}"
    child = spawn(
        *imgcls("tune", *TINY[:-1], space, "--trials", "4", "--search.sampler", "random", "--train.epochs", "2"),
        MLFLOW_TRACKING_URI=store.uri, MLFLOW_EXPERIMENT_NAME="fails",
    )  # fmt: skip
    assert child.wait() == 0, child.err
    table = trials(child.folder)
    failed = table[table["state"] == "failed"]
    assert set(table["state"]) <= {"complete", "pruned", "failed", "duplicate"}
    for run_id in failed["run_id"]:
        run = store.client.get_run(run_id)
        assert run.info.status == "FAILED"
        assert "infinite or not a number" in run.data.tags["imgcls.error"]


def test_a_sweep_without_a_complete_trial_fails_with_the_reason(store: Runs, spawn: Spawn) -> None:
    space = "{optim.lr: {type: choice, values: [100.0]}}"
    child = spawn(
        *imgcls("tune", *TINY[:-1], space, "--trials", "1", "--train.epochs", "2"),
        "--optim.lr", "100", "--optim.optimizer", "sgd",
        MLFLOW_TRACKING_URI=store.uri, MLFLOW_EXPERIMENT_NAME="none complete",
    )  # fmt: skip
    assert child.wait() == 2
    assert "no trial of the sweep 'digits' was completed. The last one failed: " in child.err
    assert {run.info.status for run in store.of("none complete")} == {"FAILED"}


def test_mlflow_run_makes_the_sweeps_run(store: Runs, spawn: Spawn, tmp_path: Path) -> None:
    child = spawn(
        "mlflow", "run", str(CHECKOUT), "-e", "tune", "--env-manager", "local", "--experiment-name", "mlflow run",
        "-P", "recipe=digits", "-P", "trials=2", "-P", "name=by-mlflow", "-P", f"storage=sqlite:///{tmp_path}/s.db",
        "-P", "train.epochs=1", "-P", "model.num_blocks=1", "-P", "model.channels=4",
        "-P", f"train.output_dir={tmp_path}/outputs",
        MLFLOW_TRACKING_URI=store.uri,
    )  # fmt: skip
    assert child.wait() == 0, child.err
    runs = [run for run in store.of("mlflow run") if run.data.tags.get("imgcls.sweep") == "by-mlflow"]
    [sweep] = by_verb(runs, "tune")
    assert sweep.data.tags["mlflow.project.entryPoint"] == "tune"
    assert sweep.info.status == "FINISHED"
    assert len(by_verb(runs, "trial")) == 2
