"""The verb in Python, in this process; tests/e2e/ has it as a command."""

import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import imgcls
from imgcls.errors import UserError
from imgcls.jobs import train as job
from imgcls.jobs import train_log
from imgcls.jobs.train import TrainResult
from imgcls.recipe import PACKAGE
from imgcls.tracking import run as tracking
from imgcls.tracking.operations import apply
from imgcls.tracking.run import TrackedRun
from imgcls.tracking.store import connect
from imgcls.training.checkpoint import Checkpoint
from imgcls.training.fit import fit
from imgcls.training.plan import default_plan

# MLflow's own models of its tables, read when its SQL store is first opened.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")]

DIGITS = next(folder for folder in (PACKAGE / "experiments", PACKAGE.parent / "experiments") if folder.is_dir())
SMALL = {"model.family": "plaincnn", "model.num_blocks": 1, "model.channels": 4, "augment.image_size": 8}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # a busy machine makes small networks with several far slower
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _store(folder_of_the_store: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    use_store(monkeypatch, folder_of_the_store, request.node.name)


def use_store(monkeypatch: pytest.MonkeyPatch, folder: Path, experiment: str) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/runs.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", experiment)


def runs() -> list[Any]:
    store = connect()
    return [store.client.get_run(run.info.run_id) for run in store.client.search_runs([store.experiment_id])]


@pytest.fixture
def photos(make_folder: Callable[..., Path]) -> dict[str, Any]:
    """Overrides that train on a small folder in a second."""
    return {**SMALL, "data.root": str(make_folder()), "train.epochs": 2, "train.batch_size": 8}


@pytest.fixture(scope="module")
def result(folder_of_the_store: Path) -> Iterator[TrainResult]:
    """The example of the documentation, on the built-in digits."""
    with pytest.MonkeyPatch.context() as patch:
        use_store(patch, folder_of_the_store, "digits")
        overrides = {"optim.lr": 0.01, "train.epochs": 1, "model.num_blocks": 1, "model.channels": 8}
        overrides["augment.eval_crop"] = 0.8  # what validation sees, the model must see
        yield imgcls.train(DIGITS / "digits.yaml", overrides, quiet=True)


def test_the_result_has_the_history_and_the_recipe(result: TrainResult) -> None:
    assert [row["epoch"] for row in result.history.rows] == [1]
    assert (result.recipe.optim.lr, result.recipe.train.epochs) == (0.01, 1)
    assert result.unsent is None


def test_the_result_names_a_finished_run_of_the_experiment(result: TrainResult) -> None:
    client = connect().client
    run = client.get_run(result.run_id)
    assert (run.info.status, run.info.experiment_id) == ("FINISHED", result.experiment_id)
    assert client.get_experiment(result.experiment_id).name == "digits"
    assert result.tracking_uri.startswith("sqlite:///")
    assert run.data.params["optim.lr"] == "0.01"


def test_the_network_is_ready_to_use_and_gives_the_predictions(result: TrainResult) -> None:
    assert not result.module.training
    assert {str(weights.device) for weights in result.module.parameters()} == {"cpu"}
    assert result.classifier.module is result.module
    from sklearn.datasets import load_digits

    scans = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    images = [scans[int(name.rpartition("/")[2])] for name in result.predictions.ids]
    np.testing.assert_allclose(result.classifier.probabilities(images), result.predictions.probs, atol=1e-5)


def test_the_predictions_are_of_the_best_epoch(photos: dict[str, Any]) -> None:
    result = imgcls.train(None, photos, quiet=True)
    accuracy = (result.predictions.predicted == result.predictions.labels).mean()
    assert accuracy == max(row["val/acc"] for row in result.history.rows)
    assert result.predictions.classes == ("class0", "class1", "class2")


def test_quiet_prints_nothing_at_all(photos: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    imgcls.train(None, photos, quiet=True)
    assert capfd.readouterr() == ("", "")


def test_each_call_is_a_run_of_its_own_and_leaves_the_process_as_it_was(photos: dict[str, Any]) -> None:
    import mlflow

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    first, second = (imgcls.train(None, photos, quiet=True) for _ in range(2))
    assert first.run_id != second.run_id
    assert first.history.rows[-1]["train/loss"] == second.history.rows[-1]["train/loss"]
    assert mlflow.active_run() is None
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    assert not Path("outputs").exists()


def test_a_recipe_may_be_a_mapping(photos: dict[str, Any]) -> None:
    sections: dict[str, dict[str, Any]] = {}
    for name, value in photos.items():
        section, _, field = name.partition(".")
        sections.setdefault(section, {})[field] = value
    result = imgcls.train({**sections, "data": {**sections["data"], "source": "folder"}}, quiet=True)
    assert connect().client.get_run(result.run_id).data.tags["imgcls.recipe"] == "inline"


def test_it_trains_in_a_thread_that_gets_no_signals(photos: dict[str, Any]) -> None:
    results: list[TrainResult] = []
    thread = threading.Thread(target=lambda: results.append(imgcls.train(None, photos, quiet=True)))
    thread.start()
    thread.join(60)
    assert len(results[0].history) == 2


def test_skipped_files_are_counted_and_listed(
    photos: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (Path(photos["data.root"]) / "class0" / "notes.txt").write_text("no image")
    result = imgcls.train(None, photos)
    assert "skipped 1 file" in capsys.readouterr().out
    path = connect().client.download_artifacts(result.run_id, "tables/skipped.jsonl", str(tmp_path))
    assert "class0/notes.txt" in Path(path).read_text()


def test_a_mistake_makes_no_run(photos: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="does not exist"):
        imgcls.train(None, {**photos, "data.root": "/no/such/folder"}, quiet=True)
    assert runs() == []


def test_an_attached_run_is_failed_by_a_mistake(photos: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    store = connect()
    attached = store.client.create_run(store.experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", attached)
    with pytest.raises(UserError, match="does not exist"):
        imgcls.train(None, {**photos, "data.root": "/no/such/folder"}, quiet=True)
    [run] = runs()
    assert (run.info.run_id, run.info.status) == (attached, "FAILED")
    assert "does not exist" in run.data.tags["imgcls.error"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(RuntimeError("boom"), "RuntimeError: boom"), (UserError("the loss is nan"), "the loss is nan")],
)
def test_a_failure_in_training_fails_the_run_with_the_reason(
    photos: dict[str, Any], monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def failing(*args: Any, **kwargs: Any) -> Iterator[Any]:
        yield next(iter(fit(*args, **kwargs)))
        raise error

    monkeypatch.setattr(job, "fit", failing)
    with pytest.raises(type(error), match=str(error)):
        imgcls.train(None, photos, quiet=True)
    [run] = runs()
    assert (run.info.status, run.data.tags["imgcls.error"]) == ("FAILED", reason)
    names = [entry.path for entry in connect().client.list_artifacts(run.info.run_id, "checkpoints")]
    assert "checkpoints/last.pt" in names
    assert not Path("outputs").exists()


def test_ctrl_c_in_training_kills_the_run_after_its_last_checkpoint(
    photos: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for row in fit(*args, **kwargs):
            yield row
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(job, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGINT"):
        imgcls.train(None, {**photos, "train.epochs": 9}, quiet=True)
    [run] = runs()
    assert (run.info.status, run.data.tags["imgcls.stopped_by"]) == ("KILLED", "stopped by SIGINT")
    path = connect().client.download_artifacts(run.info.run_id, "checkpoints/last.pt", str(tmp_path))
    assert Checkpoint.load(Path(path)).epoch == 1


@pytest.mark.parametrize("moment", ["describe", "conclude", "log_checkpoints"])
def test_a_signal_at_any_moment_of_a_run_kills_it(
    photos: dict[str, Any], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    real = getattr(train_log, moment)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return real(*args, **kwargs)

    monkeypatch.setattr(train_log, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        imgcls.train(None, photos, quiet=True)
    assert [run.info.status for run in runs()] == ["KILLED"]


def test_a_signal_in_a_write_to_the_store_waits_for_its_end(
    photos: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What breaks into a transaction can leave the database locked, and the run open."""
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    real = apply
    whole: list[str] = []

    def interrupted(*args: Any) -> None:
        if not whole:
            signal.raise_signal(signal.SIGTERM)
        real(*args)
        whole.append(args[-1]["op"])

    def begin(run: TrackedRun, _prepared: object) -> None:
        monkeypatch.setattr(tracking, "apply", interrupted)
        run.set_tags({"a": "b"})
        pytest.fail("the signal comes right after the write")

    monkeypatch.setattr(train_log, "describe", begin)
    with pytest.raises(KeyboardInterrupt):
        imgcls.train(None, photos, quiet=True)
    assert whole == ["tags", "tags", "end"]
    assert [(run.info.status, run.data.tags["a"]) for run in runs()] == [("KILLED", "b")]


def test_a_signal_while_the_run_is_made_does_not_lose_it(
    photos: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tracking.start

    def interrupted(*args: Any, **kwargs: Any) -> TrackedRun:
        run = real(*args, **kwargs)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        return run

    monkeypatch.setattr(tracking, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        imgcls.train(None, photos, quiet=True)
    assert [run.info.status for run in runs()] == ["KILLED"]


def test_a_signal_while_the_run_is_closed_changes_nothing(
    photos: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TrackedRun.finish

    def interrupted(run: TrackedRun, *args: Any) -> bool:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        return real(run, *args)

    monkeypatch.setattr(TrackedRun, "finish", interrupted)
    result = imgcls.train(None, photos, quiet=True)
    assert [(run.info.run_id, run.info.status) for run in runs()] == [(result.run_id, "FINISHED")]


def test_the_recipe_of_a_run_has_the_size_that_auto_came_to(photos: dict[str, Any], tmp_path: Path) -> None:
    result = imgcls.train(None, {**photos, "augment.image_size": "auto", "train.epochs": 1}, quiet=True)
    assert result.recipe.augment.image_size == 16
    path = connect().client.download_artifacts(result.run_id, "recipe.yaml", str(tmp_path))
    assert yaml.safe_load(Path(path).read_text())["augment"]["image_size"] == 16


@pytest.mark.parametrize("balance", ["oversample", "class_weights", "effective_number"])
def test_the_weights_of_balanced_classes_are_logged(
    balance: str, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_folder(classes=2, images=20)
    for number in range(12):
        (root / "class1" / f"{number}.png").unlink()
    overrides = {**SMALL, "data.root": str(root), "data.balance": balance, "train.epochs": 1, "train.batch_size": 8}
    result = imgcls.train(None, overrides, quiet=True)
    path = connect().client.download_artifacts(result.run_id, "tables/class_weights.csv", str(tmp_path))
    table = pd.read_csv(path)
    assert list(table["class"]) == ["class0", "class1"]
    assert list(table["train_images"]) == [14, 6]
    assert table["weight"][1] > 2 * table["weight"][0]


def test_unreadable_images_are_left_out_counted_and_listed_where_that_is_asked_for(
    photos: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = Path(photos["data.root"]) / "class1" / "3.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(UserError, match=r"class1/3\.png"):
        imgcls.train(None, photos, quiet=True)
    assert runs() == []
    result = imgcls.train(None, {**photos, "data.on_bad_image": "skip", "data.test_fraction": 0})
    assert "skipped 1 file: class1/3.png (cannot read the image" in capsys.readouterr().out
    client = connect().client
    listed = Path(client.download_artifacts(result.run_id, "tables/skipped.jsonl", str(tmp_path))).read_text()
    assert [json.loads(line)["path"] for line in listed.splitlines()] == ["class1/3.png"]
    split_table = pd.read_csv(client.download_artifacts(result.run_id, "tables/split.csv", str(tmp_path)))
    assert len(split_table) == 23
    assert "class1/3.png" not in list(split_table["id"])
    next_step = client.get_run(result.run_id).data.tags["mlflow.note.content"].partition("Next: ")[2]
    assert next_step == f"`imgcls evaluate --model {result.run_id} --split val`", "there are no images for the test"


@pytest.mark.parametrize("depth", ["quick", "full", "off"])
def test_the_data_are_checked_before_training_and_the_report_is_in_the_run(
    depth: str, photos: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(photos["data.root"])
    shutil.copy(root / "class0/1.png", root / "class1/copy.png")
    result = imgcls.train(None, {**photos, "data.check": depth, "train.epochs": 1})
    out = capsys.readouterr().out
    same = "class0/1.png (class0) = class1/copy.png (class1)"
    client = connect().client
    logged = {item.path for item in client.list_artifacts(result.run_id, "tables")}
    if depth == "off":
        assert "warning" not in out
        assert "tables/data_check.json" not in logged
        return
    assert f"warning: contents (the same bytes) under several labels: 1 ({same})" in out.splitlines()
    assert "note:" not in out
    assert out.count("imgcls data check") == 1
    path = client.download_artifacts(result.run_id, "tables/data_check.json", str(tmp_path))
    report = json.loads(Path(path).read_text())
    tags = client.get_run(result.run_id).data.tags
    assert tags["mlflow.note.content"].endswith(f"Next: `imgcls evaluate --model {result.run_id}`")
    digest = tags["imgcls.data_digest"]
    assert (report["depth"], report["images"], report["digest"]) == (depth, 25, digest)


def test_of_good_data_the_check_says_nothing(
    make_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = {**SMALL, "data.root": str(make_folder(classes=2, images=16)), "train.epochs": 1}
    imgcls.train(None, overrides)
    out = capsys.readouterr().out
    assert "32 images of 2 classes" in out
    assert "warning" not in out
    assert "data check" not in out


def test_a_class_of_unreadable_images_only_is_an_error(photos: dict[str, Any]) -> None:
    for path in (Path(photos["data.root"]) / "class2").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="every image of the class 'class2' is unreadable"):
        imgcls.train(None, {**photos, "data.on_bad_image": "skip"}, quiet=True)
    assert runs() == []


def test_a_thaw_is_told_and_logged_and_the_table_of_the_network_is_there(
    photos: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    texts = {"model.freeze_depth": "all", "train.unfreeze": "{2: 0}"}
    result = imgcls.train(None, photos, texts=texts)
    out = capsys.readouterr().out
    assert "of them trained (block1 frozen)" in out
    client = connect().client
    metrics = client.get_run(result.run_id).data.metrics
    total = int(metrics["model/parameters"])
    assert f"epoch 2: now {total:,} of {total:,} parameters are trained; stages frozen: none\n" in out
    trained = [item.value for item in client.get_metric_history(result.run_id, "model/trainable_parameters")]
    assert trained[0] < trained[1] == total
    assert [item.value for item in client.get_metric_history(result.run_id, "model/freeze_depth")] == [1, 0]
    table = pd.read_csv(client.download_artifacts(result.run_id, "tables/model.csv", str(tmp_path)))
    assert (table["parameters"].sum(), table["macs"].sum()) == (total, metrics["model/macs"])
    assert imgcls.train(result.recipe.as_dict(), quiet=True).recipe == result.recipe


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.freeze_depth": 2}, r"model\.freeze_depth: found 2; expected 0, .* 1 block1 \(or all\)"),
        ({"train.unfreeze": {2: 0}}, r"train\.unfreeze, epoch 2: found 0, .* for model\.freeze_depth is 0"),
        ({"model.max_parameters": 5}, r"model\.max_parameters is 5, but it has \d+ parameters"),
        ({"model.max_macs": 5}, r"model\.max_macs is 5, but it takes [\d,]+ at 8 pixels"),
        ({"model.min_receptive_field": 6}, r"model\.min_receptive_field is 6, but its block1 sees 5 pixels"),
    ],
)
def test_a_network_that_is_not_as_the_recipe_wants_makes_no_run(
    photos: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        imgcls.train(None, {**photos, **fields}, quiet=True)
    assert runs() == []


@pytest.mark.slow
def test_a_measured_plan_is_recorded_and_the_next_run_takes_it_without_measuring(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("imgcls.training.choose.SHORT_JOB_S", 0.0)
    monkeypatch.setattr("imgcls.training.choose.MOST_SHARE", 100.0)
    monkeypatch.setattr("imgcls.training.choose.MOST_S", 5.0)
    monkeypatch.setenv("IMGCLS_CACHE", str(tmp_path))
    ask = {**SMALL, "train.epochs": 1, "train.device": "cpu", "train.plan.compile": False}
    found = [imgcls.train("digits", ask) for _ in range(2)]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("plan: ")]
    assert [", measured in " in line for line in lines] == [True, False]
    assert lines[1].endswith(" images/s, as measured before)")
    client = connect().client
    for result in found:
        tag = client.get_run(result.run_id).data.tags["imgcls.plan"]
        assert str(default_plan("cpu", result.recipe.train.plan)) == tag
        assert f"plan: {tag}, " in "\n".join(lines)
        table = pd.read_csv(client.download_artifacts(result.run_id, "tables/plan.csv", str(tmp_path)))
        assert tag in set(table["plan"])
        assert table["images_per_s"].max() > 0
    assert found[0].recipe == found[1].recipe
