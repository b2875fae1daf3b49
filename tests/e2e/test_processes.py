"""Trainings by two processes: one run, however they end, and no process left behind."""

import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

import imgcls as package
from tests.e2e.conftest import CHECKOUT, PATIENCE, Child, Runs, Spawn, all_gone, free_port, imgcls
from tests.e2e.test_stop import FIRST_EPOCH, check_killed

pytestmark = pytest.mark.slow

TWO = ("--train.processes", "2")


def training(spawn: Spawn, store: Runs, experiment: str, *words: str, fresh: bool = False, **more: str) -> Child:
    return spawn(
        *imgcls("train", "digits", *TWO, *words),
        fresh=fresh,
        MLFLOW_TRACKING_URI=store.uri,
        MLFLOW_EXPERIMENT_NAME=experiment,
        **more,
    )


def ranks(child: Child) -> dict[int, psutil.Process]:
    """The processes that train, by their rank."""
    found = [process for process in child.family() if "imgcls.jobs.rank" in process.cmdline()]
    return {int(process.environ()["RANK"]): process for process in found}


def left_behind(child: Child, family: Sequence[psutil.Process]) -> bool:
    return not all_gone(family, 60) or (child.folder / "outputs").exists()


def test_two_processes_give_one_complete_run(store: Runs, spawn: Spawn) -> None:
    child = training(spawn, store, "two", "--train.epochs", "2")
    assert child.wait() == 0, child.err
    assert child.err == ""
    run = store.only("two")
    assert run.info.status == "FINISHED"
    assert [step for step, _ in store.history(run, "val/acc")] == [1, 2]
    assert store.artifacts(run) >= {
        "recipe.yaml", "history.json", "plots/curves.png", "predictions/val.parquet", "checkpoints/best.pt",
        "checkpoints/last.pt", "tables/data_check.json",
    }  # fmt: skip
    assert [str(model.status) for model in store.models(run)] == ["READY"]
    lines = child.out.splitlines()
    assert re.fullmatch(r"1,797 images of 10 classes .* on cpu .* threads=1 in 2 processes", lines[0])
    assert [line[:11] for line in lines[1:3]] == ["epoch   1/2", "epoch   2/2"], "each line once"
    assert len(lines) == 7
    assert not (child.folder / "outputs").exists()


def test_python_gets_the_result(store: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "python")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")]))
    result = package.train("digits", {"train.epochs": 1, "train.processes": 2}, quiet=True)
    assert store.only("python").info.run_id == result.run_id
    assert result.history.rows[0]["val/acc"] == store.history(store.only("python"), "val/acc")[0][1]
    assert result.classifier.module is result.module
    assert not result.module.training
    assert len(result.predictions.ids) == 359
    assert (result.recipe.train.processes, result.unsent) == (2, None)


