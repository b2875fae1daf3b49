"""What a refit refuses, before there is a run, and how its runs end when it is stopped or fails."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import imgcls
from imgcls.errors import UserError
from imgcls.jobs import refit as job
from imgcls.jobs import train as training
from imgcls.jobs.test_reading import read_test
from imgcls.tracking.store import connect
from imgcls.tracking.trained import find_trained
from imgcls.training.fit import fit
from tests.conftest import MakeFolder
from tests.jobs.test_train import SMALL, runs, use_store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]

NO_RUN = "0" * 32


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for label in range(2):
        (root / f"class{label}").mkdir()
        for number in range(8):
            Image.new("RGB", (9, 9), (100 * label, 10 * number, 5)).save(root / f"class{label}" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(folder_of_the_store: Path, photos: Path) -> Iterator[imgcls.TrainResult]:
    with pytest.MonkeyPatch.context() as patch:
        use_store(patch, folder_of_the_store, "trained")
        yield imgcls.train(
            None, {**SMALL, "data.root": str(photos), "train.epochs": 1, "train.batch_size": 4}, quiet=True
        )


@pytest.fixture(autouse=True)
def _store(
    trained: imgcls.TrainResult,  # noqa: ARG001  (made first, in a store of the module's own)
    folder_of_the_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    use_store(monkeypatch, folder_of_the_store, request.node.name)


def made(status: str | None = "FINISHED", *, metrics: dict[str, float] | None = None, **tags: str) -> str:
    """A run with these tags (imgcls.<name>) in an experiment that is not the refit's."""
    client = connect().client
    found = client.get_experiment_by_name("elsewhere")
    experiment = client.create_experiment("elsewhere") if found is None else found.experiment_id
    run = client.create_run(experiment, tags={f"imgcls.{name}": value for name, value in tags.items()})
    for name, value in (metrics or {}).items():
        client.log_metric(run.info.run_id, name, value)
    if status is not None:
        client.set_terminated(run.info.run_id, status)
    return str(run.info.run_id)


