"""The verb `data check`, in this process."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from imgcls.cli import main
from imgcls.errors import UserError
from imgcls.jobs import data_check as job
from imgcls.jobs.console import Console
from imgcls.jobs.data_check import CheckResult, run_check
from imgcls.jobs.signals import Signals, Stopped
from imgcls.recipe import resolve
from imgcls.tracking.store import connect
from tests.conftest import MakeFolder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),  # MLflow's own
]


@pytest.fixture(autouse=True)
def _store(folder_of_the_store: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.chdir(folder_of_the_store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder_of_the_store}/runs.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)


@pytest.fixture
def photos(make_folder: MakeFolder) -> Path:
    """Three classes of eighteen images, a copy under another label, and one that was resized."""
    root = make_folder(classes=3, images=18, size=(60, 50))
    shutil.copy(root / "class0/1.png", root / "class1/copy.png")
    with Image.open(root / "class2/1.png") as image:
        image.resize((60, 50)).save(root / "class2/again.jpg", quality=95)
    return root


def runs() -> list[Any]:
    store = connect()
    return [store.client.get_run(run.info.run_id) for run in store.client.search_runs([store.experiment_id])]


def artifacts(run_id: str, folder: str | None = None) -> set[str]:
    found: set[str] = set()
    for item in connect().client.list_artifacts(run_id, folder):
        found |= artifacts(run_id, item.path) if item.is_dir else {item.path}
    return found


def checked(root: Path, overrides: dict[str, Any] | None = None, **options: Any) -> CheckResult:
    resolved = resolve(None, {"data.root": str(root), **(overrides or {})})
    return run_check(resolved, Console(), Signals(), **options)


def test_a_check_is_a_finished_run_with_its_report_tables_and_figures(photos: Path, tmp_path: Path) -> None:
    result = checked(photos, full=True)
    [run] = runs()
    assert (run.info.run_id, run.info.status) == (result.run_id, "FINISHED")
    assert run.data.tags["imgcls.verb"] == "data_check"
    assert run.data.tags["imgcls.check"] == "full"
    assert run.data.tags["imgcls.data_digest"] == result.report.manifest.digest
    assert run.data.params["data.root"] == str(photos)
    [data] = run.inputs.dataset_inputs
    assert data.dataset.digest == result.report.manifest.digest
    expected = {"images": 56, "classes": 3, "contradictory": 1, "duplicates": 1, "near_duplicates": 1, "unreadable": 0}
    assert {name: run.data.metrics[f"data/{name}"] for name in expected} == expected
    assert run.data.metrics["data/imbalance"] == pytest.approx(13 / 12)
    assert artifacts(run.info.run_id) == {
        "report.json", "tables/findings.csv", "tables/classes.csv", "tables/images.csv", "tables/duplicates.csv",
        "tables/near_duplicates.csv", "plots/classes.png", "plots/samples.png", "plots/sizes.png",
        "plots/duplicates.png", "plots/near_duplicates.png",
    }  # fmt: skip
    client = connect().client
    report = json.loads(Path(client.download_artifacts(run.info.run_id, "report.json", str(tmp_path))).read_text())
    assert report == json.loads(json.dumps(result.report.to_dict()))
    assert len(pd.read_csv(client.download_artifacts(run.info.run_id, "tables/images.csv", str(tmp_path)))) == 56
    assert not (Path.cwd() / "outputs").exists()


def test_a_quick_check_has_no_figures_of_what_it_did_not_look_for(photos: Path) -> None:
    result = checked(photos)
    [run] = runs()
    assert run.data.tags["imgcls.check"] == "quick"
    assert result.run_id is not None
    assert not {name for name in artifacts(result.run_id) if "near" in name}
    assert not {name for name in run.data.metrics if "near" in name or "mean" in name}


def test_the_recipe_can_ask_for_a_full_check(photos: Path) -> None:
    assert checked(photos, {"data.check": "full"}, tracked=False).report.depth == "full"
    assert checked(photos, {"data.check": "off"}, tracked=False).report.depth == "quick"


def test_without_a_run_there_is_none(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = checked(photos, tracked=False)
    assert (result.run_id, result.unsent, runs()) == (None, None, [])
    out = capsys.readouterr().out
    assert out.startswith(f"{photos}: a quick check")
    assert out.endswith("0 errors, 1 warning, 2 notes\n") or out.endswith("0 errors, 1 warning, 1 note\n")


def test_unreadable_images_refuse_unless_they_are_skipped(photos: Path) -> None:
    (photos / "class0/2.png").write_bytes(b"")
    assert checked(photos, tracked=False).refuses
    assert not checked(photos, {"data.on_bad_image": "skip"}, tracked=False).refuses


def test_images_that_a_quick_check_takes_for_good_are_left_out_of_the_figures(photos: Path) -> None:
    for number in range(10):
        path = photos / "class0" / f"{number}.png"
        path.write_bytes(path.read_bytes()[:-700])
    assert checked(photos).run_id is not None
    assert [run.info.status for run in runs()] == ["FINISHED"]


def test_of_many_classes_the_largest_the_smallest_and_some_between_are_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imgcls.evaluation.plots.data.MOST_SAMPLED_CLASSES", 3)
    for label in range(7):
        (tmp_path / "many" / f"c{label}").mkdir(parents=True)
        for number in range(label + 1):
            Image.new("RGB", (8, 8), (30 * label, 20 * number, 0)).save(tmp_path / f"many/c{label}/{number}.png")
    report = checked(tmp_path / "many", tracked=False).report
    classes, samples = job._samples(report, 3)
    assert classes == ["c6", "c3", "c0"]
    assert [len(images) for images in samples] == [job.SAMPLES, 4, 1]
    assert [image.shape for images in samples for image in images] == [(8, 8, 3)] * 11


def test_pairs_that_contradict_stand_first(photos: Path) -> None:
    shutil.copy(photos / "class0/0.png", photos / "class0/same.png")
    report = checked(photos, tracked=False).report
    [(file, _, pairs, count)] = job._pairs_to_show(report)
    assert (file, count) == ("duplicates", 2)
    ids = report.manifest.ids
    assert [(ids[a], ids[b]) for a, b in pairs] == [
        ("class0/1.png", "class1/copy.png"),
        ("class0/0.png", "class0/same.png"),
    ]


def test_what_goes_wrong_in_the_run_fails_it(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_draw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        checked(photos)
    [run] = runs()
    assert run.info.status == "FAILED"
    assert run.data.tags["imgcls.error"] == "ZeroDivisionError: division by zero"


def test_a_stop_kills_the_run(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise Stopped(15)

    monkeypatch.setattr(job, "_draw", stop)
    with pytest.raises(Stopped):
        checked(photos)
    [run] = runs()
    assert (run.info.status, run.data.tags["imgcls.stopped_by"]) == ("KILLED", "stopped by SIGTERM")


def test_a_file_that_cannot_be_written_is_an_error_before_there_is_a_run(photos: Path) -> None:
    with pytest.raises(UserError, match=r"--json .*/nowhere/x\.json cannot be written: No such file"):
        checked(photos, json_to=str(photos / "nowhere" / "x.json"))
    assert runs() == []


def program(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["imgcls", "data", "check", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_the_command_takes_its_options_anywhere_and_prints_nothing_but_json_where_that_is_asked_for(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert program(monkeypatch, "--json", "-", "--data.root", str(photos), "--full", "--no-run") == 0
    printed = capsys.readouterr()
    assert (json.loads(printed.out)["depth"], printed.err) == ("full", "")
    assert program(monkeypatch, "folder", "--no-run", f"--data.root={photos}", "--json", str(tmp_path / "x.json")) == 0
    assert capsys.readouterr().out.startswith(f"{photos}: a quick check")
    assert json.loads((tmp_path / "x.json").read_text())["images"] == 56


def test_the_command_ends_with_1_where_a_training_would_be_refused(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "class0/2.png").write_bytes(b"")
    assert program(monkeypatch, "--data.root", str(photos)) == 1
    assert "class0/2.png: the file is empty" in capsys.readouterr().out
    assert [run.info.status for run in runs()] == ["FINISHED"]
    assert program(monkeypatch, "--data.root", str(photos), "--data.on_bad_image", "skip") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.root", "nowhere"], "does not exist"),
        (["--data.chek", "full"], "Did you mean 'data.check'?"),
        (["--fulll"], "unknown option --fulll"),
        (["--data.check", "deep"], "expected 'off', 'quick' or 'full'"),
    ],
)
def test_a_mistake_ends_with_2(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program(monkeypatch, *words) == 2
    assert message in capsys.readouterr().err
    assert runs() == []
