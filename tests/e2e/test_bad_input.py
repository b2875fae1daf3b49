"""What bad input gets: one paragraph on stderr, exit code 2, no traceback, and nothing left behind."""

import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from imgcls.cli import main
from tests.conftest import MakeFolder
from tests.e2e.conftest import Runs

Refuse = Callable[..., str]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),  # MLflow's own
]


@pytest.fixture
def database(store: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An MLflow database of the test's own with no runs, set as the tracking store; making one anew takes seconds."""
    path = tmp_path / "tracked.db"
    with closing(sqlite3.connect(store.uri.removeprefix("sqlite:///"))) as made, closing(sqlite3.connect(path)) as copy:
        made.backup(copy)
        copy.execute("delete from runs")
        copy.commit()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    return path


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Refuse:
    """Runs imgcls with the words, checks that it refuses them as it should, and gives the message."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new.db"))

    def run(*words: str) -> str:
        before = files(tmp_path)
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["imgcls", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        message = checked(ended.value.code, capfd.readouterr().err)
        assert {name for name in files(tmp_path) - before if not name.startswith("new.db")} == set()
        assert num_runs(tmp_path / "new.db") == num_runs(tmp_path / "tracked.db") == 0
        return message

    return run


def checked(code: object, stderr: str) -> str:
    """The message of a refusal, after a look at its form."""
    assert code == 2
    assert stderr.startswith("imgcls: error: ")
    assert stderr.count("imgcls: error: ") == 1
    assert stderr.endswith(("\n", "."))
    assert "Traceback" not in stderr
    assert "\n\n" not in stderr.strip(), "one paragraph"
    return " ".join(stderr.removeprefix("imgcls: error: ").split())


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def num_runs(database: Path) -> int:
    """Runs of an MLflow database; none where there is no database."""
    if not database.exists():
        return 0
    with closing(sqlite3.connect(database)) as connection:
        tables = {name for (name,) in connection.execute("select name from sqlite_master")}
        return int(connection.execute("select count(*) from runs").fetchone()[0]) if "runs" in tables else 0


# --- the data


def test_a_missing_root_is_named_with_what_is_expected(refuse: Refuse, tmp_path: Path) -> None:
    message = refuse("train", "--data.root", "nowhere")
    assert message.startswith(
        f"data.root {tmp_path / 'nowhere'} does not exist; expected a folder with one sub-folder a"
    )
    assert "Give an existing folder" in message


def test_an_empty_root_is_told_what_was_expected_in_it(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    message = refuse("train", "--data.root", "photos")
    assert f"data.root {tmp_path / 'photos'} holds no images: expected sub-folders, one a class" in message
    assert ".jpg" in message


def test_a_root_with_other_files_is_told_what_was_found_instead(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "notes.txt").write_text("x")
    Image.new("RGB", (9, 9)).save(tmp_path / "photos" / "a.png")
    message = refuse("train", "--data.root", "photos")
    assert "holds no images" in message
    assert "notes.txt (not an image)" in message
    assert "a.png (image outside a class folder)" in message


def test_a_root_that_is_a_file_is_an_error(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "photos").write_text("x")
    assert f"data.root {tmp_path / 'photos'} is a file; expected a folder" in refuse("train", "--data.root", "photos")


def test_an_archive_that_is_hostile_or_cut_off_is_an_error(refuse: Refuse, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        file.writestr("../out.png", b"x")
    message = refuse("train", "--data.root", "photos.zip")
    assert "photos.zip has a member that would land outside of its folder, ../out.png" in message
    whole = (tmp_path / "photos.zip").read_bytes()
    (tmp_path / "photos.zip").write_bytes(whole[:-10])
    assert "begins like zip, but is no whole archive" in refuse("train", "--data.root", "photos.zip")


def test_a_parquet_file_without_the_columns_is_an_error_that_lists_those_there_are(
    refuse: Refuse, tmp_path: Path
) -> None:
    pd.DataFrame({"picture": [b"x"], "label": [0]}).to_parquet(tmp_path / "train.parquet")
    message = refuse("train", "--data.parquet", "train.parquet")
    assert f"data.parquet {tmp_path}/train.parquet has the columns picture, label; expected an image column" in message


def test_a_root_without_a_name_is_not_the_current_folder(refuse: Refuse, make_folder: MakeFolder) -> None:
    make_folder(name=".")
    assert "data.root" in refuse("train", "--data.root", "")
    cheap = ("--train.epochs", "1", "--augment.image_size", "16", "--model.family", "plaincnn")  # should it train
    assert "data.root" in refuse("train", "--data.root", "''", *cheap)


def test_a_home_that_is_not_there_is_an_error(refuse: Refuse) -> None:
    assert "data.root" in refuse("train", "--data.root", "~nobody-of-this-name/photos")


def test_one_class_only_is_an_error(refuse: Refuse, make_folder: MakeFolder) -> None:
    message = refuse("train", "--data.root", str(make_folder(classes=1)))
    assert "one class only ('class0')" in message
    assert "needs at least two" in message
    assert "is data.root a level too deep?" in message


def test_a_class_with_fewer_images_than_splits_is_named(refuse: Refuse, make_folder: MakeFolder) -> None:
    root = make_folder(classes=3, images=5)
    for number in (2, 3, 4):
        (root / "class1" / f"{number}.png").unlink()
    message = refuse("train", "--data.root", str(root))
    assert "the class 'class1' has 2 different images" in message
    assert "train, test, val need at least 3" in message
    assert "Add images, leave the class out (data.classes), set data.test_fraction to 0, or set " in message
    assert "data.tiny_classes to train: then they go to train first, then val, then test." in message


def test_copies_of_one_image_count_once(refuse: Refuse, make_folder: MakeFolder) -> None:
    root = make_folder(classes=2, images=4)
    for number in (1, 2, 3):
        shutil.copy(root / "class0" / "0.png", root / "class0" / f"{number}.png")
    assert "the class 'class0' has 1 different image" in refuse("train", "--data.root", str(root))


def test_a_class_folder_without_images_is_named(refuse: Refuse, make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "empty").mkdir()
    message = refuse("train", "--data.root", str(root))
    assert f"the class folder {root / 'empty'} holds no images" in message
    assert "Add images or remove the folder" in message


@pytest.mark.parametrize("content", [b"", b"these are words", None], ids=["empty", "words", "truncated"])
@pytest.mark.parametrize("size", ["auto", "16"])
def test_an_unreadable_image_is_named_with_the_reason(
    content: bytes | None, size: str, refuse: Refuse, make_folder: MakeFolder
) -> None:
    root = make_folder(ending="jpg", size=(64, 64))
    path = root / "class1" / "3.jpg"
    path.write_bytes(path.read_bytes()[:400] if content is None else content)
    message = refuse("train", "--data.root", str(root), "--augment.image_size", size, "--model.family", "plaincnn")
    assert f"cannot read the image {path}: " in message
    assert "Mend or remove the file" in message


def test_several_unreadable_images_are_named_together(refuse: Refuse, make_folder: MakeFolder) -> None:
    root = make_folder()
    broken = [root / f"class{label}" / "0.png" for label in range(3)]
    for number, path in enumerate(broken):
        path.write_bytes(b"no image %d" % number)
    message = refuse("train", "--data.root", str(root), "--augment.image_size", "32")
    assert [path for path in broken if str(path) not in message] == []


def test_fractions_that_leave_nothing_to_train_on_are_an_error(refuse: Refuse) -> None:
    message = refuse("train", "--data.val_fraction", "0.5", "--data.test_fraction", "0.5")
    assert "leave nothing to train on; their sum must be below 1" in message


# --- the recipe


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["digits", "--optim.lrr", "1"], ["unknown field 'optim.lrr'", "fields of optim", "Did you mean 'optim.lr'?"]),
        (["--optin.lr", "1"], ["unknown section 'optin'", "known: data,", "Did you mean 'optim'?"]),
        (["--optim.lr", "-1"], ["optim.lr: found -1, expected greater than 0."]),
        (["--optim.lr", "fast"], ["optim.lr: found 'fast', expected a valid number."]),
        (["--train.device", "gpu0"], ["train.device: found 'gpu0', expected 'auto', 'cpu' or 'cuda'."]),
        (["--train.epochs", "[1"], ["train.epochs: found '[1', which is no YAML value", "Put it in quotes."]),
        (["folder"], ["data.root is missing", "Give it with --data.root VALUE."]),
        (["digts"], ["there is no recipe 'digts'", "digits, folder", "Did you mean 'digits'?"]),
        (["no/such.yaml"], ["there is no recipe 'no/such.yaml'", "no such file", "the built-in recipes are"]),
        (["words.yaml"], ["the recipe words.yaml is not made of sections; expected lines like"]),
        (["broken.yaml"], ["the recipe broken.yaml is no YAML", "line 2"]),
        (["binary.yaml"], ["the recipe binary.yaml cannot be read", "utf-8"]),
        (["digits", "folder"], ["found two recipes, 'digits' and 'folder'; expected one."]),
        (["--epochs", "3"], ["unknown option --epochs; expected --section.field VALUE"]),
        (["--optim.lr"], ["--optim.lr has no value; expected --optim.lr VALUE."]),
        (["--optim.lr=1", "--optim.lr=2"], ["--optim.lr is given twice: '1' and '2'. Give it once."]),
        (["--model.family", "resnet18"], ["augment.image_size 16 is too small", "at least 32", "Enlarge"]),
        (["--model.family", "vgg"], ["model.family: unknown model family 'vgg'; known: convnext_{"]),
        (["--train.plan.precision", "fp16", "--train.device", "cpu"], ["train.plan.precision is fp16, which needs"]),
        (["--train.plan.threads", "0"], ["train.plan.threads: found 0, expected auto or a number from 1 to 4096."]),
        (["--train.plan.layout", "nhcw"], ["found 'nhcw', expected 'auto', 'nchw' or 'nhwc'.", "Did you mean 'nhwc'?"]),
        (
            ["--train.plan.presision", "bf16"],
            ["unknown field 'train.plan.presision'; fields of train.plan: ", "Did you mean 'train.plan.precision'?"],
        ),
        (["--train.plan", "fast"], ["train.plan: found 'fast', expected auto, or values of some of precision, layout"]),
    ],
    ids=lambda value: "_".join(value) if value and " " not in value[0] else "",
)
def test_a_recipe_that_does_not_fit_is_refused(
    words: list[str], expected: list[str], refuse: Refuse, tmp_path: Path
) -> None:
    (tmp_path / "words.yaml").write_text("only words\n")
    (tmp_path / "broken.yaml").write_text("optim:\n  lr: [1\n")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\x00\xfe")
    message = refuse("train", *words)
    assert [part for part in expected if part not in message] == []


@pytest.mark.parametrize("verb", [["show"], ["diff", "digits"]])
def test_the_verbs_of_recipes_refuse_in_the_same_way(verb: list[str], refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("optim: {lr: -1, lrr: 2}\n")
    message = refuse("recipe", *verb, "mine.yaml")
    assert message.startswith("recipe mine.yaml: ")
    assert "optim.lr: found -1, expected greater than 0." in message
    assert "unknown field 'optim.lrr'" in message


# --- the machine


def test_cuda_where_there_is_none_is_an_error(refuse: Refuse) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    message = refuse("train", "--train.device", "cuda")
    assert "train.device is cuda, but torch" in message
    assert "finds no CUDA device" in message
    assert "Set train.device to auto or cpu" in message


@pytest.mark.parametrize("place", ["file", "file/outputs", "/proc/nowhere/outputs", "a" * 300])
def test_an_output_folder_that_cannot_be_written_is_named(
    place: str, refuse: Refuse, database: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    message = refuse("train", "--train.output_dir", place)
    assert f"train.output_dir {place!r} cannot be written: " in message
    assert "Expected a folder for checkpoints; mend its permissions or set train.output_dir to another" in message
    assert num_runs(database) == 0


# --- the tracking store


def test_a_tracking_server_that_does_not_answer_is_named(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    message = refuse("train")
    assert message.startswith(f"the tracking server {uri} does not answer: ")
    assert "refused" in message
    assert "Start it (mlflow server), mend the address in MLFLOW_TRACKING_URI, or unset that" in message


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///{folder}/file/mlflow.db",
        "sqlite:///{folder}/file",
        "what://ever",
        pytest.param("sqlite:///{folder}", marks=pytest.mark.slow),  # MLflow itself tries for 100 s
    ],
)
def test_a_tracking_store_that_cannot_be_used_is_named(
    uri: str, refuse: Refuse, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no database")
    uri = uri.format(folder=tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    message = refuse("train")
    assert message.startswith(f"the tracking store {uri} cannot be used: ")
    assert "Expected an MLflow server's address or a database that can be written" in message
    assert "set MLFLOW_TRACKING_URI to another" in message


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("name", ["MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"])
def test_an_experiment_or_a_run_that_is_not_there_is_named(
    name: str, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "987654321")
    message = refuse("train")
    assert "987654321" in message
    assert name in message


def test_a_deleted_experiment_is_named_with_the_way_to_restore_it(
    refuse: Refuse, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{database}")
    experiment = client.create_experiment("old")
    client.delete_experiment(experiment)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "old")
    message = refuse("train")
    assert "the experiment 'old' is deleted; restore it" in message
    assert f"-x {experiment}" in message


def test_a_deleted_default_experiment_leaves_no_folder_behind(refuse: Refuse, database: Path) -> None:
    import mlflow

    mlflow.MlflowClient(f"sqlite:///{database}").delete_experiment("0")
    message = refuse("train")
    assert "deleted" in message
    assert "MLFLOW_EXPERIMENT_NAME" in message


@pytest.mark.usefixtures("database")
def test_a_run_that_is_not_there_cannot_be_compared(refuse: Refuse) -> None:
    message = refuse("recipe", "diff", "digits", "0123456789abcdef" * 2)
    assert "is neither a file nor a run in sqlite:///" in message


def test_a_folder_with_nothing_to_upload_is_named(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()
    message = refuse("upload", "done")
    assert message.startswith("done holds nothing to upload: ")
    assert "Expected the folder named at the end of a run" in message


# --- beneath `mlflow run`


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["digits", "--optim.lrr", "1"], "unknown field 'optim.lrr'"),
        (["digits", "--lr", "1"], "unknown option --lr"),
        (["--data.root", "nowhere"], "nowhere does not exist"),
        (["--train.output_dir", "file/outputs"], "cannot be written"),
    ],
)
def test_the_run_that_mlflow_run_made_is_failed_with_the_reason(
    words: list[str],
    reason: str,
    database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import mlflow

    (tmp_path / "file").write_text("x")
    client = mlflow.MlflowClient(f"sqlite:///{database}")
    run_id = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    monkeypatch.setattr(sys, "argv", ["imgcls", "train", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    message = checked(ended.value.code, capfd.readouterr().err)
    run = client.get_run(run_id)
    assert run.info.status == "FAILED"
    assert reason in message
    assert " ".join(run.data.tags["imgcls.error"].split()) == message
    assert num_runs(database) == 1
    assert not (tmp_path / "outputs").exists()


# --- the program itself


def program(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "imgcls", *words], capture_output=True, text=True, check=False)


def test_the_program_refuses_and_leaves_nothing(tmp_path: Path) -> None:
    done = program("train", "--data.root", "nowhere")
    assert "does not exist" in checked(done.returncode, done.stderr)
    assert done.stdout == ""
    assert files(tmp_path) == set()


def test_the_program_shows_a_traceback_with_debug() -> None:
    done = program("--debug", "train", "digts")
    assert done.returncode == 2
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert re.search(r"\nimgcls: error: there is no recipe 'digts'", done.stderr)


@pytest.mark.slow
def test_the_program_makes_no_run_where_its_output_folder_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    done = program("train", "--train.output_dir", "file/outputs")
    assert "cannot be written" in checked(done.returncode, done.stderr)
    assert num_runs(tmp_path / "mlflow.db") == 0
    assert files(tmp_path) <= {"file", "mlflow.db"}


def test_what_the_tests_call_a_half_made_run_is_found(database: Path) -> None:
    import mlflow

    assert num_runs(database) == 0
    client = mlflow.MlflowClient(f"sqlite:///{database}")
    client.set_terminated(client.create_run("0").info.run_id)
    assert num_runs(database) == 1