# --- what it refuses


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda: "digits", r"found 'digits' to refit; expected the id of a finished training or of a sweep"),
        (lambda: NO_RUN, rf"there is no run {NO_RUN} in sqlite.*`imgcls ui`"),
        (lambda: made(verb="lr_find", data_digest="d"), r"\(lr-find\) has no best epoch; expected a training"),
        (lambda: made(), r"is no training of imgcls"),
        (lambda: made(None, verb="train", data_digest="d"), r"is RUNNING; expected a finished training.*Wait"),
        (lambda: made("KILLED", verb="train", data_digest="d"), r"is KILLED; .*imgcls train --resume [0-9a-f]{32}\."),
        (lambda: made("FAILED", verb="train", data_digest="d"), r"is FAILED; .*imgcls\.error.*--resume"),
        (lambda: made(verb="refit", refit_of="abc", data_digest="d"), r"is a refit itself.*made from, abc\."),
        (lambda: made("KILLED", verb="tune"), r"the sweep .* \(status KILLED\) has no completed trial to refit"),
        (lambda: made(verb="tune", best_run_id=NO_RUN), rf"there is no run {NO_RUN}"),
        (
            lambda: made(verb="train", data_digest="d", metrics={"best/epoch": 1}),
            r"has no artifact 'recipe\.yaml'; was it made by imgcls",
        ),
    ],
)
def test_a_run_that_is_nothing_to_refit_is_refused(target: Callable[[], str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        imgcls.refit(target(), quiet=True)
    assert runs() == []


def test_a_deleted_run_is_refused() -> None:
    run_id = made(verb="train", data_digest="d", metrics={"best/epoch": 1})
    connect().client.delete_run(run_id)
    with pytest.raises(UserError, match=rf"is deleted\. Restore it with `mlflow runs restore --run-id {run_id}`"):
        imgcls.refit(run_id, quiet=True)


def test_a_sweep_stands_for_its_best_trial(trained: imgcls.TrainResult) -> None:
    sweep = made(verb="tune", best_run_id=trained.run_id)
    for target in (sweep, f"runs:/{sweep}"):
        found = find_trained(target)
        assert (found.run_id, found.sweep, found.best_epoch) == (trained.run_id, sweep, 1)
    assert find_trained(trained.run_id).sweep is None


@pytest.mark.parametrize("seeds", [0, -1, 1001])
def test_a_number_of_seeds_that_makes_no_sense_is_refused(trained: imgcls.TrainResult, seeds: int) -> None:
    with pytest.raises(UserError, match=rf"found {seeds} seeds; expected a number from 1 to 1000"):
        imgcls.refit(trained.run_id, seeds=seeds, quiet=True)
    assert runs() == []


def test_what_was_validated_cannot_be_another(trained: imgcls.TrainResult) -> None:
    with pytest.raises(UserError, match=r"optim\.lr cannot be another one in a refit.*and refit that.*data\.root"):
        imgcls.refit(trained.run_id, texts={"optim.lr": "0.5"}, quiet=True)
    assert runs() == []


def test_images_that_have_changed_are_refused_with_both_digests(
    trained: imgcls.TrainResult, make_folder: MakeFolder
) -> None:
    was = trained.predictions.manifest_digest
    with pytest.raises(UserError, match=rf"found the digest [0-9a-f]{{32}} in .*photos, expected {was}\. Put back"):
        imgcls.refit(trained.run_id, overrides={"data.root": str(make_folder())}, quiet=True)
    assert runs() == []


def test_images_that_were_moved_are_the_same(trained: imgcls.TrainResult, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "moved").symlink_to(photos)
    result = imgcls.refit(trained.run_id, overrides={"data.root": str(tmp_path / "moved")}, quiet=True)
    assert result.recipe.data.origin == str(tmp_path / "moved")


@pytest.mark.slow
def test_without_a_test_split_nothing_is_trained(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {**SMALL, "data.root": str(photos), "data.test_fraction": 0, "train.epochs": 1, "train.batch_size": 4}
    run = imgcls.train(None, fields, quiet=True)
    monkeypatch.setattr(training, "fit", lambda *_, **_options: pytest.fail("it trains"))
    with pytest.raises(UserError, match=r"have no test split.*data\.test_fraction above 0"):
        imgcls.refit(run.run_id, quiet=True)
    assert [item.info.run_id for item in runs()] == [run.run_id]


def test_one_of_several_processes_is_refused(trained: imgcls.TrainResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were started"):
        imgcls.refit(trained.run_id, quiet=True)


# --- how its runs end


def attached(monkeypatch: pytest.MonkeyPatch) -> str:
    """A run such as `mlflow run` makes for the process."""
    store = connect()
    run_id = str(store.client.create_run(store.experiment_id).info.run_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    return run_id


def test_a_mistake_fails_the_run_that_mlflow_made(monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = attached(monkeypatch)
    with pytest.raises(UserError, match="there is no run"):
        imgcls.refit(NO_RUN, quiet=True)
    [run] = runs()
    assert (run.info.run_id, run.info.status) == (run_id, "FAILED")
    assert "there is no run" in run.data.tags["imgcls.error"]


def test_the_run_that_mlflow_made_is_the_refit(trained: imgcls.TrainResult, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = attached(monkeypatch)
    assert imgcls.refit(trained.run_id, quiet=True).run_id == run_id
    [run] = runs()
    assert (run.info.status, run.data.tags["imgcls.verb"]) == ("FINISHED", "refit")


@pytest.mark.slow
def test_with_seeds_the_run_that_mlflow_made_is_above_theirs_in_its_experiment(
    trained: imgcls.TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = attached(monkeypatch)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "not looked at")
    result = imgcls.refit(trained.run_id, seeds=2, quiet=True)
    assert result.run_id == run_id
    client = connect().client
    below = [client.get_run(network.run_id) for network in result.networks]
    assert {run.info.experiment_id for run in below} == {result.experiment_id}
    assert {run.data.tags["mlflow.parentRunId"] for run in below} == {run_id}
    assert "MLFLOW_RUN_ID" not in os.environ


def interrupting(real: Callable[..., Any], *, at: int, error: Exception | None = None) -> Callable[..., Any]:
    """`fit` whose call number `at` gets a Ctrl-C, or fails."""
    calls = 0

    def called(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            if error is not None:
                raise error
            signal.raise_signal(signal.SIGINT)
        return real(*args, **options)

    return called


def states() -> dict[str, tuple[str, str]]:
    """name -> status and reason of every run, where a refit's is called parent."""
    found = {}
    for run in runs():
        tags = run.data.tags
        name = tags["mlflow.runName"] if "mlflow.parentRunId" in tags else "parent"
        found[name] = (run.info.status, tags.get("imgcls.stopped_by") or tags.get("imgcls.error") or "")
    return found


def test_ctrl_c_kills_the_run_and_leaves_the_test_set_unread(
    trained: imgcls.TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "fit", interrupting(fit, at=1))
    with pytest.raises(KeyboardInterrupt):
        imgcls.refit(trained.run_id, quiet=True)
    assert states() == {"parent": ("KILLED", "stopped by SIGINT")}
    [run] = runs()
    assert "imgcls.test_digest" not in run.data.tags
    assert "checkpoints/last.pt" in [e.path for e in connect().client.list_artifacts(run.info.run_id, "checkpoints")]
    assert not Path("outputs").exists()


def test_ctrl_c_with_several_seeds_kills_the_one_in_work_and_the_parent(
    trained: imgcls.TrainResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "fit", interrupting(fit, at=2))
    with pytest.raises(KeyboardInterrupt):
        imgcls.refit(trained.run_id, seeds=3)
    stopped = ("KILLED", "stopped by SIGINT")
    assert states() == {"parent": stopped, "seed 0": ("FINISHED", ""), "seed 1": stopped}
    assert capsys.readouterr().out.count("the run is KILLED") == 1


def test_a_seed_that_fails_fails_the_parent(trained: imgcls.TrainResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "fit", interrupting(fit, at=2, error=UserError("the loss is nan")))
    with pytest.raises(UserError, match="the loss is nan"):
        imgcls.refit(trained.run_id, seeds=2, quiet=True)
    failed = ("FAILED", "the loss is nan")
    assert states() == {"parent": failed, "seed 0": ("FINISHED", ""), "seed 1": failed}


def test_a_stop_while_a_seeds_run_is_closed_ends_the_job_after_that(
    trained: imgcls.TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imgcls.tracking.run import TrackedRun

    finish = TrackedRun.finish

    def interrupted(run: TrackedRun, *words: Any) -> bool:
        if len(runs()) == 2 and words[0] == "FINISHED":
            signal.raise_signal(signal.SIGTERM)
        return finish(run, *words)

    monkeypatch.setattr(TrackedRun, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        imgcls.refit(trained.run_id, seeds=3, quiet=True)
    assert states() == {"parent": ("KILLED", "stopped by SIGTERM"), "seed 0": ("FINISHED", "")}


def test_an_error_in_the_read_fails_the_run_that_has_a_model_by_then(
    trained: imgcls.TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "read_test", interrupting(read_test, at=1, error=RuntimeError("boom")))
    with pytest.raises(RuntimeError, match="boom"):
        imgcls.refit(trained.run_id, quiet=True)
    assert states() == {"parent": ("FAILED", "RuntimeError: boom")}
    [run] = runs()
    assert run.outputs.model_outputs
    assert "imgcls.test_digest" in run.data.tags
