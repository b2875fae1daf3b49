import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from imgcls.errors import UserError
from imgcls.tracking import run as tracking
from imgcls.tracking.owner import OWNER_TAG, this_process
from imgcls.tracking.run import SPOOL, TrackedRun, fail_attached_run, start, upload
from imgcls.tracking.store import Store

URI = "http://127.0.0.1:1"


class FakeClient:
    """Remembers what it was told, and raises while `fails` says so."""

    def __init__(self) -> None:
        self.fails: Callable[[str], bool] = lambda _call: False
        self.told: list[tuple[str, Any]] = []
        self.there: dict[str, str] = {}

    def _take(self, call: str, what: Any) -> None:
        if self.fails(call):
            raise ConnectionError(f"{call} refused")
        self.told.append((call, what))

    def get_run(self, run_id: str) -> SimpleNamespace:
        if self.fails("get_run"):
            raise ConnectionError("get_run refused")
        return SimpleNamespace(
            data=SimpleNamespace(params=dict(self.there)), info=SimpleNamespace(experiment_id="7", run_id=run_id)
        )

    def create_run(self, experiment_id: str, tags: Mapping[str, str], run_name: str) -> SimpleNamespace:
        self._take("create_run", (experiment_id, {**tags, "mlflow.runName": run_name}))
        return self.get_run("made")

    def log_batch(
        self, _run_id: str, metrics: Sequence[Any] = (), params: Sequence[Any] = (), tags: Sequence[Any] = ()
    ) -> None:
        if metrics:
            self._take("metrics", [(metric.key, metric.value, metric.step) for metric in metrics])
        if params:
            self._take("params", {param.key: param.value for param in params})
            self.there |= {param.key: param.value for param in params}
        if tags:
            self._take("tags", {tag.key: tag.value for tag in tags})

    def log_artifact(self, _run_id: str, local: str, folder: str | None) -> None:
        self._take("artifact", (folder, Path(local).name, Path(local).read_text()))

    def log_inputs(self, _run_id: str, inputs: Sequence[Any]) -> None:
        self._take("inputs", [(each.dataset.name, each.dataset.digest) for each in inputs])

    def set_tag(self, _run_id: str, name: str, value: str) -> None:
        self._take("tag", (name, value))

    def set_terminated(self, _run_id: str, status: str, _time: int | None = None) -> None:
        self._take("end", status)


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def store(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store(URI, client, "7")
    monkeypatch.setattr(tracking, "connect", lambda: store)
    monkeypatch.setattr(tracking, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(tracking, "WAIT_FACTOR", 0.0)
    return store


@pytest.fixture
def run(store: Store, tmp_path: Path) -> TrackedRun:
    return TrackedRun(store, "r1", tmp_path / "outputs" / "r1")


def spool(run: TrackedRun) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / SPOOL).read_text().splitlines()]


def test_params_that_are_there_stay_as_they_are(run: TrackedRun, client: FakeClient) -> None:
    client.there = {"optim.lr": "'1e-3'"}
    run.log_params({"optim.lr": 0.001, "train.epochs": 3})
    assert client.told == [("params", {"train.epochs": "3"})]


def test_params_are_written_as_yaml_reads_them_and_cut_at_mlflows_limit(run: TrackedRun, client: FakeClient) -> None:
    run.log_params({"a": None, "b": True, "c": [1, "x"], "d": {"e": 1}, "f": "text", "g": 1e-05, "h": "x" * 7000})
    [(_, params)] = client.told
    assert params.pop("h") == "x" * 6000
    assert params == {"a": "null", "b": "true", "c": '[1, "x"]', "d": '{"e": 1}', "f": "text", "g": "1e-05"}


def test_more_params_than_a_batch_may_hold_go_in_several(run: TrackedRun, client: FakeClient) -> None:
    run.log_params({f"p{k}": k for k in range(250)})
    assert [len(params) for _, params in client.told] == [100, 100, 50]


def test_the_metrics_of_a_step_go_in_one_request(run: TrackedRun, client: FakeClient) -> None:
    run.log_metrics({"train/loss": 0.5, "val/acc": 1}, step=3)
    assert client.told == [("metrics", [("train/loss", 0.5, 3), ("val/acc", 1.0, 3)])]


