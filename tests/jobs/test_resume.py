"""Going on with a run, in this process; tests/e2e/ kills real ones."""

import json
import math
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import imgcls
from imgcls.errors import UserError
from imgcls.jobs import resume as resuming
from imgcls.jobs import train as job
from imgcls.recipe import resolve
from imgcls.tracking import resume as tracking
from imgcls.tracking.run import TrackedRun
from imgcls.tracking.store import connect
from imgcls.training import losses
from imgcls.training.checkpoint import Checkpoint
from imgcls.training.fit import fit
from imgcls.training.keeper import LAST
from imgcls.training.plan import Plan
from tests.jobs.test_train import SMALL, runs, use_store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _store(
    folder_of_the_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    use_store(monkeypatch, folder_of_the_store, request.node.name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def photos(make_folder: Callable[..., Path]) -> dict[str, Any]:
    return {**SMALL, "model.dropout": 0.3, "data.root": str(make_folder()), "train.epochs": 3, "train.batch_size": 4}


class Killed(BaseException):
    """Stands for kill -9: the run is not ended."""


def interrupt(monkeypatch: pytest.MonkeyPatch, photos: dict[str, Any], *, killed: bool = False) -> str:
    """Train until after the first epoch's checkpoint; the run that is left, KILLED or RUNNING."""

    def interrupted(*args: Any, **kwargs: Any) -> Iterator[Any]:
        steps = 0

        def on_step(_step: Any) -> None:
            nonlocal steps
            steps += 1
            if steps == 6:
                if killed:
                    raise Killed
                signal.raise_signal(signal.SIGINT)

        yield from fit(*args, **{**kwargs, "on_step": on_step})

    with monkeypatch.context() as patch:
        patch.setattr(job, "fit", interrupted)
        if killed:
            patch.setattr(TrackedRun, "log_metrics", _dies_at_a_row(TrackedRun.log_metrics))
        with pytest.raises(Killed if killed else KeyboardInterrupt):
            imgcls.train(None, photos, quiet=True)
    [run] = runs()
    assert run.info.status == ("RUNNING" if killed else "KILLED")
    return str(run.info.run_id)


def _dies_at_a_row(real: Callable[..., None]) -> Callable[..., None]:
    """`log_metrics` of a process that is killed between an epoch's checkpoint and its record."""

    def log_metrics(run: TrackedRun, metrics: dict[str, float], *, step: int = 0) -> None:
        if "val/loss" in metrics:
            raise Killed
        real(run, metrics, step=step)

    return log_metrics


def figures(run_id: str) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of all figures of a run but times, in the order of the steps."""
    client = connect().client
    names = [name for name in client.get_run(run_id).data.metrics if not name.startswith(("speed/", "system/"))]
    return {name: sorted((m.step, m.value) for m in client.get_metric_history(run_id, name)) for name in names}


def check_as_if_uninterrupted(run_id: str, whole: imgcls.TrainResult, result: imgcls.TrainResult) -> None:
    assert result.run_id == run_id != whole.run_id
    run = connect().client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["imgcls.resumes"] == "1"
    assert not {"imgcls.error", "imgcls.stopped_by"} & run.data.tags.keys()
    assert figures(run_id) == figures(whole.run_id)
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, result.module.state_dict()[name]), name
    assert (result.predictions.probs == whole.predictions.probs).all()
    assert not Path("outputs").exists()


@pytest.fixture
def whole(photos: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> imgcls.TrainResult:
    """The same training without an interruption, in an experiment of its own."""
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "whole")
        return imgcls.train(None, photos, quiet=True)


def test_a_stopped_run_goes_on_from_its_artifacts_as_if_nothing_had_been(
    photos: dict[str, Any],
    whole: imgcls.TrainResult,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_id = interrupt(monkeypatch, photos)
    assert not Path("outputs").exists()
    result = imgcls.train(resume=run_id, overrides={"data.num_workers": 1})
    check_as_if_uninterrupted(run_id, whole, result)
    assert f"going on with the run {run_id} after epoch 1 and 1 batches\n" in capsys.readouterr().out


@pytest.mark.parametrize("target", ["outputs/{}", "outputs/{}/artifacts/checkpoints/last.pt", "{}"])
def test_a_killed_run_goes_on_from_its_folder_once_its_process_is_gone(
    photos: dict[str, Any], whole: imgcls.TrainResult, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    run_id = interrupt(monkeypatch, photos, killed=True)
    assert "val/loss" not in figures(run_id)
    with pytest.raises(UserError, match=r"is still in work, by process \d+ on this machine"):
        imgcls.train(resume=run_id, quiet=True)
    assert tracking.interrupted(Path("outputs")) == []
    monkeypatch.setattr(tracking, "is_running", lambda _owner: False)
    assert tracking.interrupted(Path("outputs")) == [run_id]
    check_as_if_uninterrupted(run_id, whole, imgcls.train(resume=target.format(run_id), quiet=True))


@pytest.mark.parametrize("averages", [{"averaging": "ema"}, {"averaging": "swa", "swa_start": 0.2}])
def test_with_averages_it_goes_on_from_the_weights_that_were_trained(
    photos: dict[str, Any], monkeypatch: pytest.MonkeyPatch, averages: dict[str, Any]
) -> None:
    photos |= {f"train.{name}": value for name, value in averages.items()}
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "whole")
        whole = imgcls.train(None, photos, quiet=True)
    run_id = interrupt(monkeypatch, photos, killed=True)
    monkeypatch.setattr(tracking, "is_running", lambda _owner: False)
    folder = Path("outputs", run_id, "artifacts/checkpoints")
    with pytest.raises(UserError, match=rf"averaging is {averages['averaging']}\), .*: imgcls train --resume {run_id}"):
        imgcls.train(resume=folder / "best.pt", quiet=True)
    last = (folder / LAST).read_bytes()
    (folder / LAST).write_bytes(last[:1000])
    with pytest.raises(UserError, match="no checkpoint that can be read but averages of weights"):
        imgcls.train(resume=run_id, quiet=True)
    (folder / LAST).write_bytes(last)
    check_as_if_uninterrupted(run_id, whole, imgcls.train(resume=run_id, quiet=True))


def test_what_the_store_does_not_give_is_told_and_fetched_the_next_time(
    photos: dict[str, Any], whole: imgcls.TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = interrupt(monkeypatch, photos)
    client = type(connect().client)
    real = client.download_artifacts

    def breaking(self: Any, run_id: str, path: str, folder: str | None = None) -> str:
        local: str = real(self, run_id, path, folder)
        if path.endswith(LAST):
            Path(local).write_bytes(Path(local).read_bytes()[:1000])
            raise ConnectionResetError("connection reset by peer")
        return local

    with monkeypatch.context() as patch:
        patch.setattr(client, "download_artifacts", breaking)
        with pytest.raises(UserError, match=rf"checkpoints of the run {run_id} cannot be fetched .*connection reset"):
            imgcls.train(resume=run_id, quiet=True)
    assert [path.name for path in Path("outputs", run_id, "artifacts/checkpoints").iterdir()] == ["best.pt"]
    check_as_if_uninterrupted(run_id, whole, imgcls.train(resume=run_id, quiet=True))


def test_a_damaged_checkpoint_is_fetched_anew(
    photos: dict[str, Any], whole: imgcls.TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = interrupt(monkeypatch, photos)
    folder = Path("outputs", run_id, "artifacts/checkpoints")
    folder.mkdir(parents=True)
    (folder / LAST).write_bytes(b"half a file")
    check_as_if_uninterrupted(run_id, whole, imgcls.train(resume=f"outputs/{run_id}", quiet=True))


def test_a_new_training_tells_of_an_interrupted_one(
    photos: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = interrupt(monkeypatch, photos, killed=True)
    monkeypatch.setattr(tracking, "is_running", lambda _owner: False)
    imgcls.train(None, {**photos, "train.epochs": 1})
    expected = f"note: the run {run_id} was interrupted; to go on with it: imgcls train --resume {run_id}\n"
    assert expected in capsys.readouterr().out


def test_the_images_may_have_moved_and_the_folder_may_be_another(
    photos: dict[str, Any], whole: imgcls.TrainResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_id = interrupt(monkeypatch, photos, killed=True)
    monkeypatch.setattr(tracking, "is_running", lambda _owner: False)
    shutil.move(photos["data.root"], tmp_path / "moved")
    free = {"data.root": str(tmp_path / "moved"), "train.output_dir": str(tmp_path / "other")}
    result = imgcls.train(resume=run_id, overrides=free, quiet=True)
    shutil.rmtree("outputs")
    check_as_if_uninterrupted(run_id, whole, result)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optim.lr": 0.5}, r"optim\.lr: found 0\.5 to go on with, but the run \w+ has 0\.001"),
        ({"train.epochs": 9}, r"train\.epochs: found 9 .* --model\.weights runs:/\w+\."),
        ({"data.balance": "loss"}, r"data\.balance: found"),
        ({"optim.nope": 1}, r"unknown field 'optim\.nope'"),
    ],
)
def test_what_decides_the_result_cannot_be_overridden(
    photos: dict[str, Any], monkeypatch: pytest.MonkeyPatch, overrides: dict[str, Any], message: str
) -> None:
    run_id = interrupt(monkeypatch, photos)
    with pytest.raises(UserError, match=message):
        imgcls.train(resume=run_id, overrides=overrides, quiet=True)
    assert [run.info.status for run in runs()] == ["KILLED"]


def test_other_images_are_refused(photos: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = interrupt(monkeypatch, photos)
    root = Path(photos["data.root"])
    (root / "class0/0.png").write_bytes((root / "class1/0.png").read_bytes()[:-1] + b"\0")
    with pytest.raises(UserError, match=r"images are not those of the run \w+: found the digest \w+ in .* expected"):
        imgcls.train(resume=run_id, quiet=True)
    assert [run.info.status for run in runs()] == ["KILLED"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "0"}, "in another order or split: found"),
        ({"recipe": '{"optim.lr": 7}'}, "the recipe is not that of the checkpoint"),
    ],
)
def test_a_checkpoint_of_another_split_or_recipe_is_refused(
    photos: dict[str, Any], monkeypatch: pytest.MonkeyPatch, change: dict[str, str], message: str
) -> None:
    run_id = interrupt(monkeypatch, photos, killed=True)
    monkeypatch.setattr(tracking, "is_running", lambda _owner: False)
    last = Path("outputs", run_id, "artifacts/checkpoints", LAST)
    saved = Checkpoint.load(last)
    Checkpoint(**{**vars(saved), "about": {**saved.about, **change}}).save(last)
    with pytest.raises(UserError, match=message):
        imgcls.train(resume=run_id, quiet=True)


def test_what_may_change_the_last_digits_is_told(
    photos: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = interrupt(monkeypatch, photos)
    torch.set_num_threads(2)
    imgcls.train(resume=run_id)
    assert "note: the run was computed with threads: 1, now 2; figures may differ" in capsys.readouterr().out


def test_a_run_of_a_gpu_goes_on_on_the_cpu_with_a_plan_of_its_own(
    photos: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = interrupt(monkeypatch, photos, killed=True)
    monkeypatch.setattr(tracking, "is_running", lambda _owner: False)
    artifacts = Path("outputs", run_id, "artifacts")
    plan = Plan("cuda", "fp16", "nchw")
    recipe = resolve(artifacts / "recipe.yaml").recipe.replace({"train.plan": plan.as_config()})
    (artifacts / "recipe.yaml").write_text(recipe.to_yaml())
    saved = Checkpoint.load(artifacts / "checkpoints" / LAST)
    about = {**saved.about, "recipe": json.dumps(recipe.flat())}
    Checkpoint(**{**vars(saved), "plan": plan.as_dict(), "about": about}).save(artifacts / "checkpoints" / LAST)
    with pytest.raises(UserError, match=r"train\.plan: found .*fp32.* and what it gives depends on it"):
        imgcls.train(resume=run_id, overrides={"train.plan.precision": "fp32"})
    result = imgcls.train(resume=run_id)
    out = capsys.readouterr().out
    assert (
        "note: the run was computed on cuda fp16 nchw, a plan of another device; a plan for this one is chosen" in out
    )
    assert "note: the run was computed on cuda fp16 nchw, now cpu fp32 nhwc threads=1; figures may differ" in out
    assert len(result.history.rows) == 3


def test_a_run_that_is_not_to_be_gone_on_with_is_refused(photos: dict[str, Any], tmp_path: Path) -> None:
    def refused(target: str | Path, message: str, recipe: str | None = None) -> None:
        with pytest.raises(UserError, match=message):
            imgcls.train(recipe, resume=target, quiet=True)

    store = connect()
    finished = imgcls.train(None, photos, quiet=True).run_id
    refused(finished, r"is FINISHED; there is nothing .* --model\.weights runs:/")
    refused(finished, "found the recipe 'digits' beside a run", recipe="digits")
    refused("0" * 32, "there is no run 0000")
    refused("last.pt", r"found 'last\.pt' to go on with; expected a run id")
    refused(tmp_path, "expected a run id")
    bare = store.client.create_run(store.experiment_id).info.run_id
    refused(bare, "is no training of imgcls")
    store.client.set_tag(bare, "imgcls.verb", "train")
    refused(bare, r"has no artifact 'recipe\.yaml': it ended before its training began")
    store.client.log_text(bare, "data: {source: digits}\n", "recipe.yaml")
    refused(bare, "has no checkpoint that can be read")
    store.client.set_terminated(bare, "KILLED")
    store.client.delete_run(bare)
    refused(bare, f"is deleted. Restore it with `mlflow runs restore --run-id {bare}`")


def test_a_run_of_mlflow_run_is_failed_by_a_resume_of_another(
    photos: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = interrupt(monkeypatch, photos)
    store = connect()
    attached = store.client.create_run(store.experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", attached)
    with pytest.raises(UserError, match=f"MLFLOW_RUN_ID is {attached}"):
        imgcls.train(resume=run_id, quiet=True)
    assert store.client.get_run(attached).info.status == "FAILED"


UNMEASURED = {"train.plan": {"precision": "fp32", "layout": "nhwc", "compile": False, "threads": 1}}
"""Measuring a plan takes training steps too, which would be counted."""


def nan_at(monkeypatch: pytest.MonkeyPatch, *calls: int) -> None:
    """The training loss is NaN at these calls, counted from 1."""
    real, seen = losses.Loss.sum, 0

    def loss(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal seen
        seen += 1
        found: torch.Tensor = real(*args, **kwargs)
        return found * math.nan if seen in calls else found

    monkeypatch.setattr(losses.Loss, "sum", loss)


def test_nan_stops_the_run_with_its_last_good_checkpoint(
    photos: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nan_at(monkeypatch, 7)
    with pytest.raises(UserError, match=r"loss became nan in epoch 2; .* Lower optim\.lr"):
        imgcls.train(None, {**photos, **UNMEASURED}, quiet=True)
    [run] = runs()
    assert run.info.status == "FAILED"
    assert "loss became nan in epoch 2" in run.data.tags["imgcls.error"]
    last = connect().client.download_artifacts(run.info.run_id, "checkpoints/last.pt", str(tmp_path))
    assert Checkpoint.load(Path(last)).epoch == 1


@pytest.mark.parametrize(
    ("mode", "metric", "values", "line"),
    [
        ("skip", "train/skipped_steps", [0, 1, 0], "epoch 2, batch 2: loss or gradient is not finite"),
        ("rewind", "train/lr_factor", [1, 0.5, 0.5], "loss became nan in epoch 2; back to the beginning of the epoch"),
    ],
)
def test_nan_that_training_survives_is_logged_and_told(
    photos: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mode: str,
    metric: str,
    values: list[float],
    line: str,
) -> None:
    nan_at(monkeypatch, 7)
    result = imgcls.train(None, {**photos, **UNMEASURED, "train.on_nan": mode})
    assert [value for _, value in figures(result.run_id)[metric]] == values
    assert line in capsys.readouterr().out


def test_checkpoints_are_sent_now_and_then_best_first(tmp_path: Path) -> None:
    sent: list[str] = []
    now = [0.0]

    class Run:
        def file(self, name: str) -> Path:
            return tmp_path / Path(name).name

        def log_file(self, name: str) -> None:
            sent.append(Path(name).name)
            now[0] += 100

    uploads = resuming.Uploads(Run(), clock=lambda: now[0])  # type: ignore[arg-type]
    for name in ("last.pt", "best.pt"):
        (tmp_path / name).write_text("1")
    uploads.now_and_then()
    assert sent == []
    now[0] = 601
    uploads.now_and_then()
    assert sent == ["best.pt", "last.pt"]
    now[0] = 801 + 3999
    uploads.now_and_then()
    assert len(sent) == 2, "200 seconds of sending want 4000 without"
    now[0] = 801 + 4001
    uploads.now_and_then()
    assert len(sent) == 2, "nothing new"
    (tmp_path / "last.pt").unlink()
    (tmp_path / "last.pt").write_text("2")
    now[0] += 601
    uploads.now_and_then()
    assert sent[2:] == ["last.pt"]


def test_the_owner_of_a_run_is_in_its_tag(photos: dict[str, Any]) -> None:
    result = imgcls.train(None, {**photos, "train.epochs": 1}, quiet=True)
    owner = json.loads(connect().client.get_run(result.run_id).data.tags["imgcls.job"])
    assert owner["folder"] == str(Path.cwd() / "outputs" / result.run_id)
