"""A real `mlflow run` of this checkout, as README tells a user to start one."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import CHECKOUT, Child, Runs, Spawn

pytestmark = pytest.mark.slow


def mlflow_run(spawn: Spawn, store: Runs, experiment: str, *words: str, tmp_path: Path) -> Child:
    mlflow = str(Path(sys.executable).with_name("mlflow"))
    return spawn(
        mlflow, "run", str(CHECKOUT), "--env-manager", "local", "--experiment-name", experiment, *words,
        "-P", f"train.output_dir={tmp_path / 'out puts'}", MLFLOW_TRACKING_URI=store.uri,
    )  # fmt: skip


def written_in_checkout() -> str:
    status = ["git", "-C", str(CHECKOUT), "status", "--porcelain", "--ignored", "--untracked-files=normal"]
    lines = subprocess.run(status, capture_output=True, text=True, check=True).stdout.splitlines()
    return "\n".join(line for line in lines if "outputs" in line or "mlruns" in line or "mlflow.db" in line)


def test_overrides_reach_the_recipe_and_the_run_is_the_one_that_mlflow_made(
    store: Runs, spawn: Spawn, tmp_path: Path
) -> None:
    before = written_in_checkout()
    words = ("-e", "train", "-P", "train.epochs=2", "-P", "optim.lr=1e-3", "-P", "recipe=digits")
    child = mlflow_run(spawn, store, "mlflow run", *words, tmp_path=tmp_path)
    assert child.wait() == 0, child.err
    run = store.only("mlflow run")
    assert run.info.status == "FINISHED"
    assert run.info.run_id in child.out
    recipe = yaml.safe_load(store.download(run, "recipe.yaml", tmp_path / "down").read_text())
    assert (recipe["optim"]["lr"], recipe["train"]["epochs"]) == (0.001, 2)
    params = run.data.params
    assert (params["optim.lr"], params["recipe"]) == ("1e-3", "digits"), "as `mlflow run` logged them"
    assert params["optim.weight_decay"] == "0.02", "as imgcls logged what was missing"
    assert run.data.tags["imgcls.verb"] == "train"
    assert run.data.tags["mlflow.project.entryPoint"] == "train"
    assert [step for step, _ in store.history(run, "val/acc")] == [1, 2]
    assert [str(model.status) for model in store.models(run)] == ["READY"]
    assert not (tmp_path / "out puts").exists()
    assert written_in_checkout() == before


def test_the_entry_point_main_is_a_training_too(store: Runs, spawn: Spawn, tmp_path: Path) -> None:
    child = mlflow_run(spawn, store, "main", "-P", "train.epochs=1", tmp_path=tmp_path)
    assert child.wait() == 0, child.err
    run = store.only("main")
    assert (run.info.status, run.data.tags["imgcls.recipe"]) == ("FINISHED", "digits")
    assert run.data.metrics["best/epoch"] == 1


def test_a_bad_value_fails_the_run_with_the_reason_in_a_tag(store: Runs, spawn: Spawn, tmp_path: Path) -> None:
    child = mlflow_run(spawn, store, "bad", "-e", "train", "-P", "optim.lr=fast", tmp_path=tmp_path)
    assert child.wait() != 0
    run = store.only("bad")
    assert run.info.status == "FAILED"
    assert "optim.lr: found 'fast'" in run.data.tags["imgcls.error"]
    assert f"imgcls: error: {run.data.tags['imgcls.error']}\n" in child.err
    assert store.artifacts(run) == set()