def test_mlflow_run_s_run_is_the_first_process_s(store: Runs, spawn: Spawn, tmp_path: Path) -> None:
    mlflow = str(Path(sys.executable).with_name("mlflow"))
    store.client.create_experiment("mlflow two", artifact_location=str(tmp_path / "artifacts"))
    child = spawn(
        mlflow, "run", str(CHECKOUT), "-e", "train", "--env-manager", "local", "--experiment-name", "mlflow two",
        "-P", "train.processes=2", "-P", "train.epochs=1", "-P", f"train.output_dir={tmp_path / 'outputs'}",
        MLFLOW_TRACKING_URI=store.uri,
    )  # fmt: skip
    assert child.wait() == 0, child.err
    run = store.only("mlflow two")
    assert run.info.status == "FINISHED"
    assert run.data.params["train.processes"] == "2"
    assert run.data.tags["mlflow.project.entryPoint"] == "train"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--train.processes", "0"), r"recipe .*: train\.processes: found 0, expected .*"),
        (("--train.batch_size", "63", *TWO), r"train\.batch_size is 63, which 2 processes share; .*"),
        (("--train.sync_batch_norm", "true", *TWO), r"train\.sync_batch_norm is true, .*"),
        (("--data.root", "nowhere", *TWO), r".*nowhere.*"),
        (("--train.output_dir", "/proc/no", *TWO), r".*/proc/no.*"),
    ],
)
def test_a_mistake_is_told_once(words: tuple[str, ...], message: str, store: Runs, spawn: Spawn) -> None:
    recipe = () if "--data.root" in words else ("digits",)
    child = spawn(*imgcls("train", *recipe, *words), MLFLOW_TRACKING_URI=store.uri, MLFLOW_EXPERIMENT_NAME="mistakes")
    assert child.wait() == 2
    assert re.fullmatch(rf"imgcls: error: {message}\n", child.err), child.err
    assert store.of("mistakes") == []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_all_and_the_run_is_failed(rank: int, store: Runs, spawn: Spawn) -> None:
    child = training(spawn, store, f"killed {rank}", "--train.epochs", "500")
    child.wait_for(r"epoch +1/500 ")
    family, begin = child.family(), time.monotonic()
    ranks(child)[rank].kill()
    assert child.wait() == 2
    assert time.monotonic() - begin < PATIENCE / 2
    assert not left_behind(child, family)
    run = store.only(f"killed {rank}")
    assert run.info.status == "FAILED"
    reason = f"process {rank} of 2 was ended by SIGKILL. Where nobody did that, memory ran out: lower "
    assert run.data.tags["imgcls.error"].startswith(reason)
    assert child.err == f"imgcls: error: {run.data.tags['imgcls.error']}\n"
    assert "checkpoints/last.pt" in store.artifacts(run)
    assert f"run {run.info.run_id} in " in child.out


def test_the_reason_of_the_process_that_failed_is_the_run_s(store: Runs, spawn: Spawn, tmp_path: Path) -> None:
    """Images are damaged while it runs."""
    from tests.conftest import put

    photos = put(tmp_path / "photos", *(f"{label}/{k}.png" for label in "ab" for k in range(30)))
    child = spawn(
        *imgcls(
            "train", "--data.root", str(photos), *TWO, "--train.epochs", "500", "--data.store_budget", "0",
            "--train.batch_size", "8", "--augment.image_size", "16", "--model.family", "plaincnn",
        ),
        MLFLOW_TRACKING_URI=store.uri, MLFLOW_EXPERIMENT_NAME="reason",
    )  # fmt: skip
    child.wait_for(r"epoch +1/500 ")
    family = child.family()
    for k in range(30):
        (photos / "a" / f"{k}.png").write_bytes(b"no image")
    assert child.wait() == 2
    assert not left_behind(child, family)
    run = store.only("reason")
    assert run.info.status == "FAILED"
    assert re.search(r"a/\d+\.png", run.data.tags["imgcls.error"])
    assert child.err == f"imgcls: error: {run.data.tags['imgcls.error']}\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_training_is_killed_with_its_last_checkpoint(
    number: signal.Signals, store: Runs, spawn: Spawn, tmp_path: Path
) -> None:
    child = training(spawn, store, f"two {number.name}", "--train.epochs", "500")
    child.wait_for(FIRST_EPOCH)
    family = child.family()
    child.process.send_signal(number)
    assert child.wait() == 128 + number
    assert not left_behind(child, family)
    check_killed(store, store.only(f"two {number.name}"), number.name, tmp_path)
    assert child.err == f"\nimgcls: {number.name}: stopping after this batch; again to end at once\n"


def test_two_quick_signals_end_at_once_and_still_close_the_run(store: Runs, spawn: Spawn) -> None:
    child = training(spawn, store, "two twice", "--train.epochs", "500")
    child.wait_for(FIRST_EPOCH)
    family = child.family()
    child.process.send_signal(signal.SIGINT)
    child.wait_for("again to end at once")
    child.process.send_signal(signal.SIGINT)
    assert child.wait() == 130, child.err
    assert not left_behind(child, family)
    assert store.only("two twice").info.status == "KILLED"