def test_an_artifact_keeps_its_folder(run: TrackedRun, client: FakeClient) -> None:
    run.log_text("a", "recipe.yaml")
    run.log_text("b", "tables/deep/x.csv")
    assert client.told == [("artifact", (None, "recipe.yaml", "a")), ("artifact", ("tables/deep", "x.csv", "b"))]


def test_a_finished_run_leaves_no_folder(run: TrackedRun, client: FakeClient) -> None:
    run.log_text("a", "a.txt")
    assert run.finish("FINISHED")
    assert client.told[-1] == ("end", "FINISHED")
    assert not run.folder.parent.exists()


def test_the_folder_of_another_run_stays(run: TrackedRun, store: Store) -> None:
    other = TrackedRun(store, "r2", run.folder.parent / "r2")
    assert run.finish("FINISHED")
    assert other.folder.is_dir()


@pytest.mark.parametrize(("status", "tag"), [("FAILED", "imgcls.error"), ("KILLED", "imgcls.stopped_by")])
def test_the_reason_of_an_early_end_is_a_tag(run: TrackedRun, client: FakeClient, status: Any, tag: str) -> None:
    assert run.finish(status, "why")
    assert client.told == [("tags", {tag: "why"}), ("end", status)]


def test_an_outage_does_not_raise_and_says_so_once(
    run: TrackedRun, client: FakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    client.fails = lambda _call: True
    run.log_metrics({"a": 1})
    run.log_metrics({"a": 2}, step=1)
    assert run.num_unsent == 2
    assert capsys.readouterr().err == (
        f"imgcls: the tracking store {URI} does not take what it is sent (metrics refused); going on, and keeping it "
        f"in {run.folder}\n"
    )


def test_what_waited_is_sent_in_order_when_the_server_answers_again(
    run: TrackedRun, client: FakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    run.log_metrics({"a": 0})
    client.fails = lambda _call: True
    run.log_metrics({"a": 1}, step=1)
    run.log_text("text", "a.txt")
    run.set_tags({"t": "v"})
    client.fails = lambda _call: False
    run.log_metrics({"a": 2}, step=2)
    assert [call for call, _ in client.told] == ["metrics", "metrics", "artifact", "tags", "metrics"]
    assert [what[0][2] for call, what in client.told if call == "metrics"] == [0, 1, 2]
    assert run.num_unsent == 0
    assert not (run.folder / SPOOL).exists()
    assert capsys.readouterr().err.endswith(f"imgcls: {URI} answers again; all that waited was sent\n")


def test_a_second_outage_while_resending_loses_and_swaps_nothing(run: TrackedRun, client: FakeClient) -> None:
    client.fails = lambda _call: True
    for step in range(5):
        run.log_metrics({"a": step}, step=step)
    client.fails = lambda _call: len(client.told) >= 2
    run.log_metrics({"a": 5}, step=5)
    assert run.num_unsent == 4
    assert [row["metrics"][0][3] for row in spool(run)[1:]] == [2, 3, 4, 5]
    client.fails = lambda _call: False
    assert run.finish("FINISHED")
    steps = [what[0][2] for call, what in client.told if call == "metrics"]
    assert steps == [0, 1, 2, 3, 4, 5]
    assert client.told[-1] == ("end", "FINISHED")


def test_what_waits_is_on_disk_at_every_moment(run: TrackedRun, client: FakeClient) -> None:
    client.fails = lambda _call: True
    run.log_metrics({"a": 1}, step=1)
    about = {"uri": URI, "run_id": "r1", "pid": os.getpid(), "host": socket.gethostname()}
    assert spool(run)[0] == {**about, "started": psutil.Process().create_time()}
    assert [row["op"] for row in spool(run)[1:]] == ["metrics"]
    run.log_text("text", "notes/a.txt")
    assert [row["op"] for row in spool(run)[1:]] == ["metrics", "artifact"]
    assert not run.finish("FINISHED")
    assert [row["op"] for row in spool(run)[1:]] == ["metrics", "artifact", "end"]
    assert (run.folder / "artifacts/notes/a.txt").read_text() == "text"


def test_upload_sends_what_an_ended_job_left_and_removes_the_folder(run: TrackedRun, client: FakeClient) -> None:
    client.fails = lambda _call: True
    run.log_metrics({"a": 1}, step=1)
    run.log_text("text", "notes/a.txt")
    assert not run.finish("FINISHED")
    client.fails = lambda _call: False
    assert upload(run.folder) == ("r1", 3)
    assert client.told == [
        ("metrics", [("a", 1.0, 1)]),
        ("artifact", ("notes", "a.txt", "text")),
        ("end", "FINISHED"),
    ]
    assert not run.folder.exists()


def test_an_upload_that_breaks_off_keeps_the_rest(run: TrackedRun, client: FakeClient) -> None:
    client.fails = lambda _call: True
    run.log_metrics({"a": 1}, step=1)
    run.log_text("text", "a.txt")
    assert not run.finish("FINISHED")
    client.fails = lambda call: call == "artifact"
    with pytest.raises(UserError, match=r"took 1 of 3 writes, then: artifact refused.*run the command again"):
        upload(run.folder)
    assert [row["op"] for row in spool(run)[1:]] == ["artifact", "end"]
    client.fails = lambda _call: False
    assert upload(run.folder) == ("r1", 2)
    assert [call for call, _ in client.told] == ["metrics", "artifact", "end"]


def test_upload_marks_the_run_of_a_job_that_was_killed(run: TrackedRun, client: FakeClient) -> None:
    client.fails = lambda _call: True
    run.log_metrics({"a": 1}, step=1)
    client.fails = lambda _call: False
    upload(run.folder)
    assert [call for call, _ in client.told] == ["metrics", "tags", "end"]
    assert client.told[-1] == ("end", "KILLED")


def test_upload_of_one_that_joined_a_sweep_does_not_end_the_run_of_the_process_that_leads_it(
    run: TrackedRun, client: FakeClient, tmp_path: Path
) -> None:
    joined = TrackedRun(run.store, run.run_id, tmp_path / f"{run.run_id}-4711")
    client.fails = lambda _call: True
    joined.log_metrics({"a": 1}, step=1)
    client.fails = lambda _call: False
    assert upload(joined.folder) == ("r1", 1)
    assert [call for call, _ in client.told] == ["metrics"]


def test_upload_leaves_a_job_that_is_still_running_alone(run: TrackedRun, client: FakeClient) -> None:
    client.fails = lambda _call: True
    run.log_metrics({"a": 1}, step=1)
    path = run.folder / SPOOL
    about, *rest = spool(run)
    parent = {"pid": os.getppid(), "started": psutil.Process(os.getppid()).create_time()}
    path.write_text("\n".join(json.dumps(line) for line in [{**about, **parent}, *rest]))
    with pytest.raises(UserError, match=f"is still running .process {os.getppid()}."):
        upload(run.folder)
    assert path.exists()
    client.fails = lambda _call: False
    path.write_text("\n".join(json.dumps(line) for line in [{**about, **parent, "started": 1.0}, *rest]))
    assert upload(run.folder)[0] == "r1"  # another process has got the number since


def test_a_full_disk_keeps_the_writes_in_memory_and_says_so_where_they_are_lost(
    run: TrackedRun, client: FakeClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tracking, "_save_spool", full)
    client.fails = lambda _call: True
    run.log_metrics({"a": 1}, step=1)
    assert run.num_unsent == 1
    assert not run.finish("FINISHED")
    assert "2 writes are lost" in capsys.readouterr().err
    assert run.lost


@pytest.mark.parametrize("content", [None, "", "no json\n"])
def test_upload_of_another_folder_is_an_error_that_says_what_it_expects(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / SPOOL).write_text(content)
    with pytest.raises(UserError, match=r"holds nothing to upload.*Expected the folder named at the end of a run"):
        upload(tmp_path)


def test_a_server_that_hangs_is_not_asked_again_soon(
    run: TrackedRun, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "WAIT_FACTOR", 1000.0)
    tries = []

    def hang(call: str) -> bool:
        tries.append(call)
        time.sleep(0.05)
        return True

    client.fails = hang
    for step in range(20):
        run.log_metrics({"a": step}, step=step)
    assert len(tries) == 1
    assert run.num_unsent == 20


def test_finish_gives_a_server_that_comes_back_its_time(
    run: TrackedRun, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "GRACE_SECONDS", 20.0)
    monkeypatch.setattr(tracking, "WAIT_FACTOR", 1000.0)
    refusals = iter([True] * 2)
    client.fails = lambda _call: next(refusals, False)
    run.log_metrics({"a": 1})
    assert run.finish("FINISHED")
    assert [call for call, _ in client.told] == ["metrics", "end"]


def test_nothing_is_written_after_the_end(run: TrackedRun, client: FakeClient) -> None:
    assert run.finish("KILLED", "stopped by SIGTERM")
    told = list(client.told)
    client.fails = lambda _call: True
    run.log_metrics({"system/cpu": 1})
    assert client.told == told
    assert not run.folder.exists()


def test_writes_of_several_threads_are_all_kept(run: TrackedRun, client: FakeClient) -> None:
    client.fails = lambda _call: len(client.told) % 3 == 1  # once it fails it fails until the end

    def write() -> None:
        for step in range(25):
            run.log_metrics({"a": step}, step=step)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.fails = lambda _call: False
    assert run.finish("FINISHED")
    steps = sorted(what[0][2] for call, what in client.told if call == "metrics")
    assert steps == sorted([*range(25)] * 4)


def test_start_makes_a_run_with_its_tags_in_a_folder_that_is_absolute(store: Store, client: FakeClient) -> None:
    run = start(Path("outputs"), name="a", tags={"imgcls.verb": "train"})
    (call, (experiment_id, tags)), *rest = client.told
    assert (call, experiment_id, run.run_id, run.store) == ("create_run", "7", "made", store)
    assert tags["imgcls.verb"] == "train"
    assert tags["mlflow.runName"] == "a"
    assert "mlflow.user" in tags
    [(call, tags)] = rest
    assert (call, tags["imgcls.verb"]) == ("tags", "train")
    assert json.loads(tags[OWNER_TAG]) == {**this_process(), "folder": str(Path.cwd() / "outputs" / "made")}
    assert run.folder == Path.cwd() / "outputs" / "made"


@pytest.mark.usefixtures("store")
def test_start_attaches_once_to_the_run_of_mlflow_run(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "theirs")
    assert start(Path("outputs"), name="a", tags={"imgcls.verb": "train"}).run_id == "theirs"
    assert [call for call, _ in client.told] == ["tags"]
    assert start(Path("outputs"), name="a", tags={}).run_id == "made"


@pytest.mark.usefixtures("store")
def test_a_store_that_takes_no_run_is_a_users_error(client: FakeClient) -> None:
    client.fails = lambda _call: True
    with pytest.raises(UserError, match=f"the tracking store {URI} takes no new run: create_run refused"):
        start(Path("outputs"), name="a", tags={})
    assert not Path("outputs").exists()


@pytest.mark.usefixtures("store")
def test_an_output_folder_that_cannot_be_written_makes_no_run(
    client: FakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLFLOW_RUN_ID", "theirs")
    with pytest.raises(UserError, match=r"train.output_dir .*file/outputs' cannot be written"):
        start(tmp_path / "file" / "outputs", name="a", tags={})
    assert client.told == []
    assert os.environ["MLFLOW_RUN_ID"] == "theirs", "fail_attached_run needs it"


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(("status", "tag"), [("FAILED", "imgcls.error"), ("KILLED", "imgcls.stopped_by")])
def test_the_run_of_mlflow_run_is_closed_when_the_job_does_not_begin(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch, status: Any, tag: str
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "theirs")
    fail_attached_run("why", status=status)
    assert client.told == [("tag", (tag, "why")), ("end", status)]
    fail_attached_run("again")
    assert len(client.told) == 2


@pytest.mark.usefixtures("store")
def test_closing_the_run_of_mlflow_run_never_hides_the_error(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "theirs")
    client.fails = lambda _call: True
    fail_attached_run("why")


def test_system_metrics_can_be_switched_off(
    run: TrackedRun, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    with tracking.system_metrics(run):
        pass
    assert client.told == []


def test_system_metrics_are_sampled_and_once_more_at_the_end(
    run: TrackedRun, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    with tracking.system_metrics(run):
        deadline = time.monotonic() + 30
        while len(client.told) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        before = len(client.told)
    assert len(client.told) > before
    names = {name for _, rows in client.told for name, _, _ in rows}
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= names
    steps = [rows[0][2] for _, rows in client.told]
    assert steps == list(range(len(steps)))


def test_system_metrics_wait_like_all_else_in_an_outage(
    run: TrackedRun, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "60")
    client.fails = lambda _call: True
    with tracking.system_metrics(run):
        pass
    assert run.num_unsent == 1
    client.fails = lambda _call: False
    assert run.finish("FINISHED")
    assert [call for call, _ in client.told] == ["metrics", "end"]