def test_processes_whose_launcher_is_killed_end_in_order(store: Runs, spawn: Spawn) -> None:
    child = training(spawn, store, "orphans", "--train.epochs", "500")
    child.wait_for(FIRST_EPOCH)
    family = child.family()
    child.process.kill()
    child.wait()
    assert not left_behind(child, family)
    run = store.only("orphans")
    assert (run.info.status, run.data.tags["imgcls.stopped_by"]) == ("KILLED", "stopped by SIGTERM")


def test_a_signal_before_training_leaves_no_run_open_and_no_process(store: Runs, spawn: Spawn) -> None:
    for delay, pattern in [(2.0, None), (5.0, None), (0.0, "1,797 images"), (0.4, "1,797 images")]:
        child = training(spawn, store, "two early", "--train.epochs", "500", fresh=pattern is None)
        if pattern is not None:
            child.wait_for(pattern)
        time.sleep(delay)
        family = child.family()
        child.process.send_signal(signal.SIGTERM)
        assert child.wait() in (143, -signal.SIGTERM), "the latter before imgcls is imported"
        assert not left_behind(child, family)
        assert "Traceback" not in child.err
    assert {run.info.status for run in store.of("two early")} <= {"KILLED"}


def test_torchrun_may_start_the_processes(store: Runs, spawn: Spawn) -> None:
    words = imgcls("train", "digits", "--train.epochs", "1")[1:]
    child = spawn(
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()),
        *words, MLFLOW_TRACKING_URI=store.uri, MLFLOW_EXPERIMENT_NAME="torchrun",
    )  # fmt: skip
    assert child.wait() == 0, child.err
    assert store.only("torchrun").info.status == "FINISHED"
    assert child.out.count("best epoch") == 1


def test_processes_of_torchrun_go_on_with_a_run_that_the_first_one_finds(
    store: Runs, spawn: Spawn, tmp_path: Path
) -> None:
    """Each would fetch its checkpoints into the same folder; the work folder is gone."""

    def torchrun(folder: Path, *words: str) -> Child:
        return spawn(
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()),
            *imgcls("train", *words)[1:], "--train.output_dir", str(folder),
            MLFLOW_TRACKING_URI=store.uri, MLFLOW_EXPERIMENT_NAME="torchrun resume",
        )  # fmt: skip

    child = training(spawn, store, "torchrun resume", "--train.epochs", "4")
    child.wait_for(r"epoch +1/4 ")
    child.process.send_signal(signal.SIGTERM)
    assert child.wait() == 143, child.err
    run_id = store.only("torchrun resume").info.run_id
    child = torchrun(tmp_path / "out", "--resume", run_id)
    assert child.wait() == 0, child.err
    run = store.only("torchrun resume")
    assert (run.info.status, run.data.tags["imgcls.resumes"]) == ("FINISHED", "1")
    assert [step for step, _ in store.history(run, "val/acc")] == [1, 2, 3, 4]
    assert child.out.count("going on with the run") == 1
    child = torchrun(tmp_path / "out", "--resume", run_id)
    assert child.wait() != 0
    assert child.err.count("is FINISHED; there is nothing to go on with") == 1


def test_a_scheduler_may_start_the_processes_and_a_stop_of_one_stops_all(
    store: Runs, spawn: Spawn, tmp_path: Path
) -> None:
    port = str(free_port())
    first, second = (
        training(
            spawn, store, "scheduler", "--train.epochs", "500", RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
        )
        for rank in range(2)
    )  # fmt: skip
    first.wait_for(FIRST_EPOCH)
    second.process.send_signal(signal.SIGTERM)
    assert (first.wait(), second.wait()) == (143, 143)
    check_killed(store, store.only("scheduler"), "SIGTERM", tmp_path)
    assert second.out == ""
    assert "imgcls: " not in second.err, "torch may tell there that the first one, with the store, is gone"
    assert "Traceback" not in second.err


def test_another_number_than_was_started_is_refused(store: Runs, spawn: Spawn) -> None:
    child = spawn(
        *imgcls("train", "digits", "--train.processes", "3"),
        MLFLOW_TRACKING_URI=store.uri,
        **{"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
    )
    assert child.wait() == 2
    assert child.err.startswith("imgcls: error: train.processes is 3, but 2 were started (WORLD_SIZE). ")
